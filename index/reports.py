"""Reports of a gallery's state, of building, adding and verifying: values that become JSON or a table."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import CorruptGalleryError, ImageError
from ..files import read_file
from ..images.inline import SHOWN, Tile, fragment, more
from ..images.items import split_item
from ..images.loading import read_image
from ..remarks import Skipped, counted
from .storage.manifest import EncoderEntry
from .storage.segments import MASK_COLUMN, NO_MASK
from .storage.snapshot import Snapshot

if TYPE_CHECKING:
    from .reader import GalleryReader

_TOLD = ("images", "classes", "columns", "metric", "encoder", "images_as", "root", "skipped")  # of `describe`


def read_skipped(path: Path) -> tuple[Skipped, ...]:
    """A skip list from its file of JSON lines."""
    try:
        return tuple(Skipped.from_json(line) for line in read_file(path).decode("utf-8").splitlines())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptGalleryError(f"{path}: is no skip list ({error}); add the images again") from error


@dataclass(frozen=True)
class AddReport:
    """The outcome of offering images to a gallery.

    Attributes:
        added: images under a new path.
        replaced: images whose file, label, or columns had changed.
        unchanged: images that were there already.
        skipped: images that could not be used.
        precision: of the arithmetic that encoded them, "fp32" or "bf16"; None where that is not known.
    """

    added: int
    replaced: int
    unchanged: int
    skipped: tuple[Skipped, ...] = ()
    precision: str | None = None

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
    """The findings of a full check of a gallery.

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
        """True if nothing is wrong now."""
        return all(problem.repaired for problem in self.problems)

    @property
    def has_losses(self) -> bool:
        """True if something is gone, or will be with the repair, that is nowhere else in the gallery."""
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


SyncKind = Literal["added", "changed", "moved", "duplicated", "relabelled", "removed"]


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
        return {"counts": {kind: counts[kind] for kind in get_args(SyncKind)}, **asdict(self)}

    def __str__(self) -> str:
        counts = self.counts
        parts = [f"{counts[kind]} {kind}" for kind in get_args(SyncKind) if counts[kind]]
        parts += [f"{self.unchanged} unchanged"]
        parts += [f"{len(self.missing)} missing but kept"] if self.missing else []
        parts += [f"{self.busy} still being written"] if self.busy else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        would = "would be: " if self.is_dry_run else ""
        return f"{would}{', '.join(parts)}; {counted(self.images, 'image')}"


def describe(snapshot: Snapshot, *, root: Path, classes: int) -> dict[str, Any]:
    """The summary that `distcam index info` shows, for JSON."""
    manifest, spec = snapshot.manifest, snapshot.spec
    masks, rejection, tuning = manifest.masks, manifest.rejection, manifest.tuning
    masked = 0  # images with a mask file; one without a pixel counts, though it pools the whole image
    if masks is not None and MASK_COLUMN in snapshot.column_names:
        masked = sum(value not in (None, NO_MASK) for value in snapshot.column(MASK_COLUMN).strings())
    boxed = [] if snapshot.is_remote else [split_item(path)[0] for path in snapshot.box_paths()]
    boxes = {"count": len(boxed), "files": len(set(boxed)), "margin": manifest.box_margin} if boxed else None
    is_current = rejection is not None and rejection.generation == manifest.generation
    return {
        "path": str(snapshot.folder),
        "images": len(snapshot),
        "classes": classes,
        "columns": list(snapshot.column_names),
        "complete": manifest.complete,
        "generation": manifest.generation,
        "metric": spec.metric,
        "embedding_dim": spec.embedding_dim,
        "pooled_dim": spec.pooled_dim,
        "maps": None if spec.map_shape is None else list(spec.map_shape),
        "encoder": manifest.encoder.short_name,
        "fingerprint": manifest.encoder.fingerprint,
        "precision": manifest.encoder.precision,
        "images_as": _images_as(manifest.encoder),
        "encoder_copied": manifest.encoder.file is not None,
        "root": str(root),
        "segments": len(manifest.segments),
        "backend": None if manifest.backend is None else manifest.backend.address,
        "removed_rows": snapshot.removed_rows,
        "skipped": 0 if manifest.skipped is None else manifest.skipped.count,
        "masks": None if masks is None else {**asdict(masks), "images": masked},
        "boxes": boxes,
        "rejection": None if rejection is None else {**asdict(rejection), "is_current": is_current},
        "index": manifest.index,
        "tuning": None if tuning is None else {**asdict(tuning), "is_due": tuning.is_due(len(snapshot))},
        "index_cached": manifest.is_of_use(manifest.index_cache),
        "prototypes_cached": manifest.is_fresh(manifest.prototype_cache),
        "bytes": sum(entry.bytes for entry in manifest.files()),
    }


def _images_as(encoder: EncoderEntry) -> str | None:
    """The size that images are brought to: `Transform.summary` without torch. None for imported vectors."""
    transform = encoder.description.get("transform")
    if not isinstance(transform, dict):
        return None
    size = transform.get("size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    return f"{transform.get('fit')} to {height}×{width}"


def gallery_html(gallery: GalleryReader) -> str:
    """Some images, spread evenly, and what the gallery holds, for a notebook."""
    records = gallery.records(gallery.ids[:: max(1, len(gallery) // SHOWN)][:SHOWN])
    tiles = []
    for record in records:
        with suppress(ImageError):  # gone, or damaged since
            tiles.append(Tile(read_image(gallery.item(record)), record.label or "–", record.path))
    rows = [[name, str(value)] for name, value in gallery.info().items() if name in _TOLD and value is not None]
    images = [tiles] if tiles else []
    return fragment(repr(gallery), images, table=(["", ""], rows), notes=more(len(gallery), "images"))
