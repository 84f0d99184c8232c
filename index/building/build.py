"""From images and an encoder to a gallery."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...encoders.encoder import Encoder
from ...encoders.encoding import Encoding, border_mean, fold
from ...encoders.heads import IdentityHead
from ...encoders.inference import Inference, whole_encoder
from ...encoders.regions import MaskPooling, pooled_under
from ...errors import FingerprintMismatchError, GalleryExistsError, InputError
from ...files import Storage, after_commit
from ...images.boxes.cutting import GivenBoxes, list_items
from ...images.listing import GivenLabels, Listing
from ...images.masks import MaskFolder
from ...metrics.distances import METRICS, Metric, SearchSpec
from ...metrics.fusion import LineScale
from ...progress import Progress
from ..backends import (
    backend_entry,
    locked_for_new,
    new_gallery_id,
    open_snapshot,
    require_index,
    rows_in,
    write_encoder_copy,
    writer_of,
)
from ..reports import AddReport
from ..storage.manifest import MAX_MARGIN, EncoderEntry, FileEntry, Manifest, MaskEntry, Spec
from ..storage.segments import RowVectors, pack_maps
from ..storage.writer import CommitLimits, GalleryWriter
from .ingest import Encoded, Offer, Stream, ingest, new_skip_list, skipped_before
from .opened import OpenedImages

Precision = Literal["auto", "fp32", "bf16"]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class InferenceOptions:
    """Options of `Inference`; None leaves the choice to it."""

    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    fine_layer: str | None = None  # of a new gallery that keeps fine maps; "auto" is the last block with stride 8


def listing_of(
    source: Any,
    labels: GivenLabels,
    *,
    keep: Path | None = None,
    boxes: GivenBoxes = "none",
    strict: bool = False,
) -> Listing:
    """The listing that a user's source means; InputError when `labels` or `boxes` are given for a listing."""
    if not isinstance(source, Listing):
        return list_items(source, labels=labels, boxes=boxes, strict=strict, keep=keep)
    if labels is not None or boxes not in (None, "none"):
        raise InputError("labels belong to the listing, and so do boxes; give them to list_images or list_items")
    return source


@contextmanager
def opened_for_building(
    folder: Path,
    listing: Listing,
    encoder: Encoder,
    *,
    metric: Metric,
    index: str = "auto",
    store_maps: bool = False,
    store_lines: bool = False,
    masks: MaskFolder | None = None,
    box_margin: float = 0.0,
    backend: str | None = None,
    overwrite: bool = False,
    storage: Storage | None = None,
    limits: CommitLimits | None = None,
) -> Iterator[GalleryWriter]:
    """A writer for a new gallery, or for an unfinished one of the same encoder and settings, holding its lock."""
    encoder = whole_encoder(encoder)
    if not 0 <= box_margin <= MAX_MARGIN:
        raise InputError(f"expected a margin from 0 to {MAX_MARGIN:g}, a share of a box's sides; got {box_margin}")
    if box_margin and all(record.box is None for record in listing):
        raise InputError("a margin is for boxes, and there are none; leave it out, or give boxes")
    if metric not in METRICS:
        raise InputError(f"expected a metric out of {', '.join(METRICS)}, got {metric!r}")
    require_index(SearchSpec(encoder.embedding_dim, metric), index, backend, store_maps=store_maps)
    storage = storage or Storage()
    with locked_for_new(folder, overwrite=overwrite, storage=storage) as old:
        manifest = Manifest(
            spec=spec_of(encoder, metric),
            encoder=EncoderEntry(encoder.fingerprint, encoder.short_name, encoder.describe()),
            root=str(listing.root.absolute()),
            generation=0 if old is None else old.generation + 1,
            index=index,
            backend=backend_entry(backend, old),
            masks=None if masks is None else MaskEntry(str(masks.folder), masks.category),
            box_margin=float(box_margin),
            gallery_id=new_gallery_id(str(listing.root.absolute())),
        )
        if old is not None and not overwrite:
            _require_same(folder, old, manifest, store_maps=store_maps, store_lines=store_lines)
            manifest = old
        with writer_of(folder, manifest, on_disk=old, storage=storage, limits=limits) as writer:
            yield writer


