"""Batches by the epoch: what each sampler promises, that it repeats, and how processes share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.samplers import MPerClassSampler

from distcam.errors import InputError
from distcam.training.data.samplers import (
    Sampler,
    SamplerSettings,
    balanced,
    make_sampler,
    pk,
    share_of_rank,
    shuffled,
)

LABELS = np.repeat([0, 1, 2, 3], [9, 2, 5, 4])
KINDS = ["shuffled", "balanced", "pk", "pk_full"]


def sampler(kind, labels=LABELS, **options):
    return make_sampler(SamplerSettings(kind, batch_size=6, per_class=3), torch.as_tensor(labels), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_repeats_and_differs_from_other_epochs_and_seeds(kind) -> None:
    one = sampler(kind, seed=3)
    listed = [batch.tolist() for batch in one.batches(5)]
    one.batches(0)
    assert [batch.tolist() for batch in one.batches(5)] == listed
    assert [batch.tolist() for batch in one.batches(6)] != listed
    assert [batch.tolist() for batch in sampler(kind, seed=4).batches(5)] != listed


@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_has_as_many_batches_as_announced(kind) -> None:
    one = sampler(kind)
    assert [len(one.batches(epoch)) for epoch in range(8)] == [one.steps_per_epoch] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_global_generators_are_left_alone(kind) -> None:
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    sampler(kind).batches(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.booleans())
def test_shuffled_gives_every_image_once(count, batch_size, drop_last) -> None:
    if drop_last and count < batch_size:
        return
    one = shuffled(count, batch_size=batch_size, drop_last=drop_last)
    batches = one.batches(0)
    seen = np.concatenate(batches)
    assert len(batches) == one.steps_per_epoch
    assert len(set(seen.tolist())) == len(seen) == (count // batch_size * batch_size if drop_last else count)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) > 1 or batch_size == 1 or count == 1


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    assert [len(batch) for batch in shuffled(9, batch_size=4).batches(0)] == [4, 5]
    assert [len(batch) for batch in shuffled(10, batch_size=4).batches(0)] == [4, 4, 2]


def test_balanced_epochs_show_classes_equally_often() -> None:
    seen = np.concatenate(balanced(LABELS, batch_size=6).batches(0))
    assert len(seen) == 20
    assert np.bincount(LABELS[seen]).tolist() == [5, 5, 5, 5]
    small = seen[LABELS[seen] == 1]
    assert sorted(np.bincount(small - 9).tolist()) == [2, 3]  # its two images take turns


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 15), min_size=3, max_size=8), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_pk_batches_show_p_classes_with_k_images(sizes, per_class, n_way, epoch) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for is_full in (False, True):
        one = pk(labels, batch_size=n_way * per_class, per_class=per_class, is_full=is_full)
        batches = one.batches(epoch)
        assert len(batches) == one.steps_per_epoch
        for batch in batches:
            count = np.bincount(labels[batch], minlength=len(sizes))
            assert sorted(count[count > 0].tolist()) == [per_class] * n_way
            for label in np.flatnonzero(count):
                own = batch[labels[batch] == label]
                assert len(set(own.tolist())) == min(per_class, sizes[label])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 15), min_size=2, max_size=8), st.integers(0, 9))
def test_full_pk_epochs_miss_no_image(sizes, epoch) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batches = pk(labels, batch_size=6, per_class=3, is_full=True).batches(epoch)
    assert set(np.concatenate(batches).tolist()) == set(range(len(labels)))


def test_pk_epochs_are_as_long_as_those_of_pytorch_metric_learning() -> None:
    labels = np.repeat(np.arange(5), 11)
    peer = MPerClassSampler(labels, m=4, batch_size=12, length_before_new_iter=len(labels))
    assert len(peer) == 12 * pk(labels, batch_size=12, per_class=4, is_full=False).steps_per_epoch
    theirs = np.array(list(peer)).reshape(-1, 12)
    assert all(sorted(np.unique(labels[batch], return_counts=True)[1].tolist()) == [4, 4, 4] for batch in theirs)


def test_processes_share_a_batch_equally_and_keep_classes_whole() -> None:
    both = make_sampler(SamplerSettings("pk", batch_size=6, per_class=3), torch.as_tensor(LABELS), world_size=2)
    for batch in both.batches(0):
        parts = [share_of_rank(batch, rank=rank, world_size=2) for rank in (0, 1)]
        assert np.concatenate(parts).tolist() == batch.tolist()
        assert all(len(np.unique(LABELS[part])) == 2 for part in parts)
    rest = [share_of_rank(np.arange(5), rank=rank, world_size=2).tolist() for rank in (0, 1)]
    assert rest == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_places_for_outlined_images_are_filled_in_turns(kind) -> None:
    settings = SamplerSettings(kind, batch_size=8, per_class=3, outlined=2)
    one = make_sampler(settings, torch.as_tensor(LABELS), outlined=torch.tensor([4, 4, 11, 17]), world_size=2)
    plain = make_sampler(SamplerSettings(kind, batch_size=6, per_class=3), torch.as_tensor(LABELS), world_size=2)
    assert one.steps_per_epoch == plain.steps_per_epoch
    kept = [batch[-4:] for batch in one.batches(3)]
    for batch, other in zip(one.batches(3), plain.batches(3), strict=True):
        assert batch[:-4].tolist() == other.tolist()
    count = np.bincount(np.concatenate(kept), minlength=len(LABELS))
    assert set(np.flatnonzero(count)) == {4, 11, 17}
    assert count[[4, 11, 17]].max() - count[[4, 11, 17]].min() <= 1
    assert [batch.tolist() for batch in one.batches(3)] == [batch.tolist() for batch in one.batches(3)]


def test_episodes_come_as_listed() -> None:
    one = Sampler(lambda epoch: [[epoch, 1], [2]], steps_per_epoch=2)
    assert [batch.tolist() for batch in one.batches(7)] == [[7, 1], [2]]
    with pytest.raises(InputError, match=r"expected 3 batches .* got 2 of the sizes \[1, 2\]"):
        Sampler(lambda epoch: [[epoch, 1], [2]], steps_per_epoch=3).batches(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pk(np.array([0, 0, 1]), batch_size=4, per_class=2, is_full=True), "there is one of class 1: leave"),
        (
            lambda: sampler("pk", [0, 0, 1, 2], class_names=("cat", "cow", "dog")),
            "there is one of classes 'cow', 'dog'",
        ),
        (lambda: sampler("balanced", [0, 0, 2], class_names=("cat", "cow", "dog")), "there are none of class 'cow'"),
        (lambda: pk(LABELS, batch_size=10, per_class=4, is_full=False), "4 images a class divide, got 10"),
        (lambda: pk(LABELS, batch_size=20, per_class=4, is_full=False), "shows 5 classes, but there are 4"),
        (lambda: pk(LABELS, batch_size=4, per_class=1, is_full=False), "got per_class = 1"),
        (lambda: sampler("pk", np.eye(4)), "need one class per image"),
        (lambda: SamplerSettings(batch_size=0), "batch_size: expected a whole number from 1 on, got 0"),
        (lambda: SamplerSettings(batch_size=4, outlined=4), "fewer outlined images than batch_size = 4, got 4"),
        (lambda: make_sampler(SamplerSettings(outlined=2), [0, 1]), "no image has any"),
        (lambda: shuffled(3, batch_size=4, drop_last=True), "expected 4 images or more, got 3"),
        (lambda: balanced(np.zeros(0, dtype=int), batch_size=4), "one image or more, got none"),
    ],
)
def test_what_does_not_fit_is_said(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_process_gets_a_stretch_of_the_batch() -> None:
    assert share_of_rank(np.arange(6), rank=1, world_size=2).tolist() == [3, 4, 5]
