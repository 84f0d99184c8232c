"""Dist-CAM by hand, against slow loops and autograd, and what has to hold for any features."""

from __future__ import annotations

import doctest
import math
import sys
from collections.abc import Iterator
from itertools import product

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from distcam.errors import InputError, ShapeError
from distcam.explain import METRICS, NORMS, WEIGHTINGS, channel_weights, contrast, dist_cam

MODULE = sys.modules["distcam.explain.methods.dist_cam"]  # the package's attribute of this name is the function
NORMALISED = ("dist", "dist*s", "dist*excess", "log_ratio", "caam")


def features(*shape: int, seed: int = 0, signed: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random features as a network makes them: after a ReLU about half are 0, unless they keep their signs."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn if signed else drawn.relu()).to(dtype)


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run-time shape checks off, as for users, so that the library's own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def slow_dist_cam(
    response: Tensor, reference: Tensor, *, metric: str, weighting: str, tau: float, mean: Tensor
) -> Tensor:
    """The definition for one query, one reference and norm="sum", a channel at a time, in float64."""
    n_channels, rows, columns = response.shape
    q = [float(channel.mean()) for channel in response.double()]
    s = [float(entry) for entry in reference.double()]
    scale = 1.0
    if metric == "cosine":
        scale = sum(x * x for x in q) ** 0.5
        length = sum(x * x for x in s) ** 0.5
        q, s = [x / scale for x in q], [x / length for x in s]
    dead = [bool((response[k] == 0).all()) and s[k] == 0 for k in range(n_channels)]
    distance = [abs(a - b) for a, b in zip(s, q, strict=True)]
    of_live = sorted(d for d, is_dead in zip(distance, dead, strict=True) if not is_dead)
    eps = 1e-12 if tau == 0 else tau * (of_live[(len(of_live) - 1) // 2] or sum(of_live) / len(of_live) or 1.0)
    weights = []
    for k in range(n_channels):
        sign = -1 if s[k] < 0 else 1
        weight = 1 / (distance[k] + eps)
        if weighting == "dist*s":
            weight *= abs(s[k])
        elif weighting == "dist*excess":
            weight *= max(sign * (s[k] - float(mean[k])), 0)
        elif weighting == "log_ratio":
            turned = [max(float(mean[j]) * (-1 if s[j] < 0 else 1), 0) for j in range(n_channels)]
            floor = 0.1 * sum(turned) / n_channels
            weight = max(math.log((abs(s[k]) + floor) / (turned[k] + floor)), 0)
        elif weighting == "caam":
            weight, sign = float(not (response[k] == 0).all()), 1
        weights.append(0 if dead[k] else sign * weight)
    total = sum(abs(w) for w in weights)
    heat = torch.zeros(rows, columns, dtype=torch.float64)
    for row, column, k in product(range(rows), range(columns), range(n_channels)):
        heat[row, column] += weights[k] / total * float(response[k, row, column]) / scale
    return heat


# ------------------------------------------------------------------------------------------------------------- by hand


def test_two_channels_by_hand() -> None:
    query = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 2.0]]])  # GAP: 4/4 = 1 and (2+2)/4 = 1
    reference = torch.tensor([[1.5, 3.0]])  # D = (0.5, 2), lower median 0.5
    # W is proportional to 1/(0.5+0.5) = 1 and 1/(2+0.5) = 0.4, divided by 1.4
    expected = torch.tensor([[[4 * 1 / 1.4, 0.0], [2 * 0.4 / 1.4, 2 * 0.4 / 1.4]]])
    torch.testing.assert_close(dist_cam(query, reference, metric="l1"), expected)


def test_the_metric_cosine_compares_unit_vectors() -> None:
    query = torch.tensor([[[3.0]], [[4.0]]])  # length 5: (0.6, 0.8)
    reference = torch.tensor([[0.0, 7.0]])  # (0, 1): D = (0.6, 0.2), eps = 0.2, weights 1/0.8 and 1/0.4 = 1 : 2
    expected = (1 * 0.6 + 2 * 0.8) / 3
    assert dist_cam(query, reference).item() == pytest.approx(expected, rel=1e-6)


