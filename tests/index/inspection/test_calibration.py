"""Thresholds of an inspection keep the share of wrong findings that they promise, on nulls that are known."""

from __future__ import annotations

import numpy as np
import pytest

from distcam.index.inspection.calibration import largest_p, shares_wrong, smallest_p, tail_p


def test_shares_by_hand_never_fall_towards_weaker_findings() -> None:
    assert shares_wrong(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.04, 0.04])


@pytest.mark.parametrize(
    ("p_of", "draw"),
    [
        (lambda x: smallest_p(x, x), lambda random: np.log(random.weibull(6.0, 20_000))),
        (largest_p, lambda random: random.normal(3, 2, 20_000)),
        (lambda x: tail_p(x, np.random.default_rng(1).exponential(0.2, 4000)), lambda r: r.exponential(0.2, 20_000)),
    ],
)
def test_a_null_without_faults_has_uniform_p_values_in_its_tail_and_no_findings(p_of, draw) -> None:
    p = p_of(draw(np.random.default_rng(0)))
    for level in (0.001, 0.01, 0.04):
        assert (p <= level).mean() == pytest.approx(level, rel=0.35)
    assert (shares_wrong(p) <= 0.05).sum() <= 5


def test_faults_of_a_tenth_do_not_move_the_fit() -> None:
    random = np.random.default_rng(0)
    sound, faults = random.normal(0, 1, 9000), random.normal(8, 0.5, 1000)
    share = shares_wrong(largest_p(np.concatenate([sound, faults])))
    assert (share[9000:] <= 0.05).all()
    assert (share[:9000] <= 0.05).sum() <= 80
