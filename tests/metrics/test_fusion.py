"""Calibrations and their average: against scikit-free likelihood, and where a score says nothing."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import distcam.metrics.fusion as fusion
from distcam.metrics.fusion import Fusion, LineScale, Logistic, VerifyGain, fit_fusion

SCALE = LineScale("layer2", (0.0,), (8, 11, 16), 120, (0.5, 0.1))


def test_the_doctest_shows_what_it_says():
    assert doctest.testmod(fusion).failed == 0


def test_a_calibration_has_the_highest_likelihood():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=500)
    same = draw.random(500) < 1 / (1 + np.exp(-(2 * scores - 1)))
    found = Logistic.fit(scores, same)

    def likelihood(curve: Logistic) -> float:
        p = curve(scores)
        return float(np.log(np.where(same, p, 1 - p)).sum())

    assert found.slope == pytest.approx(2, abs=0.5)
    for slope, intercept in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert likelihood(found) >= likelihood(Logistic(found.slope + slope, found.intercept + intercept)) - 0.05


def test_separable_scores_stay_finite():
    found = Logistic.fit([0.0, 1.0, 2.0, 3.0], [False, False, True, True])
    assert np.isfinite([found.slope, found.intercept]).all()
    assert found([0.0, 3.0]).tolist() == pytest.approx([0, 1], abs=0.2)


def test_a_score_that_speaks_against_says_nothing_instead():
    assert Logistic.fit([3.0, 2.0, 1.0, 0.0], [False, False, True, True]).slope == 0


def test_both_probabilities_are_averaged():
    both = Fusion(Logistic(1.0, 0.0), Logistic(0.0, 0.0), "by hand")
    assert both([0.5, 0.6], [3, 3], SCALE).tolist() == pytest.approx([0.5, (1 / (1 + np.exp(-1)) + 0.5) / 2])


def test_the_score_that_tells_decides():
    draw = np.random.default_rng(0)
    same = draw.random(400) < 0.3
    similarity, alike = draw.normal(0.5, 0.1, 400), np.where(same, 25, 9) + draw.integers(0, 3, 400)
    found = fit_fusion(similarity, alike, same, scale=SCALE, source="drawn")
    order = np.argsort(-found(similarity, alike, SCALE))
    assert same[order][: same.sum()].mean() > 0.95


@pytest.mark.parametrize(
    ("low", "high", "helps", "words"),
    [(0.1, 0.2, True, "helps"), (-0.2, -0.1, False, "harm"), (-0.1, 0.1, None, "not seen")],
)
def test_a_verdict_leaves_out_what_the_interval_does_not_tell(low, high, helps, words):
    found = VerifyGain(Fusion(Logistic(1, 0), Logistic(1, 0), ""), 20, 100, 0.3, 0.4, low, high, 1)
    assert found.helps is helps
    assert words in str(found)