def test_the_literal_reading_puts_all_weight_on_the_closest_channel() -> None:
    weights = channel_weights(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 3.0]]), metric="l2", tau=0.0)
    assert weights.tolist() == [[1.0, pytest.approx(1e-12)]]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [  # 1/(D + eps) = 1, 1/2, 1/4 for D = 0.5, 1.5, 3.5 and eps = 0.5, that is tau = 1/3 of the median 1.5
        ("none", [1, 1 / 2, 1 / 4]),
        ("sum", [4 / 7, 2 / 7, 1 / 7]),
        ("l2", [4 / 21**0.5, 2 / 21**0.5, 1 / 21**0.5]),
        ("minmax", [1, 1 / 3, 0]),
        ("softmax", [np.exp(v) / (np.exp(1) + np.exp(0.5) + np.exp(0.25)) for v in (1, 0.5, 0.25)]),
    ],
)
def test_the_normalisers_by_hand(norm: str, expected: list[float]) -> None:
    query, reference = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[1.5, 2.5, 4.5]])
    weights = channel_weights(query, reference, metric="l2", tau=1 / 3, norm=norm)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float32))


def test_a_median_of_zero_is_replaced_by_the_mean() -> None:
    weights = channel_weights(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[1.0, 1.0, 4.0]]), metric="l2", norm="none")
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 1 / 4]]))  # the mean of (0, 0, 3) is 1


def test_the_weight_takes_the_sign_of_the_references_entry_and_zero_counts_as_positive() -> None:
    query, reference = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[2.0, -2.0, 0.0]])
    signs = channel_weights(query, reference, metric="l2").sign()
    assert signs.tolist() == [[1.0, -1.0, 1.0]]


def test_excess_counts_what_the_reference_has_more_of_than_the_gallery() -> None:
    mean = torch.tensor([1.0, 2.0])
    weights = channel_weights(
        torch.tensor([1.0, 1.0]), torch.tensor([[3.0, 1.5]]), metric="l2", weighting="dist*excess", mean=mean
    )
    assert weights.tolist() == [[1.0, 0.0]]  # 3 - 1 is positive, 1.5 - 2 is not


def test_log_ratio_says_how_many_times_more_than_the_mean_a_channel_has() -> None:
    mean = torch.tensor([1.0, 2.0, 0.0])  # floor: a tenth of the mean 1, that is 0.1
    reference = torch.tensor([[4.3, 1.0, 0.3]])
    weights = channel_weights(torch.ones(3), reference, metric="l2", weighting="log_ratio", norm="none", mean=mean)
    # log(4.4 / 1.1) = log 4; 1 is less than 2; log(0.4 / 0.1) = log 4: a rare channel counts as much
    torch.testing.assert_close(weights, torch.tensor([[np.log(4), 0.0, np.log(4)]], dtype=torch.float32))


def test_log_ratio_without_a_mean_to_compare_with_is_finite() -> None:
    weights = channel_weights(
        torch.ones(2), torch.tensor([[1.0, 3.0]]), metric="l2", weighting="log_ratio", mean=torch.zeros(2)
    )
    assert bool((weights > 0).all())
    nothing = channel_weights(
        torch.ones(2), torch.zeros(1, 2), metric="l2", weighting="log_ratio", mean=torch.tensor([1.0, 1.0])
    )
    assert nothing.tolist() == [[0.0, 0.0]]


