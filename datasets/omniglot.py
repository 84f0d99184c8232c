"""Omniglot: 1,623 handwritten characters by 20 drawers, as Brenden Lake's zips or as two npz archives.

Ink is white on black here (the files have black ink on white), as in the few-shot literature.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images import read_image
from .archives.arrays import Npz, open_zip, read_member
from .episodes import EpisodeManifest
from .few_shot import ArrayImages, FewShotData, Split

OMNIGLOT_SPLITS = {
    "vinyals": "1,028/172/423 characters, four rotations of each as classes of their own",
    "vinyals-trainval": "base is train and val together, 1,200 characters; the same 423 novel ones",
    "vinyals-upright": "as vinyals, without rotations",
    "lake": "964 background and 659 evaluation characters",
    "runs": "Lake's 20 one-shot runs: 20-way 1-shot within an alphabet, 400 queries",
}
N_DRAWERS = 20
_MAX_DRAWING = 1 << 20  # bytes of one drawing, or of a table; they have some hundred
Ink = NDArray[np.bool_]  # (105, 105), True where the paper is

_ENTRY = re.compile(r"images_(background|evaluation)/([^/]+)/(character\d\d)/(\d{4}_\d\d)\.png")
_CLASS = re.compile(r"([^/]+/character\d\d)(?:/rot(000|090|180|270))?")


class _AllDrawings(NamedTuple):
    """All drawings of both sets."""

    drawings: dict[str, dict[str, Callable[[], Ink]]]  # by character, Alphabet/characterNN, and file, 0001_01
    background: set[str]  # the characters of that set


def omniglot(root: Path, split: str | None = None) -> FewShotData:
    """Omniglot with one of `OMNIGLOT_SPLITS` (Lake et al. 2015, Science 350; Vinyals et al. 2016, arXiv:1606.04080).

    The folder holds images_background and images_evaluation, both as .npz (n, 20, 105, 105), True where the paper is,
    with alphabets.csv, or both as .zip. For the Vinyals splits also the lists
    `splits_vinyals/{train,val,trainval,test}.txt` with lines such as `Greek/character01/rot090`; for the runs
    all_runs.zip.
    """
    if split not in OMNIGLOT_SPLITS:
        known = "; ".join(f"omniglot:{name} ({rule})" for name, rule in OMNIGLOT_SPLITS.items())
        raise InputError(f"Omniglot has several splits; choose {known}")
    if split == "runs":
        return _runs(root / "all_runs.zip")
    name = f"omniglot:{split}"
    source = _of_npz(root) if (root / "images_background.npz").is_file() else _of_zips(root)
    if split == "lake":
        classes: dict[str, list[tuple[str, int | None]]] = {
            part: [(character, None) for character in source.drawings if (character in source.background) == is_base]
            for part, is_base in (("base", True), ("novel", False))
        }
    else:
        base = "trainval" if split == "vinyals-trainval" else "train"
        lists = {"base": base, "novel": "test"} | ({} if base == "trainval" else {"val": "val"})
        classes = {
            part: list(_read_list(root / "splits_vinyals" / f"{lists[part]}.txt", is_turned=split != "vinyals-upright"))
            for part in ("base", "val", "novel")
            if part in lists
        }
    parts = {part: _split(f"{name}/{part}", source, characters, root) for part, characters in classes.items()}
    return FewShotData(name, parts)


def _split(name: str, source: _AllDrawings, classes: list[tuple[str, int | None]], root: Path) -> Split:
    names, labels, drawn = list[str](), list[str](), list[tuple[Callable[[], Ink], int]]()
    for character, turn in classes:
        if character not in source.drawings:
            raise InputError(f"{name}: the split names {character}, which is not among the images in {root}")
        label = character if turn is None else f"{character}/rot{90 * turn:03d}"
        for file, ink in source.drawings[character].items():
            names.append(f"{label}/{file}")
            labels.append(label)
            drawn.append((ink, turn or 0))

    def load(index: int) -> NDArray[np.uint8]:
        ink, quarter_turns = drawn[index]
        return _pixels(np.rot90(ink(), quarter_turns))

    return Split(name, np.array(names), np.array(labels), ArrayImages(root, load))


def _read_list(file: Path, *, is_turned: bool) -> Iterator[tuple[str, int | None]]:
    """Characters and their quarter turns; without rotations each character once."""
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: the list of the Vinyals split cannot be read ({error}); the lists are in the repository of "
            "Snell's prototypical networks, data/omniglot/splits/vinyals"
        ) from error
    for number, line in enumerate(lines, 1):
        match = _CLASS.fullmatch(line)
        if match is None:
            raise InputError(f"{file} line {number}: expected Alphabet/characterNN/rotRRR, got {line!r}")
        turn = int(match[2] or 0) // 90
        if is_turned:
            yield match[1], turn
        elif turn == 0:
            yield match[1], None


def _of_npz(root: Path) -> _AllDrawings:
    """Two archives of all drawings, each read when one of its own is asked for, and the table of the characters."""
    table = root / "alphabets.csv"
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = [(r["alphabet"], int(r["first_id"]), int(r["last_id"]), r["set"]) for r in csv.DictReader(lines)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{table}: expected first_id,last_id,alphabet,set ({error})") from error
    count = {group: sum(last - first + 1 for _, first, last, own in rows if own == group) for *_, group in rows}

    @cache
    def archive(group: str) -> Ink:
        file = root / f"images_{group}.npz"
        with Npz(file) as arrays:
            if not arrays.files:
                raise InputError(f"{file}: is empty")
            ink: Ink = arrays[arrays.files[0]]
        if ink.dtype != bool or ink.ndim != 4 or ink.shape[:2] != (count[group], N_DRAWERS):
            expected = f"booleans ({count[group]}, {N_DRAWERS}, rows, columns)"
            raise InputError(f"{file}: expected {expected}, got {ink.dtype} {ink.shape}")
        return ink

    def ink(group: str, row: int, drawer: int) -> Ink:
        own: Ink = archive(group)[row, drawer]
        return own

    source, start = _AllDrawings({}, set()), dict[str, int]()
    for alphabet, first, last, group in rows:
        for number in range(first, last + 1):
            row, character = number - start.setdefault(group, first), f"{alphabet}/character{number - first + 1:02d}"
            source.drawings[character] = {
                f"{number:04d}_{drawer + 1:02d}": partial(ink, group, row, drawer) for drawer in range(N_DRAWERS)
            }
            if group == "background":
                source.background.add(character)
    return source


def _of_zips(root: Path) -> _AllDrawings:
    """The two archives as Lake published them."""
    source = _AllDrawings({}, set())
    for group in ("background", "evaluation"):
        archive = open_zip(root / f"images_{group}.zip", "it, or images_background.npz and images_evaluation.npz")
        for entry in sorted(archive.namelist()):
            if (match := _ENTRY.fullmatch(entry)) and match[1] == group:
                character = f"{match[2]}/{match[3]}"
                drawing = partial(_drawing, archive, entry, file=Path(f"{character}/{match[4]}"))
                source.drawings.setdefault(character, {})[match[4]] = drawing
                if group == "background":
                    source.background.add(character)
    return source


def _runs(file: Path) -> FewShotData:
    """Each run is one episode: 20 training images, 20 test images, and a table of which belongs to which."""
    archive = open_zip(file, "it, Lake's one-shot runs")
    entries = set(archive.namelist())
    names: list[str] = []
    labels: list[str] = []
    support, query = [], []
    for table in sorted(entry for entry in entries if re.fullmatch(r"run\d\d/class_labels\.txt", entry)):
        text = read_member(archive, table, file=file, most=_MAX_DRAWING).decode("utf-8", "replace")
        pairs = [line.split() for line in text.splitlines() if line.strip()]
        if not pairs or any(len(pair) != 2 or not set(pair) <= entries for pair in pairs):
            raise InputError(f"{file}: {table} should name a test and a training image of the archive in each line")
        of_class = {training: test for test, training in sorted(pairs, reverse=True)}
        if len(of_class) != len(pairs):
            raise InputError(f"{file}: {table} names a training image twice")
        start = len(names)
        for training in sorted(of_class):
            label = training.removesuffix(".png").replace("/training", "")
            names += [training, of_class[training]]
            labels += [label, label]
        support.append(np.arange(start, len(names), 2)[:, None])
        query.append(np.arange(start + 1, len(names), 2))

    def load(index: int) -> NDArray[np.uint8]:
        return _pixels(_drawing(archive, names[index], file=file))

    if not support or len({len(run) for run in support}) != 1:
        raise InputError(f"{file}: expected runs with equally many classes, run01/class_labels.txt and so on")
    novel = Split("omniglot:runs/novel", np.array(names), np.array(labels), ArrayImages(file, load))
    episodes = EpisodeManifest(
        novel.names, novel.labels, np.stack(support), np.stack(query), {"generator": "given", "source": "all_runs.zip"}
    )
    return FewShotData("omniglot:runs", {"novel": novel}, episodes)


def _pixels(paper: Ink) -> NDArray[np.uint8]:
    """White ink on black."""
    return np.repeat((~paper).astype(np.uint8)[:, :, None] * np.uint8(255), 3, axis=2)


def _drawing(archive: zipfile.ZipFile, entry: str, *, file: Path) -> Ink:
    png = read_member(archive, entry, file=file, most=_MAX_DRAWING)
    paper: Ink = np.asarray(read_image(png).convert("L")) > 127
    return paper
