"""The code of the README, the guides and the how-tos runs as it is printed, on small images and random weights.

A block that needs what a test has not (a data set, a network, minutes) stands behind `<!-- not run: why -->`; its
commands and options are looked up all the same.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from commands import distcam
from PIL import Image

from distcam import Gallery
from distcam.cli.app import app
from distcam.cli.command import OnDemand

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[gh]*/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n\n?)?^```(?P<kind>console|python)\n(?P<code>.*?)^```", re.M | re.S
)
NEVER_RUN = ("distcam serve", "distcam demo")  # the first does not end, the second takes a minute; both have tests
SMALL = "timm:test_vit" if importlib.util.find_spec("timm") else "conv4"
OFFLINE = [
    (r"--encoder timm:\S+ --weights \S+", f"--encoder {SMALL} --weights random"),
    (r"--encoder \w+ --weights \S+", "--encoder conv4 --weights random"),
    (r'"(resnet50|mobilenet_v2)", weights="imagenet"', '"conv4", weights="random"'),
]


class Block(NamedTuple):
    document: str
    number: int
    kind: str
    code: str
    is_run: bool


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        for number, found in enumerate(BLOCK.finditer(document.read_text(encoding="utf-8")), 1):
            name = document.relative_to(ROOT).as_posix()
            yield Block(name, number, found["kind"], found["code"], found["why"] is None)


BLOCKS = list(blocks())


def named(chosen: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [pytest.param(one, id=f"{one.document}:{one.number}") for one in chosen])


def commands(code: str) -> list[list[str]]:
    """The words of every line that calls `distcam`; `\\` joins lines, `&&` parts them."""
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [shlex.split(part.split(" > ")[0], comments=True) for part in parts if part.startswith("distcam ")]


def offline(text: str) -> str:
    for pattern, instead in OFFLINE:
        text = re.sub(pattern, instead, text)
    return text


@pytest.fixture(scope="module")
def world(photos: Path, small_encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents speak of: photos, a gallery of them, a probe, masks."""
    folder = tmp_path_factory.mktemp("documents") / "world"
    for name, images in zip(("cat", "church", "dog", "tench"), sorted(photos.iterdir()), strict=True):
        for file in images.iterdir():
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.open(file).resize((224, 224)).save(folder / "photos" / name / file.name)
    for name in ("probe.jpg", "one.jpg", "two.jpg", "more/new.jpg", "probes/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "photos/dog/0003.jpg", folder / name)
    mask = np.zeros((224, 224), np.uint8)
    mask[60:180, 40:200] = 12
    photographs = [
        file.relative_to(folder / "photos").with_suffix(".png") for file in (folder / "photos").rglob("*.jpg")
    ]
    for name in (
        "mask.png",
        "probe-mask.png",
        "masks/one.png",
        "masks/two.png",
        *(f"masks/{one}" for one in photographs),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    Gallery.build(folder / "photos", small_encoder, out=folder / "photos.gallery", precision="fp32")
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world as the working directory."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


@named([one for one in BLOCKS if one.kind == "python" and one.is_run])
@pytest.mark.filterwarnings("ignore:what lines are measured against:distcam.DistcamWarning")
def test_python_runs(block: Block, place: Path) -> None:
    if "photos.gallery" in block.code and "Gallery.build" in block.code:
        shutil.rmtree("photos.gallery")
    exec(compile(offline(block.code), block.document, "exec"), {})


@named([one for one in BLOCKS if one.kind == "console" and one.is_run and commands(one.code)])
@pytest.mark.filterwarnings("ignore::distcam.DistcamWarning")
def test_commands_run(block: Block, place: Path) -> None:
    for number, words in enumerate(commands(offline(block.code))):
        if words[1:3] == ["index", "build"] and number == 0:
            shutil.rmtree("photos.gallery", ignore_errors=True)
        if not " ".join(words).startswith(NEVER_RUN) and "--watch" not in words:
            distcam(*words[1:])


@named([one for one in BLOCKS if one.kind == "console" and commands(one.code)])
def test_commands_and_options_exist(block: Block) -> None:
    for words in commands(block.code):
        command, rest = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
            command = command.load() if isinstance(command, OnDemand) else command
        assert not hasattr(command, "commands") or not rest, words
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in rest if word.startswith("-") and not word[1:2].isdigit()} <= known, words


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
