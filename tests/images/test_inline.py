"""Results in a notebook: one piece of HTML, escaped, small, and in the colours of the page around it."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from distcam.errors import MissingExtraError
from distcam.images.inline import Tile, data_frame, fragment


def noise(width: int = 400, height: int = 200) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_all_text_is_escaped() -> None:
    evil = "<script>alert(1)</script>'\"&"
    html = fragment(evil, [[Tile(noise(8, 8), evil, evil)]], table=([evil], [[evil]]), notes=[evil])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 7  # the image's alternative text too


def test_it_needs_nothing_else_and_takes_the_colours_of_the_page() -> None:
    html = fragment("title", [[Tile(noise(), "one"), None], [None, Tile(noise())]], table=(["a", "b"], [["c", "1"]]))
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert re.findall(r"(?:color|background):(?!inherit)", html) == []


def test_images_are_as_small_as_they_are_shown_in_their_own_proportions() -> None:
    html = fragment("", [[Tile(noise())]])
    (uri,) = re.findall(r"base64,([^\"]+)", html)
    small = Image.open(io.BytesIO(base64.b64decode(uri)))
    assert small.size == (196, 98)
    assert "width:132px" in html


def test_without_pandas_a_table_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"distcam\[pandas\]"):
        data_frame({})
