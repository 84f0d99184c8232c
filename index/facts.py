"""What there is to say about a gallery, as JSON has it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .building.ingest import MASK_COLUMN, NO_MASK
from .storage.manifest import EncoderEntry
from .storage.snapshot import Snapshot

if TYPE_CHECKING:
    from .reader import GalleryReader

__all__ = ["facts_of"]


def facts_of(gallery: GalleryReader) -> dict[str, Any]:
    """What `distcam index info` shows."""
    snapshot = gallery.snapshot
    manifest, spec = snapshot.manifest, snapshot.spec
    return {
        "path": str(gallery.folder),
        "images": len(gallery),
        "classes": len(gallery.labels),
        "columns": list(gallery.column_names),
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
        "root": str(gallery.root),
        "segments": len(manifest.segments),
        "backend": None if manifest.backend is None else manifest.backend.address,
        "removed_rows": snapshot.removed_rows,
        "skipped": 0 if manifest.skipped is None else manifest.skipped.count,
        "masks": None if manifest.masks is None else {**asdict(manifest.masks), "images": _under_masks(snapshot)},
        "rejection": _rejection(snapshot),
        "index": manifest.index,
        "tuning": None if manifest.tuning is None else {**asdict(manifest.tuning), "is_due": gallery.is_tuning_due},
        "index_cached": manifest.is_fresh(manifest.index_cache),
        "prototypes_cached": manifest.is_fresh(manifest.prototype_cache),
        "bytes": sum(entry.bytes for entry in manifest.files()),
    }


def _images_as(encoder: EncoderEntry) -> str | None:
    """What the encoder makes of an image: `Transform.summary`, which would import torch. None for imported vectors."""
    transform = encoder.description.get("transform")
    if not isinstance(transform, dict):
        return None
    size = transform.get("size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    return f"{transform.get('fit')} to {height}×{width}"


def _rejection(snapshot: Snapshot) -> dict[str, Any] | None:
    """The threshold, and whether the gallery is still as it was when the threshold was chosen."""
    rejection = snapshot.manifest.rejection
    if rejection is None:
        return None
    return {**asdict(rejection), "is_current": rejection.generation == snapshot.manifest.generation}


def _under_masks(snapshot: Snapshot) -> int:
    """How many images have a mask file; one without a pixel counts, though it pools the whole image."""
    if MASK_COLUMN not in snapshot.column_names:
        return 0
    column = snapshot.column(MASK_COLUMN)
    without = [number for number, value in enumerate(column.values) if value == NO_MASK]
    return int(((column.codes >= 0) & ~np.isin(column.codes, without)).sum())
