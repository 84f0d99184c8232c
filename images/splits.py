"""Splits (training, validation, test, query, gallery) by name, in the columns of tables and in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError
from .loading import IMAGE_SUFFIXES

SplitName = Literal["train", "val", "test", "query", "gallery"]
SPLIT_COLUMN = "split"  # what the folder says is listed under this name
_ALIASES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "hold_out", "hold-out", "heldout"), "test"),
    "query": "query",
    "gallery": "gallery",
}
_OVERLOOKED = re.compile(r"((k|cv)?folds?|foldid|partition|(istrain|istest|isval|isvalid)(ing|ation)?(image|set)?)")
_LOOKED_AT, _VALUES = 10_000, 20  # rows, spread evenly, and distinct cells of a column that may be one of splits
_HEAD, _TAIL = r"((bounding_box|images?|seg|cars)_)?", r"([ _-]?(set|images?|imgs?|data|split|\d{4}))?"
_NAME = re.compile(f"{_HEAD}(?P<split>{'|'.join(_ALIASES)}){_TAIL}", re.IGNORECASE)
# all but the first only if every cell names a split
_COLUMNS = ("split", "subset", "partition", "set", "phase", "usage", "data_split", "dataset_split", "image_set")
_FLAGS = ("is_query", "is_gallery")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "nan", "none")),
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}


def split_name(name: str) -> SplitName | None:
    """The split that a folder or a cell is named after; None for any other name.

    >>> split_name("Training"), split_name("valid"), split_name("train_set"), split_name("trains")
    ('train', 'val', 'train', None)
    """
    found = _NAME.fullmatch(name.strip())
    return None if found is None else _ALIASES[found["split"].lower()]


def split_column(rows: Iterable[Mapping[str, str]], names: Sequence[str]) -> str | None:
    """The column that divides a table: `split` in any case, or another usual name if all its cells name splits."""
    by_name = {name.strip().lower(): name for name in reversed(names)}
    if _COLUMNS[0] in by_name:
        return by_name[_COLUMNS[0]]
    candidates = [by_name[name] for name in _COLUMNS[1:] if name in by_name]
    for column in candidates:
        cells = {row.get(column, "").strip() for row in rows} - {""}
        if len(cells) > 1 and all(map(split_name, cells)):
            return column
    return None


def split_of_row(row: Mapping[str, str], column: str | None, *, where: object = "the table") -> str:
    """The split of a row: a known name, the cell as it is, or "" where it says nothing.

    `is_query` and `is_gallery` say "test" where no column does, and in a table that has them an empty cell in both says
    "train".
    """
    if column is not None and (cell := row.get(column, "").strip()):
        return split_name(cell) or cell
    said = {} if column is not None else flags_of(row, where)
    return "" if not said else "test" if any(value is not None for value in said.values()) else "train"


def flags_of(row: Mapping[str, str], where: object) -> dict[str, bool | None]:
    """Values of the flags `is_query` and `is_gallery`, in any case, in a row; those alone that its table has."""
    present = {name.strip().lower(): name for name in row}
    cells = {name: row[present[name]] for name in _FLAGS if name in present}
    for column, text in cells.items():
        if text.strip().lower() not in _WORDS:
            raise InputError(f"{where}: expected True or False in the column {column}, got {text!r}")
    return {name: _WORDS[text.strip().lower()] for name, text in cells.items()}


def overlooked_column(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str | None:
    """A clause about a column that seems to divide a table which `split_column` found undivided; None without one.

    Such a column says train in some rows and something else in others; or it is named like a fold or a flag, as `fold`
    and `is_train` are, and has several values.
    """
    looked_at = rows[:: max(len(rows) // _LOOKED_AT, 1)]
    for name in names:
        cells: dict[str, None] = {}
        for row in looked_at:
            cells[row.get(name, "").strip()] = None
            if len(cells) > _VALUES:
                break
        is_named = _OVERLOOKED.fullmatch(re.sub(r"[\s_-]", "", name.lower())) is not None
        says_train = any(split_name(cell) == "train" for cell in cells)
        if 1 < len(cells) <= _VALUES and (is_named or says_train):
            shown = ", ".join(cell or "nothing" for cell in list(cells)[:5]) + (", …" if len(cells) > 5 else "")
            return f"the column {name!r} ({shown}) may say which images are for training, and is not asked"
    return None


_FOLD = re.compile(r"(k|cv)?folds?[ _-]?\d+", re.IGNORECASE)
_WRAPPERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "dataset"})
_DEPTH = 3  # folders above those of the splits, at most
_LOOK = 4  # levels below a folder in which an image is looked for


@dataclass(frozen=True)
class SplitFolders:
    """Places of split and class in the paths of a folder's images."""

    root: Path
    above: tuple[str, ...] = ()  # folders between the root and those of the splits, such as ("images",)
    names: frozenset[str] = frozenset()  # of the split folders as they are spelt; if there are none, `doubt` says why
    doubled: frozenset[str] = frozenset()  # those that hold one folder of the same meaning, `train/train/CLASS`
    class_first: bool = False  # as in `CLASS/train/IMAGE`
    strays: int = 0  # images outside of the split folders
    stray: str = ""  # the first of them
    doubt: str = ""  # why a folder named like a split was taken for a class
    is_asked: bool = False  # somebody has said that these are splits, so no remark need

    def split_of(self, path: str) -> SplitName | None:
        """The split of the image at a path below the root; None outside of the split folders."""
        parts = path.split("/")
        at = 1 if self.class_first else len(self.above)
        is_inside = len(parts) > at + 1 and (self.class_first or tuple(parts[:at]) == self.above)
        return split_name(parts[at]) if is_inside and parts[at] in self.names else None

    def label_of(self, path: str) -> str | None:
        """The class of the image: the folder below that of its split; None where there is none."""
        parts = path.split("/")
        if self.class_first:
            return parts[0] if len(parts) > 1 else None
        if self.split_of(path) is None:
            return None
        at = len(self.above) + 1 + (parts[len(self.above)] in self.doubled)
        return parts[at] if len(parts) > at + 1 else None

    def remarks(self) -> Iterator[str]:
        """The decisions, a sentence each."""
        if self.doubt:
            yield f"{self.root}: {self.doubt}"
        if not self.names:
            return
        shown = ", ".join("/".join((*self.above, name)) for name in sorted(self.names))
        one = "the folder {} is taken for a split and not for a class"
        many = "the folders {} are taken for splits and not for classes"
        below = "above" if self.class_first else "beneath"
        if not self.is_asked:
            said = (one if len(self.names) == 1 else many).format(shown)
            yield (
                f"{self.root}: {said}: the class of an image is the folder {below}, and the column "
                f'"{SPLIT_COLUMN}" says which split it is of; labels "split" asks for that'
            )
        if self.strays:
            lie = "images lie" if self.strays > 1 else "image lies"
            place = f"outside of the split folders, such as {self.stray}, and without a class"
            yield f"{self.root}: {self.strays:,} {lie} {place}"

    def overruled(self) -> SplitFolders | None:
        """The same folders where somebody has said that they are classes; None if that changes nothing."""
        if not self.names or self.class_first:
            return None
        shown = ", ".join(sorted(self.names) if not self.above else [self.above[0]])
        are = "holds splits and is made a class" if self.above else "look like splits and are made classes"
        return SplitFolders(self.root, doubt=f'{shown} {are} by labels "folder"; left out, the folders beneath are')


