"""The atlas as a file: what it holds, that nothing in it is markup, and that it needs no network."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import distcam

from distcam import DistcamWarning
from distcam.index import Gallery
from distcam.retrieval.atlas import write_atlas

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def gallery(photos: Path, small_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("atlas")
    shutil.copytree(photos, folder / "photos")
    files = sorted((folder / "photos").rglob("*.jpg"))
    rows = [f"{file.relative_to(folder / 'photos')},{file.parent.name},{n % 3}" for n, file in enumerate(files)]
    rows[0] = f'{files[0].relative_to(folder / "photos")},"{HOSTILE}","{HOSTILE}"'
    (folder / "photos" / "t.csv").write_text("\n".join(["path,label,camera", *rows]), encoding="utf-8")
    return Gallery.build(folder / "photos" / "t.csv", small_encoder, out=folder / "a.gallery", precision="fp32")


def data_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_file_holds_points_columns_and_as_many_thumbnails_as_it_says(gallery: Gallery, tmp_path: Path) -> None:
    atlas = gallery.atlas()
    page = write_atlas(tmp_path / "a.html", gallery, atlas, thumbnails=5).read_text(encoding="utf-8")
    data = data_in(page)
    points = np.frombuffer(base64.b64decode(data["points"]), "<f4").reshape(-1, 2)
    assert np.array_equal(points, atlas.points)
    assert data["ids"] == atlas.ids.tolist()
    assert data["paths"] == [record.path for record in gallery.records(atlas.ids)]
    label = data["columns"][0]
    codes = np.frombuffer(base64.b64decode(label["codes"]), "<i4")
    assert [label["values"][code] for code in codes] == [record.label for record in gallery.records(atlas.ids)]
    assert [column["name"] for column in data["columns"]] == ["label", "camera"]
    assert len(data["thumbnails"]) == 5
    assert "Thumbnails of 5 of 24 images, drawn at random" in page


def test_labels_stay_text_and_nothing_is_fetched(gallery: Gallery, tmp_path: Path) -> None:
    page = write_atlas(tmp_path / "a.html", gallery, gallery.atlas(), thumbnails=2).read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert HOSTILE in data_in(page)["columns"][0]["values"]
    assert "default-src 'none'; img-src data:;" in page
    shell = page.replace(json.dumps(data_in(page)), "")
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*|https?://|@import|\bfetch\(|url\(", shell) == []


def test_images_that_are_gone_have_no_thumbnail_and_are_counted(gallery: Gallery, tmp_path: Path) -> None:
    moved = Gallery.open(gallery.folder, root=tmp_path)
    with pytest.warns(DistcamWarning, match="3 of 3 images cannot be opened"):
        write_atlas(tmp_path / "a.html", moved, moved.atlas(outliers=False), thumbnails=3)
    assert data_in((tmp_path / "a.html").read_text(encoding="utf-8"))["outliers"] is None


def test_the_command_writes_it_and_says_what_its_axes_hold(gallery: Gallery, tmp_path: Path) -> None:
    out = distcam("atlas", gallery.folder, "--out", tmp_path / "a.html", "--thumbnails", 2)
    assert "24 images by principal components, with" in out
    assert (tmp_path / "a.html").is_file()
