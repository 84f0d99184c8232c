"""Evaluation of re-identification: every number by hand, against a slow loop, and against scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from distcam.errors import InputError, ShapeError
from distcam.reid import Labels, ReidEvaluation, ReidProtocol, evaluate_distances, evaluate_features


def one(distances: Any, query: tuple[Any, Any], ids: Any, cameras: Any, **options: Any) -> ReidEvaluation:
    """One query against a gallery."""
    identity, camera = query
    return evaluate_distances([distances], query=Labels([identity], [camera]), gallery=Labels(ids, cameras), **options)


def scores(result: ReidEvaluation) -> tuple[float, float, float, float]:
    return result.rank(1), result.map_step, result.map_trapezoid, result.minp


# ---- by hand -------------------------------------------------------------------------------------------------------


def test_matches_at_ranks_two_three_and_five() -> None:
    result = one([0.1, 0.2, 0.3, 0.4, 0.5], (1, 0), [9, 1, 1, 8, 1], [1, 1, 2, 1, 3])
    assert result.cmc[:5].tolist() == [0, 1, 1, 1, 1]
    assert result.map_step == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert result.map_trapezoid == pytest.approx(((0 + 1 / 2) + (1 / 2 + 2 / 3) + (2 / 4 + 3 / 5)) / 2 / 3)
    assert result.minp == pytest.approx(3 / 5)


def test_a_result_is_one_line_and_a_frame_of_queries() -> None:
    pytest.importorskip("pandas")
    result = evaluate_distances([[0.1, 0.2], [0.2, 0.1]], query=Labels([1, 1], [1, 1]), gallery=Labels([1, 2], [2, 2]))
    assert repr(result) == "Evaluation(rank-1 50.00, mAP (step) 75.00 %; 2 queries)"
    assert result.to_pandas()["first_rank"].tolist() == [1, 2]


def test_a_match_from_the_same_camera_is_ignored() -> None:
    result = one([0.05, 0.1, 0.2, 0.3], (1, 0), [1, 9, 1, 8], [0, 1, 1, 1])
    assert result.cmc[:2].tolist() == [0, 1]
    assert scores(result)[1:] == (0.5, 0.25, 0.5)
    assert result.counts["pairs_ignored"] == 1


def test_cmc_never_decreases_when_the_gallery_is_shorter_than_max_rank() -> None:
    result = evaluate_distances(
        [[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3]],
        query=Labels([1, 2], [0, 0]),
        gallery=Labels([1, 1, 9, 2], [0, 1, 1, 1]),
        max_rank=20,
    )
    assert result.cmc[:4].tolist() == [0.5, 0.5, 1, 1]
    assert result.cmc.size == 20
    assert np.all(np.diff(result.cmc) >= 0)
    assert scores(result)[1:] == pytest.approx((2 / 3, 0.583333, 2 / 3), abs=1e-6)


def test_ties_do_not_depend_on_the_order_of_the_gallery() -> None:
    for ids in ([9, 1, 8], [1, 9, 8], [8, 9, 1]):
        result = one([0.5] * 3, (1, 0), ids, [1, 1, 1])
        assert scores(result) == pytest.approx((0, 1 / 3, (0 + 1 / 3) / 2, 1 / 3))
    many = one([0.5] * 40, (1, 0), [9] * 39 + [1], [1] * 40)
    assert many.map_step == pytest.approx(0.025)


def test_tied_matches_alone_are_a_perfect_ranking() -> None:
    assert scores(one([0.2, 0.2, 0.5], (1, 0), [1, 1, 9], [1, 1, 1])) == (1, 1, 1, 1)


def test_constant_features_never_look_good() -> None:
    features = np.ones((6, 3), np.float32)
    labels = Labels([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    result = evaluate_features(features, features, query=labels, gallery=labels)
    assert result.rank(1) == 0
    assert result.map_step == pytest.approx(1 / 5)
    assert result.map_trapezoid <= result.map_step


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="query 0 to gallery image 1 is"):
        one([0.1, value], (1, 0), [1, 9], [1, 1])
    features = np.ones((2, 3), np.float32)
    broken = features.copy()
    broken[1, 2] = value
    labels = Labels([1, 1], [0, 1])
    with pytest.raises(InputError, match="gallery features: row 1 is not finite"):
        evaluate_features(features, broken, query=labels, gallery=labels)
    with pytest.raises(InputError, match="query features: row 1 is not finite"):
        evaluate_features(broken, features, query=labels, gallery=labels)


def test_a_zero_vector_has_no_cosine() -> None:
    labels = Labels([1, 1], [0, 1])
    with pytest.raises(InputError, match="row 0 is zero"):
        evaluate_features(np.zeros((2, 3)), np.ones((2, 3)), query=labels, gallery=labels)
    assert evaluate_features(np.zeros((2, 3)), np.ones((2, 3)), query=labels, gallery=labels, metric="l2").rank(1) == 1


def test_a_mixed_ranking_with_one_pair_ignored() -> None:
    result = one([0.1, 0.2, 0.3, 0.4], (1, 0), [2, 1, 1, 1], [1, 1, 0, 2])
    assert (result.rank(1), result.map_step, result.minp) == pytest.approx((0, 7 / 12, 2 / 3))


def test_both_average_precisions_of_two_published_rankings() -> None:
    four = one(np.arange(7) / 10, (1, 0), [1, 1, 9, 1, 9, 9, 1], [1] * 7)
    assert scores(four)[1:] == pytest.approx((0.830357, 0.811012, 4 / 7), abs=1e-6)
    two = one(np.arange(4) / 10, (1, 0), [1, 9, 1, 9], [1] * 4)
    assert scores(two)[1:3] == pytest.approx((0.833333, 0.791667), abs=1e-6)


def test_matches_that_come_late_lower_the_average_precision() -> None:
    ids = [1] + [9] * 20 + [1] * 9
    result = one(np.arange(30), (1, 0), ids, [1] * 30)
    assert result.map_step == pytest.approx((1 + sum((k + 1) / (k + 21) for k in range(1, 10))) / 10)
    assert result.map_step < 0.5  # dividing by the hits in the first twenty alone would say 1


def test_the_camera_table_ranks_within_one_gallery_camera() -> None:
    result = one([0.1, 0.2, 0.3, 0.4, 0.5], (1, "a"), [9, 1, 1, 8, 1], ["b", "b", "c", "c", "d"])
    table = {pair.gallery_camera: (pair.rank_1, pair.map_step, pair.n_queries) for pair in result.camera_pairs}
    assert table == {"b": (0, 0.5, 1), "c": (1, 1, 1), "d": (1, 1, 1)}


def test_statistics_of_pairs_can_be_left_out() -> None:
    whole = one([0.1, 0.2, 0.3], (1, 0), [9, 1, 8], [1, 1, 1])
    ranking = one([0.1, 0.2, 0.3], (1, 0), [9, 1, 8], [1, 1, 1], false_accept_rates=())
    assert whole.verification is not None
    assert (ranking.verification, ranking.identification) == (None, None)
    assert scores(ranking) == scores(whole)
    assert "TAR" not in str(ranking)


# ---- messages ------------------------------------------------------------------------------------------------------


def test_shapes_and_options_are_checked() -> None:
    with pytest.raises(ShapeError, match="2 gallery labels for 1 rows"):
        one([0.1], (1, 0), [1, 2], [1, 1])
    with pytest.raises(ShapeError, match="cameras: expected 2 values"):
        Labels([1, 2], cameras=[0])
    labels = Labels([1], [0])
    with pytest.raises(ShapeError, match="3 dimensions, gallery features 4"):
        evaluate_features(np.ones((1, 3)), np.ones((1, 4)), query=labels, gallery=labels)
    with pytest.raises(InputError, match="max_rank must be at least 1"):
        one([0.1], (1, 0), [1], [1], max_rank=0)
    with pytest.raises(InputError, match=r"false_accept_rates must lie in \(0, 1\]"):
        one([0.1], (1, 0), [1], [1], false_accept_rates=(0.0,))
    with pytest.raises(InputError, match="same_camera must be one of"):
        ReidProtocol(same_camera="drop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="declared both junk and distractors"):
        ReidProtocol(junk=(0,), distractors=(0,))
    with pytest.raises(IndexError, match="ranks 1 to 50, asked for 51"):
        one([0.1], (1, 0), [1], [1]).rank(51)


def test_a_result_cannot_be_changed() -> None:
    result = one([0.1, 0.2], (1, 0), [1, 2], [1, 1])
    with pytest.raises(ValueError, match="read-only"):
        result.cmc[0] = 1
    with pytest.raises(AttributeError):
        result.map_step = 1  # type: ignore[misc]


def test_the_inputs_stay_as_they_were() -> None:
    distances = np.random.default_rng(0).random((4, 9))
    before = distances.copy()
    evaluate_distances(distances, query=Labels(np.arange(4), [0] * 4), gallery=Labels(np.arange(9) % 4, [1] * 9))
    np.testing.assert_array_equal(distances, before)


# ---- oracle: a slow loop, scikit-learn, enumeration ------------------------------------------------------------------


def walked(distances: Any, query: Labels, gallery: Labels) -> dict[str, Any]:
    """All measures by walking each ranking in full, wrong answers first where distances tie."""
    found: dict[str, Any] = {"first": [], "step": [], "trapezoid": [], "inp": [], "genuine": [], "impostor": []}
    for row, identity, camera in zip(distances, query.identities, query.cameras, strict=True):
        ranking = []
        for distance, other, other_camera in zip(row, gallery.identities, gallery.cameras, strict=True):
            if other == -1 or (other == identity and other_camera == camera):
                continue
            ranking.append((float(distance), bool(other == identity)))
            found["genuine" if other == identity else "impostor"].append(float(distance))
        ranking.sort()
        n_matches = sum(match for _, match in ranking)
        if not n_matches:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["step"].append(average_precision_score([m for _, m in ranking], [-d for d, _ in ranking]))
        hits, area, precision, ranks = 0, 0.0, 1.0, []
        for rank, (_, match) in enumerate(ranking, 1):
            hits += match
            if match:
                area += (precision + hits / rank) / 2 / n_matches
                ranks.append(rank)
            precision = hits / rank
        found["trapezoid"].append(area)
        found["first"].append(ranks[0])
        found["inp"].append(n_matches / ranks[-1])
    return found


def random_case(seed: int, *, n_query: int = 12, n_gallery: int = 60, levels: int = 8) -> tuple[Any, Labels, Labels]:
    random = np.random.default_rng(seed)
    distances = random.integers(0, levels, (n_query, n_gallery)) / levels
    query = Labels(random.integers(0, 4, n_query), random.integers(0, 3, n_query))
    gallery = Labels(random.integers(-1, 6, n_gallery), random.integers(0, 3, n_gallery))
    return distances, query, gallery


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("levels", [3, 16, 1 << 30])
def test_every_ranking_measure_equals_a_walk_through_the_ranking(seed: int, levels: int) -> None:
    distances, query, gallery = random_case(seed, levels=levels)
    result, slow = evaluate_distances(distances, query=query, gallery=gallery), walked(distances, query, gallery)
    assert result.map_step == pytest.approx(np.mean(slow["step"]), abs=1e-12)
    assert result.map_trapezoid == pytest.approx(np.mean(slow["trapezoid"]), abs=1e-12)
    assert result.minp == pytest.approx(np.mean(slow["inp"]), abs=1e-12)
    first = np.array(slow["first"])
    np.testing.assert_allclose(result.cmc, [(first <= k).mean() for k in range(1, 51)], atol=1e-12)


def test_many_quantised_queries_equal_scikit_learn() -> None:
    """Ties in every row, and more matches for some queries than are counted one by one."""
    random = np.random.default_rng(5332)
    gallery = Labels(random.integers(0, 12, 1500), random.integers(0, 2, 1500))
    query = Labels(random.integers(0, 12, 25), random.integers(0, 2, 25))
    same = np.asarray(query.identities)[:, None] == np.asarray(gallery.identities)
    distances = np.round(random.normal(1 - 0.3 * same, 0.1), 3).astype(np.float32)
    result, slow = evaluate_distances(distances, query=query, gallery=gallery), walked(distances, query, gallery)
    assert result.per_query.n_matches.min() > 20
    assert result.per_query.n_matches.max() > 64
    np.testing.assert_allclose(result.per_query.ap_step, slow["step"], atol=1e-12)
    np.testing.assert_allclose(result.per_query.ap_trapezoid, slow["trapezoid"], atol=1e-12)
    np.testing.assert_allclose(result.per_query.inverse_penalty, slow["inp"], atol=1e-12)


def test_single_gallery_shot_equals_every_gallery_that_can_be_drawn() -> None:
    distances = np.array([[0.5, 0.9, 0.3, 0.7, 0.5, 0.1, 0.6, 0.4]])
    ids = [1, 1, 2, 2, 3, 3, 3, -1]
    result = one(distances[0], (1, 0), ids, [1] * 8, single_gallery_shot=True, max_rank=4)
    ranks = []
    for match in distances[0, :2]:
        for second in distances[0, 2:4]:
            ranks += [1 + (second <= match) + (third <= match) for third in distances[0, 4:7]]
    assert result.single_gallery_shot is not None
    expected = [np.mean(np.array(ranks) <= k) for k in range(1, 5)]
    np.testing.assert_allclose(result.single_gallery_shot, expected, atol=1e-12)


def test_single_gallery_shot_agrees_with_random_draws() -> None:
    distances, query, gallery = random_case(3, n_query=8, n_gallery=40, levels=1 << 30)
    shot = evaluate_distances(distances, query=query, gallery=gallery, single_gallery_shot=True).single_gallery_shot
    assert shot is not None
    random = np.random.default_rng(0)
    identities, cameras = np.asarray(gallery.identities), np.asarray(gallery.cameras)
    hits = []
    for row, identity, camera in zip(distances, query.identities, query.cameras, strict=True):
        usable = (identities != -1) & ~((identities == identity) & (cameras == camera))
        if not (usable & (identities == identity)).any():
            continue
        groups = [np.flatnonzero(usable & (identities == name)) for name in np.unique(identities[usable])]
        for _ in range(400):
            drawn = np.array([random.choice(group) for group in groups])
            order = identities[drawn[np.argsort(row[drawn])]]
            hits.append(int(np.flatnonzero(order == identity)[0]) + 1)
    hits_at = [np.mean(np.array(hits) <= k) for k in (1, 2, 3)]
    np.testing.assert_allclose(shot[:3], hits_at, atol=0.04)


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_features_and_their_distances_give_the_same_evaluation(metric: Any, dtype: Any) -> None:
    random = np.random.default_rng(7)
    centres = random.normal(size=(5, 16))
    labels = [Labels(random.integers(0, 5, n), random.integers(0, 3, n)) for n in (9, 50)]
    query, gallery = (
        (centres[np.asarray(side.identities)] + random.normal(size=(len(side), 16))).astype(dtype) for side in labels
    )
    q, g = query.astype(float), gallery.astype(float)
    slow = {
        "cosine": 1 - (q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T,
        "l2": np.linalg.norm(q[:, None] - g, axis=2),
        "l1": np.abs(q[:, None] - g).sum(axis=2),
        "dot": -q @ g.T,
    }[metric]
    sides = {"query": labels[0], "gallery": labels[1]}
    for block_bytes in (1, 1 << 24):
        fast = evaluate_features(query, gallery, **sides, metric=metric, block_bytes=block_bytes)
        right = evaluate_distances(slow, **sides)
        assert scores(fast) == pytest.approx(scores(right), abs=1e-12)
        assert fast.camera_pairs == right.camera_pairs
        assert fast.verification is not None
        assert right.verification is not None
        assert fast.verification.equal_error_rate == pytest.approx(right.verification.equal_error_rate)
        assert fast.metric == metric


def test_the_camera_table_equals_an_evaluation_of_each_gallery_camera() -> None:
    distances, query, gallery = random_case(11, n_query=30, n_gallery=120)
    whole = evaluate_distances(distances, query=query, gallery=gallery)
    asked, cameras = np.asarray(query.cameras), np.asarray(gallery.cameras)
    for pair in whole.camera_pairs:
        rows, columns = asked == pair.query_camera, cameras == pair.gallery_camera
        part = evaluate_distances(
            distances[rows][:, columns],
            query=Labels(np.asarray(query.identities)[rows], asked[rows]),
            gallery=Labels(np.asarray(gallery.identities)[columns], cameras[columns]),
        )
        assert (part.rank(1), part.map_step) == pytest.approx((pair.rank_1, pair.map_step))
        assert part.counts["queries_scored"] == pair.n_queries


# ---- properties ------------------------------------------------------------------------------------------------------


def comparable(result: ReidEvaluation) -> dict[str, Any]:
    """Everything that must survive a change of units or order; without thresholds, which are in those units."""
    found = result.to_dict(per_query=True)
    del found["per_query"]["match_distance"], found["per_query"]["wrong_distance"]
    verified, identified = found["verification"], found["identification"]
    for name in ("thresholds", "equal_error_threshold", "histogram_edges", "genuine_histogram", "impostor_histogram"):
        verified.pop(name)
    for point in verified["operating_points"] + (identified["operating_points"] if identified else []):
        point.pop("threshold")
    return found


cases = st.builds(random_case, st.integers(0, 10_000), levels=st.sampled_from([2, 6, 1000]))


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_a_monotone_change_of_the_distances_changes_nothing(case: Any) -> None:
    distances, query, gallery = case
    before = evaluate_distances(distances, query=query, gallery=gallery)
    after = evaluate_distances(np.exp(3 * distances) - 7, query=query, gallery=gallery)
    assert comparable(before) == comparable(after)


@settings(max_examples=25, deadline=None)
@given(case=cases, seed=st.integers(0, 100))
def test_the_order_of_gallery_and_queries_changes_nothing(case: Any, seed: int) -> None:
    distances, query, gallery = case
    random = np.random.default_rng(seed)
    rows, columns = random.permutation(len(query)), random.permutation(len(gallery))
    whole = evaluate_distances(distances, query=query, gallery=gallery, single_gallery_shot=True)
    mixed = evaluate_distances(
        distances[rows][:, columns],
        query=Labels(np.asarray(query.identities)[rows], np.asarray(query.cameras)[rows]),
        gallery=Labels(np.asarray(gallery.identities)[columns], np.asarray(gallery.cameras)[columns]),
        single_gallery_shot=True,
        block_bytes=1000,
    )
    for name in ("map_step", "map_trapezoid", "minp"):
        assert getattr(mixed, name) == pytest.approx(getattr(whole, name), abs=1e-12)
    assert whole.single_gallery_shot is not None
    assert mixed.single_gallery_shot is not None
    np.testing.assert_allclose(mixed.single_gallery_shot, whole.single_gallery_shot, atol=1e-12)
    np.testing.assert_array_equal(mixed.cmc, whole.cmc)
    np.testing.assert_array_equal(mixed.per_query.ap_step, whole.per_query.ap_step[rows])
    assert mixed.verification is not None
    assert whole.verification is not None
    assert mixed.verification.operating_points == whole.verification.operating_points
    assert mixed.identification == whole.identification


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_every_measure_stays_in_its_range(case: Any) -> None:
    distances, query, gallery = case
    result = evaluate_distances(distances, query=query, gallery=gallery, single_gallery_shot=True)
    assert 0 < result.minp <= 1
    assert 0 <= result.map_trapezoid <= result.map_step <= 1
    assert np.all(np.diff(result.cmc) >= 0)
    assert result.single_gallery_shot is not None
    assert np.all(np.diff(result.single_gallery_shot) >= -1e-12)
