"""Samples of tar files, as webdataset writes them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from distcam.errors import InputError
from distcam.images import list_images
from distcam.remarks import DistcamWarning


def image_bytes(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (16, 16), grey).save(stream, "PNG")
    return stream.getvalue()


def shard(file: Path, **members: bytes) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def test_shards_are_read_in_order_with_classes_texts_and_columns(tmp_path: Path) -> None:
    shard(tmp_path / "s-00.tar", **{"a/1.png": image_bytes(1), "a/1.cls": b"cat\n", "a/1.json": b'{"year": 2020}'})
    shard(tmp_path / "s-01.tar", **{"2.cls": b"dog", "2.png": image_bytes(2), "3.PNG": image_bytes(3), "3.txt": b"hi"})
    with pytest.warns(DistcamWarning, match="1 of 3 images in s-{00..01}.tar have no label"):
        listing = list_images(str(tmp_path / "s-{00..01}.tar"), keep=tmp_path / "kept")
    assert [(record.label, record.columns) for record in listing] == [
        ("cat", {"source": "a/1.png", "year": "2020", "txt": ""}),
        ("dog", {"source": "2.png", "year": "", "txt": ""}),
        (None, {"source": "3.PNG", "year": "", "txt": "hi"}),
    ]
    assert [listing.file(record).read_bytes() for record in listing] == [image_bytes(grey) for grey in (1, 2, 3)]


def test_what_stands_in_a_tar_besides_is_counted(tmp_path: Path) -> None:
    members = {"1.png": image_bytes(1), "1.cls": b"cat", "1.npy": b"", "../../2.mp3": b"", "3.cls": b"dog"}
    file = shard(tmp_path / "s.tar", **members)
    with pytest.warns(
        DistcamWarning, match=r"s.tar: 3 members are no image with its class or text: left out, 1\.npy first"
    ):
        assert len(list_images(file, keep=tmp_path / "kept")) == 1
    with pytest.raises(InputError, match=r"s\.tar: 3 members"):
        list_images(file, keep=tmp_path / "kept", strict=True)


def test_missing_and_damaged_shards_are_refused(tmp_path: Path) -> None:
    file = shard(tmp_path / "s-0.tar", **{"1.png": image_bytes(1) * 9})
    with pytest.raises(InputError, match=r"s-2\.tar: no such file; 1 of the 2 files of .* are missing"):
        list_images(str(tmp_path / "s-{0,2}.tar"))
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(InputError, match=r"s-0\.tar: cannot be read as a tar"):
        list_images(file, keep=tmp_path / "kept")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_pipeline_of_webdataset_gives_the_same(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    file = shard(
        tmp_path / "s.tar", **{"1.png": image_bytes(1), "1.cls": b"cat", "2.png": image_bytes(2), "2.cls": b"dog"}
    )
    own = list_images(file, keep=tmp_path / "kept")
    theirs = list_images(webdataset.WebDataset(str(file), shardshuffle=False), keep=tmp_path / "kept")
    assert [*theirs] == [*own]
