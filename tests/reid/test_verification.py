"""Accepting and rejecting: by hand, against scikit-learn, and thresholds that do what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from distcam.reid import Labels, ReidEvaluation, ReidProtocol, evaluate_distances, verification


def one(distances: Any, query: tuple[Any, Any], ids: Any, cameras: Any, **options: Any) -> ReidEvaluation:
    """One query against a gallery."""
    identity, camera = query
    return evaluate_distances([distances], query=Labels([identity], [camera]), gallery=Labels(ids, cameras), **options)


def test_false_rejects_at_given_false_accepts() -> None:
    genuine, impostor = [0, 0, 1, 1, 2, 2, 5, 5, 9, 9], [3, 3, 4, 4, 6, 6, 7, 7, 8, 8]
    result = one(genuine + impostor, (1, 0), [1] * 10 + [2] * 10, [1] * 20, false_accept_rates=(0.1, 0.5))
    assert result.verification is not None
    strict, loose = result.verification.operating_points
    assert 1 - strict.true_accept_rate == pytest.approx(0.4)
    assert (strict.threshold, strict.false_accept_rate) == (2, 0)
    assert 1 - loose.true_accept_rate == pytest.approx(0.2)
    assert (loose.threshold, loose.false_accept_rate) == (5, 0.4)


def test_equal_error_rate_lies_where_both_errors_meet() -> None:
    result = one([1, 2, 3, 4, 5, 6, 7, 8], (1, 0), [1, 1, 1, 9, 1, 9, 9, 9], [1] * 8)
    assert result.verification is not None
    assert result.verification.equal_error_rate == pytest.approx(0.25)
    assert result.verification.equal_error_threshold == 4


def test_open_set_identification_with_probes_that_have_no_match() -> None:
    distances = [[0.1, 0.9, 0.8], [0.6, 0.5, 0.9], [0.3, 0.7, 0.4]]
    labels = {"query": Labels([1, 2, 3], [0, 0, 0]), "gallery": Labels([1, 2, 8], [1, 1, 1])}
    unmated = evaluate_distances(
        distances, **labels, protocol=ReidProtocol(false_alarms="unmated"), false_accept_rates=(0.5, 1.0)
    ).identification
    assert unmated is not None
    assert (unmated.n_mated, unmated.n_unmated) == (2, 1)
    assert [point.true_accept_rate for point in unmated.operating_points] == [0.5, 1.0]
    assert unmated.operating_points[0].threshold == 0.1
    left_out = evaluate_distances(distances, **labels, false_accept_rates=(0.4,)).identification
    assert left_out is not None
    assert left_out.n_unmated == 3  # nearest wrong answers: 0.8, 0.6, 0.3
    assert left_out.operating_points[0].threshold == 0.5
    assert left_out.operating_points[0].true_accept_rate == 1.0


@pytest.mark.parametrize("exact_pairs", [1 << 22, 0])
@pytest.mark.parametrize("seed", range(5))
def test_accept_rates_equal_scikit_learn(seed: int, exact_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_EXACT_PAIRS", exact_pairs or 1 << 10)
    random = np.random.default_rng(seed)
    distances = random.integers(0, 64, (40, 60)) / 64
    ids, other_ids = random.integers(0, 6, 40), random.integers(-1, 6, 60)
    cameras, other_cameras = random.integers(0, 3, 40), random.integers(0, 3, 60)
    targets = (0.01, 0.1, 0.5, 1.0)
    result = evaluate_distances(
        distances, query=Labels(ids, cameras), gallery=Labels(other_ids, other_cameras), false_accept_rates=targets
    ).verification
    assert result is not None
    same = ids[:, None] == other_ids
    genuine = distances[same & (cameras[:, None] != other_cameras)]
    impostor = distances[~same & (other_ids >= 0)]
    far, tar, at = roc_curve(
        np.r_[np.ones(genuine.size), np.zeros(impostor.size)], -np.r_[genuine, impostor], drop_intermediate=False
    )
    useful = np.arange(far.size) > 0
    if not exact_pairs:  # bins end where the matches do; the last point accepts everything
        useful &= (-at >= genuine.min()) & ((-at <= genuine.max()) | (at == at[-1]))
    np.testing.assert_allclose(result.false_accept_rate, far[useful], atol=1e-12)
    np.testing.assert_allclose(result.true_accept_rate, tar[useful], atol=1e-12)
    if exact_pairs:
        np.testing.assert_array_equal(result.thresholds, -at[1:])
    for target, point in zip(targets, result.operating_points, strict=True):
        assert point.true_accept_rate == pytest.approx(tar[far <= target].max())
        assert point.threshold is None or np.mean(impostor <= point.threshold) == point.false_accept_rate
        assert point.threshold is None or np.mean(genuine <= point.threshold) == point.true_accept_rate
    assert result.genuine_histogram.sum() == result.n_genuine == genuine.size
    assert result.impostor_histogram.sum() == result.n_impostor == impostor.size
    middle = np.argmin(np.abs(far - (1 - tar)))
    assert result.equal_error_rate == pytest.approx((far[middle] + 1 - tar[middle]) / 2, abs=0.05)


@pytest.mark.parametrize("offset", [0.0, -3.7, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_of_a_large_test_reproduce_their_rates_exactly(offset: float, dtype: Any) -> None:
    """Bins instead of every distance, with one absurd distance that must not coarsen them."""
    random = np.random.default_rng(1)
    genuine = (random.normal(0.5, 0.2, 2000) + offset).astype(dtype)
    impostor = (random.normal(1.0, 0.2, 50_000) + offset).astype(dtype)
    impostor[0] = 1e9
    tally = verification.PairTally(1 << 40, bounds=(float(genuine.min()), float(genuine.max())), dtype=np.dtype(dtype))
    for part in np.array_split(np.r_[genuine, impostor], 7):
        tally.add(part[None], genuine=part[:0], ignored=part[:0])
    tally.add(genuine[None, :0], genuine=genuine, ignored=genuine[:0])
    result = tally.finish((1e-4, 1e-3, 1e-2, 1e-1, 1.0))
    assert result is not None
    for threshold, tar, far in zip(result.thresholds, result.true_accept_rate, result.false_accept_rate, strict=True):
        assert np.mean(genuine <= threshold) == pytest.approx(tar, abs=1e-12)
        assert np.mean(impostor <= threshold) == pytest.approx(far, abs=1e-12)
    for point in result.operating_points:
        best = np.sort(impostor)[int(point.target * impostor.size + 1e-9) :][:1]
        exact = np.mean(genuine < best[0]) if best.size else 1.0
        assert point.true_accept_rate == pytest.approx(exact, abs=2 / genuine.size + 2 * (offset == 1000))
