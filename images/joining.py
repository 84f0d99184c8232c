r"""Files joined with other files by name: labels, boxes and masks with the images they belong to.

There is one rule and one report. A name fits if it is the same, or the same but for what computers write differently:
`\` for `/` (Windows), é as one sign or as two (macOS), `./`, blanks around it. Upper and lower case, another suffix or
another folder do not fit, for that would be a guess; but they are named as the likely cause. What fits on neither side
is counted, shown with an example, and remarked on, or refused where the caller is strict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar
from unicodedata import normalize

from ..errors import InputError
from ..remarks import remark

V = TypeVar("V")
_SAMPLE = 500  # images without a counterpart that are looked at for likely causes


def plain(name: str) -> str:
    r"""A name as it is compared when it does not fit as it stands: composed signs, forward slashes, no blanks around.

    >>> plain(" ./a\\b.jpg ")
    'a/b.jpg'
    """
    return os.path.normpath(normalize("NFC", name).replace("\\", "/").strip())


def is_plain(name: str) -> bool:
    """True if a name, whose path is normal, can only fit as it stands."""
    return name.isascii() and "\\" not in name and name == name.strip()


def spelled(root: Path, path: str) -> str:
    r"""A path under a folder as the disk has it: with `\` as a separator, and accents composed or not."""
    if is_plain(path) or os.path.lexists(root / path):
        return path
    for form in dict.fromkeys((path.strip(), path.replace("\\", "/"), path.replace("\\", "/").strip())):
        place = root
        for part in PurePosixPath(form).parts:
            forms = (part, normalize("NFC", part), normalize("NFD", part))
            found = next((each for each in forms if os.path.lexists(place / each)), None)
            if found is None:
                break
            place = place / found
        else:
            return os.fspath(place) if PurePosixPath(form).is_absolute() else os.path.relpath(place, root)
    return path.strip()


def near_file(root: Path, path: str) -> tuple[str, str] | None:
    r"""The file under a folder that a path which is nowhere probably means, and what keeps them apart."""
    parts = [part for part in plain(path).split("/") if part not in ("", "..")]
    for start in range(len(parts)):
        place, why = root, "count from different folders" if start else "differ in upper and lower case"
        for depth, part in enumerate(parts[start:], start + 1):
            is_last = depth == len(parts)
            names = []
            with suppress(OSError):
                names = sorted(entry.name for entry in place.iterdir())
            found = part if part in names else next((n for n in names if n.casefold() == part.casefold()), None)
            if found is None and is_last and not start:
                stem = os.path.splitext(part)[0].casefold()  # noqa: PTH122  (plain text)
                found = next((n for n in names if os.path.splitext(n)[0].casefold() == stem), None)  # noqa: PTH122
                why = "differ in the suffix"
            if found is None:
                break
            place = place / found
        else:
            return place.relative_to(root).as_posix(), why
    return None


def beside(folder: Path, path: str | os.PathLike[str], suffix: str = ".png") -> Path:
    """Expected place of an image's counterpart: `cat/1.jpg` has `FOLDER/cat/1.png`.

    Of an image outside of its listing's root the name alone counts: `FOLDER/1.png`.
    """
    own = Path(path)
    is_outside = own.is_absolute() or ".." in own.parts
    name = os.fspath((Path(own.name) if is_outside else own).with_suffix(suffix))
    return folder / spelled(folder, name)


class FactsByName(dict[str, V]):
    """Facts about files by their names, as the source writes these."""

    def __init__(self, items: Mapping[str, V]) -> None:
        super().__init__(items)
        self._loose = {form: name for name in items if (form := plain(name)) != name}
        self.has_absolute = any(name.startswith("/") for name in items)

    def key(self, *candidates: str) -> str | None:
        """The name that fits one of those an image goes by: as it stands first, then as `plain` reads it."""
        for name in candidates:
            if name in self:
                return name
        if not self._loose and all(map(is_plain, candidates)):
            return None
        for form in map(plain, candidates):
            if form in self._loose:
                return self._loose[form]
            if form in self:
                return form
        return None


class Join:
    """Counts which images find a counterpart while they pass, and then what is left on the other side."""

    def __init__(self) -> None:
        self.images = self.fitting = 0
        self.lines = self.unused = 0  # names on the other side, and those of them that fit no image
        self.cause = ""  # what probably keeps them apart
        self._used: set[str] = set()
        self._lacking: dict[str, str] = {}  # image by the name that it wants on the other side
        self._image: str | None = None  # one without a counterpart
        self._line: str | None = None  # one that fits no image

    def add(self, image: str, key: str | None, *, wanted: str | None = None, is_empty: bool = False) -> None:
        """One image; `key` is the name on the other side that fits it, `wanted` the one that would, if not its own."""
        self.images += 1
        if key is not None:
            self._used.add(key)
        if key is not None and not is_empty:
            self.fitting += 1
        elif len(self._lacking) < _SAMPLE:
            self._lacking[wanted or image] = image

    def fit(
        self, names: Iterable[str], *, shown: Callable[[str], str] = str, is_there: Callable[[str], bool] | None = None
    ) -> Self:
        """Compare with all names of the other side.

        `is_there` tells a file that is no image of this side. Where every image has found its counterpart, such names
        are not missed: the other side speaks of more images than were asked about.
        """
        listed = list(names)
        unused = [name for name in listed if name not in self._used]
        if self.fitting == self.images and is_there is not None:
            unused = [name for name in unused if not is_there(name)]
        pair = likely_cause(unused, list(self._lacking), shown=shown)
        line, wanted, cause = pair or (next(iter(unused), None), next(iter(self._lacking), None), "")
        self.lines, self.unused, self.cause = len(listed), len(unused), cause
        self._image = None if wanted is None else self._lacking[wanted]
        self._line = None if line is None else shown(line)
        return self

    def tell(
        self, *, what: str, lines: str, images: str = "images", strict: bool = False, is_needed: bool = True
    ) -> None:
        """Say what does not fit: `what` is "a label", `lines` are "lines of labels.csv"."""
        if self.fitting == self.images and not self.unused:
            return
        lacking = f" ({self._image} has none)" if self._image is not None else ""
        parts = [f"{self.fitting:,} of {self.images:,} {images} have {what}{lacking}"]
        if self.unused:
            parts.append(f"{self.unused:,} of {self.lines:,} {lines} fit no image, such as {self._line}")
        message = "; ".join([*parts, *([self.cause] if self.cause else [])])
        if not self.fitting and is_needed:
            raise InputError(message)
        remark(message, strict=strict)


def likely_cause(
    lines: Iterable[str], images: Sequence[str], *, shown: Callable[[str], str] = str
) -> tuple[str, str, str] | None:
    """A name of one side, the one of the other that it probably means, and what keeps them apart; None if nothing does.

    >>> likely_cause(["b/1.JPG"], ["a/2.jpg", "b/1.jpg"])[2]
    'b/1.JPG and b/1.jpg differ in upper and lower case'
    """
    kinds: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("differ in upper and lower case", str.casefold),
        ("differ in the suffix", lambda name: os.path.splitext(name)[0].casefold()),  # noqa: PTH122  (plain text)
    )
    tables = [(why, key, {key(plain(image)): image for image in reversed(images)}) for why, key in kinds]
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(plain(image).rpartition("/")[2].casefold(), []).append(image)
    for line in lines:
        form = plain(line)
        for why, key, table in tables:
            if (near := table.get(key(form))) is not None:
                return line, near, f"{shown(line)} and {near} {why}"
        for image in by_name.get(form.rpartition("/")[2].casefold(), ()):
            shorter, longer = sorted((form.casefold(), plain(image).casefold()), key=len)
            if longer.endswith("/" + shorter.lstrip("/")):
                return line, image, f"{shown(line)} and {image} count from different folders"
    return None