def test_root_ratio_says_in_roots_how_many_times_more_or_less_than_the_mean_a_channel_has() -> None:
    mean = torch.tensor([1.0, 2.0, 0.0])  # e: a tenth of the mean 1, that is 0.1
    reference = torch.tensor([[4.3, 2.0, 0.3]])
    weights = channel_weights(torch.ones(3), reference, metric="l2", weighting="root_ratio", mean=mean)
    # √(4.4 / 1.1) - 1 = 1; as much as the mean: 0; √(0.4 / 0.1) - 1 = 1
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, 1.0]]))
    less = channel_weights(torch.ones(3), torch.zeros(1, 3), metric="l2", weighting="root_ratio", mean=mean)
    torch.testing.assert_close(less[0, :2], torch.tensor([(0.1 / 1.1) ** 0.5 - 1, (0.1 / 2.1) ** 0.5 - 1]))


def test_root_ratio_of_signed_features_by_hand() -> None:
    mean, magnitude = torch.tensor([-0.8, 0.0]), torch.tensor([0.8, 1.2])  # e = 0.1 · mean(0.8, 1.2) = 0.1
    weights = channel_weights(
        torch.ones(2),
        torch.tensor([[1.5, -0.8]]),
        metric="l2",
        weighting="root_ratio",
        mean=mean,
        magnitude=magnitude,
    )
    up, down = 1.6**0.5 - 0.1**0.5, 0.9**0.5 - 0.1**0.5
    torch.testing.assert_close(weights, torch.tensor([[(up + down) / 0.9**0.5, -down / 1.3**0.5]]))


def test_root_ratio_with_nothing_in_the_gallery_takes_its_floor_from_the_reference() -> None:
    options = {"metric": "l2", "weighting": "root_ratio", "mean": torch.zeros(2)}
    weights = channel_weights(torch.ones(2), torch.tensor([[0.0, 6.0]]), **options)  # e = .1 · 3
    torch.testing.assert_close(weights, torch.tensor([[0.0, (6.3 / 0.3) ** 0.5 - 1]]))
    assert channel_weights(torch.ones(2), torch.zeros(1, 2), **options).tolist() == [[0.0, 0.0]]


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(MODULE).failed == 0


# ------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighting", NORMALISED)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_it_equals_the_slow_loop(metric: str, weighting: str, tau: float, signed: bool) -> None:
    response, references = features(12, 3, 4, seed=1, signed=signed), features(5, 12, seed=2, signed=signed)
    response[[0, 5]], references[:, 0], references[1:3, 5] = 0, 0, 0
    mean = features(12, seed=3, signed=signed) / 10
    maps = dist_cam(response, references, metric=metric, weighting=weighting, tau=tau, mean=mean)
    for heat, reference in zip(maps, references, strict=True):
        expected = slow_dist_cam(response, reference, metric=metric, weighting=weighting, tau=tau, mean=mean)
        torch.testing.assert_close(heat.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weighting", "metric"), [("gradcam_cos", "cosine"), ("gradcam_cos", "l2"), ("dot_centered", "dot")]
)
def test_what_is_only_the_rounding_of_half_precision_is_no_reason(weighting: str, metric: str) -> None:
    query = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 30
    mean = query if weighting == "dot_centered" else None
    options = {"metric": metric, "weighting": weighting, "mean": mean}
    assert channel_weights(query, query.half()[None], **options).abs().max() == 0
    assert channel_weights(query, query.roll(1)[None], **options).abs().max() > 0


