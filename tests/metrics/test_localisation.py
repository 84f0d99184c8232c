"""Boxes at thresholds against true boxes, the measures read off them, and pixel precision-recall."""

from __future__ import annotations

import doctest
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from distcam.errors import InputError, ShapeError
from distcam.explain import box_from_map, normalise
from distcam.images import Box
from distcam.metrics.localisation import BoxOverlaps, PixelCounts, box_overlaps, pixel_counts
from distcam.metrics.maps import components, largest_component
from distcam.retrieval.localisation.results import MEASURES, ImageScores

MODULE = sys.modules["distcam.metrics.localisation"]
TWO = torch.tensor([[[0.0, 0.0, 0.0, 0.6], [1.0, 1.0, 0.0, 0.0], [0.3, 0.3, 0.0, 0.0]]])


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_overlaps_of_a_map_with_two_regions_by_hand() -> None:
    overlaps = box_overlaps(TWO, [[Box(0, 1, 2, 2), Box(3, 0, 4, 1)]], thresholds=(0.1, 0.5, 0.9))
    # at .1 the largest region is rows 1 and 2 (4 pixels, box of area 4, true box 2): 2/4; the corner fits exactly
    assert overlaps.largest.tolist() == [[0.5, 1.0, 1.0]]
    assert overlaps.best.tolist() == [[1.0, 1.0, 1.0]]
    only_corner = box_overlaps(TWO, [[Box(3, 0, 4, 1)]], thresholds=(0.1, 0.5, 0.9))
    assert only_corner.largest.tolist() == [[0.0, 0.0, 0.0]]
    assert only_corner.best.tolist() == [[1.0, 1.0, 0.0]]  # 0.6 is not there at .9


def test_the_measures_by_hand() -> None:
    largest = torch.tensor([[0.6, 0.2], [0.4, 0.9], [0.5, 0.7], [0.1, 0.3]])
    overlaps = BoxOverlaps((0.2, 0.4), largest, largest + 0.1)
    nothing, weights = torch.zeros(4), torch.full((1, 4), 0.25, dtype=torch.float64)
    is_right = torch.tensor([False, True, True, True])
    scores = ImageScores(overlaps, is_right, nothing, nothing, nothing, nothing)
    assert MEASURES["gt_known_error"](scores, weights).item() == 0.5  # 0.6 and 0.5 of four
    assert MEASURES["top1_error"](scores, weights).item() == 0.75  # only the third is right and found
    assert overlaps.max_box_acc() == (0.5, 0.2)  # two of four at both thresholds: the lower one
    assert MEASURES["max_box_acc"](scores, weights).item() == 0.5
    # best: .7 .5 .6 .2 and .3 1 .8 .4; at .3: 3 or 4 of 4, at .5: 3 or 2, at .7: 1 or 2
    assert MEASURES["max_box_acc_v2"](scores, weights).item() == pytest.approx((4 + 3 + 2) / 4 / 3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_the_largest_regions_box_is_that_of_box_from_map(seed: int, rows: int, columns: int) -> None:
    maps = (random_maps(3, rows, columns, seed=seed) * 4).round() / 4
    truth = Box(0.5, 0.25, columns, max(rows - 0.5, 0.5))
    thresholds = (0.0, 0.2, 0.5, 0.75, 1.0)
    overlaps = box_overlaps(maps, [[truth]] * 3, thresholds=thresholds)
    for row, heat in enumerate(maps):
        expected = [box_from_map(heat.double(), threshold=level).iou(truth) for level in thresholds]
        np.testing.assert_allclose(overlaps.largest[row], expected, atol=1e-12)
    assert bool((overlaps.best >= overlaps.largest).all())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_components_agree_with_a_slow_search(seed: int) -> None:
    mask = (random_maps(6, 7, seed=seed) > 0.6).numpy()
    found = components(mask[None])
    left = mask.copy()
    boxes = []
    while left.any():  # flood fill from the first pixel left
        todo, region = [tuple(int(i) for i in np.argwhere(left)[0])], []
        left[todo[0]] = False
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            for v in range(max(y - 1, 0), min(y + 2, 6)):
                for u in range(max(x - 1, 0), min(x + 2, 7)):
                    if left[v, u]:
                        left[v, u] = False
                        todo.append((v, u))
        ys, xs = zip(*region, strict=True)
        boxes.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1, len(region)])
    assert np.c_[found.box, found.size].tolist() == boxes
    if boxes:
        assert int(found.largest().size[0]) == int(largest_component(torch.from_numpy(mask)).sum())


def test_masks_without_a_pixel_have_no_components() -> None:
    assert len(components(np.zeros((2, 3, 3), bool)).size) == 0
    assert len(components(np.zeros((0, 3, 3), bool)).size) == 0
    some = components(np.stack([np.zeros((2, 2), bool), np.ones((2, 2), bool)]))
    assert some.mask.tolist() == [1]
    assert some.largest().box.tolist() == [[0, 0, 2, 2]]


