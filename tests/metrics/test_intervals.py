"""Intervals: by hand, against scipy and plain loops, and whether they cover what they claim to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from distcam.errors import InputError
from distcam.fewshot import required_episodes
from distcam.metrics.intervals import (
    bootstrap_interval,
    class_jackknife_interval,
    intervals,
    usual_interval,
)


def test_the_usual_interval_by_hand() -> None:
    found = usual_interval(np.array([0.5, 0.7]))  # s = 0.2 / √2, s / √2 = 0.1
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - 0.196)
    assert found.high == pytest.approx(0.6 + 0.196)
    assert found.half_width == pytest.approx(0.196)


def test_the_bootstrap_equals_resampling_the_episodes_one_by_one() -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.beta(8, 2, size=300) * 75) / 75
    means = values[rng.integers(300, size=(4000, 300))].mean(1)
    found = bootstrap_interval(values, n_resamples=4000, seed=1)
    assert found.mean == values.mean()
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.002)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.002)
    assert found == bootstrap_interval(values, n_resamples=4000, seed=1)


def test_the_class_jackknife_by_hand() -> None:
    ways = np.array([[0, 1], [0, 2], [1, 2]])  # leaving out 0, 1, 2 leaves episodes 2, 1, 0
    values = np.array([0.6, 0.9, 0.3])
    # mean 0.6; left-out means 0.3, 0.9, 0.6; SE² = 2/3 · (0.09 + 0.09) = 0.12; t(2) = 4.3027
    found = class_jackknife_interval(values, ways)
    assert found.mean == pytest.approx(0.6)
    assert found.half_width == pytest.approx(4.302652729911275 * math.sqrt(0.12))


def test_the_class_jackknife_equals_leaving_out_each_class_in_a_loop() -> None:
    rng = np.random.default_rng(2)
    ways = np.stack([rng.permutation(9)[:3] for _ in range(200)]) * 10 + 5  # class numbers need not start at 0
    values = rng.random(200)
    left_out = np.array([values[(ways != c).all(1)].mean() for c in np.unique(ways)])
    error = math.sqrt(8 / 9 * ((left_out - left_out.mean()) ** 2).sum())
    assert class_jackknife_interval(values, ways).half_width == pytest.approx(stats.t.ppf(0.975, 8) * error)


def test_only_the_class_jackknife_covers_the_mean_over_classes() -> None:
    """A world of classes of different difficulty; each test set has 12 of them and thousands of episodes."""
    rng = np.random.default_rng(0)
    covered = {"usual": 0, "class jackknife": 0}
    for _ in range(100):
        difficulty = rng.normal(0.7, 0.1, size=12)
        ways = np.argsort(rng.random((3000, 12)), axis=1)[:, :5]
        values = difficulty[ways].mean(1) + rng.normal(0, 0.05, size=3000)
        for interval in (usual_interval(values), class_jackknife_interval(values, ways)):
            covered[interval.kind] += interval.low <= 0.7 <= interval.high
    assert covered["class jackknife"] >= 88
    assert covered["usual"] <= 30


def test_without_spare_classes_the_jackknife_is_absent_and_the_others_remain() -> None:
    found = intervals(np.array([0.5, 0.7, 0.9]), np.array([[0, 1], [1, 0], [0, 1]]))
    assert found.class_jackknife is None
    assert [interval.kind for interval in found] == ["usual", "bootstrap"]
    with pytest.raises(InputError, match="class jackknife does not exist"):
        class_jackknife_interval(np.array([0.5, 0.7]), np.array([[0, 1], [1, 0]]))


def test_each_interval_says_which_question_it_answers() -> None:
    found = intervals(np.array([0.6, 0.9, 0.3]), np.array([[0, 1], [0, 2], [1, 2]]))
    assert [interval.kind for interval in found] == ["usual", "bootstrap", "class jackknife"]
    assert len({interval.question for interval in found}) == 3


def test_required_episodes_reach_the_half_width_and_no_fewer_do() -> None:
    for deviation, half_width in ((0.1, 0.002), (0.116, 0.0093), (0.03, 0.01)):
        n = required_episodes(deviation, half_width=half_width)
        assert 1.96 * deviation / math.sqrt(n) <= half_width * (1 + 1e-9)
        assert 1.96 * deviation / math.sqrt(n - 1) > half_width
    with pytest.raises(InputError, match="half width > 0"):
        required_episodes(0.1, half_width=0.0)


@pytest.mark.parametrize("values", [[0.5], [0.5, np.nan], [[0.5, 0.6]]])
def test_values_without_an_interval_are_refused(values) -> None:
    with pytest.raises(InputError, match="at least two episodes"):
        usual_interval(np.array(values))
