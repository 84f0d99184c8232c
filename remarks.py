"""Remarks: what a call left out, ignored or assumed, said as a warning and refused where the caller is strict."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Self

from .errors import InputError


class DistcamWarning(UserWarning):
    """Something was left out, ignored or assumed; the message says what, how much of it, and gives an example.

    Turn them into errors with `warnings.simplefilter("error", DistcamWarning)`, or by `--strict` on the command line,
    which otherwise prints each as a line `note: …` on stderr.
    """


def remark(message: str, *, strict: bool = False, stacklevel: int | None = None) -> None:
    """Warn with a `DistcamWarning` in the name of the first line outside of this package.

    Args:
        message: what was left out, ignored or assumed; how much of it; one example.
        strict: raise instead.
        stacklevel: as in `warnings.warn`, for another line.
    """
    if strict:
        raise InputError(message)
    if stacklevel is None:
        frames = enumerate(traceback.walk_stack(sys._getframe(1)), 2)
        own = (f"{__package__}.", "functools", "contextlib")
        stacklevel = next((n for n, (at, _) in frames if not at.f_globals.get("__name__", "").startswith(own)), 2)
    warnings.warn(message, DistcamWarning, stacklevel=stacklevel)


def remark_on_skipped(skipped: Mapping[str, str], count: int, consequence: str, *, strict: bool = False) -> None:
    """Remark on images that were left out, by name with the reason, and on what follows from that."""
    if skipped:
        name, reason = next(iter(skipped.items()))
        said = f"{len(skipped):,} of {count:,} images cannot be used and are left out, the first: {name}: {reason}"
        remark(f"{said}; {consequence}", strict=strict)


@contextmanager
def refusing(remedy: str = "") -> Iterator[None]:
    """Inside, the first remark is an error; for one thread at a time, as `warnings.catch_warnings`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DistcamWarning)
        try:
            yield
        except DistcamWarning as refused:
            raise InputError(f"{refused}{remedy}") from None


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "file"), counted(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}" + "s" * (number != 1)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out, and why."""

    path: str
    reason: str

    def to_json(self) -> str:
        """One line of a skip list."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The inverse of `to_json`; ValueError for any other line."""
        value = json.loads(line)
        if not isinstance(value, dict) or not isinstance(path := value.get("path"), str):
            raise ValueError("not a line of a skip list")
        return cls(path, str(value.get("reason", "")))
