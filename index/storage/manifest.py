"""The manifest: the one small file that says what a gallery consists of. Replacing it is the commit.

It is read as untrusted; its checksum guards against accidents only, `hdf5.py` checks what somebody forged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

from ...errors import CorruptGalleryError, GalleryError, NotAGalleryError
from ...files import REMEDY, Storage, is_file, read_file
from ...metrics.distances import METRICS, Metric
from ...metrics.fusion import LineScale, VerifyGain
from ..rejection import Rejection
from .background import Background, MapChoice

MANIFEST_NAME = "manifest.json"
FORMAT = "distcam-gallery"
VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
MAX_DIMENSION = 1 << 20
MAX_MARGIN = 10.0

_GROWTH = 2.0  # times as many images, or as few, and the number of lists no longer fits
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Spec:
    """The dimensions and the metric that all segments of a gallery share."""

    metric: Metric  # vectors are stored raw; it is applied on reading
    embedding_dim: int  # of the vectors that are searched
    pooled_dim: int  # of the vectors that explain a match
    map_shape: tuple[int, int] | None = None  # rows and columns of the stored feature maps; None: not kept
    embedding_is_pooled: bool = False  # both vectors are the same, and stored once
    fine_shape: tuple[int, int, int] | None = None  # channels, rows and columns of the stored fine maps

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is none of {', '.join(METRICS)}")
        for size in (self.embedding_dim, self.pooled_dim, *(self.map_shape or ()), *(self.fine_shape or ())):
            if not 1 <= size <= MAX_DIMENSION:
                raise ValueError(f"dimension {size} is outside 1 … {MAX_DIMENSION}")
        if self.embedding_is_pooled and self.embedding_dim != self.pooled_dim:
            raise ValueError("the embedding cannot be the pooled vector: their lengths differ")


@dataclass(frozen=True)
class FileEntry:
    """A file of the gallery: its plain name, number of items, length, and SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _PLAIN_NAME.fullmatch(self.name) or self.name == MANIFEST_NAME:
            raise ValueError(f"file name {self.name[:80]!r} is not a plain name")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"checksum of {self.name} is not a SHA-256")
        if self.count < 0 or self.bytes < 0:
            raise ValueError(f"{self.name} has a negative size")


@dataclass(frozen=True)
class CacheEntry:
    """A file that can always be computed again from the segments."""

    file: FileEntry
    generation: int  # that it was computed from
    tag: str | None = None  # proof that this user wrote it (`cache.py`); None where no proof is needed
    next_id: int | None = None  # of that generation; an index that has it can follow to later ones, nothing else can


@dataclass(frozen=True)
class EncoderEntry:
    """The encoder that made the vectors."""

    fingerprint: str  # hash over its weights and settings
    short_name: str  # for people, such as "resnet50/ab12cd34"
    description: dict[str, Any] = field(default_factory=dict)  # its settings
    file: FileEntry | None = None  # a copy of its checkpoint, when it can be saved
    precision: Literal["fp32", "bf16"] | None = None  # None until the first image is encoded


@dataclass(frozen=True)
class MaskEntry:
    """The masks that the vectors were pooled under: their absolute folder, and the object's number if one is given."""

    folder: str
    category: int | None = None


@dataclass(frozen=True)
class BackendEntry:
    """The place of the rows when they are not in the folder."""

    address: str  # of the collection in Milvus, without secrets
    owner: str  # a random id that the collection carries too
    columns: tuple[str, ...] = ()  # the names of the user's
    settled: int = 0  # number of tombstone files whose rows have been deleted


def has_outgrown(then: int, now: int) -> bool:
    """True if what was fitted to so many images then no longer fits as many as there are now."""
    return now > _GROWTH * then or now < then / _GROWTH


@dataclass(frozen=True)
class Tuning:
    """An index that was chosen by measuring, and the measurements on the gallery's own images, each without itself.

    Attributes:
        factory: the FAISS factory string; the gallery's `index` as long as it holds.
        effort: nprobe (inverted file) or efSearch (graph); None where there is no such knob.
        overfetch: how many times the usual number of candidates are re-scored.
        images: how many there were.
        recall_at_1, recall_at_10, recall_at_100: share of the true nearest 1, 10, 100 that were found, after exact
            re-scoring, in [0, 1].
        latency_ms, latency_p95_ms: of single queries, k = 10: median and 95th percentile.
        batch_ms: per query, when all are asked at once.
        bytes_per_vector: memory of the index and its ids.
        build_seconds: training and filling.
        queries, seed: number of queries; the seed of their draw and of the training.
        threads, device, machine, date: of the measurement; threads are those of FAISS when many queries are asked.
    """

    factory: str
    effort: int | None
    overfetch: int
    images: int
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    latency_ms: float
    latency_p95_ms: float
    batch_ms: float
    bytes_per_vector: float
    build_seconds: float
    queries: int
    seed: int
    threads: int
    device: str
    machine: str
    date: str

    def __post_init__(self) -> None:
        if min(self.overfetch, self.images + 1, 1 if self.effort is None else self.effort) < 1:
            raise ValueError("a tuned index needs a positive effort and over-fetch")

    def is_due(self, images: int) -> bool:
        """True if a gallery of so many images should be tuned again."""
        return has_outgrown(self.images, images)


