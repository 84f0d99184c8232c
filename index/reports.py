"""What building, adding and verifying report: frozen values that know how to become JSON or a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptGalleryError
from ..remarks import Skipped, counted
from .storage.durable import read_file

__all__ = ["AddReport", "Problem", "Skipped", "VerifyReport", "counted", "read_skipped"]


def read_skipped(path: Path) -> tuple[Skipped, ...]:
    """A skip list from its file of JSON lines."""
    try:
        return tuple(Skipped.from_json(line) for line in read_file(path).decode("utf-8").splitlines())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptGalleryError(f"{path}: is no skip list ({error}); add the images again") from error


@dataclass(frozen=True)
class AddReport:
    """What became of the images that were offered to a gallery.

    Attributes:
        added: images under a new path.
        replaced: images whose file, label, or columns had changed.
        unchanged: images that were there already.
        skipped: images that could not be used.
    """

    added: int
    replaced: int
    unchanged: int
    skipped: tuple[Skipped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.added} added", f"{self.replaced} replaced", f"{self.unchanged} unchanged"]
        return ", ".join([*parts, f"{len(self.skipped)} skipped"])


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a gallery.

    Attributes:
        file: the file it is in; the folder's name when it is in none.
        problem: what is wrong.
        repair: what was done about it, or can be.
        repaired: whether it was.
        is_loss: whether the repair gives up what cannot be computed again: images, removals, the encoder's copy.
    """

    file: str
    problem: str
    repair: str
    repaired: bool = False
    is_loss: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What a full check of a gallery found.

    Attributes:
        path: the gallery.
        generation: the generation that was checked.
        images: images alive in sound segments: what a repair leaves.
        files: files whose checksum was compared.
        problems: what is wrong, or was before the repair.
    """

    path: str
    generation: int
    images: int
    files: int
    problems: tuple[Problem, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong now."""
        return all(problem.repaired for problem in self.problems)

    @property
    def has_losses(self) -> bool:
        """Whether something is gone, or will be with the repair, that is nowhere else in the gallery."""
        return any(problem.is_loss for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {**asdict(self), "is_sound": self.is_sound, "has_losses": self.has_losses}

    def __str__(self) -> str:
        images, files = counted(self.images, "image"), counted(self.files, "file")
        head = f"{self.path}: generation {self.generation}, {images}, {files} checked"
        lines = [
            f"  {'repaired' if problem.repaired else 'PROBLEM'}: {problem.file} {problem.problem}; {problem.repair}"
            for problem in self.problems
        ]
        return "\n".join([head + (", sound" if not lines else ""), *lines])