def add_images(
    writer: GalleryWriter,
    listing: Listing,
    encoder: Encoder,
    *,
    settings: InferenceOptions,
    store_maps: bool = False,
    complete: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
    encode: Callable[..., Stream] | None = None,
) -> AddReport:
    """Encode a listing's images into an open gallery, under masks if it pools under masks.

    `store_maps` counts where the gallery is new; `encode` makes the stream, by default `encoding_stream`.
    """
    masks = None
    if (entry := writer.manifest.masks) is not None:
        masks = MaskFolder(Path(entry.folder), entry.category)
        if not masks.folder.is_dir():
            raise InputError(
                f"this gallery pools its images under the masks in {masks.folder}, which is not there; "
                "put the masks back, or build the gallery again with `distcam index build --masks`"
            )
    make_stream, encoder = encode or encoding_stream, whole_encoder(encoder)
    stream = make_stream(writer, encoder, settings, masks=masks, store_maps=store_maps, strict=strict)
    report = ingest(writer, listing, stream, masks=masks, strict=strict, progress=progress)
    if writer.is_new or not writer.manifest.next_id:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in report.skipped[:3])
        raise InputError(f"none of {len(report.skipped)} images could be used ({shown}); no gallery was written")
    finish(writer, report, complete=complete)
    return report


def encoding_stream(
    writer: GalleryWriter,
    encoder: Encoder,
    settings: InferenceOptions,
    *,
    masks: MaskFolder | None = None,
    store_maps: bool = False,
    strict: bool = False,
) -> Stream:
    """The stream that encodes here; the first batch settles the spec of a new gallery."""

    def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
        kept = writer.manifest.encoder.precision  # one gallery, one arithmetic
        precision = kept if settings.precision == "auto" and kept is not None else settings.precision
        inference = Inference(encoder, device=settings.device, precision=precision, batch_size=settings.batch_size)
        layer = _fine_layer(writer, inference, settings)
        under = None if masks is None else MaskPooling.of(masks, inference.encoder, strict=strict)
        opened = OpenedImages(inference, settings.workers, margin=writer.manifest.box_margin)
        weights: dict[int, Tensor | None] = {}  # of the offers that are on their way

        def load(offer: Offer) -> Tensor:
            pixels, size = opened.read(offer)
            if under is not None:
                weights[id(offer)] = under.weights(offer.path, size)
            return pixels

        for batch in inference.stream(
            offers, load=load, workers=settings.workers, maps=store_maps or under is not None
        ):
            vectors = None
            if batch.encoding is not None:
                if writer.is_new and not writer.has_pending:
                    rows, columns = batch.encoding.feature_map.shape[2:]
                    fine = batch.encoding.fine
                    begin(
                        writer,
                        precision=inference.precision,
                        map_shape=(rows, columns) if store_maps else None,
                        copy=write_encoder_copy(encoder, writer),
                        fine=None
                        if fine is None or layer is None
                        else (layer, (fine.shape[1], fine.shape[2], fine.shape[3])),
                    )
                own = [weights.pop(id(offer), None) for offer in batch.items]
                encoding = pooled_under(inference.encoder, batch.encoding, own)
                vectors = to_vectors(encoding, writer.manifest.spec, inference.encoder)
            yield Encoded(batch.items, vectors, [(failure.item, failure.error) for failure in batch.failures])
        if under is not None:
            under.tell()

    return stream


def _fine_layer(writer: GalleryWriter, inference: Inference, settings: InferenceOptions) -> str | None:
    """The layer whose maps this gallery keeps, which encodings bring from now on; None where it keeps none."""
    kept = writer.manifest.lines
    layer = settings.fine_layer if kept is None else kept.layer
    keeps = writer.manifest.spec.fine_shape is not None or (writer.is_new and settings.fine_layer is not None)
    return inference.fine.read(layer) if layer is not None and keeps else None


def begin(
    writer: GalleryWriter,
    *,
    precision: Literal["fp32", "bf16"],
    map_shape: tuple[int, int] | None,
    copy: FileEntry | None,
    fine: tuple[str, tuple[int, int, int]] | None = None,
) -> None:
    """Settle what waits for the first encoding: precision, shapes of the maps, and the copy of the encoder."""
    manifest = writer.manifest
    lines = None if fine is None else LineScale.unmeasured(fine[0])
    spec = dataclasses.replace(manifest.spec, map_shape=map_shape, fine_shape=None if fine is None else fine[1])
    entry = dataclasses.replace(manifest.encoder, precision=precision, file=copy)
    writer.begin(dataclasses.replace(manifest, spec=spec, encoder=entry, lines=lines))


