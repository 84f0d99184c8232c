"""Omniglot: 1,623 handwritten characters by 20 drawers, as Brenden Lake's zips or as two npz archives.

Ink is white on black here (the files have black ink on white), as in the few-shot literature.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator
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


class _Drawing(NamedTuple):
    """One drawing."""

    character: str  # Alphabet/characterNN
    file: str  # 0001_01: number of the character, number of the drawer
    quarter_turns: int  # counter-clockwise


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
    source = _Npz(root) if (root / "images_background.npz").is_file() else _Zips(root)
    if split == "lake":
        classes: dict[str, list[tuple[str, int | None]]] = {
            part: [(character, None) for character in source.files if (character in source.background) == is_base]
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


def _split(name: str, source: _Npz | _Zips, classes: list[tuple[str, int | None]], root: Path) -> Split:
    drawings, labels = [], []
    for character, turn in classes:
        if character not in source.files:
            raise InputError(f"{name}: the split names {character}, which is not among the images in {root}")
        label = character if turn is None else f"{character}/rot{90 * turn:03d}"
        for file in source.files[character]:
            drawings.append(_Drawing(character, file, turn or 0))
            labels.append(label)

    def load(index: int) -> NDArray[np.uint8]:
        return _pixels(np.rot90(source.ink(drawings[index]), drawings[index].quarter_turns))

    names = [f"{label}/{drawing.file}" for label, drawing in zip(labels, drawings, strict=True)]
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


class _Npz:
    """Two archives of all drawings, and the table that says which characters they are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._row: dict[str, tuple[str, int]] = {}
        self._ink: dict[str, Ink] = {}
        self.files: dict[str, list[str]] = {}  # names of the 20 drawings of each character
        table = root / "alphabets.csv"
        try:
            with table.open(encoding="utf-8", newline="") as lines:
                rows = [(r["alphabet"], int(r["first_id"]), int(r["last_id"]), r["set"]) for r in csv.DictReader(lines)]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{table}: expected first_id,last_id,alphabet,set ({error})") from error
        start: dict[str, int] = {}
        for alphabet, first, last, group in rows:
            start.setdefault(group, first)
            for number in range(first, last + 1):
                character = f"{alphabet}/character{number - first + 1:02d}"
                self._row[character] = (group, number - start[group])
                self.files[character] = [f"{number:04d}_{drawer:02d}" for drawer in range(1, N_DRAWERS + 1)]
        self.background = {character for character, (group, _) in self._row.items() if group == "background"}

    def ink(self, drawing: _Drawing) -> Ink:
        group, row = self._row[drawing.character]
        if group not in self._ink:
            file = self._root / f"images_{group}.npz"
            with Npz(file) as arrays:
                if not arrays.files:
                    raise InputError(f"{file}: is empty")
                all_ink: Ink = arrays[arrays.files[0]]
            n_expected = sum(own == group for own, _ in self._row.values())
            if all_ink.dtype != bool or all_ink.ndim != 4 or all_ink.shape[:2] != (n_expected, N_DRAWERS):
                got = f"{all_ink.dtype} {all_ink.shape}"
                raise InputError(f"{file}: expected booleans ({n_expected}, {N_DRAWERS}, rows, columns), got {got}")
            self._ink[group] = all_ink
        ink: Ink = self._ink[group][row, int(drawing.file[-2:]) - 1]
        return ink


class _Zips:
    """The two archives as Lake published them."""

    def __init__(self, root: Path) -> None:
        self._entry: dict[tuple[str, str], tuple[zipfile.ZipFile, str]] = {}
        self.background: set[str] = set()
        self.files: dict[str, list[str]] = {}
        for group in ("background", "evaluation"):
            archive = open_zip(root / f"images_{group}.zip", "it, or images_background.npz and images_evaluation.npz")
            for entry in sorted(archive.namelist()):
                if (match := _ENTRY.fullmatch(entry)) and match[1] == group:
                    character = f"{match[2]}/{match[3]}"
                    self.files.setdefault(character, []).append(match[4])
                    self._entry[character, match[4]] = archive, entry
                    if group == "background":
                        self.background.add(character)

    def ink(self, drawing: _Drawing) -> Ink:
        archive, entry = self._entry[drawing.character, drawing.file]
        return _paper(read_member(archive, entry, file=Path(f"{drawing.character}/{drawing.file}"), most=_MAX_DRAWING))


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
        return _pixels(_paper(read_member(archive, names[index], file=file, most=_MAX_DRAWING)))

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


def _paper(png: bytes) -> Ink:
    paper: Ink = np.asarray(read_image(png).convert("L")) > 127
    return paper