@pytest.mark.parametrize("metric", METRICS)
def test_gradcam_cos_is_grad_cam_of_the_cosine_and_sums_to_zero(metric: str) -> None:
    response, references = features(2, 16, 5, 4, dtype=torch.float64), features(2, 3, 16, seed=1, dtype=torch.float64)
    maps = dist_cam(response, references, metric=metric, weighting="gradcam_cos")
    for b, n in product(range(2), range(3)):
        feature_map = response[b].clone().requires_grad_()
        cosine = functional.cosine_similarity(feature_map.mean((-2, -1)), references[b, n], dim=0)
        (gradient,) = torch.autograd.grad(cosine, feature_map)
        alpha = gradient.mean((-2, -1))  # Grad-CAM's weights, before its ReLU
        torch.testing.assert_close(maps[b, n], torch.einsum("k,khw->hw", alpha, response[b]))
    torch.testing.assert_close(maps.sum((-2, -1)), torch.zeros(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_dot_map_sums_to_the_cosine_or_to_the_dot_product() -> None:
    response, references = features(16, 7, 7, dtype=torch.float64), features(4, 16, seed=1, dtype=torch.float64)
    pooled = response.mean((-2, -1))
    cosine = functional.cosine_similarity(pooled[None], references)
    torch.testing.assert_close(dist_cam(response, references, weighting="dot").sum((-2, -1)), cosine)
    total = dist_cam(response, references, metric="dot", weighting="dot").sum((-2, -1))
    torch.testing.assert_close(total, references @ pooled)
    centred = dist_cam(response, references, metric="dot", weighting="dot_centered", mean=references[0]).sum((-2, -1))
    torch.testing.assert_close(centred, (references - references[0]) @ pooled)


def test_sorting_finds_the_same_lower_median_as_selection() -> None:
    distance = features(6, 33, seed=4)
    alive = features(6, 33, seed=5) > 0
    alive[0], alive[1, 1:], alive[1, 0] = False, False, True
    by_sorting = MODULE._lower_median(distance, alive, by_sorting=True)
    selected = MODULE._lower_median(distance, alive, by_sorting=False)
    assert by_sorting[0].item() == 0
    assert selected[0].isnan().item()  # both say: not above 0
    torch.testing.assert_close(by_sorting[1:], selected[1:])


# ------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_batch_is_a_loop_over_queries_and_references(weighting: str) -> None:
    response, references = features(2, 3, 10, 4, 5), features(2, 3, 6, 10, seed=1)
    mean = torch.full((10,), 0.1)
    maps = dist_cam(response, references, weighting=weighting, mean=mean)
    assert maps.shape == (2, 3, 6, 4, 5)
    for i, j, n in product(range(2), range(3), range(6)):
        alone = dist_cam(response[i, j], references[i, j, n : n + 1], weighting=weighting, mean=mean)[0]
        torch.testing.assert_close(maps[i, j, n], alone)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_dead_channels_change_nothing(weighting: str) -> None:
    response, references, mean = features(12, 4, 4), features(3, 12, seed=1), torch.full((20,), 0.05)
    with_dead = dist_cam(
        torch.cat([response, torch.zeros(8, 4, 4)]),
        torch.cat([references, torch.zeros(3, 8)], dim=1),
        weighting=weighting,
        mean=mean,
    )
    torch.testing.assert_close(with_dead, dist_cam(response, references, weighting=weighting, mean=mean[:12]))


def test_the_floor_of_gem_pooling_counts_as_dead() -> None:
    response, references = features(12, 4, 4), features(3, 12, seed=1)
    floor = torch.full((30, 4, 4), 1e-6)
    with_floor = dist_cam(torch.cat([response, floor]), torch.cat([references, torch.full((3, 30), 1e-6)], dim=1))
    torch.testing.assert_close(with_floor, dist_cam(response, references))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_order_of_channels_does_not_matter(weighting: str) -> None:
    response, references, mean = features(12, 4, 4), features(3, 12, seed=1), torch.linspace(0, 0.2, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = dist_cam(response[order], references[:, order], weighting=weighting, mean=mean[order])
    torch.testing.assert_close(shuffled, dist_cam(response, references, weighting=weighting, mean=mean))


@pytest.mark.parametrize("factor", [1e-6, 10.0, 1e6])
def test_the_weights_do_not_change_when_all_features_are_multiplied(factor: float) -> None:
    query, references = features(32), features(4, 32, seed=1)
    for metric in METRICS:
        weights = channel_weights(query, references, metric=metric)
        torch.testing.assert_close(channel_weights(factor * query, factor * references, metric=metric), weights)


@pytest.mark.parametrize("weighting", ["dist", "dist*s", "dist*excess", "dot"])
def test_turning_channels_round_changes_nothing(weighting: str) -> None:
    response, references, mean = features(9, 3, 3, signed=True), features(2, 9, seed=1, signed=True), torch.zeros(9)
    turn = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    turned = dist_cam(turn[:, None, None] * response, turn * references, weighting=weighting, mean=mean)
    torch.testing.assert_close(turned, dist_cam(response, references, weighting=weighting, mean=mean))


positive = st.lists(st.floats(0, 1e3, width=32), min_size=6, max_size=6).map(torch.tensor)


@settings(max_examples=100, deadline=None)
@given(reference=positive, mean=positive.filter(lambda values: float(values.mean()) > 1e-3))
def test_root_ratio_of_non_negative_features_is_the_root_of_the_ratio_less_one(reference: Tensor, mean: Tensor) -> None:
    floor = 0.1 * mean.double().mean()
    expected = ((reference.double() + floor) / (mean.double() + floor)).sqrt() - 1
    expected[(reference == 0) | (reference <= 1e-5 * reference.max())] = 0  # dead in the query too
    weights = channel_weights(torch.zeros(6), reference[None], metric="l2", weighting="root_ratio", mean=mean)[0]
    torch.testing.assert_close(weights.double(), expected, rtol=5e-7, atol=5e-7)


@settings(max_examples=100, deadline=None)
@given(factor=st.sampled_from([1e-4, 1.0, 7.0, 1e4]), seed=st.integers(0, 99), signed=st.booleans())
def test_root_ratio_has_no_scale_and_is_zero_for_the_mean_itself(factor: float, seed: int, signed: bool) -> None:
    query, references = features(24, seed=seed), features(3, 24, seed=seed + 1, signed=signed)
    mean, size = references.mean(0), references.abs().mean(0)

    def weights(vectors: Tensor, scale: float) -> Tensor:
        surroundings = {"mean": scale * mean, "magnitude": scale * size}
        return channel_weights(query, scale * vectors, metric="l2", weighting="root_ratio", **surroundings)

    torch.testing.assert_close(weights(references, factor), weights(references, 1.0), rtol=1e-4, atol=1e-5)
    assert weights(mean[None], factor).abs().max() == 0


def test_root_ratio_bears_vectors_in_half_precision() -> None:
    references = features(200, 512, seed=3)
    references /= references.norm(dim=-1, keepdim=True)
    options = {"weighting": "root_ratio", "mean": references.mean(0)}
    exact = channel_weights(features(512), references, **options)
    stored = channel_weights(features(512), references.half(), **options)
    assert float((stored - exact).abs().max()) <= 0.0014


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("norm", ["sum", "l2", "minmax", "softmax"])
def test_a_query_that_is_its_own_reference_gets_the_class_agnostic_map(metric: str, norm: str) -> None:
    response = features(12, 4, 4, dtype=torch.float64)
    response[3] = 0
    itself = response.mean((-2, -1))[None]
    maps = dist_cam(response, itself, metric=metric, norm=norm)
    torch.testing.assert_close(maps, dist_cam(response, itself, metric=metric, norm=norm, weighting="caam"))


def test_a_large_tau_goes_to_the_class_agnostic_map() -> None:
    response, references = features(12, 4, 4), features(3, 12, seed=1)
    softest = dist_cam(response, references, tau=1e7)
    torch.testing.assert_close(softest, dist_cam(response, references, weighting="caam"))
    torch.testing.assert_close(softest[0], response.mean(0) / response.mean((-2, -1)).norm())


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_sum_l2_and_none_give_one_picture(norm: str) -> None:
    response, references = features(12, 4, 4), features(3, 12, seed=1)
    by_sum, other = dist_cam(response, references), dist_cam(response, references, norm=norm)
    torch.testing.assert_close(other / other.amax((-2, -1), keepdim=True), by_sum / by_sum.amax((-2, -1), keepdim=True))


def test_the_weights_of_norm_sum_are_shares() -> None:
    weights = channel_weights(features(40), features(5, 40, seed=1))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))


def test_references_stored_in_half_precision_give_nearly_the_same_map() -> None:
    response, references = features(512, 7, 7), features(8, 512, 49, seed=1).mean(-1)
    exact, stored = dist_cam(response, references), dist_cam(response, references.half())
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_arithmetic_is_float32_at_least(dtype: torch.dtype) -> None:
    maps = dist_cam(features(4, 3, 3).to(dtype), features(2, 4, seed=1).to(dtype))
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_roles_can_be_swapped_to_see_the_region_of_the_match() -> None:
    query_map, match_map = features(12, 4, 4), features(12, 4, 4, seed=1)
    q, s = query_map.mean((-2, -1)), match_map.mean((-2, -1))
    torch.testing.assert_close(channel_weights(q, s[None]), channel_weights(s, q[None]))
    weights = channel_weights(q, s[None])[0]
    expected = torch.einsum("k,khw->hw", weights, match_map) / s.norm()
    torch.testing.assert_close(dist_cam(match_map, q[None])[0], expected)


def test_gradients_flow_and_are_finite_where_features_are_zero() -> None:
    response = features(8, 3, 3).requires_grad_()
    references = features(2, 8, seed=1)
    references[:, 0] = 0
    with torch.no_grad():
        response[0] = 0
    for weighting, norm in product(WEIGHTINGS, NORMS):
        maps = dist_cam(response, references, weighting=weighting, norm=norm, mean=torch.full((8,), 0.1))
        (gradient,) = torch.autograd.grad(maps.square().sum(), response)
        assert gradient.isfinite().all(), (weighting, norm)


def entries(*shape: int) -> st.SearchStrategy[Tensor]:
    """Tensors with many zeros, repeats, tiny and large values."""
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e-12, 1e12]) | st.floats(-1e6, 1e6, width=32)
    count = int(np.prod(shape))
    return st.lists(value, min_size=count, max_size=count).map(lambda v: torch.tensor(v).reshape(shape))


