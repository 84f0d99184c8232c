"""A gallery of vectors that other tools made: written by commits, as a build writes it, and as crash-safe."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import FingerprintMismatchError, GalleryError, GalleryExistsError, InputError, WeightsError
from ...files import Storage
from ...images.items import split_item, widened
from ...metrics.distances import METRICS, Metric, SearchSpec
from ...progress import Progress
from ...remarks import Skipped, remark
from ..backends import locked_for_new, new_gallery_id, require_index, write_encoder_copy
from ..building.ingest import unusable
from ..reports import AddReport
from ..storage.hdf5 import Array
from ..storage.manifest import EncoderEntry, Manifest, Spec
from ..storage.segments import Entries, RowVectors, located
from ..storage.writer import GalleryWriter
from .sources import Kind, open_source
from .tables import ENCODER_FILE, ImportSource

if TYPE_CHECKING:  # only a named encoder needs torch
    from ...encoders import Encoder
    from ..gallery import Gallery

_PROBES = 8  # images
_PROBED_ROWS = 20_000
_TOLERANCE = 0.05  # of a vector's length: half precision and bfloat16 stay below, other encoders far above


def import_gallery(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: Kind = "auto",
    embeddings: str | os.PathLike[str] | None = None,
    metric: Metric | None = None,
    name: str | None = None,
    encoder: str | os.PathLike[str] | Encoder | None = None,
    label_column: str | None = None,
    root: str | os.PathLike[str] | None = None,
    index: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Gallery:
    """Make a gallery of vectors that another tool, or `export_gallery`, wrote.

    An interrupted import is no gallery yet, and the same call starts it anew.

    Args:
        source: a folder of clip-retrieval or of `distcam index export`; a table of Open Metric Learning, or a folder
            with one table and one file of embeddings; or an HDF5 file of hloc.
        out: the gallery's folder.
        kind: the layout; `"auto"` looks.
        embeddings: the `.npy` or `.pt` file that belongs to a table, row by row.
        metric: `"cosine"` unless an export says otherwise.
        name: of whatever made the vectors; its hash is the fingerprint. The source's name if left out.
        encoder: a checkpoint, or an encoder: some images are encoded again and must come out as they are stored. That
            of an export need not be named; that it brings none is a remark.
        label_column: the column with the classes; by default `label`.
        root: the folder that relative image paths refer to; by default that of the table, or `source`.
        index: `"auto"`, `"flat"`, or a FAISS factory string.
        device: of the encoder in that trial.
        overwrite: replace a gallery at `out`.
        progress: called with rows done and rows in all.

    Raises:
        InputError: the source is not what it should be, or no row of it can be used.
        FingerprintMismatchError: the encoder named did not make these vectors.
        GalleryExistsError: something is at `out`.
        MissingExtraError: a Parquet table, and pyarrow is not installed.
    """
    from ..gallery import Gallery

    places = {
        "embeddings": None if embeddings is None else Path(embeddings),
        "root": None if root is None else Path(root),
    }
    found = open_source(Path(source), kind=kind, label_column=label_column, **places)
    if name is not None and found.about:
        raise InputError(f"{source} says itself what made its vectors; leave `name` out")
    chosen = metric or found.about.get("metric", "cosine")
    if chosen not in METRICS:
        raise InputError(f"expected a metric out of {', '.join(METRICS)}, got {chosen!r}")
    encoder = _brought_along(found) if encoder is None and found.about else encoder
    known = None if encoder is None else _checked_encoder(found, encoder, device)
    manifest = Manifest(
        spec=Spec(chosen, found.embedding_dim, found.pooled_dim or found.embedding_dim, None, found.pooled_dim is None),
        encoder=_entry(found, name or found.place.resolve().name, known),
        root=str(found.root),
        index=index,
        masks=found.about.get("masks"),  # to pool alike what is added later
        box_margin=found.about.get("box_margin", 0.0),
        background=found.about.get("background") if found.about.get("metric") == chosen else None,
        gallery_id=new_gallery_id(None if root is None else str(found.root)),
    )
    require_index(SearchSpec(found.embedding_dim, chosen), index)
    folder, storage = Path(out), Storage()
    remedy = "choose another --out, or replace it with --overwrite"
    with locked_for_new(folder, overwrite=overwrite, storage=storage) as old:
        if old is not None:
            if not overwrite and (old.complete or old.encoder.fingerprint != manifest.encoder.fingerprint):
                raise GalleryExistsError(f"{folder}: holds a gallery; {remedy}")
            manifest = dataclasses.replace(manifest, generation=old.generation + 1)
        writer = GalleryWriter(folder, manifest, on_disk=old, storage=storage)
        writer.delete_orphans()
        _copy(writer, found, known, progress)
        gallery = Gallery.open(out)
        gallery.report = AddReport(len(gallery), 0, 0, gallery.skipped)
        gallery.save_caches(writer)
    return gallery


def _entry(found: ImportSource, name: str, known: Encoder | None) -> EncoderEntry:
    if found.about:
        claimed = found.about["encoder"]
        precision = claimed.get("precision")
        entry = EncoderEntry(claimed["fingerprint"], claimed["short_name"], claimed["description"])
        return dataclasses.replace(entry, precision=precision) if precision in ("fp32", "bf16") else entry
    if known is not None:
        return EncoderEntry(known.fingerprint, known.short_name, known.describe(), precision="fp32")
    fingerprint = hashlib.sha256(f"imported:{name}".encode()).hexdigest()
    description = {"imported": name, "kind": found.kind, "source": str(found.place.absolute())}
    return EncoderEntry(fingerprint, f"imported/{fingerprint[:8]}", description)


def _copy(writer: GalleryWriter, found: ImportSource, known: Encoder | None, progress: Progress | None) -> None:
    """Take every usable row over, and say that the gallery is complete."""
    if known is not None:
        entry = dataclasses.replace(writer.manifest.encoder, file=write_encoder_copy(known, writer))
        writer.begin(dataclasses.replace(writer.manifest, encoder=entry))
    skipped: list[Skipped] = []
    seen: set[str] = set()
    done = 0
    for entries, vectors in found.blocks():
        rows = _usable(entries, vectors, writer.manifest.spec, seen, skipped)
        if len(rows) == len(entries):
            writer.append(entries, vectors)
        elif len(rows):
            writer.append(entries.take(rows), vectors.take(rows))
        done += len(entries)
        if progress is not None:
            progress(done, found.count)
    writer.commit()
    if writer.is_new:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:3])
        raise InputError(f"none of {found.count} rows of {found.place} could be used ({shown}); no gallery was written")
    file = writer.write_skipped([item.to_json() for item in skipped]) if skipped else None
    writer.commit(skipped=file, complete=True)
    writer.merge_small()


def _usable(entries: Entries, vectors: RowVectors, spec: Spec, seen: set[str], skipped: list[Skipped]) -> Array:
    """The rows that a gallery can hold; the others are noted with their reasons."""
    refused = unusable(vectors, spec.metric)
    rows = []
    for row, path in enumerate(entries.paths):
        reason = refused.get(row, "")
        if not path or "\0" in path:
            reason = "has no path that a file could have"
        elif path in seen:
            reason = "its path occurs twice; the first is kept"
        try:
            path.encode()
            located(path, Path("/"))
        except (UnicodeEncodeError, GalleryError):
            reason = "its path is not UTF-8, or leads out of the root"
        if reason:
            skipped.append(Skipped(path.encode("utf-8", "backslashreplace").decode(), reason))
        else:
            seen.add(path)
            rows.append(row)
    return np.array(rows, np.int64)


def _brought_along(found: ImportSource) -> Path | None:
    """The encoder that lies in an export; that it brings none is a remark."""
    file = found.place / ENCODER_FILE
    if file.is_file():
        return file
    claimed = found.about["encoder"]
    lost = " (its description names one, which is not there)" if claimed.get("file") else ""
    remark(
        f"{found.place} brings no copy of {claimed['short_name']}, which made its vectors{lost}: stored images can be "
        "queried, new ones only with that encoder given"
    )
    return None


def _checked_encoder(found: ImportSource, given: str | os.PathLike[str] | Encoder, device: str) -> Encoder:
    """The encoder, if it is the one that made the vectors: by its fingerprint, or else by trying it out."""
    from ...encoders import Encoder
    from ...encoders.inference import whole_encoder

    try:
        encoder = Encoder.load(given) if isinstance(given, (str, os.PathLike)) else whole_encoder(given)
    except WeightsError as error:
        own = "; delete it to import without" if given == found.place / ENCODER_FILE else ""
        raise WeightsError(f"{error}{own}") from error
    if found.about:
        claimed = found.about["encoder"]
        if encoder.fingerprint != claimed["fingerprint"]:
            raise FingerprintMismatchError(
                f"{found.place} was made with {claimed['short_name']}, the encoder given is {encoder.short_name}"
            )
        return encoder
    widths = (encoder.embedding_dim, encoder.pooled_dim)
    if widths != (found.embedding_dim, found.pooled_dim or found.embedding_dim):
        raise FingerprintMismatchError(
            f"{found.place} has vectors of {found.embedding_dim} numbers; {encoder.short_name} makes pooled vectors of "
            f"{widths[1]} and embeddings of {widths[0]}, and explaining needs both; leave --encoder out, or build the "
            "gallery from the images"
        )
    _try_out(encoder, found, device)
    return encoder


def _try_out(encoder: Encoder, found: ImportSource, device: str) -> None:
    """Encode some images that are there again, and compare with their stored vectors."""
    from ...encoders import Inference

    files: list[Path] = []
    vectors: list[Array] = []
    rows = (pair for entries, block in found.blocks() for pair in zip(entries.paths, block.embedding, strict=True))
    for path, vector in islice(rows, _PROBED_ROWS):
        if path and "\0" not in path and (found.root / split_item(path)[0]).is_file():
            files.append(widened(found.root / path, found.about.get("box_margin", 0.0)))
            vectors.append(vector)
        if len(files) == _PROBES:
            break
    if not files:
        raise InputError(
            f"none of the first {min(found.count, _PROBED_ROWS)} images of {found.place} is under {found.root}, so "
            f"{encoder.short_name} cannot be tried on them; say where they are with --root, or leave --encoder out"
        )
    stored = np.array(vectors)
    made = Inference(encoder, device=device, precision="fp32").encode_images(files).embedding.cpu().numpy()
    lengths = np.linalg.norm(made, axis=1)
    error = np.linalg.norm(made - stored, axis=1) / np.maximum(lengths, 1e-12)
    worst = int(error.argmax())
    if error[worst] <= _TOLERANCE:
        return
    cosine = float(made[worst] @ stored[worst] / max(lengths[worst] * np.linalg.norm(stored[worst]), 1e-12))
    hint = "; the stored ones were normalised, and explaining needs raw ones" if cosine > 1 - _TOLERANCE**2 else ""
    raise FingerprintMismatchError(
        f"{encoder.short_name} did not make the vectors of {found.place}: encoding {files[worst].name} again gives one "
        f"of cosine similarity {cosine:.3f}, {error[worst]:.0%} away{hint}; name another, or leave --encoder out"
    )
