"""Encoders evaluated on retrieval: data sets, files of encodings, and galleries, under one protocol."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..datasets.retrieval import Dataset, load_dataset
from ..encoders import Encoder, Overlap, TrainedOn
from ..encoders.trained_on import say_overlap
from ..errors import FingerprintMismatchError, InputError
from ..images.splits import split_column, split_name
from ..index import Encodings, Gallery, encode_to_file, read_encodings
from ..index.storage.segments import Record
from ..progress import Progress
from ..remarks import remark
from .evaluation import RECALL_AT, Origin, RetrievalEvaluation, RetrievalProtocol, evaluate_embeddings


@dataclass(frozen=True)
class EncodingSettings:
    """Settings of a run of the encoder; see `encode_to_file`."""

    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    strict: bool = False


def evaluate_encodings(
    encodings: Encodings,
    *,
    protocol: RetrievalProtocol | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> RetrievalEvaluation:
    """Every measure, from a file of encodings; its column `role` says what is query, gallery, or (default) both."""
    roles = np.array([record.columns.get("role", "both") for record in encodings.records])
    origin = origin or _origin(
        encodings.encoder,
        encodings.file.name,
        trained_on=Overlap.from_dict(encodings.encoder.get("trained_on")),
        notes=_splits_measured(encodings.file, encodings.records),
    )
    given: dict[str, Any] = {"protocol": protocol, "origin": origin, "progress": progress}
    if (roles == "both").all():
        return evaluate_embeddings(encodings.embeddings, encodings.labels, **given)
    asked, searched = np.flatnonzero(roles != "gallery"), np.flatnonzero(roles != "query")
    if not asked.size or not searched.size:
        raise InputError(f"{encodings.file}: expected queries and a gallery; all images are {roles[0]}")
    place = np.full(len(roles), -1)
    place[searched] = np.arange(len(searched))
    labels = np.array(encodings.labels, object)
    return evaluate_embeddings(
        encodings.embeddings[asked],
        labels[asked],
        gallery=encodings.embeddings[searched],
        gallery_labels=labels[searched],
        own=place[asked],
        **given,
    )


def evaluate_gallery(
    gallery: Gallery,
    queries: Encodings | None = None,
    *,
    protocol: RetrievalProtocol | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> RetrievalEvaluation:
    """Every measure of a gallery: its images search one another, or encoded `queries` search it.

    A query whose file is in the gallery does not find itself. Equal distances are ordered by id, as in searches. The
    default protocol has the gallery's metric.

    Raises:
        FingerprintMismatchError: another encoder encoded the queries.
    """
    protocol = protocol or RetrievalProtocol(metric=gallery.metric)
    entry = gallery.manifest.encoder
    known = {name: getattr(entry, name) for name in ("fingerprint", "short_name", "description", "precision")}
    records, vectors = gallery.records(gallery.ids), gallery.embeddings(gallery.ids)
    labels = [record.label for record in records]
    if origin is None and queries is not None:
        overlap = Overlap.from_dict(queries.encoder.get("trained_on"))
        origin = _origin(known, gallery.folder.name, trained_on=overlap)
    elif origin is None:
        record, overlap = None if gallery.encoder_path is None else TrainedOn.read(gallery.encoder_path), None
        if record is not None:
            digests = [segment.file_states["sha256"][rows] for segment, rows in gallery.snapshot.live_parts()]
            overlap = record.overlap(labels, record.short(np.concatenate([np.empty((0, 32), np.uint8), *digests])))
        notes = _splits_measured(gallery.folder, records)
        origin = _origin(known, gallery.folder.name, notes=notes, trained_on=overlap)
    given: dict[str, Any] = {"protocol": protocol, "origin": origin, "progress": progress}
    if queries is None:
        return evaluate_embeddings(vectors, labels, **given)
    if queries.encoder["fingerprint"] != entry.fingerprint:
        raise FingerprintMismatchError(
            f"{gallery.folder} was built with {entry.short_name}, {queries.file} with "
            f"{queries.encoder['short_name']}; encode the queries again with the gallery's encoder"
        )
    row_of = {gallery.file(record): row for row, record in enumerate(records)}
    asked = [row for row, record in enumerate(queries.records) if record.columns.get("role") != "gallery"]
    return evaluate_embeddings(
        queries.embeddings[asked],
        [queries.records[row].label for row in asked],
        gallery=vectors,
        gallery_labels=labels,
        own=[row_of.get(queries.file_of(queries.records[row]), -1) for row in asked],
        **given,
    )


def default_protocol(dataset: Dataset, gallery: Gallery | None = None) -> RetrievalProtocol:
    """The k of R@k that papers report on this benchmark, and the gallery's metric, else the cosine."""
    return RetrievalProtocol(
        metric="cosine" if gallery is None else gallery.metric, recall_at=RECALL_AT.get(dataset.layout, (1, 2, 4, 8))
    )


