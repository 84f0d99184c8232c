"""The summary of a gallery, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .storage.manifest import EncoderEntry
from .storage.segments import MASK_COLUMN, NO_MASK
from .storage.snapshot import Snapshot


def describe(snapshot: Snapshot, *, root: Path, classes: int) -> dict[str, Any]:
    """The values that `distcam index info` shows."""
    manifest, spec = snapshot.manifest, snapshot.spec
    masks, rejection, tuning = manifest.masks, manifest.rejection, manifest.tuning
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
        "masks": None if masks is None else {**asdict(masks), "images": _under_masks(snapshot)},
        "rejection": None if rejection is None else {**asdict(rejection), "is_current": is_current},
        "index": manifest.index,
        "tuning": None if tuning is None else {**asdict(tuning), "is_due": tuning.is_due(len(snapshot))},
        "index_cached": manifest.is_fresh(manifest.index_cache),
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


def _under_masks(snapshot: Snapshot) -> int:
    """Number of images with a mask file; one without a pixel counts, though it pools the whole image."""
    if MASK_COLUMN not in snapshot.column_names:
        return 0
    column = snapshot.column(MASK_COLUMN)
    without = [number for number, value in enumerate(column.values) if value == NO_MASK]
    return int(((column.codes >= 0) & ~np.isin(column.codes, without)).sum())
