"""Steps that several commands share: labelled queries encoded, and notes on what was left out or is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from ...errors import InputError
from ...remarks import counted, remark
from ..console import err, note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...index import Gallery
    from ...remarks import Skipped


def encoded_probes(
    gallery: Gallery,
    queries: str,
    *,
    labels: str | None,
    column: str | None,
    encoder: str | None,
    device: str,
    strict: bool,
) -> dict[str, Any]:
    """Labelled images, encoded as the gallery was, for `Gallery.calibrate`; those that cannot be used are left out."""
    import numpy as np

    from ...encoders import Encoder, Inference
    from ...images import list_images

    source = encoder or gallery.encoder_path
    if source is None:
        raise InputError(f"{gallery.folder} keeps no encoder; pass --encoder CHECKPOINT")
    loaded = Encoder.load(source)
    gallery.check_encoder(loaded)
    listing = list_images(queries, labels=labels)
    if column is not None and column not in listing.column_names:
        raise InputError(f"{queries} has no column {column!r}; it has {', '.join(listing.column_names) or 'none'}")
    records = [record for record in listing if record.label is not None]
    if len(records) < len(listing):
        bare = next(record.path for record in listing if record.label is None)
        remark(
            f"{len(listing) - len(records):,} of {len(listing):,} queries have no label and are left out, as {bare}",
            strict=strict,
        )
    inference = Inference(loaded, device=device, precision=gallery.manifest.encoder.precision or "auto")
    known, vectors, failures = [], [], []
    for batch in inference.stream(records, load=lambda record: inference.read(listing.file(record))):
        failures += [f"{failure.item.path}: {failure.error.reason}" for failure in batch.failures]
        if batch.encoding is not None:
            known += batch.items
            vectors.append(batch.encoding.embedding.cpu().numpy())
    if not known:
        raise InputError(
            f"none of the images of {queries} can be used; {failures[0] if failures else 'none is labelled'}"
        )
    if failures:
        remark(
            f"{len(failures):,} of {len(records):,} queries cannot be read and are left out, the first: {failures[0]}"
        )
    return {
        "embeddings": np.concatenate(vectors),
        "labels": [record.label for record in known],
        "groups": None if column is None else [record.columns[column] for record in known],
        "source": f"{counted(len(known), 'image')} of {queries}",
    }


def note_what_is_due(gallery: Gallery) -> None:
    """Say on stderr when the tuning does not fit the gallery any more."""
    if gallery.is_tuning_due:
        note(f"the index was tuned for a gallery of another size; run `distcam index tune {gallery.folder}` again")


def report_skipped(skipped: Sequence[Skipped], *, most: int = 10) -> None:
    """List on stderr the files that could not be used, with the reasons."""
    if not skipped:
        return
    err.print(Text(f"{len(skipped)} of the files could not be used:", style="yellow"))
    for item in skipped[:most]:
        err.print(f"  {item.path}: {item.reason}", soft_wrap=True)
    if len(skipped) > most:
        err.print(f"  … and {len(skipped) - most} more (all with --json)")
