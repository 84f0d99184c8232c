"""Protocols of re-identification: each decision changes the numbers it should, and nonsense is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from distcam.errors import InputError
from distcam.reid import Labels, ReidEvaluation, ReidProtocol, evaluate_distances, evaluate_features


def one(distances: Any, query: tuple[Any, Any], ids: Any, cameras: Any, **options: Any) -> ReidEvaluation:
    """One query against a gallery."""
    identity, camera = query
    return evaluate_distances([distances], query=Labels([identity], [camera]), gallery=Labels(ids, cameras), **options)


def scores(result: ReidEvaluation) -> tuple[float, float, float, float]:
    return result.rank(1), result.map_step, result.map_trapezoid, result.minp


@pytest.mark.parametrize(("no_match", "score"), [("skip", 1.0), ("zero", 0.5)])
def test_a_query_without_a_match_is_skipped_or_scores_zero(no_match: Any, score: float) -> None:
    result = evaluate_distances(
        [[0.1, 0.2, 0.3]] * 2,
        query=Labels([1, 2], [0, 0]),
        gallery=Labels([1, 2, 9], [1, 0, 1]),
        protocol=ReidProtocol(no_match=no_match),
    )
    assert scores(result) == (score, score, score, score)
    assert result.counts["queries_without_match"] == 1


@pytest.mark.parametrize(
    ("protocol", "score"), [(ReidProtocol(), 1.0), (ReidProtocol(junk=(), distractors=(-1,)), 0.5)]
)
def test_junk_is_ignored_unless_it_is_declared_a_distractor(protocol: ReidProtocol, score: float) -> None:
    result = one([0.1, 0.2, 0.3], (1, 0), [-1, 1, 9], [1, 1, 1], protocol=protocol)
    assert result.map_step == score


def test_a_distractor_is_a_wrong_answer_unless_the_protocol_ignores_it() -> None:
    def rank_1(protocol: ReidProtocol) -> float:
        return one([0.1, 0.2], (1, 0), [0, 1], [1, 1], protocol=protocol).rank(1)

    assert rank_1(ReidProtocol()) == 0
    assert rank_1(ReidProtocol(distractors=(0,))) == 0
    assert rank_1(ReidProtocol(distractors=(0,), distractor_policy="ignore")) == 1
    second = [0.1, 0.2, 0.3], (1, 0), [0, 1, 2], [0, 1, 0]
    assert one(*second).rank(1) == 0
    assert one(*second, protocol=ReidProtocol(junk=(-1, 0))).rank(1) == 1


def test_every_image_of_the_query_camera_can_be_ignored() -> None:
    distances, query, ids, cameras = [0.05, 0.1, 0.2], (1, 0), [9, 1, 1], [0, 0, 1]
    assert one(distances, query, ids, cameras).rank(1) == 0
    assert one(distances, query, ids, cameras, protocol=ReidProtocol(same_camera="drop_all")).rank(1) == 1
    kept = one(distances, query, ids, cameras, protocol=ReidProtocol(same_camera="keep"))
    assert kept.map_step == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_query_never_meets_its_own_image() -> None:
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    labels = Labels([1, 1, 2, 2], images=["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    protocol = ReidProtocol(same_camera="keep")
    result = evaluate_features(features, features, query=labels, gallery=labels, protocol=protocol)
    assert result.counts["pairs_ignored"] == 4
    assert result.per_query.n_matches.tolist() == [1, 1, 1, 1]
    assert result.verification is not None
    assert result.verification.n_genuine == 4


def test_text_labels_know_the_same_junk() -> None:
    result = one([0.1, 0.2], ("ada", "north"), ["-1", "ada"], ["south", "south"])
    assert result.rank(1) == 1
    assert result.counts["gallery_junk"] == 1


def test_labels_that_cannot_give_a_meaningful_number_are_refused() -> None:
    with pytest.raises(InputError, match="gallery images have no camera: give cameras, or choose"):
        one([0.1], (1, 0), [1], None)
    with pytest.raises(InputError, match="1 of 2 gallery images have no camera"):
        one([0.1, 0.2], (1, 0), [1, 2], [1, -1])
    with pytest.raises(InputError, match="identity -2 is negative"):
        one([0.1, 0.2], (1, 0), [1, -2], [1, 1])
    with pytest.raises(InputError, match="query 0 has identity -1, which the protocol declares junk"):
        one([0.1], (-1, 0), [1], [1])
    with pytest.raises(InputError, match="declares a distractor"):
        one([0.1], (0, 0), [0], [1], protocol=ReidProtocol(distractors=(0,)))
    with pytest.raises(InputError, match="there is only one camera; same_camera='keep'"):
        one([0.1, 0.2], (1, 0), [1, 2], [0, 0])
    with pytest.raises(InputError, match="1 of 2 queries have no match in the gallery, first: 1"):
        evaluate_distances(
            [[0.1], [0.2]],
            query=Labels([1, 2], [0, 0]),
            gallery=Labels([1], [1]),
            protocol=ReidProtocol(no_match="refuse"),
        )
    with pytest.raises(InputError, match="both be integers or both text"):
        one([0.1], (1, 0), ["1"], [1])
    with pytest.raises(InputError, match="nothing to compare"):
        one([0.1], (1, 0), [-1], [1])
    with pytest.raises(InputError, match="expected integers or text, got float64"):
        Labels([1.0, 2.0])


def test_unknown_cameras_are_allowed_when_the_protocol_says_so() -> None:
    protocol = ReidProtocol(missing_camera="distinct")
    result = evaluate_distances([[0.1, 0.2]], query=Labels([1]), gallery=Labels([1, 9]), protocol=protocol)
    assert result.rank(1) == 1
    assert result.camera_pairs == ()
    assert result.counts["missing_cameras"] == 3
    mixed = one([0.1, 0.2, 0.3], (1, "a"), [1, 1, 9], ["", "a", "b"], protocol=protocol)
    assert mixed.counts["pairs_ignored"] == 1
    assert mixed.per_query.n_matches.tolist() == [1]


def test_every_decision_is_printed_and_stored_with_the_numbers() -> None:
    protocol = ReidProtocol(distractors=(0,), no_match="zero", false_alarms="unmated")
    result = one([0.1, 0.2, 0.3], (1, 0), [0, 1, -1], [1, 1, 1], protocol=protocol, single_gallery_shot=True)
    text = str(result)
    for line in ["mAP (step)", "mAP (trapezoid)", "mINP", *protocol.describe()]:
        assert line in text
    assert "distractors: {0} count as wrong" in text
    assert "queries without a match: count as 0" in text
    stored = json.loads(json.dumps(result.to_dict(per_query=True), allow_nan=False))
    assert stored["protocol"] == json.loads(json.dumps(protocol.to_dict()))
    assert "mAP" not in stored
    assert stored["map_step"] == 0.5
    assert stored["per_query"]["first_rank"] == [2]
    assert "per_query" not in result.to_dict()


def test_distractors_are_each_their_own_in_a_single_gallery_shot() -> None:
    distances, ids = [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 2]
    declared = one(
        distances, (1, 0), ids, [1] * 4, single_gallery_shot=True, protocol=ReidProtocol(distractors=(0,)), max_rank=3
    )
    assert declared.single_gallery_shot is not None
    np.testing.assert_allclose(declared.single_gallery_shot, [0, 0, 1])