def find_split_folders(root: Path, takes: Callable[[Sequence[str]], bool] | None = None) -> SplitFolders | None:
    """The split folders below a root; None if no folder is named like a split, which costs one look at the root.

    Folders are those of splits if two or more of them are named so, one of which has sub-folders with images; or if
    nothing else beside them holds images. One alone beside others is a split if it has two sub-folders or more and the
    others have none. Otherwise, as where `train/` holds the images of trains and lies beside `car/` and `plane/`, it is
    a class. The splits may lie a level or two deeper, in a folder such as `images` or in the only one that holds
    images; or below the classes, `CLASS/train/IMAGE`.

    `takes` says of a folder, by the parts of its path below the root, whether it can hold images that count.
    """
    return _Look(root, takes or (lambda _: True)).below(())


class _Look:
    """One look at a folder for splits."""

    def __init__(self, root: Path, takes: Callable[[Sequence[str]], bool]) -> None:
        self.root, self.takes = root, takes

    def below(self, above: tuple[str, ...]) -> SplitFolders | None:
        folders = self.folders(above)
        named = [name for name in folders if split_name(name) and self.holds((*above, name))]
        if named:
            return self.decide(above, named, [name for name in folders if name not in named])
        if len(above) >= _DEPTH or not folders:
            return None
        wrapped = [name for name in folders if name.lower() in _WRAPPERS and self.holds((*above, name))]
        if len(wrapped) == 1 and (found := self.below((*above, *wrapped))) and found.names:
            return found
        folds = [name for name in folders if _FOLD.fullmatch(name)]
        if not above and len(folds) > 1 and self.has_inner((folds[0],)):
            doubt = f"{', '.join(folds[:3])} are named like folds of a cross-validation and are taken for classes"
            return SplitFolders(self.root, doubt=doubt)
        # else a folder of classes, perhaps of very many
        if len(folders) == 1 or any(split_name(sub) for name in folders[:2] for sub in self.folders((*above, name))):
            return self.beneath(above, [name for name in folders if self.holds((*above, name))])
        return None

    def decide(self, above: tuple[str, ...], named: list[str], others: list[str]) -> SplitFolders:
        """Splits or classes, where some folders are named like splits."""
        others = [name for name in others if self.holds((*above, name))]
        inner = {
            name: [sub for sub in self.folders((*above, name)) if self.holds((*above, name, sub))] for name in named
        }
        are_splits = not others or (len(named) > 1 and any(inner.values()))
        if not are_splits and len(named) == 1:
            is_flat = not any(self.has_inner((*above, name)) for name in others)
            are_splits = len(inner[named[0]]) > 1 and is_flat
        if not are_splits:
            shown = ", ".join(sorted(named))
            beside = ", ".join(sorted(others)[:3])
            verb, class_ = ("is", "a class") if len(named) == 1 else ("are", "classes")
            doubt = f"{shown} {verb} named like a split and {verb} taken for {class_}, lying beside {beside}"
            return SplitFolders(self.root, doubt=doubt)
        doubled = [
            name for name, own in inner.items() if len(own) == 1 and split_name(own[0]) == split_name(name)
            and self.has_inner((*above, name, own[0]))
        ]  # fmt: skip
        strays, stray = self.strays(above, frozenset(named))
        return SplitFolders(self.root, above, frozenset(named), frozenset(doubled), strays=strays, stray=stray)

    def beneath(self, above: tuple[str, ...], folders: list[str]) -> SplitFolders | None:
        """Splits below folders that are all of the same kind: classes, or the one folder that everything lies in."""
        if len(folders) == 1:
            found = self.below((*above, *folders))
            is_class = found is not None and not above and not any(
                self.has_inner((*found.above, name)) for name in found.names
            )  # fmt: skip
            if found is not None and found.names and not is_class:
                return found
        if above or not folders:
            return None
        inner = {name: self.folders((name,)) for name in folders}
        if not all(own and all(map(split_name, own)) for own in inner.values()):
            return None
        return SplitFolders(self.root, names=frozenset(sub for own in inner.values() for sub in own), class_first=True)

    def has_inner(self, place: tuple[str, ...]) -> bool:
        return any(self.holds((*place, name)) for name in self.folders(place))

    def folders(self, place: tuple[str, ...]) -> list[str]:
        entries = _entries(self.root.joinpath(*place))
        return sorted(name for name, is_folder in entries if is_folder and self.takes((*place, name)))

    def holds(self, place: tuple[str, ...], depth: int = _LOOK) -> bool:
        entries = _entries(self.root.joinpath(*place))
        if any(not is_folder and _is_image(name) for name, is_folder in entries):
            return True
        inner = sorted(name for name, is_folder in entries if is_folder) if depth > 0 else []
        return any(self.holds((*place, name), depth - 1) for name in inner)

    def strays(self, above: tuple[str, ...], names: frozenset[str]) -> tuple[int, str]:
        """Number of images outside of the split folders, and the first of them."""
        count, first = 0, ""
        for folder, inner, files in os.walk(self.root):
            place = Path(folder).relative_to(self.root).parts
            if place == above:
                inner[:] = [name for name in inner if name not in names]
            inner[:] = sorted(name for name in inner if not name.startswith(".") and self.takes((*place, name)))
            own = sorted(name for name in files if not name.startswith(".") and _is_image(name))
            if own and not first:
                first = "/".join((*place, own[0]))
            count += len(own)
        return count, first


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Name of each entry of a folder that is not hidden, and if it is a folder; none where it cannot be read."""
    found: dict[str, bool] = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                found[entry.name] = False
                with suppress(OSError):
                    found[entry.name] = entry.is_dir()
    return list(found.items())


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (speed)
