"""Folders of splits above or below those of classes, told from classes that are named like splits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .loading import IMAGE_SUFFIXES
from .splits import SPLIT_COLUMN, SplitName, split_name

_FOLD = re.compile(r"(k|cv)?folds?[ _-]?\d+", re.IGNORECASE)
_WRAPPERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "dataset"})
_DEPTH = 3  # folders above those of the splits, at most
_LOOK = 4  # levels below a folder in which an image is looked for


@dataclass(frozen=True)
class SplitFolders:
    """Places of split and class in the paths of a folder's images.

    Attributes:
        root: the folder.
        above: folders between it and those of the splits, such as ("images",).
        names: of the split folders, as they are spelt; empty if there are none, which `doubt` explains.
        doubled: those of them that hold one folder of the same meaning, `train/train/CLASS`, which is passed over.
        class_first: the class stands above the split, as in `CLASS/train/IMAGE`.
        strays: how many images lie outside of the split folders.
        stray: the first of them.
        doubt: why a folder named like a split was taken for a class, for a remark.
        is_asked: somebody has said that these are splits, so no remark need.
    """

    root: Path
    above: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()
    class_first: bool = False
    strays: int = 0
    stray: str = ""
    doubt: str = ""
    is_asked: bool = False

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
        if outside := self.outside():
            yield f"{self.root}: {outside}"

    def overruled(self) -> SplitFolders | None:
        """The same folders where somebody has said that they are classes; None if that changes nothing."""
        if not self.names or self.class_first:
            return None
        shown = ", ".join(sorted(self.names) if not self.above else [self.above[0]])
        are = "holds splits and is made a class" if self.above else "look like splits and are made classes"
        return SplitFolders(self.root, doubt=f'{shown} {are} by labels "folder"; left out, the folders beneath are')

    def asked(self) -> SplitFolders:
        """The same where somebody has said that they are splits."""
        return replace(self, is_asked=True)

    def outside(self) -> str:
        """A clause about the images outside of the split folders; empty if there are none."""
        if not self.strays:
            return ""
        plural = "images lie" if self.strays > 1 else "image lies"
        return f"{self.strays:,} {plural} outside of the split folders, such as {self.stray}, and without a class"


def find_split_folders(root: Path, takes: Callable[[Sequence[str]], bool] | None = None) -> SplitFolders | None:
    """The split folders below a root; None if no folder is named like a split, which costs one look at the root.

    Folders are those of splits if two or more of them are named so, one of which has sub-folders with images; or if
    nothing else beside them holds images. One alone beside others is a split if it has two sub-folders or more and the
    others have none. Otherwise, as where `train/` holds the images of trains and lies beside `car/` and `plane/`, it is
    a class. The splits may lie a level or two deeper, in a folder such as `images` or in the only one that holds
    images; or below the classes, `CLASS/train/IMAGE`.

    Args:
        root: the folder.
        takes: whether a folder, by the parts of its path below the root, can hold images that count; all if left out.
    """
    look = _Look(root, takes or (lambda _: True))
    return look.below(())


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
        if len(folders) == 1 or any(self.named((*above, name)) for name in folders[:2]):
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

    def named(self, place: tuple[str, ...]) -> bool:
        """True if a folder has a sub-folder named like a split."""
        return any(map(split_name, self.folders(place)))

    def has_inner(self, place: tuple[str, ...]) -> bool:
        """True if a folder has a sub-folder with images."""
        return any(self.holds((*place, name)) for name in self.folders(place))

    def folders(self, place: tuple[str, ...]) -> list[str]:
        """The visible sub-folders that count, sorted."""
        return sorted(
            entry.name
            for entry in _entries(self.root.joinpath(*place))
            if _is_folder(entry) and self.takes((*place, entry.name))
        )

    def holds(self, place: tuple[str, ...], depth: int = _LOOK) -> bool:
        """True if an image lies somewhere in a folder."""
        inner = []
        for entry in _entries(self.root.joinpath(*place)):
            if _is_folder(entry):
                inner.append(entry.name)
            elif _is_image(entry.name):
                return True
        return depth > 0 and any(self.holds((*place, name), depth - 1) for name in sorted(inner))

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


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (speed)
