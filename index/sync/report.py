"""Report of a folder sync."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ...remarks import Skipped, counted
from .plan import SyncKind

_KINDS: tuple[SyncKind, ...] = ("added", "changed", "moved", "duplicated", "relabelled", "removed")


@dataclass(frozen=True, slots=True)
class Change:
    """One image's change; `origin` is the path that its vectors come from when nothing was encoded."""

    kind: SyncKind
    path: str
    origin: str | None = None


@dataclass(frozen=True)
class SyncReport:
    """The changes that a sync made, or would make.

    Attributes:
        changes: image by image.
        unchanged: images that were as the gallery had them.
        missing: paths whose files are gone and which stay in the gallery.
        skipped: files that cannot be used; the images that the gallery had under their paths stay.
        busy: files left for later because they are being written.
        images: images in the gallery afterwards.
        is_dry_run: nothing was done.
        refusal: why it would be refused; None if it would not.
    """

    changes: tuple[Change, ...]
    unchanged: int
    images: int
    missing: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    busy: int = 0
    is_dry_run: bool = False
    refusal: str | None = None

    @property
    def counts(self) -> Counter[SyncKind]:
        """Number of images added, changed, and so on."""
        return Counter(change.kind for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        counts = self.counts
        return {"counts": {kind: counts[kind] for kind in _KINDS}, **asdict(self)}

    def __str__(self) -> str:
        counts = self.counts
        parts = [f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind]]
        parts += [f"{self.unchanged} unchanged"]
        parts += [f"{len(self.missing)} missing but kept"] if self.missing else []
        parts += [f"{self.busy} still being written"] if self.busy else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        would = "would be: " if self.is_dry_run else ""
        return f"{would}{', '.join(parts)}; {counted(self.images, 'image')}"
