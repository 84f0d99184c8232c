"""The dense CRF, where pydensecrf2 is installed, and the message where it is not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from distcam.errors import InputError, MissingExtraError, ShapeError
from distcam.segmentation.pseudo_masks.refining import CrfSettings, dense_crf


@pytest.fixture
def halves():
    """A image of two colours, and scores whose edge lies four pixels off that of the colours."""
    values = np.full((24, 32, 3), 20, np.uint8)
    values[:, 16:] = 230
    scores = np.full((3, 24, 32), 0.3)
    scores[0, :, :20], scores[1, :, 20:] = 0.7, 0.7
    scores[2] = 0
    return Image.fromarray(values), scores


def test_edges_move_to_where_colours_change(halves) -> None:
    pytest.importorskip("pydensecrf", reason="the dense CRF needs pip install 'distcam[crf]'")
    image, scores = halves
    found = dense_crf(image, scores, settings=CrfSettings().scaled(0.25))
    assert found.shape == scores.shape
    assert np.allclose(found.sum(0), 1, atol=1e-4)
    assert (found[2] == 0).all()
    assert (scores.argmax(0)[:, 17] == 0).all()
    assert (found.argmax(0)[:, 17] == 1).all()
    assert (found.argmax(0)[:, 14] == 0).all()


def test_without_steps_scores_are_divided_by_their_sum(halves) -> None:
    pytest.importorskip("pydensecrf", reason="the dense CRF needs pip install 'distcam[crf]'")
    image, scores = halves
    assert np.allclose(dense_crf(image, scores, settings=CrfSettings(steps=0)), scores, atol=1e-6)


def test_a_missing_library_says_how_to_get_it(halves, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(MissingExtraError, match=r"the dense CRF needs pydensecrf2: pip install 'distcam\[crf\]'"):
        dense_crf(*halves)


def test_scores_of_another_size_and_odd_settings_are_refused(halves) -> None:
    pytest.importorskip("pydensecrf", reason="the dense CRF needs pip install 'distcam[crf]'")
    image, scores = halves
    with pytest.raises(ShapeError, match=r"expected scores of 24 x 32 pixels, got \(24, 31\)"):
        dense_crf(image, scores[:, :, 1:])
    with pytest.raises(InputError, match="colour: expected a number above 0, got 0"):
        CrfSettings(colour=0)
    assert CrfSettings().scaled(0.5).colour_position == 40