@dataclass(frozen=True)
class Manifest:
    """A gallery's state, complete and consistent; a commit replaces it by another."""

    spec: Spec
    encoder: EncoderEntry
    root: str  # the absolute folder that relative paths refer to
    generation: int = 0  # grows with every change of content
    next_id: int = 0  # the first id never given out
    complete: bool = False  # False while a build is unfinished; building again continues it
    index: str = "auto"  # or "flat", or a FAISS factory string
    segments: tuple[FileEntry, ...] = ()  # vectors and what is known about the images, in the order of ids
    tombstones: tuple[FileEntry, ...] = ()  # files of removed ids
    skipped: FileEntry | None = None  # the list of images that could not be used
    prototype_cache: CacheEntry | None = None
    index_cache: CacheEntry | None = None
    rejection: Rejection | None = None  # None until somebody calibrates
    backend: BackendEntry | None = None  # None when the rows are in segments
    masks: MaskEntry | None = None  # None when whole images were pooled
    tuning: Tuning | None = None  # the measurements by which `index` was chosen
    lines: LineScale | None = None  # what lines are measured against; None where they are not kept, nor calibrated
    verification: VerifyGain | None = None  # None until somebody calibrates it
    background: Background | None = None  # None unless every image was measured when it came
    map_choice: MapChoice | None = None  # None: maps are distcam's default
    box_margin: float = 0.0  # share of a box's width and height by which it is cut out wider, on every side
    gallery_id: str = ""  # random: tells who has the gallery open that another lies in its place; in the file `birth`

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.files()]
        if len(set(names)) != len(names):
            raise ValueError("two entries name the same file")
        if self.backend is not None and (self.segments or not 0 <= self.backend.settled <= len(self.tombstones)):
            raise ValueError("rows are in Milvus, but it speaks of segments or of tombstones that are not there")
        if self.background is not None and len(self.background.vector) != self.spec.embedding_dim:
            raise ValueError(f"the background has not the {self.spec.embedding_dim} numbers of an embedding")
        if not 0 <= self.box_margin <= MAX_MARGIN:
            raise ValueError(f"a margin of {self.box_margin} is outside 0 … {MAX_MARGIN}")
        if self.generation < 0 or not 0 <= self.next_id < 1 << 63:
            raise ValueError("a counter is out of range")

    def files(self) -> Iterator[FileEntry]:
        """Every file the gallery consists of, besides the manifest."""
        yield from self.segments
        yield from self.tombstones
        yield from (entry for entry in (self.encoder.file, self.skipped) if entry is not None)
        yield from (cache.file for cache in (self.prototype_cache, self.index_cache) if cache is not None)

    def is_fresh(self, cache: CacheEntry | None) -> bool:
        """True if a cache is there and of this generation."""
        return cache is not None and cache.generation == self.generation

    def is_of_use(self, cache: CacheEntry | None) -> bool:
        """True if a cache is there and of this generation, or can be brought to it."""
        return cache is not None and (cache.next_id is not None or self.is_fresh(cache))

    def save(self, folder: Path, storage: Storage) -> None:
        """Make this the gallery's manifest: durable when the call returns, and never half there."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["birth"] = content.pop("gallery_id")
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, ensure_ascii=True) + "\n"
        storage.write(folder / MANIFEST_NAME, text.encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The manifest of the gallery in `folder`."""
        path = folder / MANIFEST_NAME
        if not is_file(path):
            what = "is not a folder" if os.path.exists(folder) else "not found"  # noqa: PTH110
            what = "holds no manifest.json" if os.path.isdir(folder) else what  # noqa: PTH112
            raise NotAGalleryError(f"{folder}: {what}; a gallery is a folder written by `distcam index build`")
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
            content = json.loads(read_file(path))
        except (ValueError, RecursionError, OSError) as error:  # OSError: it was there a moment ago
            raise _damaged(path, error) from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise NotAGalleryError(f"{path}: belongs to something else; a gallery is a folder written by distcam")
        version = content.pop("version", None)
        if version != VERSION:
            raise GalleryError(
                f"{path}: format version {version}, this distcam reads version {VERSION}; upgrade distcam"
            )
        try:
            checksum = content.pop("checksum", None)
            if checksum != _checksum({"format": FORMAT, "version": VERSION, **content}):
                raise ValueError("the checksum does not fit the contents")
            content |= {"gallery_id": content.pop("birth")} if "birth" in content else {}
            return cast(Self, _parse(cls, content, "manifest"))
        except _NewerError as error:
            raise GalleryError(f"{path}: a newer distcam wrote it ({error}); upgrade distcam") from error
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from error


class _NewerError(ValueError):
    """The manifest is whole, and says what this version does not know."""


def _damaged(path: Path, error: Exception) -> CorruptGalleryError:
    reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is damaged ({error})"
    return CorruptGalleryError(f"{path}: {reason}; {REMEDY}")


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as the type `kind`, checked throughout; ValueError says where it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in arguments else _parse(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise ValueError(f"{where} should be a list")
        return tuple(_parse(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is Literal and value not in arguments:
        raise ValueError(f"{where} should be one of {', '.join(arguments)}")
    if origin is dict and not isinstance(value, dict):
        raise ValueError(f"{where} should be an object")
    if origin in (Literal, dict):
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        known = {item.name for item in fields(kind)}
        needed = {item.name for item in fields(kind) if item.default is item.default_factory is MISSING}
        if not isinstance(value, dict) or not needed <= set(value):
            raise ValueError(f"{where} does not have the expected fields")
        hints = get_type_hints(kind)
        parsed = kind(**{name: _parse(hints[name], value[name], f"{where}.{name}") for name in value if name in known})
        if unknown := sorted(set(value) - known):  # after the rest, which damage would not spare
            raise _NewerError(f"{where} has {', '.join(unknown)[:200]}")
        return parsed
    if type(value) is not kind:
        raise ValueError(f"{where} should be {kind.__name__}, is {type(value).__name__}")
    return value
