"""What is wrong with a call is said before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ENCODER = ["--encoder", "conv4", "--weights", "random"]
CALLS = [
    (["index", "build", "{photos}", "--out", "g"], "resnet50 needs --weights"),
    (["index", "build", "{photos}", "--out", "g", *ENCODER, "--weights", "x.pth"], "--weights x.pth: no such file"),
    (["index", "build", "{photos}", "--out", "g", "--encoder", "x.safetensors"], "--encoder x.safetensors: no such"),
    (["index", "build", "{photos}", "--out", "g", "--encoder", "{photo}"], ": --encoder ARCHITECTURE --weights"),
    (["encode", "{photos}", "--out", "x.h5", "--encoder", "x.pth"], "x.pth: no such file; expected an architecture"),
    (["index", "build", "nowhere", "--out", "g", *ENCODER], "nothing is at 'nowhere'"),
    (["index", "add", "nowhere.gallery", "{photos}"], "nowhere.gallery"),
    (["index", "add", "{gallery}", "nowhere"], "nothing is at 'nowhere'"),
    (["index", "sync", "{gallery}", "{photos}", "--encoder", "x.safetensors"], "--encoder x.safetensors: no such file"),
    (["index", "calibrate", "{gallery}", "--queries", "nowhere"], "nothing is at 'nowhere'"),
    (["query", "nowhere.gallery", "{photo}"], "nowhere.gallery"),
    (["query", "{gallery}", "nowhere.jpg"], "nothing is at 'nowhere.jpg'"),
    (["query", "{gallery}", "{photo}", "--encoder", "x.safetensors"], "--encoder x.safetensors: no such file"),
    (["query", "{gallery}", "{photo}", "--explain", "why.txt"], "not why.txt"),
    (["query", "{gallery}", "{photo}", "--weighting", "dot"], "--weighting is not used without --explain"),
    (["encode", "{photos}", "--out", "x.h5"], "resnet50 needs --weights"),
    (["encode", "nowhere/*.jpg", "--out", "x.h5", *ENCODER], "nowhere"),
    (["evaluate", "{photos}"], "say what to evaluate"),
    (["evaluate", "{photos}", "--encoder", "resnet18"], "resnet18 needs --weights"),
    (["evaluate", "nowhere", *ENCODER], "nothing is there"),
    (["localize", "{photos}", "--boxes", "nowhere.csv", "--references", "{photos}"], "nowhere.csv"),
    (["explain", "nowhere.jpg", "--target", "match:{photo}", *ENCODER], "nothing is at 'nowhere.jpg'"),
    (["explain", "{photo}", "--target", "match:nowhere.jpg", *ENCODER], "nothing is at 'nowhere.jpg'"),
    (["explain", "{photo}", "--target", "prototype", "--gallery", "nowhere"], "--gallery nowhere: no such file"),
    (["explain", "{photo}", "--target", "match:{photo}", "--encoder", "resnet18"], "resnet18 needs --weights"),
    (["fewshot", "evaluate", "--data", "nowhere", "--out", "r.h5", *ENCODER], "--data nowhere: nothing is at nowhere"),
    (["fewshot", "evaluate", "--data", "{photos}", "--out", "r.h5"], "--encoder and --weights"),
    (["fewshot", "report", "nowhere.h5", "--html", "r.html"], "results nowhere.h5: no such file"),
    (["reid", "evaluate", "nowhere", *ENCODER], "nowhere: no such folder or table"),
    (["reid", "explain", "{photo}", "nowhere.jpg", *ENCODER], "nothing is at 'nowhere.jpg'"),
    (["reid", "explain", "{photo}", "{photo}"], "resnet50 needs --weights"),
    (["segment", "infer", "nowhere", "{photos}", "--out", "m"], "nowhere: nothing is there"),
    (["segment", "train", "nowhere.toml"], "nowhere.toml"),
    (["train", "nowhere.toml"], "nowhere.toml"),
    (["fewshot", "train", "nowhere.toml"], "nowhere.toml"),
    (["reid", "train", "nowhere.toml"], "nowhere.toml"),
    (["serve", "nowhere"], "nowhere"),
]  # fmt: skip
ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
from distcam.cli import console, main
said = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["distcam", *arguments]
    console.err.file = text = io.StringIO()
    with contextlib.suppress(SystemExit):
        main()
    said.append([text.getvalue(), "torch" in sys.modules])
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def answers(photos, small_gallery, tmp_path_factory):
    """Of each call what it says, and whether it has imported torch; all in one process, which none of them needs."""
    names = {"photos": photos, "gallery": small_gallery.folder, "photo": next(photos.rglob("*.jpg"))}
    calls = [[part.format(**names) for part in call] for call, _ in CALLS]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(calls)],
        cwd=tmp_path_factory.mktemp("calls"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(CALLS)), ids=[" ".join(call) for call, _ in CALLS])
def test_a_mistake_is_said_before_torch_is_imported(answers, number) -> None:
    said, has_torch = answers[number]
    assert CALLS[number][1] in said
    assert said.startswith("error: ")
    assert not has_torch
