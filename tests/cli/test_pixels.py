"""`--max-pixels`: the commands that read images have it, and it holds for everything that they read."""

from __future__ import annotations

import pytest
from commands import distcam, fails
from PIL import Image

from distcam.images import MAX_PIXELS, set_pixel_limit

READING = [
    "query", "explain", "encode", "evaluate", "localize", "train", "serve", "index build", "index add", "index sync",
    "index calibrate", "fewshot evaluate", "fewshot train", "fewshot report", "reid audit", "reid evaluate",
    "reid explain", "reid train", "segment train", "segment infer", "segment evaluate",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before():
    yield
    set_pixel_limit(MAX_PIXELS)


@pytest.mark.parametrize("command", READING)
def test_every_command_that_reads_images_has_it(command):
    assert "--max-pixels" in distcam(*command.split(), "--help")


def test_an_image_above_the_limit_is_read_when_it_is_raised(small_gallery, tmp_path, monkeypatch, capsys):
    file = tmp_path / "large.png"
    Image.new("RGB", (50, 40), (10, 200, 30)).save(file)
    query = ("query", small_gallery.folder, file, "--max-pixels")
    assert "--max-pixels 2000" in fails(monkeypatch, capsys, *query, 1999)
    assert "nearest" in distcam(*query, 2000)
