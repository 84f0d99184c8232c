"""`distcam query --text`: words as queries, words joined with images, and where neither goes."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from commands import distcam, fails
from wordy import TinyTower

from distcam import Encoder


@pytest.fixture
def wordy(small_gallery, small_encoder, monkeypatch):
    """The gallery's folder, whose encoder has a text tower when it is loaded."""
    encoder = deepcopy(small_encoder)
    encoder.text = TinyTower(torch.from_numpy(small_gallery.embeddings(small_gallery.ids)))
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: encoder)
    return small_gallery.folder


def test_words_are_queries_and_are_explained_on_the_matches(wordy, tmp_path) -> None:
    (found,) = json.loads(distcam("query", wordy, "--text", "image 5", "-k", 2, "--json"))
    assert (found["query"], found["text"], found["matches"][0]["id"]) == ("image 5", "image 5", 5)
    said = distcam(
        "query", wordy, "--text", "image 5", "--text", "a/b: image 7", "--explain", tmp_path / "why", "-k", 2
    )
    assert "image 5: 2 nearest by cosine" in said
    names = sorted(each.name for each in (tmp_path / "why").iterdir())
    assert names == ["001-image-5.npz", "001-image-5.png", "002-a-b-image-7.npz", "002-a-b-image-7.png"]
    maps = np.load(tmp_path / "why" / "001-image-5.npz")
    assert maps["reference_maps"].shape[1:] == (4, 4)
    distcam("query", wordy, "--text", "image 5", "--explain", tmp_path / "why.html", "-k", 2)
    assert "image 5" in (tmp_path / "why.html").read_text(encoding="utf-8")


def test_words_are_joined_with_an_image_and_their_share_is_said(wordy) -> None:
    said = distcam("query", wordy, "--id", 3, "--text", "image 9", "--text-weight", 0.2, "-k", 2)
    assert "(0.8) with 'image 9' (0.2)" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected query images, or --id for images of the gallery, or --text"),
        (["--id", 1, "--text", "image 1", "--text", "image 2"], "images are joined with one --text, got 2"),
        (["--text", "image 1", "--text-weight", 0.3], "--text-weight is not used without an image"),
        (["--text", "image 1", "--verify", 5], "--verify is not used by a text, which has no places"),
        (
            ["--text", "image 1", "--explain", "why", "--lines", "--point", "3,3"],
            "--lines, --point are not used by a text",
        ),
        (["--id", 1, "--text", "image 1", "--text-weight", 2], "expected --text-weight between 0 and 1"),
        (["--text", "image 1", "--region", "0,0,9,9"], "--region and --mask say which part of an image"),
    ],
)
def test_what_words_do_not_go_with_is_refused(wordy, monkeypatch, capsys, arguments, expected) -> None:
    assert expected in fails(monkeypatch, capsys, "query", wordy, *arguments)


def test_a_gallery_whose_encoder_takes_no_words_says_which_do(small_gallery, monkeypatch, capsys) -> None:
    said = fails(monkeypatch, capsys, "query", small_gallery.folder, "--text", "a red mug")
    assert "conv4 has no text tower, so it takes no text; encoders that do are open_clip:ViT-B-32" in said