@settings(max_examples=150, deadline=None)
@given(
    response=entries(3, 2, 2),
    references=entries(2, 3),
    weighting=st.sampled_from(WEIGHTINGS),
    norm=st.sampled_from(NORMS),
    metric=st.sampled_from(METRICS),
    tau=st.sampled_from([0.0, 1e-30, 0.1, 1.0, 1e30]),
)
def test_finite_input_never_gives_nan_or_infinity(
    response: Tensor, references: Tensor, weighting: str, norm: str, metric: str, tau: float
) -> None:
    mean = torch.tensor([0.5, -0.1, 0.0])
    options = {"metric": metric, "weighting": weighting, "norm": norm, "tau": tau, "mean": mean}
    assert channel_weights(response.mean((-2, -1)), references, **options).isfinite().all()
    assert dist_cam(response, references, **options).isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_where_everything_is_dead_the_map_is_zero(weighting: str, norm: str) -> None:
    maps = dist_cam(torch.zeros(5, 2, 2), torch.zeros(3, 5), weighting=weighting, norm=norm, mean=torch.full((5,), 0.1))
    assert maps.tolist() == torch.zeros(3, 2, 2).tolist()


def test_no_references_give_no_maps() -> None:
    assert dist_cam(features(5, 2, 3), torch.zeros(0, 5)).shape == (0, 2, 3)


