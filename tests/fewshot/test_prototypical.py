"""Learning from episodes: batches that are episodes, the prototypical loss, and CAM-loss behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from distcam.encoders import Encoding
from distcam.errors import InputError
from distcam.fewshot.training import EpisodeSettings, PrototypicalTerm, training_episodes
from distcam.training import Batch, Objective, Step, TrainingProgress
from distcam.training.losses.cam_loss import CamLoss


def step_of(small_encoder, embedding: Tensor, labels: list[int], *, maps: Tensor | None = None) -> Step:
    """A step whose encoding is given."""
    n, d = embedding.shape
    maps = embedding[:, :, None, None].expand(n, d, 2, 2) if maps is None else maps
    batch = Batch(torch.zeros(n, 3, 8, 8), torch.tensor(labels), torch.arange(n))
    step = Step(small_encoder, batch, TrainingProgress(epoch=0, epochs=1, step=0))
    step.__dict__["encoding"] = Encoding(maps, embedding, embedding)
    return step


def test_the_loss_by_hand(small_encoder) -> None:
    # Two ways with one support image each, (0, 0) and (2, 0), and one query each, (1, 1) and (2, 1).
    embedding = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [2.0, 1.0]])
    step = step_of(small_encoder, embedding, [7, 7, 3, 3])
    value = PrototypicalTerm(2, 10, n_shot=1)(step)
    logits = torch.tensor([[-2.0, -2.0], [-5.0, -1.0]])  # minus squared distances
    torch.testing.assert_close(value, cross_entropy(logits, torch.tensor([0, 1])))
    assert step.log["accuracy"] == 0.5  # the tie of the first query is lost


def test_a_prototype_is_the_mean_of_its_support_and_the_cosine_has_a_learnt_scale(small_encoder) -> None:
    embedding = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0], [0.0, 2.0]])
    term = PrototypicalTerm(2, 2, n_shot=2, metric="cosine", scale=4.0)
    value = term(step_of(small_encoder, embedding, [0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(value, torch.tensor(np.log1p(np.exp(-4.0)), dtype=torch.float32))
    assert [name for name, p in term.named_parameters() if p.requires_grad] == ["log_scale"]
    assert not PrototypicalTerm(2, 2).log_scale.requires_grad
    torch.testing.assert_close(term.class_weights(), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(term.logits(torch.tensor([[1.0, 0.0]])), torch.tensor([[4.0, 0.0]]))


def test_cam_loss_follows_with_the_prototypes_as_class_weights(small_encoder) -> None:
    torch.manual_seed(0)
    maps = torch.rand(6, 64, 3, 3).requires_grad_()
    pooled = maps.mean((2, 3))
    objective = Objective(
        {"prototypical": PrototypicalTerm(64, 5), "cam_loss": CamLoss(start=0)}, {"prototypical": 0.0, "cam_loss": 1.0}
    )
    step = step_of(small_encoder, pooled, [4, 4, 4, 1, 1, 1], maps=maps)
    step.classifier = objective.classifier
    assert step.classifier is objective.terms["prototypical"]
    objective.terms["prototypical"](step)
    value = objective.terms["cam_loss"](step)
    caam = maps.sum(1)
    own = torch.einsum("bk,bkhw->bhw", pooled[[0, 0, 0, 3, 3, 3]], maps)

    def unit(each: Tensor) -> Tensor:
        low, high = each.amin((1, 2), keepdim=True), each.amax((1, 2), keepdim=True)
        return (each - low) / (high - low)

    torch.testing.assert_close(value, (unit(caam) - unit(own)).abs().mean())


@pytest.mark.parametrize(
    "labels", [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 3]], ids=["mixed", "one way", "uneven", "no query"]
)
def test_a_batch_that_is_no_episode_is_refused(small_encoder, labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"no episode.*\[episodes\]"):
        PrototypicalTerm(2, 4)(step_of(small_encoder, torch.rand(4, 2), labels))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(1, 2), st.integers(1, 2), st.integers(0, 99))
def test_every_batch_is_an_episode_and_the_same_whenever_it_is_asked_for(n: int, k: int, q: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 5))
    wanted = EpisodeSettings(n_way=n, n_shot=k, n_query=q, per_epoch=4)
    sampler = training_episodes(labels, wanted, seed=seed)
    batches = sampler.batches(3)
    assert len(batches) == sampler.steps_per_epoch == 4
    for batch in batches:
        ways = labels[batch].reshape(n, k + q)
        assert (ways == ways[:, :1]).all()
        assert len(np.unique(ways[:, 0])) == n
        assert len(np.unique(batch)) == len(batch)
    again = training_episodes(labels, wanted, seed=seed).batches(3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_episodes_that_the_classes_do_not_allow_are_refused() -> None:
    labels = np.repeat(np.arange(3), 4)
    with pytest.raises(InputError, match="needs as many classes, got 3"):
        training_episodes(labels, EpisodeSettings(n_way=4), seed=0)
    with pytest.raises(InputError, match=r"needs 6 images of a class \(1 \+ 5\), but class 0 has 4"):
        training_episodes(labels, EpisodeSettings(n_way=3), seed=0)
    with pytest.raises(InputError, match="expected n_way"):
        EpisodeSettings(n_way=1)
