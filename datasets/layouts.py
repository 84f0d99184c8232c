"""Retrieval benchmarks as their archives unpack: markers, lists, official counts; Stanford Online Products and In-Shop.

Sources: Oh Song et al., Lifted Structured Feature Embedding, CVPR 2016; Liu et al., DeepFashion, CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import InputError

Role = Literal["query", "gallery", "both"]


class DatasetRecord(NamedTuple):
    """One image of a dataset.

    Attributes:
        path: relative to the dataset's root, with forward slashes; absolute where a table leads out of it.
        label: its class.
        split: `"train"`, `"test"`, …; `"all"` where the source knows no splits.
        role: whether it is searched for, searched in, or both.
    """

    path: str
    label: str
    split: str
    role: Role = "both"


@dataclass(frozen=True)
class Layout:
    """A benchmark's archive."""

    title: str
    folder: str  # that the archive unpacks into; the user may point at it or at its parent
    markers: tuple[tuple[str, ...], ...]  # sets of files; any one complete set tells the layout
    counts: Mapping[str, tuple[str, int, int]]  # part (a split or role) → (split, images, classes), as published
    read: Callable[[Path], tuple[DatasetRecord, ...]]
    images: str  # what a copy must hold besides the lists, for the error where no image is there

    def find(self, path: Path) -> Path | None:
        """The archive's root, at a path or in its usual sub-folder."""
        for root in (path, path / self.folder):
            if any(all((root / file).exists() for file in files) for files in self.markers):
                return root
        return None

    def expected(self) -> str:
        """The files that would have been recognised."""
        return ", or ".join(" and ".join(files) for files in self.markers)


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def fields_of(file: Path, *columns: str, skip: int = 0) -> Iterator[list[str]]:
    """The fields of every line after the first `skip`; as many as there are columns, the last may hold blanks."""
    for number, line in list(lines_of(file))[skip:]:
        fields = line.strip().split(maxsplit=len(columns) - 1)
        if len(fields) != len(columns):
            raise InputError(f"{file} line {number}: expected {' '.join(columns)}; got {line.strip()[:80]!r}")
        yield fields


def whole_number(text: str, file: Path) -> int:
    """A number in a list; InputError names the file."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{file}: expected a whole number, got {text[:80]!r}") from None


def _read_sop(root: Path) -> tuple[DatasetRecord, ...]:
    columns = ("image_id", "class_id", "super_class_id", "path")
    return tuple(
        DatasetRecord(path, number, split)
        for split in ("train", "test")
        for _, number, _, path in fields_of(root / f"Ebay_{split}.txt", *columns, skip=1)
    )


SOP = Layout(
    "Stanford Online Products",
    "Stanford_Online_Products",
    (("Ebay_train.txt", "Ebay_test.txt"),),
    {"train": ("train", 59_551, 11_318), "test": ("test", 60_502, 11_316)},
    _read_sop,
    "the folders of the archive, bicycle_final/ to toaster_final/",
)


def _read_inshop(root: Path) -> tuple[DatasetRecord, ...]:
    file = next(file for place in ("Eval", "Anno", ".") if (file := root / place / "list_eval_partition.txt").exists())
    inside = "Img/" if (root / "Img" / "img").is_dir() else ""
    records = []
    for path, item, status in fields_of(file, "image_name", "item_id", "evaluation_status", skip=2):
        if status == "train":
            records.append(DatasetRecord(inside + path, item, "train"))
        elif status == "query" or status == "gallery":
            records.append(DatasetRecord(inside + path, item, "test", status))  # type: ignore[arg-type]
        else:
            raise InputError(f"{file}: expected train, query or gallery, got {status[:80]!r} for {path}")
    return tuple(records)


INSHOP = Layout(
    "In-Shop Clothes Retrieval",
    "In-shop Clothes Retrieval Benchmark",
    tuple((f"{place}list_eval_partition.txt",) for place in ("Eval/", "Anno/", "")),
    {
        "train": ("train", 25_882, 3_997),
        "query": ("test", 14_218, 3_985),
        "gallery": ("test", 12_612, 3_985),
    },
    _read_inshop,
    "img/, or Img/img/, which the archive holds as img.zip",
)
