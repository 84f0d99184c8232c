"""One file of encodings that stands alone: written by `distcam encode`, read by other tasks as arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryExistsError, InputError
from ...files import Storage
from ...images.items import item_of
from ..reports import AddReport
from ..storage.hdf5 import Array, FlatFile, StoredArray
from ..storage.manifest import MANIFEST_NAME, Spec
from ..storage.segments import Entries, Record, RowVectors, Segment, located, write_segment
from ..storage.snapshot import Snapshot
from .ingest import stored_names

if TYPE_CHECKING:  # what encodes images imports torch, which reading does without
    from ...encoders import Encoder
    from ...images.listing import GivenLabels
    from ...progress import Progress
    from .build import Precision

FORMAT = "distcam-encodings"
VERSION = 1
_REMEDY = "write it again with `distcam encode`"


@dataclass(frozen=True, eq=False)
class Encodings:
    """The encodings of n images; vectors are in memory and read-only, maps are read when asked for.

    Attributes:
        file: where they were read from.
        pooled: raw pooled vectors, (n, K).
        embeddings: raw embeddings, (n, d).
        records: path, label and columns of each image.
        root: the folder that relative paths refer to.
        encoder: fingerprint, short name and description of the encoder.
        skipped: images that were asked for and could not be used, with the reason, where the file says so.
    """

    file: Path
    pooled: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    records: tuple[Record, ...]
    root: Path
    encoder: Mapping[str, Any]
    _segment: Segment
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pooled)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as the file, which is read again."""
        return read_encodings, (self.file.absolute(),)

    @property
    def labels(self) -> list[str | None]:
        """The class of each image."""
        return [record.label for record in self.records]

    @property
    def sha256(self) -> NDArray[np.uint8]:
        """Of each image's file, (n, 32)."""
        return self._segment.file_states["sha256"]

    @property
    def has_maps(self) -> bool:
        """True if feature maps were stored."""
        return self._segment.spec.map_shape is not None

    def maps(self, rows: Array | slice = slice(None)) -> NDArray[np.float32]:
        """Feature maps of some rows, (n, K, h, w), within half precision; InputError when none were stored."""
        if not self.has_maps:
            raise InputError(f"{self.file} holds no feature maps; encode with --store-maps")
        return self._segment.maps(np.arange(len(self))[rows])

    def column(self, name: str) -> list[str | None]:
        """One of the user's columns, or `"label"`."""
        columns = self._segment.columns
        if name not in columns:
            raise InputError(f"no column {name!r} in {self.file}; there are {', '.join(columns)}")
        return columns[name].strings()

    def file_of(self, record: Record) -> Path:
        """The place of an image, or that at the time of encoding."""
        return located(record.path, self.root)


