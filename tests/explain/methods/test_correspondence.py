"""Correspondence: a similarity divided among all pairs of positions, without anything left over."""

from __future__ import annotations

import doctest

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distcam.explain.methods.correspondence  # noqa: F401
from distcam.encoders import GAP, BNNeck, GeM, IdentityHead, Linear
from distcam.errors import InputError, ShapeError
from distcam.explain import correspondence, dist_cam, fold
from distcam.explain.methods.correspondence import pairwise_shares


@pytest.fixture
def production(monkeypatch):
    """Shapes are not checked at run time, as for a user."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(head: nn.Module) -> nn.Module:
    """The head with weights, biases and statistics that are not trivial."""
    for index, tensor in enumerate([*head.parameters(), *head.buffers()]):
        if tensor.is_floating_point():
            tensor.data = 0.5 + drawn(*tensor.shape, seed=index).abs()
    return head.eval()


def test_two_channels_by_hand():
    query = torch.tensor([[[4.0, 0.0]], [[0.0, 2.0]]])  # e = (2, 1)
    match = torch.tensor([[[0.0], [2.0]], [[6.0], [0.0]]])  # f = (1, 3)
    found = correspondence(query, match, metric="dot")
    assert found.total == 5.0  # 2·1 + 1·3
    # (left, upper): 4·0 / 4 = 0; (left, lower): 4·2 / 4 = 2; (right, upper): 2·6 / 4 = 3; (right, lower): 0
    assert found.shares.tolist() == [[[[0.0], [2.0]], [[3.0], [0.0]]]]
    assert found.on_match((0, 0)).tolist() == [[0.0], [2.0]]
    assert found.on_query((0, 0)).tolist() == [[0.0, 3.0]]
    assert [(pair.query, pair.match, pair.share) for pair in found.mutual_pairs()] == [
        ((0, 1), (0, 0), 3.0),
        ((0, 0), (1, 0), 2.0),
    ]


@pytest.mark.parametrize("pooling", [GAP(), GeM(p=2.5)])
@pytest.mark.parametrize("head", [IdentityHead(), Linear(6, 5), BNNeck(6)])
def test_the_shares_sum_to_the_cosine_of_the_embeddings_whatever_the_head_adds(pooling, head):
    filled(head)
    one, other = drawn(1, 6, 3, 4).relu(), drawn(1, 6, 2, 5, seed=1).relu()
    embeddings = [head(pooling(feature_map)) for feature_map in (one, other)]
    expected = torch.cosine_similarity(*embeddings).item()
    responses = [fold(feature_map, pooling=pooling, head=head).map[0].detach() for feature_map in (one, other)]
    found = correspondence(*responses)
    assert found.total == pytest.approx(expected, abs=1e-5)
    assert abs(found.residual) < 1e-6


@given(seed=st.integers(0, 1000), rows=st.integers(1, 4), columns=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_nothing_is_left_over_for_any_metric_that_divides(metric, seed, rows, columns):
    one, other = drawn(7, rows, columns, seed=seed), drawn(7, columns, 3, seed=seed + 1)
    found = correspondence(one, other, metric=metric)
    assert abs(found.residual) < 1e-5 * max(1, abs(found.total))
    if metric == "l2":
        distance = torch.dist(one.mean((1, 2)), other.mean((1, 2)))
        assert found.total == pytest.approx(-(float(distance) ** 2), rel=1e-4)


def test_summed_over_one_picture_it_is_the_dot_map_on_the_other():
    one, other = drawn(6, 3, 3).relu(), drawn(6, 4, 2, seed=1).relu()
    found = correspondence(one, other)
    e, f = one.mean((1, 2)), other.mean((1, 2))
    torch.testing.assert_close(found.on_query(), dist_cam(one, f[None], weighting="dot")[0])
    torch.testing.assert_close(found.on_match(), dist_cam(other, e[None], weighting="dot")[0])


def test_it_is_a_slow_loop_over_pairs():
    one, other = drawn(4, 2, 3), drawn(4, 3, 2, seed=1)
    length = one.mean((1, 2)).norm() * other.mean((1, 2)).norm()
    shares = correspondence(one, other).shares
    for i in range(2):
        for j in range(3):
            for x in range(3):
                for y in range(2):
                    expected = one[:, i, j] @ other[:, x, y] / (36 * length)
                    torch.testing.assert_close(shares[i, j, x, y], expected)


def test_a_batch_of_pairs_is_a_loop():
    one, other = drawn(3, 4, 2, 3), drawn(3, 4, 3, 2, seed=1)
    for metric in ("cosine", "dot", "l2"):
        shares = pairwise_shares(one, other, metric=metric)
        for index in range(3):
            torch.testing.assert_close(shares[index], correspondence(one[index], other[index], metric=metric).shares)


def test_exchanging_the_pictures_exchanges_the_sides():
    one, other = drawn(4, 2, 3), drawn(4, 3, 2, seed=1)
    there, back = correspondence(one, other), correspondence(other, one)
    torch.testing.assert_close(there.shares, back.shares.permute(2, 3, 0, 1))
    swapped = sorted((pair.match, pair.query) for pair in back.mutual_pairs())
    assert sorted((pair.query, pair.match) for pair in there.mutual_pairs()) == swapped


def test_distinct_positions_of_a_picture_correspond_to_themselves():
    picture = torch.eye(6).reshape(6, 2, 3)  # every position has a channel of its own
    pairs = correspondence(picture, picture).mutual_pairs()
    assert [(pair.query, pair.match) for pair in pairs] == [((i, j), (i, j)) for i in range(2) for j in range(3)]


def test_a_picture_without_features_has_shares_of_zero():
    found = correspondence(torch.zeros(3, 2, 2), drawn(3, 2, 2))
    assert (found.total, found.residual, float(found.shares.abs().max())) == (0.0, 0.0, 0.0)
    assert found.mutual_pairs() == []


@pytest.mark.usefixtures("production")
def test_what_does_not_divide_is_said():
    one = drawn(4, 2, 3)
    with pytest.raises(InputError, match="sum of magnitudes and does not divide"):
        correspondence(one, one, metric="l1")
    with pytest.raises(InputError, match="'cos' is not known"):
        pairwise_shares(one, one, metric="cos")
    with pytest.raises(ShapeError, match=r"\(4, 2, 3\) and \(5, 2, 3\)"):
        correspondence(one, drawn(5, 2, 3))
    with pytest.raises(InputError, match="NaN"):
        correspondence(one, one * float("nan"))
    with pytest.raises(InputError, match=r"\(2, 0\) lies outside a map of 2×3"):
        correspondence(one, one).on_match((2, 0))


def test_the_doctests_are_right():
    import sys

    assert doctest.testmod(sys.modules["distcam.explain.methods.correspondence"]).failed == 0
