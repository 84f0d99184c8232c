"""Files appear whole or not at all, survive a crash, and a refusal is one line that names the file asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from commands import fails
from PIL import Image

from distcam.errors import GalleryError, GalleryLockedError
from distcam.files import Storage, WriterLock, file_sha256, replacing, write_text


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
@pytest.mark.parametrize(
    "name", ["why.html", *(pytest.param(one, marks=pytest.mark.slow) for one in ("why.png", "maps"))]
)
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


# --- Files that survive a crash, and the lock ------


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    Storage().write(target, b"old")
    with suppress(KeyboardInterrupt), Storage().replacing(target) as aside:
        aside.write_bytes(b"half of the ne")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    Storage().write(target, b"new")
    assert target.read_bytes() == b"new"


def test_what_the_file_system_refuses_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Storage, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "sync", full)
    with pytest.raises(GalleryError, match=r"file: cannot be written \(No space left on device\); is the disk full"):
        Storage().write(tmp_path / "file", b"much")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(GalleryError, match="cannot be made"):
        Storage().make_folder(tmp_path / "file" / "gallery")


def test_missing_parents_are_made_and_their_names_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(Storage, "sync_folder", lambda self, folder: synced.append(folder))
    Storage().make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    Storage().make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    Storage().remove(tmp_path / "nothing")


def test_a_checksum_is_sha256_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "other")


def test_the_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with (
        WriterLock(tmp_path),
        pytest.raises(GalleryLockedError, match=f"process {os.getpid()} is writing"),
        WriterLock(tmp_path),
    ):
        pass
    with WriterLock(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from distcam.files import WriterLock\n"
        "with WriterLock(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with WriterLock(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_the_lock_file_is_no_way_to_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(GalleryError, match="cannot be changed"), WriterLock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