def given_masks(masks: MaskFolder | str | os.PathLike[str] | None, category: int | None = None) -> MaskFolder | None:
    """The folder of masks that a user's options mean; InputError when a class is named without one."""
    if masks is not None:
        return MaskFolder.given(masks, category)
    if category is not None:
        raise InputError("the number of a class in the masks belongs to a folder of masks; give that too")
    return None


def finish(writer: GalleryWriter, report: AddReport, *, complete: bool = False) -> None:
    """Record what was skipped, and perhaps that the gallery is complete; merge segments that have become many."""
    changes: dict[str, Any] = {}
    with after_commit(writer.folder, "the list of images that could not be used"):
        before = skipped_before(writer)
        paths = [item.path for item in before]
        taken_in = open_snapshot(writer.folder, writer.manifest).places_by_path(paths) if paths else {}
        left = [item for item in before if item.path not in taken_in]
        changes = new_skip_list(writer, before, (*left, *report.skipped))
        if not complete or writer.manifest.complete:
            writer.commit(**changes)
    if complete and not writer.manifest.complete:
        writer.commit(**changes, complete=True)
    writer.merge_small()


def spec_of(encoder: Encoder, metric: Metric) -> Spec:
    """The spec of what this encoder makes, without maps."""
    is_pooled = isinstance(encoder.head, (IdentityHead, nn.Identity))
    return Spec(metric, encoder.embedding_dim, encoder.pooled_dim, embedding_is_pooled=is_pooled)


def to_vectors(encoding: Encoding, spec: Spec, encoder: Encoder | None = None) -> RowVectors:
    """The vectors that a gallery of this kind stores of an encoding; with the encoder also the borders of its maps."""
    pooled = _numpy(encoding.pooled)
    embedding = pooled if spec.embedding_is_pooled else _numpy(encoding.embedding)
    has_map = encoding.feature_map[0, 0].numel() > 1  # of one place it is the vector, or no map was made
    border = _borders(encoding, embedding, spec, encoder) if encoder is not None and has_map else None
    maps: dict[str, Any] = {}
    with np.errstate(invalid="ignore", over="ignore"):  # an image with NaN is refused by its scale
        if spec.map_shape is not None:
            maps["maps"], maps["map_scale"] = pack_maps(_numpy(encoding.feature_map))
        if spec.fine_shape is not None and encoding.fine is not None:
            maps["fine"], maps["fine_scale"] = pack_maps(_numpy(encoding.fine))
    return RowVectors(pooled, embedding, border=border, **maps)


def _borders(encoding: Encoding, embedding: Floats, spec: Spec, encoder: Encoder) -> Floats:
    """The mean border of each image's response map, (n, d), for the cosine divided by the length of its vector."""
    device = next((each.device for each in encoder.parameters()), encoding.feature_map.device)
    feature_map = encoding.feature_map.to(device, torch.float32)
    border = _numpy(border_mean(fold(feature_map, pooling=encoder.pooling, head=encoder.head).map))
    if spec.metric != "cosine":
        return border
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    return np.asarray(border / np.where(length > 0, length, 1), np.float32)  # a zero vector is refused later


def _numpy(tensor: Tensor) -> Floats:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _require_same(folder: Path, old: Manifest, new: Manifest, *, store_maps: bool, store_lines: bool) -> None:
    if old.complete:
        raise GalleryExistsError(
            f"{folder}: is a complete gallery; add to it with `distcam index add`, or replace it with --overwrite"
        )
    if old.encoder.fingerprint != new.encoder.fingerprint:
        raise FingerprintMismatchError(
            f"{folder}: an unfinished gallery of {old.encoder.short_name}, the encoder given is "
            f"{new.encoder.short_name}; continue with the same encoder, or start anew with --overwrite"
        )
    settings = [
        ("images under", old.root, new.root),
        ("metric", old.spec.metric, new.spec.metric),
        ("index", old.index, new.index),
        ("stored maps", old.spec.map_shape is not None, store_maps),
        ("stored lines", old.spec.fine_shape is not None, store_lines),
        ("masks", old.masks, new.masks),
        ("box margin", old.box_margin, new.box_margin),
        ("rows in", rows_in(old), rows_in(new)),
    ]
    if different := [f"{name} {found}, given {given}" for name, found, given in settings if found != given]:
        raise GalleryExistsError(
            f"{folder}: an unfinished gallery with {'; '.join(different)}; "
            "continue with the same settings, or start anew with --overwrite"
        )