# --------------------------------------------------------------------------------------------------- contrast


def test_contrast_is_the_difference_of_two_maps() -> None:
    response, references, others = features(2, 10, 3, 3), features(2, 4, 10, seed=1), features(2, 5, 10, seed=2)
    expected = dist_cam(response, references) - dist_cam(response, others).mean(1, keepdim=True)
    torch.testing.assert_close(contrast(response, references, others), expected)


def test_contrast_with_itself_is_zero_and_swapping_turns_the_sign() -> None:
    response, one, other = features(10, 3, 3), features(1, 10, seed=1), features(1, 10, seed=2)
    assert contrast(response, one, one).abs().max() == 0
    torch.testing.assert_close(contrast(response, one, other), -contrast(response, other, one))


# --------------------------------------------------------------------------------------------------- side effects


def test_the_arguments_are_left_as_they_were() -> None:
    response, references = features(6, 2, 2), features(3, 6, seed=1)
    before = response.clone(), references.clone()
    for weighting, norm in product(WEIGHTINGS, NORMS):
        dist_cam(response, references, weighting=weighting, norm=norm, mean=torch.full((6,), 0.1))
    assert torch.equal(response, before[0])
    assert torch.equal(references, before[1])


# --------------------------------------------------------------------------------------------------- messages


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cos"}, "metric='cos' is not known; choose one of cosine, l2, l1, dot"),
        ({"weighting": "dist_s"}, r"choose one of root_ratio, dist, dist\*s"),
        ({"norm": "l1"}, "norm='l1' is not known"),
        ({"tau": -1.0}, "tau=-1.0 cannot be used; it is a finite number, 0 or more"),
        ({"tau": float("inf")}, "tau=inf"),
        ({"weighting": "dot_centered"}, "weighting='dot_centered' needs `mean`, the mean vector of the gallery"),
        ({"weighting": "dist*excess", "mean": torch.ones(3)}, r"`mean` should have shape \(4,\).*got \(3,\)"),
        (
            {"weighting": "root_ratio", "mean": torch.ones(4), "magnitude": torch.ones(3)},
            r"`magnitude` should have shape \(4,\), as `mean`; got \(3,\)",
        ),
        (
            {"weighting": "root_ratio", "mean": torch.ones(4), "magnitude": -torch.ones(4)},
            "`magnitude` is a mean of sizes and never negative",
        ),
        ({"weighting": "dot_centered", "mean": torch.ones(4)}, "mean of unit vectors and never longer than 1"),
    ],
)
def test_an_unusable_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dist_cam(features(4, 2, 2), features(1, 4), **options)


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize(
    ("response", "references"),
    [((4, 2, 2), (1, 5)), ((4, 2, 2), (4,)), ((2, 4, 2, 2), (1, 4)), ((2, 4, 2, 2), (3, 1, 4)), ((2, 2), (1, 2))],
)
def test_shapes_that_do_not_fit_are_refused(response: tuple[int, ...], references: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"got \("):
        dist_cam(features(*response), features(*references))


