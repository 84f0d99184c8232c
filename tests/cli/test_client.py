"""A query answered by a running server: the same words and JSON as without, and nothing ignored."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import distcam, fails
from serving import running

from distcam.cli import client


@pytest.fixture(scope="module")
def gallery(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("asked") / "photos.gallery"
    distcam("index", "build", photos, "--out", out, "--encoder", "conv4", "--weights", "random", "--image-size", "64")
    distcam("index", "calibrate", out, "--false-alarms", "0.2")
    return out


@pytest.fixture(scope="module")
def url(gallery):
    with running(gallery) as address:
        yield address


@pytest.fixture
def photo(photos):
    return sorted(photos.rglob("*.jpg"))[0]


def alike(said, expected):
    """Two answers in JSON, whose distances were computed in batches of other sizes."""
    if isinstance(expected, dict):
        return list(said) == list(expected) and all(alike(said[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(said) == len(expected) and all(map(alike, said, expected))
    return said == pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else said == expected


@pytest.mark.parametrize(
    "options",
    ["-k 3", "-k 2 --reject", "--max-distance 0.01", "--region 4,4,40,40", "--where label!=none -k 1"],
)
def test_the_answer_is_that_without_a_server(options, gallery, photo, url):
    words = ["query", gallery, photo, *options.split()]
    assert alike(json.loads(distcam(*words, "--json", "--server", url)), json.loads(distcam(*words, "--json")))
    assert distcam(*words, "--server", url) == distcam(*words)


def test_several_images_and_images_of_the_gallery_can_be_asked_for(gallery, photos, url):
    for words in (["query", gallery, photos, "-k", "2"], ["query", gallery, "--id", "0", "--id", "3", "-k", "2"]):
        assert distcam(*words, "--server", url) == distcam(*words)


def test_the_usual_address_is_asked_or_none(gallery, photo, url, monkeypatch):
    words, said = ["query", gallery, photo, "-k", "2", "--server", "auto"], []
    monkeypatch.setattr(client, "note", said.append)
    monkeypatch.setattr(client, "_USUAL", url)
    expected = distcam(*words)
    monkeypatch.setattr(client, "_USUAL", "http://127.0.0.1:9")
    assert distcam(*words) == expected
    (note,) = said
    assert note.startswith("no server is asked: no server answers at http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--server", "{url}", "--verify", "5"], "--verify is not used by a server (--server)"),
        (["--server", "{url}", "--region", "mask:a.png"], "--region mask:FILE is not used by a server"),
        (["--server", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--server", "127.0.0.1:8000"], "--server expects `auto` or a URL"),
        (["--server", "{url}", "-k", "1000"], "less than or equal to 100"),
        (["--server", "{url}", "--text", "a cat"], "text"),
    ],
)
def test_what_a_server_cannot_do_is_one_line(more, message, gallery, photo, url, monkeypatch, capsys):
    said = fails(monkeypatch, capsys, "query", gallery, photo, *(word.format(url=url) for word in more))
    assert message in said


def test_another_gallery_than_the_servers_is_refused(gallery, photo, url, small_gallery, tmp_path, monkeypatch, capsys):
    assert "serves photos.gallery, not other" in fails(monkeypatch, capsys, "query", "other", photo, "--server", url)
    (tmp_path / gallery.name).symlink_to(small_gallery.folder)
    said = fails(monkeypatch, capsys, "query", tmp_path / gallery.name, photo, "--server", url)
    assert "another gallery of the name photos.gallery" in said


def test_a_read_token_comes_from_the_environment(gallery, photo, monkeypatch, capsys):
    token = "a-token-for-readers-only"
    with running(gallery, read_token=token) as address:
        words = ["query", gallery, photo, "-k", "1", "--server", address]
        assert "asks for its read token" in fails(monkeypatch, capsys, *words)
        monkeypatch.setenv("DISTCAM_READ_TOKEN", token)
        assert "1 nearest by cosine" in distcam(*words)


def test_whoever_asks_a_server_loads_neither_torch_nor_numpy(gallery, photo, url):
    code = "import sys; from distcam.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", code, "query", gallery, photo, "--server", url]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "h5py", "PIL", "faiss"} & set(loaded)
