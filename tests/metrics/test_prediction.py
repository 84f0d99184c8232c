"""Classes from votes and prototypes: by hand, what calibration may not do, and the calibration error's definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distcam.errors import InputError
from distcam.metrics.prediction import (
    Calibration,
    ClassEvidence,
    expected_calibration_error,
    fit_weights,
    weighted_softmax,
)


def evidence(neighbours, distances, prototypes=None):
    prototypes = np.zeros((len(neighbours), 2)) if prototypes is None else np.array(prototypes, float)
    return ClassEvidence(np.array(neighbours), np.array(distances, float), prototypes)


def test_uniform_votes_are_shares_with_one_vote_divided_among_the_classes() -> None:
    rule = Calibration("knn", "uniform", 1.0, (1.0,), "nothing")
    found = rule.probabilities(evidence([[0, 0, 1]], [[0.1, 0.2, 0.3]]))
    np.testing.assert_allclose(found, [[2.5 / 4, 1.5 / 4]])


def test_a_vote_by_distance_halves_where_the_exponential_says_so() -> None:
    rule = Calibration("knn", "distance", 1.0, (1.0,), "nothing")
    found = rule.probabilities(evidence([[0, 1]], [[0.3, 0.3 + math.log(2)]]))
    np.testing.assert_allclose(found, [[1.5 / 2.5, 1.0 / 2.5]])


def test_a_missing_neighbour_votes_for_nobody() -> None:
    for weighting in ("uniform", "distance"):
        rule = Calibration("knn", weighting, 1.0, (1.0,), "nothing")
        few = rule.probabilities(evidence([[1, -1, -1]], [[0.3, np.inf, np.inf]]))
        np.testing.assert_allclose(few, rule.probabilities(evidence([[1]], [[0.3]])))
        none = rule.probabilities(evidence([[-1]], [[np.inf]]))
        np.testing.assert_allclose(none, [[0.5, 0.5]])


def test_fitted_weights_find_the_temperature_that_made_the_truth() -> None:
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((20_000, 3))
    shares = weighted_softmax([logits], [0.4])
    truth = (rng.random((len(logits), 1)) > shares.cumsum(1)).sum(1)
    assert fit_weights([logits], truth)[0] == pytest.approx(0.4, rel=0.05)
    noise = rng.standard_normal(logits.shape)
    own, of_noise = fit_weights([logits, noise], truth)
    assert own == pytest.approx(0.4, rel=0.05)
    assert of_noise < 0.05


def test_calibration_keeps_the_order_of_one_kind_of_evidence_and_halves_the_error() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    distances = rng.standard_normal((400, 2)) + 2
    distances[np.arange(400), truth] -= 1
    known = evidence(np.zeros((400, 1), int), np.zeros((400, 1)), distances)
    found = Calibration.fit(known, truth, by="prototypes", weighting="uniform", source="a test")
    raw = weighted_softmax([-10 * distances], [1.0])
    assert (found.probabilities(known).argmax(1) == distances.argmin(1)).all()
    assert found.error < expected_calibration_error(raw, truth) / 2
    assert found.accuracy == pytest.approx((distances.argmin(1) == truth).mean())
    assert "a test" in str(found)


def test_the_calibration_error_is_the_mean_gap_of_bins() -> None:
    shares = np.array([[0.9, 0.1]] * 10 + [[0.3, 0.7]] * 10)
    truth = np.array([0] * 9 + [1] + [1] * 5 + [0] * 5)
    assert expected_calibration_error(shares, truth) == pytest.approx((0.0 + 0.2) / 2)
    with pytest.raises(InputError, match="at least one answer"):
        expected_calibration_error(shares[:0], truth[:0])


def test_without_answers_nothing_is_calibrated_and_it_says_so() -> None:
    nothing = evidence(np.empty((0, 1), int), np.empty((0, 1)), np.empty((0, 2)))
    found = Calibration.fit(nothing, np.empty(0, int), by="both", weighting="distance", source="one class alone")
    assert str(found) == "confidence is not calibrated: there is one class alone"
    assert found.to_dict()["error"] is None


def test_where_all_answers_are_right_confidence_stays_below_one() -> None:
    truth = np.arange(30) % 3
    known = evidence(np.zeros((30, 1), int), np.zeros((30, 1)), 1 - np.eye(3)[truth])
    found = Calibration.fit(known, truth, by="prototypes", weighting="uniform", source="a test")
    np.testing.assert_allclose(found.probabilities(known).max(1), 1 - 1 / 32, atol=1e-3)