@pytest.mark.usefixtures("production")
def test_whole_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"the references should be floating point, not torch.int64; call .float\(\)"):
        dist_cam(features(4, 2, 2), torch.ones(1, 4, dtype=torch.int64))


def broken() -> Iterator[tuple[str, Tensor, Tensor]]:
    for value in (float("nan"), float("inf"), float("-inf")):
        response, references = features(4, 2, 2), features(1, 4, seed=1)
        response[2, 1, 0] = value
        yield "NaN or infinite values in the response map", response, references
        response, references = features(4, 2, 2), features(1, 4, seed=1)
        references[0, 3] = value
        yield "NaN or infinite values in the references", response, references


@pytest.mark.parametrize(("message", "response", "references"), list(broken()))
def test_values_that_are_not_finite_are_refused(message: str, response: Tensor, references: Tensor) -> None:
    with pytest.raises(InputError, match=message):
        dist_cam(response, references)


def test_a_reference_that_differs_by_rounding_gives_the_class_agnostic_picture() -> None:
    """Without a floor under eps the weights of a copy encoded once more would be 1/noise."""
    generator = torch.Generator().manual_seed(0)
    response = torch.rand(32, 5, 5, generator=generator)
    pooled = response.mean((1, 2))
    noise = 1 + 1e-5 * torch.randn(32, generator=generator)
    copy = dist_cam(response[None], (pooled * noise)[None, None])[0, 0]
    blind = dist_cam(response[None], pooled[None, None], weighting="caam")[0, 0]
    torch.testing.assert_close(copy, blind, rtol=0.02, atol=0.0)
