"""Confusion, intersection over union, and the curve of the background score."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import directed_hausdorff
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, jaccard_score

from distcam.errors import InputError, ShapeError
from distcam.metrics.segmentation import (
    background_curve,
    confusion_matrix,
    evaluate_masks,
    hausdorff_distance,
    remark_on_shift,
)
from distcam.remarks import DistcamWarning

NAMES = ("background", "cat", "dog")


def test_a_score_by_hand() -> None:
    truth = np.uint8([[0, 0, 1, 1], [0, 255, 1, 255]])
    found = np.uint8([[0, 1, 1, 1], [0, 1, 255, 0]])
    score = evaluate_masks([(truth, found)], NAMES)
    # background: 2 hits, 3 true, 2 predicted; cat: 2 hits, 3 true, 3 predicted where the truth is known
    assert score.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]]
    assert score.iou.tolist()[:2] == pytest.approx([2 / 3, 2 / 4])
    assert np.isnan(score.iou[2])
    assert score.mean_iou == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert score.pixel_accuracy == pytest.approx(4 / 6)
    assert score.class_accuracy.tolist()[:2] == pytest.approx([2 / 3, 2 / 3])


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    score = evaluate_masks([(np.zeros((2, 2), np.uint8), np.uint8([[0, 0], [0, 2]]))], NAMES)
    assert score.iou.tolist()[2] == 0
    assert np.isnan(score.iou[1])
    assert score.mean_iou == pytest.approx((3 / 4 + 0) / 2)


def test_counts_are_summed_before_they_are_divided() -> None:
    one = (np.uint8([[1, 1]]), np.uint8([[1, 1]]))
    other = (np.uint8([[1, 0, 0, 0]]), np.uint8([[0, 0, 0, 0]]))
    assert evaluate_masks([one, other], NAMES).iou[1] == pytest.approx(2 / 3)


masks = arrays(np.uint8, (5, 7), elements=st.integers(0, 2))


@settings(deadline=None, max_examples=25)
@given(masks, masks)
def test_scikit_learn_counts_alike(truth, found) -> None:
    score = evaluate_masks([(truth, found)], NAMES)
    labels = [0, 1, 2]
    expected = sklearn_confusion(truth.ravel(), found.ravel(), labels=labels)
    assert np.array_equal(score.confusion[:, :3], expected)
    oracle = jaccard_score(truth.ravel(), found.ravel(), labels=labels, average=None, zero_division=0)
    assert np.nan_to_num(score.iou).tolist() == pytest.approx(oracle.tolist())
    oracle = f1_score(truth.ravel(), found.ravel(), labels=labels, average=None, zero_division=0)
    assert np.nan_to_num(score.f1).tolist() == pytest.approx(oracle.tolist())


@settings(deadline=None, max_examples=15)
@given(masks, masks, st.permutations([0, 1, 2]))
def test_numbering_classes_anew_changes_no_mean(truth, found, order) -> None:
    renumbered = np.uint8(order)
    before = evaluate_masks([(truth, found)], NAMES)
    after = evaluate_masks([(renumbered[truth], renumbered[found])], NAMES)
    assert before.mean_iou == pytest.approx(after.mean_iou)
    assert before.pixel_accuracy == pytest.approx(after.pixel_accuracy)


@settings(deadline=None, max_examples=15)
@given(masks, arrays(np.float32, (2, 5, 7), elements=st.floats(0, 1, width=32)))
def test_the_curve_is_that_of_an_argmax_for_every_background_score(truth, scores) -> None:
    betas = (0.0, 0.25, 0.5, 1.0)
    curve = background_curve([(truth, scores)], NAMES, betas=betas)
    for beta, score in zip(betas, curve.scores, strict=True):
        stacked = np.concatenate([np.full((1, 5, 7), beta, np.float32), scores])
        slow = evaluate_masks([(truth, stacked.argmax(0).astype(np.uint8))], NAMES)
        assert np.array_equal(score.confusion, slow.confusion)


def test_the_best_background_score_is_the_smallest_of_equals() -> None:
    truth, scores = np.uint8([[0, 1]]), np.float32([[[0.1, 0.9]], [[0.0, 0.0]]])
    curve = background_curve([(truth, scores)], NAMES, betas=[0.95, 0.05, 0.5, 0.3])
    assert curve.betas == (0.05, 0.3, 0.5, 0.95)
    assert curve.mean_iou == pytest.approx((0.25, 1.0, 1.0, 0.25))
    assert (curve.best_beta, curve.best_score.mean_iou) == (0.3, 1.0)
    assert "0.300   1.000" in curve.table()
    assert curve.table().count("best") == 1
    assert json.loads(json.dumps(curve.to_dict()))["best_beta"] == 0.3


def test_tables_and_json_show_every_class() -> None:
    score = evaluate_masks([(np.uint8([[0, 1, 1, 1]]), np.uint8([[0, 0, 0, 1]]))], NAMES)
    table = score.table()
    assert "cat              0.333  0.500  0.333  background (0.667)" in table
    assert "dog                  –      –      –" in table
    assert "1 images" in table
    content = json.loads(json.dumps(score.to_dict()))
    assert content["iou"] == {"background": pytest.approx(1 / 3), "cat": pytest.approx(1 / 3), "dog": None}
    assert content["f1"] == {"background": pytest.approx(0.5), "cat": pytest.approx(0.5), "dog": None}
    assert content["mean_f1"] == pytest.approx(0.5)


def test_masks_that_do_not_fit_are_refused() -> None:
    blank = np.zeros((2, 2), np.uint8)
    with pytest.raises(ShapeError, match=r"same shape, got \(2, 2\) for the truth and \(2, 3\)"):
        confusion_matrix(blank, np.zeros((2, 3), np.uint8), 3)
    with pytest.raises(InputError, match="the prediction holds the class number 7; expected 0 to 2, or 255"):
        confusion_matrix(blank, blank + np.uint8(7), 3)
    with pytest.raises(InputError, match="the truth holds the class number 3"):
        confusion_matrix(blank + np.uint8(3), blank, 3)
    with pytest.raises(InputError, match="one image with a mask or more"):
        evaluate_masks([], NAMES)
    with pytest.raises(InputError, match="one image with a mask or more"):
        background_curve([], NAMES)
    with pytest.raises(InputError, match="one background score or more"):
        background_curve([(blank, np.zeros((2, 2, 2)))], NAMES, betas=[])
    with pytest.raises(ShapeError, match=r"expected scores of shape \(2, 2, 2\), got \(3, 2, 2\)"):
        background_curve([(blank, np.zeros((3, 2, 2)))], NAMES)


def test_a_curve_of_nothing_but_void_has_no_best_score() -> None:
    void, scores = np.full((2, 2), 255, np.uint8), np.zeros((2, 2, 2))
    assert np.isnan(evaluate_masks([(void, void)], NAMES).mean_iou)
    with pytest.raises(InputError, match="every pixel of the 1 masks is void"):
        background_curve([(void, scores)], NAMES)


def test_a_curve_names_an_unknown_class_number() -> None:
    with pytest.raises(InputError, match="the truth holds the class number 7; expected 0 to 2, or 255"):
        background_curve([(np.full((2, 2), 7, np.uint8), np.zeros((2, 2, 2)))], NAMES)


@pytest.mark.parametrize(("moved", "where"), [(-1, "higher"), (1, "lower")])
def test_masks_that_are_numbered_from_elsewhere_are_remarked_on(moved: int, where: str) -> None:
    truth = np.random.default_rng(0).integers(1, 4, (20, 20)).astype(np.uint8)
    names = ["background", "a", "b", "c", "d"]
    shifted = evaluate_masks([(truth, (truth.astype(int) + moved).astype(np.uint8))], names)
    with pytest.warns(DistcamWarning, match=f"shifted by one: 100.0% of the pixels .* if every number is one {where}"):
        remark_on_shift(shifted)
    remark_on_shift(evaluate_masks([(truth, truth)], names))
    noise = np.random.default_rng(1).integers(0, 5, (20, 20)).astype(np.uint8)
    remark_on_shift(evaluate_masks([(truth, noise)], names))


# --- Hausdorff distance -----------------------------------------------------------------------------------------------


def test_the_hausdorff_distance_is_scipys_of_the_pixels_places() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        one, other = generator.random((2, 9, 13)) < 0.1
        if one.any() and other.any():
            sets = (np.argwhere(one), np.argwhere(other))
            expected = max(directed_hausdorff(*sets)[0], directed_hausdorff(*sets[::-1])[0])
            assert hausdorff_distance(one, other) == pytest.approx(expected)
            assert hausdorff_distance(other, one) == hausdorff_distance(one, other)
    assert np.isnan(hausdorff_distance(np.zeros((2, 2), bool), np.ones((2, 2), bool)))


def test_distances_of_classes_are_means_over_images_that_show_them_twice() -> None:
    truth = np.uint8([[0, 1, 0, 0, 255]])
    found = [np.uint8([[0, 1, 0, 0, 1]]), np.uint8([[0, 0, 0, 1, 1]]), np.uint8([[0, 0, 0, 0, 0]])]
    score = evaluate_masks([(truth, each) for each in found], ("background", "a", "b"), hausdorff=True)
    assert score.hausdorff is not None
    # background: the same; of pixels 0, 2, 3 and 0, 1, 2 one away; of 0, 2, 3 and 0, 1, 2, 3 one away
    assert score.hausdorff[:2].tolist() == pytest.approx([2 / 3, 1.0])
    assert np.isnan(score.hausdorff[2])
    assert score.to_dict()["hausdorff"]["b"] is None
    assert "Hausdorff distance in pixels" in score.table()
    plain = evaluate_masks([(truth, found[0])], ("background", "a", "b"))
    assert plain.hausdorff is None
    assert "hausdorff" not in plain.to_dict()