def encode_to_file(
    source: Any,
    encoder: Encoder,
    out: str | os.PathLike[str],
    *,
    labels: GivenLabels = None,
    store_maps: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AddReport:
    """Encode images into one HDF5 file, which appears when it is whole.

    Until then the work lies in a folder beside it, `<out>.partial`, from which the same call goes on after an
    interruption.

    Raises:
        GalleryExistsError: the file is there, and neither `overwrite` nor an interrupted run says to replace it.
        ImageError: with `strict`, the first file that cannot be used.
    """
    from ...encoders.inference import whole_encoder
    from .build import InferenceOptions, add_images, listing_of, opened_for_building

    encoder, target = whole_encoder(encoder), Path(out)
    partial = target.with_name(f"{target.name}.partial")
    is_continued = (partial / MANIFEST_NAME).exists()
    if target.is_dir() or (target.exists() and not overwrite and not is_continued):
        raise GalleryExistsError(f"{target}: is there already; choose another --out, or give --overwrite")
    listing = listing_of(source, labels, keep=target.with_name(f"{target.name}.images"), strict=strict)
    settings = InferenceOptions(batch_size, workers, device, precision)
    with opened_for_building(
        partial, listing, encoder, metric="dot", store_maps=store_maps, overwrite=overwrite
    ) as writer:
        report = add_images(
            writer, listing, encoder, settings=settings, store_maps=store_maps, strict=strict, progress=progress
        )
        snapshot, root = Snapshot(partial, writer.manifest, verify=False), Path(writer.manifest.root)
        stored = stored_names(listing.root, root)
        listed = {item_of(stored(record.path), record.box) for record in listing}
        others = [place for path, place in snapshot.places_by_path().items() if path not in listed]
        writer.remove(snapshot.ids[others].tolist())  # an interrupted run encoded them; they are not asked for any more
        writer.commit()
        parts = Snapshot(partial, writer.manifest).live_parts()
        write_encodings(
            target,
            Entries.cat([segment.entries(rows) for segment, rows in parts]),
            chain.from_iterable(segment.blocks(rows) for segment, rows in parts),
            spec=writer.manifest.spec,
            root=root,
            encoder=encoder,
            precision=writer.manifest.encoder.precision,
        )
        writer.delete_gallery()
    return report


def write_encodings(
    file: Path,
    entries: Entries,
    vectors: Iterable[RowVectors],
    *,
    spec: Spec,
    root: str | os.PathLike[str],
    encoder: Encoder,
    precision: str | None,
    skipped: Mapping[str, str] | None = None,
) -> None:
    """Write encodings as the one file that `read_encodings` reads; it appears when it is whole.

    `skipped` holds the images that could not be used, with reasons; None: the file says nothing of them.
    """
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "root": os.fspath(root),
        "encoder": {
            "fingerprint": encoder.fingerprint,
            "short_name": encoder.short_name,
            "description": encoder.describe(),
            "precision": precision,
        },
    }
    if encoder.trained_on is not None:
        overlap = encoder.trained_on.overlap(entries.columns["label"], encoder.trained_on.short(entries.sha256))
        about["encoder"]["trained_on"] = overlap.to_dict()
    if skipped is not None:
        about["skipped"] = dict(skipped)
    with Storage().replacing(file) as aside:
        write_segment(aside, entries, vectors, spec=spec, about=json.dumps(about))


def read_encodings(file: str | os.PathLike[str]) -> Encodings:
    """The encodings in a file that `encode_to_file` wrote; the file is not trusted.

    Raises:
        InputError: there is no such file.
        CorruptGalleryError: it is damaged, or something else.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_REMEDY}")
    segment = Segment(path, spec=_spec_of(path), remedy=_REMEDY)
    about = _about(segment)
    labels = segment.columns["label"].strings()
    others = {name: column.strings() for name, column in segment.columns.items() if name != "label"}
    records = tuple(
        Record(int(id_), image, labels[row], {k: value for k, v in others.items() if (value := v[row]) is not None})
        for row, (id_, image) in enumerate(zip(segment.ids, segment.paths, strict=True))
    )
    pooled = embeddings = _read_only(segment.pooled)
    if not segment.spec.embedding_is_pooled:
        embeddings = _read_only(segment.embedding)
    skipped = about.get("skipped", {})
    return Encodings(path, pooled, embeddings, records, Path(about["root"]), about["encoder"], segment, skipped)


def _read_only(stored: StoredArray) -> Array:
    array = stored.read()
    array.flags.writeable = False
    return array


def _spec_of(path: Path) -> Spec:
    """A file that stands alone says itself what its dimensions are."""
    file = FlatFile(path, remedy=_REMEDY)
    pooled = file.shape("pooled")
    embedding = file.shape("embedding") if "embedding" in file.names else pooled
    maps = file.shape("maps") if "maps" in file.names else None
    try:
        map_shape = None if maps is None else (maps[-2], maps[-1])
        return Spec("dot", embedding[-1], pooled[-1], map_shape, embedding_is_pooled="embedding" not in file.names)
    except (ValueError, IndexError) as error:
        raise file.corrupt(f"its arrays have impossible shapes ({error})") from error


def _about(segment: Segment) -> dict[str, Any]:
    try:
        about = json.loads(segment.file.strings("about", 1)[0]) if "about_blob" in segment.file.names else None
        if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"not {FORMAT} version {VERSION}")
        if not isinstance(about.get("root"), str) or not isinstance(about.get("encoder"), dict):
            raise ValueError("root or encoder is missing")
        if not isinstance(about.get("skipped", {}), dict):
            raise ValueError("what was skipped is no table")
    except (ValueError, RecursionError) as error:
        raise segment.file.corrupt(f"does not say what it is ({error})") from error
    return about
