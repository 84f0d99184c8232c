"""The base template of every report: what it escapes, what it holds, and what stands in for a script."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from distcam.explain import Tile
from distcam.explain.drawing.page import Thumbnails, numbers, write_html, write_page
from distcam.images import Box

HOSTILE = '</script><script>alert("1")</script>'
REPORTS = {
    "distcam.retrieval": {"weightings": {"dist": "words"}, "signed": [], "queries": [], "images": {}},
    "distcam.fewshot": {"methods": [], "n_classes": 0, "images": {}},
}


def image(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 100, 50))


@pytest.mark.parametrize("package", REPORTS)
def test_a_report_escapes_text_and_data_and_loads_nothing(package: str, tmp_path) -> None:
    data = REPORTS[package] | {"hostile": HOSTILE}
    path = write_html(
        tmp_path / "r.html", "report.html", package=package, title=HOSTILE, notes=[HOSTILE, "a < b"], data=data
    )
    text = path.read_text()
    assert text.count("</script>") == 2
    assert "<p>a &lt; b</p>" in text
    assert json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1]) == data
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "innerHTML" not in text


@pytest.mark.parametrize("package", REPORTS)
def test_every_report_with_maps_has_a_legend_and_dims_what_was_not_seen(package: str, tmp_path) -> None:
    path = write_html(tmp_path / "r.html", "report.html", package=package, title="t", data=REPORTS[package])
    text = path.read_text()
    assert '<span class="legend">' in text
    assert 'class: "unseen"' in text
    assert "constant: it explains nothing" in text
    assert 'id="dimmed"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_of_tiles_has_no_script_and_says_what_is_dark_only_where_something_is(tmp_path) -> None:
    rows = [[Tile(image(), title="<b>", caption="1 … 2"), None], [Tile(image())]]
    text = write_page(tmp_path / "p.html", rows, title=HOSTILE, notes=["n"], has_unseen=True).read_text()
    assert "<script" not in text
    assert "script-src" not in text
    assert text.count("data:image/png;base64,") == 2
    assert "&lt;b&gt;<br>1 … 2" in text
    assert "Dark margins" in text
    assert "Dark margins" not in write_page(tmp_path / "p.html", rows, title="t").read_text()


def test_an_image_of_a_report_is_kept_once_small_and_with_what_was_seen_of_it() -> None:
    images = Thumbnails(lambda image: Box(10, 0, image.width - 10, image.height), side=30)
    assert images.add("a", image()) == images.add("a", image()) == "a"
    assert len(images) == 1
    assert images["a"]["view"] == [0.16667, 0, 0.83333, 1]
    assert images["a"]["uri"].startswith("data:image/jpeg;base64,")


def test_what_is_no_json_is_refused(tmp_path) -> None:
    data = REPORTS["distcam.retrieval"] | {"nan": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        write_html(tmp_path / "r.html", "report.html", package="distcam.retrieval", title="t", data=data)
    assert not (tmp_path / "r.html").exists()


def test_the_values_of_a_map_have_four_digits() -> None:
    scales = 10.0 ** torch.arange(-12, 8).repeat_interleave(50)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scales
    values = torch.cat([values, torch.tensor([0.0, 1.0, 9.99996, 0.1])])
    assert numbers(values) == pytest.approx([float(f"{value:.4g}") for value in values.tolist()], rel=1e-15)