def evaluate_dataset(
    dataset: Any,
    encoder: Encoder,
    *,
    gallery: Gallery | None = None,
    protocol: RetrievalProtocol | None = None,
    cache: str | os.PathLike[str] | None = None,
    settings: EncodingSettings | None = None,
    progress: Progress | None = None,
    ranking_progress: Progress | None = None,
) -> RetrievalEvaluation:
    """Encode a data set (one split of it, usually) and evaluate; nothing is left on disk without `cache`.

    Args:
        dataset: a `Dataset`, whose records say what is query and what is gallery, or what `load_dataset` takes.
        encoder: what is evaluated.
        gallery: search this gallery instead of the data set's own; its precision is used.
        protocol: the decisions; by default the k of R@k that papers report on this benchmark.
        cache: a file for the encodings: written, and continued after an interruption, or read if it is there.
        settings: how to run the encoder; `precision="fp32"` gives numbers that repeat across machines.
        progress: called with the number of images encoded and the number in all.
        ranking_progress: the same for queries ranked.

    Raises:
        FingerprintMismatchError: `cache` or `gallery` is another encoder's.
        InputError: `cache` holds other images, labels or roles.
    """
    settings = settings or EncodingSettings()
    with tempfile.TemporaryDirectory() as scratch:
        if not isinstance(dataset, Dataset):
            dataset = load_dataset(dataset, keep=Path(scratch) / "images")
        protocol = protocol or default_protocol(dataset, gallery)
        roles = {record.role for record in dataset.records}
        if len(roles) == 1 and "both" not in roles and (gallery is None or roles == {"gallery"}):
            also = "".join(f"; {problem}" for problem in dataset.problems[:2])
            raise InputError(f"{dataset.root}: expected queries and a gallery; all images are {roles.pop()}{also}")
        if gallery is not None:
            gallery.check_encoder(encoder)
            precision = gallery.manifest.encoder.precision or settings.precision
            settings = dataclasses.replace(settings, precision=precision)
            queries = tuple(record for record in dataset.records if record.role != "gallery")
            dataset = dataclasses.replace(dataset, records=queries)
        file = Path(scratch) / "encodings.h5" if cache is None else Path(cache)
        encodings, notes = _encoded(dataset, encoder, file, settings=settings, progress=progress)
        origin = _origin_of(dataset, encodings, encoder, gallery=gallery, notes=notes)
        if gallery is not None:
            return evaluate_gallery(gallery, encodings, protocol=protocol, origin=origin, progress=ranking_progress)
        return evaluate_encodings(encodings, protocol=protocol, origin=origin, progress=ranking_progress)


def _origin_of(
    dataset: Dataset, encodings: Encodings, encoder: Encoder, *, gallery: Gallery | None, notes: tuple[str, ...]
) -> Origin:
    against = () if gallery is None else (f"searched in the gallery {gallery.folder}",)
    record, others = encoder.trained_on, dataset.shared_classes
    shared = (f"{others} of these classes also occur in other splits: not an unseen-class result",) if others else ()
    return _origin(
        encodings.encoder,
        dataset.title,
        split=dataset.splits[0] if len(dataset.splits) == 1 else None,
        notes=(*dataset.problems, *notes, *against, *shared),
        trained_on=None if record is None else record.overlap(encodings.labels, record.short(encodings.sha256)),
    )


def _encoded(
    dataset: Dataset, encoder: Encoder, file: Path, *, settings: EncodingSettings, progress: Progress | None
) -> tuple[Encodings, tuple[str, ...]]:
    """The data set's encodings, made now or read, and what to say about them."""
    notes = ["cached encodings"] if file.exists() else []
    if not notes:
        encode_to_file(dataset.listing(), encoder, file, **dataclasses.asdict(settings), progress=progress)
    encodings = read_encodings(file)
    if encodings.encoder["fingerprint"] != encoder.fingerprint:
        raise FingerprintMismatchError(
            f"{file} holds encodings of {encodings.encoder['short_name']}, the encoder given is {encoder.short_name}; "
            "choose another --cache"
        )
    ours = {(record.path, record.label, record.split, record.role) for record in dataset.records}
    for record in encodings.records:
        if (record.path, record.label, record.columns.get("split"), record.columns.get("role")) not in ours:
            raise InputError(
                f"{file} holds other images, labels or roles, such as {record.path}; choose another --cache"
            )
    if lost := len(dataset) - len(encodings):
        notes.append(f"{lost} of {len(dataset)} images could not be read and are left out")
    return encodings, tuple(notes)


def _splits_measured(place: Path, records: Sequence[Record]) -> tuple[str, ...]:
    """A note where images of several splits search one another."""
    rows = [{name: cell or "" for name, cell in record.columns.items()} for record in records]
    column = split_column(rows, list(dict.fromkeys(name for row in rows for name in row)))
    splits = Counter(name for row in rows if (name := split_name(row.get(column or "", ""))) is not None)
    if len(splits) < 2:
        return ()
    said = ", ".join(f"{name} {count}" for name, count in splits.items())
    remark(f"{place}: the images of all its splits are measured together ({said}); evaluate the data itself for one")
    return (f"the images of all splits together: {said}",)


def _origin(known: Any, dataset: str, *, trained_on: Overlap | None = None, **rest: Any) -> Origin:
    known = {name: known.get(name) for name in ("fingerprint", "precision")} | {
        "encoder": known.get("short_name"),
        "description": known.get("description") or {},
    }
    return Origin(dataset=dataset, trained_on=say_overlap(trained_on), **known, **rest)
