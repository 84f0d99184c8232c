"""The generator of episodes: uniform, repeatable, and independent of everything but split and seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from distcam.errors import InputError, ShapeError
from distcam.fewshot import sample_episodes
from distcam.fewshot.sampling import _dirichlet_sizes, _distinct

LABELS = np.repeat([7, 30, 100, 2000], 20)  # not 0…3, and not in string order


def test_the_first_number_is_scaled_and_later_ones_skip_those_taken() -> None:
    unit = np.array([[0.5, 0.5, 0.5, 0.99]])  # of 0…7: 4; of 7 left the 3rd: 3; of 6 left [0 1 2 5 6 7] the 3rd: 5; 7
    assert _distinct(unit, np.array([8]), np.array([4])).tolist() == [[4, 3, 5, 7]]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.lists(st.integers(6, 40), min_size=1, max_size=8))
def test_draws_equal_popping_from_a_list(seed, sizes) -> None:
    unit = np.random.default_rng(seed).random((len(sizes), 6))
    needed = np.arange(len(sizes)) % 7
    got = _distinct(unit, np.array(sizes), needed)
    for row, n in enumerate(sizes):
        left = list(range(n))
        expected = [left.pop(int(u * len(left))) for u in unit[row, : needed[row]]]
        assert got[row].tolist() == expected + [0] * (6 - needed[row])


def test_every_ordered_choice_is_equally_likely() -> None:
    unit = np.random.default_rng(0).random((24_000, 2))
    picks = _distinct(unit, np.full(24_000, 4), np.full(24_000, 2))
    count = np.bincount(picks @ [4, 1], minlength=16).reshape(4, 4)
    assert (np.diag(count) == 0).all()
    assert chisquare(count[~np.eye(4, dtype=bool)]).pvalue > 0.001


def test_support_and_queries_are_spread_evenly_over_items_and_classes() -> None:
    episodes = sample_episodes(LABELS, n_way=2, n_query=3, n_episodes=6000)
    assert chisquare(np.bincount(episodes.support.ravel(), minlength=80)).pvalue > 0.001
    assert chisquare(np.bincount(episodes.query.ravel(), minlength=80)).pvalue > 0.001


def test_the_same_seed_gives_the_same_list_and_another_seed_another() -> None:
    first, again, other = (sample_episodes(LABELS, n_way=3, n_episodes=50, seed=seed) for seed in (4, 4, 5))
    assert first.content_hash == again.content_hash != other.content_hash


def test_the_list_is_pinned_so_that_a_changed_generator_needs_a_new_number() -> None:
    episodes = sample_episodes(LABELS, n_way=3, n_query=2, n_episodes=50, seed=1)
    assert episodes.origin["generator"] == "pcg64-sequential/1"
    assert episodes.content_hash[:16] == "6edecccdc8b5d74c"
    unbalanced = sample_episodes(LABELS, n_way=3, n_query=2, n_episodes=50, seed=1, dirichlet=2)
    assert unbalanced.content_hash[:16] == "ba549796b93b871e"


def test_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = sample_episodes(LABELS, n_way=3, n_episodes=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(1)
    assert sample_episodes(LABELS, n_way=3, n_episodes=5).content_hash == first.content_hash


def test_rows_in_another_order_give_the_same_images() -> None:
    names = np.array([f"img{i:03d}" for i in range(80)])
    order = np.random.default_rng(3).permutation(80)
    first = sample_episodes(LABELS, names=names, n_way=3, n_episodes=20)
    shuffled = sample_episodes(LABELS[order], names=names[order], n_way=3, n_episodes=20)
    assert shuffled.content_hash == first.content_hash
    np.testing.assert_array_equal(shuffled.names[shuffled.query], first.names[first.query])


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    short, long = (sample_episodes(LABELS, n_way=3, n_episodes=n, dirichlet=1, n_query=5) for n in (10, 40))
    np.testing.assert_array_equal(short.query, long.query[:10])


def test_labels_may_be_numbers_strings_or_a_tensor() -> None:
    numbers = sample_episodes(LABELS, n_way=2, n_episodes=5)
    for same in (torch.from_numpy(LABELS), LABELS.tolist(), LABELS.astype(str)):
        assert sample_episodes(same, n_way=2, n_episodes=5).content_hash == numbers.content_hash


def test_dirichlet_sizes_by_hand() -> None:
    unit = 1 - np.exp(-np.array([[[1.0], [2.0], [2.0]]]))  # gammas 1, 2, 2; shares of 8: 1.6, 3.2, 3.2
    assert _dirichlet_sizes(unit, 8).tolist() == [[2, 3, 3]]


def test_dirichlet_proportions_have_the_distribution_s_moments() -> None:
    sizes = _dirichlet_sizes(np.random.default_rng(0).random((20_000, 5, 2)), 1000)
    assert (sizes.sum(1) == 1000).all()
    share = sizes / 1000  # Dirichlet(2, …, 2): mean 1/5, variance (1/5 · 4/5) / (10 + 1)
    np.testing.assert_allclose(share.mean(0), 0.2, atol=0.004)
    np.testing.assert_allclose(share.var(0), 0.16 / 11, rtol=0.05)


def test_dirichlet_queries_stay_valid_and_are_declared() -> None:
    episodes = sample_episodes(LABELS, n_way=3, n_query=5, n_episodes=200, dirichlet=2)
    assert episodes.query.shape == (200, 15)
    assert not episodes.is_balanced
    assert episodes.origin["queries"] == "dirichlet(2)"
    sizes = (episodes.target[:, :, None] == np.arange(3)).sum(1)
    assert sizes.max() > 9
    assert sizes.min() < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_way": 5}, "5-way episodes need 5 classes, the labels hold 4"),
        ({"n_way": 2, "n_query": 20}, r"needs 21 images, 4 of 4 have fewer, the first is '100' with 20"),
        (
            {"n_way": 2, "n_query": 10, "dirichlet": 2},
            r"needs 21 images \(Dirichlet queries may all fall on one class\)",
        ),
        ({"n_way": 1}, "n_way must be a whole number of at least 2, got 1"),
        ({"n_way": 2, "n_shot": 0}, "n_shot must be"),
        ({"n_way": 2, "n_episodes": 1.5}, "n_episodes must be"),
        ({"n_way": 2, "seed": -1}, "seed must be"),
        ({"n_way": 2, "dirichlet": 0.5}, "dirichlet must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(options, message) -> None:
    with pytest.raises(InputError, match=message):
        sample_episodes(LABELS, **{"n_query": 3, "n_episodes": 2, **options})


def test_labels_that_are_none_or_one_hot_are_refused() -> None:
    with pytest.raises(InputError, match="labels are empty"):
        sample_episodes([])
    with pytest.raises(InputError, match="1 of 3 labels are missing, the first in row 1"):
        sample_episodes(["a", None, "b"])
    with pytest.raises(ShapeError, match="one value per item"):
        sample_episodes(np.eye(3))
