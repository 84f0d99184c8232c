"""Files appear whole or not at all, and what the file system refuses is one line that names the file asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from commands import fails
from PIL import Image

from distcam.files import replacing, write_text


def test_a_block_that_ends_puts_the_file_in_its_place(tmp_path) -> None:
    with replacing(tmp_path / "new" / "a.npz") as aside:
        np.savez(aside, x=np.arange(3))
        assert not (tmp_path / "new" / "a.npz").exists()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.npz"]
    with np.load(tmp_path / "new" / "a.npz") as arrays:
        assert arrays["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "problem", [ValueError("not now"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_block_that_fails_leaves_what_was_there(tmp_path, problem) -> None:
    target = write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with replacing(target) as aside:
            aside.write_text("half")
            raise problem

    with pytest.raises(type(problem)):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path) -> None:
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_an_error_names_the_file_asked_for_and_no_other(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a") as refused:
        write_text(tmp_path / "a", "a file in place of a folder")
    assert refused.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing, replacing(tmp_path / "b"):
        (tmp_path / "other").read_text()
    assert missing.value.filename == str(tmp_path / "other")


FULL = """
import resource, sys
from distcam.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.argv = ["distcam", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are those of Unix")
@pytest.mark.parametrize("name", ["why.html", "why.png", "maps"])
def test_a_full_disk_is_one_line_and_leaves_no_litter(small_gallery, photos, tmp_path, name) -> None:
    photo = tmp_path / "probe.jpg"
    Image.open(next(photos.rglob("*.jpg"))).save(photo)
    out = tmp_path / "out"
    out.mkdir()
    call = ["query", small_gallery.folder, photo, "-k", "2", "--explain", out / name, "--json"]
    done = subprocess.run([sys.executable, "-c", FULL, *map(str, call)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out / name}")
    assert done.stderr.endswith(": File too large\n")
    assert done.stderr.count("\n") == 1
    assert [file for file in out.rglob("*") if file.is_file()] == []


def test_a_place_that_is_no_folder_is_one_line(small_gallery, photos, monkeypatch, capsys) -> None:
    photo = next(photos.rglob("*.jpg"))
    said = fails(monkeypatch, capsys, "query", small_gallery.folder, photo, "--explain", photo / "why.html")
    assert said == f"error: {photo}: File exists\n"