def test_a_constant_map_shows_everything() -> None:
    overlaps = box_overlaps(torch.full((1, 2, 4), 3.0), [[Box(0, 0, 2, 2)]], thresholds=(0.0, 0.5, 1.0))
    assert overlaps.largest.tolist() == [[0.5, 0.5, 0.5]]


def test_boxes_are_clipped_to_what_is_picture() -> None:
    heat = torch.ones(1, 4, 4)
    truth, picture = Box(0, 1, 4, 3), Box(0, 1, 4, 3)
    assert box_overlaps(heat, [[truth]], thresholds=(0.5,)).largest.item() == 0.5
    assert box_overlaps(heat, [[truth]], thresholds=(0.5,), visible=[picture]).largest.item() == 1


def test_a_positive_rescaling_of_maps_changes_nothing() -> None:
    maps = random_maps(4, 6, 6).double()
    boxes = [[Box(1, 1, 4, 5)]] * 4
    before, after = box_overlaps(maps, boxes), box_overlaps(maps * 8 - 3, boxes)
    assert float((before.largest == after.largest).double().mean()) > 0.99  # but for rounding at a threshold


def test_batches_are_put_together() -> None:
    maps, boxes = random_maps(5, 6, 6), [[Box(0, 0, i + 1, 3)] for i in range(5)]
    whole = box_overlaps(maps, boxes)
    parts = BoxOverlaps.cat([box_overlaps(maps[:2], boxes[:2]), box_overlaps(maps[2:], boxes[2:])])
    assert torch.equal(whole.largest, parts.largest)
    assert len(parts) == 5
    with pytest.raises(InputError, match="different thresholds"):
        BoxOverlaps.cat([whole, box_overlaps(maps, boxes, thresholds=(0.5,))])
    with pytest.raises(InputError, match="at least one batch"):
        BoxOverlaps.cat([])


def test_precision_and_recall_over_pixels_are_scikit_learns() -> None:
    maps = (random_maps(3, 8, 8) * 20).round() / 20
    maps[:, 0, 0], maps[:, 0, 1] = 0, 1  # so that scaling changes nothing
    masks = random_maps(3, 8, 8, seed=1) + maps > 1
    expected = average_precision_score(masks.flatten().numpy(), maps.flatten().numpy())
    assert pixel_counts(maps, masks, levels=20).pxap().item() == pytest.approx(expected)


def test_ignored_pixels_do_not_count() -> None:
    maps = torch.tensor([[[0.0, 0.9, 1.0]]])
    masks, ignore = torch.tensor([[[False, True, False]]]), torch.tensor([[[False, False, True]]])
    assert pixel_counts(maps, masks).pxap().item() == 0.5
    assert pixel_counts(maps, masks, ignore=ignore).pxap().item() == 1


def test_a_constant_map_has_the_precision_of_chance_and_an_empty_mask_no_recall() -> None:
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    assert bool(pixel_counts(torch.ones(1, 2, 4), masks).pxap().isnan())
    masks[0, 0, 0] = True
    assert pixel_counts(torch.ones(1, 2, 4), masks).pxap().item() == 1 / 8


def test_pixel_counts_take_weights_as_repeated_images() -> None:
    maps, masks = random_maps(3, 5, 5), random_maps(3, 5, 5, seed=2) > 0.5
    counts = pixel_counts(maps, masks)
    repeated = PixelCounts.cat([counts, pixel_counts(maps[:1], masks[:1])])
    weighted = counts.pxap(torch.tensor([[2.0, 1.0, 1.0]]))
    torch.testing.assert_close(repeated.pxap(), weighted)
    assert len(repeated) == 4


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    maps, boxes = random_maps(1, 3, 3), [[Box(0, 0, 1, 1)]]
    with pytest.raises(InputError, match="no true box"):
        box_overlaps(maps, [[]])
    with pytest.raises(ShapeError, match="boxes of as many images"):
        box_overlaps(maps, boxes * 2)
    with pytest.raises(InputError, match="NaN or infinite values"):
        box_overlaps(maps * torch.nan, boxes)
    for thresholds in ((), (0.5, 0.2), (-0.1,), (1.1,)):
        with pytest.raises(InputError, match="rising fractions"):
            box_overlaps(maps, boxes, thresholds=thresholds)
    with pytest.raises(InputError, match=r"threshold=0\.33 is none of those"):
        box_overlaps(maps, boxes).at(0.33)
    with pytest.raises(InputError, match="no map was measured"):
        box_overlaps(maps[:0], []).max_box_acc()
    with pytest.raises(ShapeError, match="do not fit"):
        BoxOverlaps((0.1,), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="have one shape"):
        pixel_counts(maps, torch.zeros(1, 3, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="levels=0"):
        pixel_counts(maps, maps > 0.5, levels=0)


def test_thresholds_are_fractions_of_the_range() -> None:
    maps = normalise(random_maps(1, 5, 5).double())
    overlaps = box_overlaps(maps, [[Box(0, 0, 5, 5)]], thresholds=(0.0,))
    assert overlaps.largest.item() == 1


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(MODULE).failed == 0
