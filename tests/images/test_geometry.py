"""Boxes: areas, overlaps, and moves between coordinate systems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.images import Box

edges = st.integers(-5, 25)
boxes = st.builds(Box, edges, edges, edges, edges)


def test_the_first_pixel_has_area_one_and_an_inverted_box_has_none() -> None:
    assert Box(0, 0, 1, 1).area == 1
    assert Box(3, 0, 1, 5).area == 0
    assert Box(3, 5, 1, 0).area == 0  # both sides negative: their product must not count


def test_iou_by_hand() -> None:
    # 4x4 and 4x4 share 2x4: 8 / (16 + 16 - 8)
    assert Box(0, 0, 4, 4).iou(Box(2, 0, 6, 4)) == 8 / 24
    assert Box(0, 0, 4, 4).iou(Box(4, 0, 8, 4)) == 0  # touching is not overlapping
    assert Box(1, 1, 1, 1).iou(Box(1, 1, 1, 1)) == 0


@settings(deadline=None, max_examples=100)
@given(boxes, boxes)
def test_iou_counts_pixels(first: Box, second: Box) -> None:
    rows, columns = np.mgrid[-5:25, -5:25]

    def mask(box: Box) -> np.ndarray:
        return (columns >= box.left) & (columns < box.right) & (rows >= box.top) & (rows < box.bottom)

    union = (mask(first) | mask(second)).sum()
    assert first.iou(second) == pytest.approx((mask(first) & mask(second)).sum() / union if union else 0)
    assert first.iou(second) == second.iou(first)


@settings(deadline=None, max_examples=50)
@given(boxes)
def test_clipping_leaves_the_pixels_inside_the_image(box: Box) -> None:
    clipped = box.clipped(12, 9)
    assert clipped.area == box.intersection(Box(0, 0, 12, 9)).area
    assert 0 <= clipped.left <= 12
    assert 0 <= clipped.bottom <= 9


def test_scaling_and_shifting_undo_themselves() -> None:
    box = Box(2, 4, 10, 20)
    assert box.scaled(2, 0.5) == Box(4, 2, 20, 10)
    assert box.scaled(2, 0.5).scaled(0.5, 2) == box
    assert box.scaled(3) == Box(6, 12, 30, 60)
    assert box.shifted(5, -1).shifted(-5, 1) == box


def test_center_and_containment_use_pixel_edges() -> None:
    box = Box(2, 4, 10, 20)
    assert box.center == (6, 12)
    assert box.contains(2, 4)
    assert not box.contains(10, 4)
    assert not box.contains(2, 20)
