"""What a benchmark of explanations asks with, and what it compares with: from a gallery, or from labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...encoders import Encoder, Inference
from ...errors import InputError
from ...images import Listing
from ...metrics import Metric
from ...progress import Progress
from ...remarks import remark
from .composites import Photograph, split_off
from .references import References

if TYPE_CHECKING:
    from ...index.reader import GalleryReader

CROWD = 2000  # of a gallery's images so many are looked at


def gallery_encoder(gallery: GalleryReader) -> Encoder:
    """The encoder that a gallery keeps."""
    if gallery.encoder_path is None:
        raise InputError(f"{gallery.folder} keeps no encoder, so there are no maps to compare")
    return Encoder.load(gallery.encoder_path)


def from_gallery(
    gallery: GalleryReader, queries: Listing | None, n: int, *, seed: int
) -> tuple[list[Photograph], References]:
    """Images to ask with, and a gallery's stored vectors without theirs.

    Without `queries` about n of the gallery's images are held out; prototypes are then those of the other images.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = gallery.ids
    if len(ids) > CROWD:
        ids = np.sort(ids[torch.randperm(len(ids), generator=generator)[:CROWD].numpy()])
    records = [record for record in gallery.records(ids) if record.label is not None]
    known = {Photograph(gallery.file(record), str(record.label)): record for record in records}
    asked, kept = split_off(known, n, generator=generator) if queries is None else (photographs(queries), list(known))
    if not kept:
        raise InputError(f"{gallery.folder} has no labels, so it has no classes to point to")
    rows = np.array([known[photograph].id for photograph in kept], np.uint64)
    pooled, embeddings = (torch.from_numpy(read(rows)) for read in (gallery.pooled, gallery.embeddings))
    names, files = [photograph.label for photograph in kept], [photograph.file for photograph in kept]
    border = None if gallery.background is None else torch.from_numpy(gallery.background)
    return asked, References.of(names, pooled, embeddings, metric=gallery.metric, border=border, files=files)


def from_images(
    images: Listing,
    queries: Listing | None,
    inference: Inference,
    n: int,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Photograph], References]:
    """Images to ask with, and the encoded others; without `queries` about n of the images are held out."""
    known = photographs(images)
    if queries is None:
        asked, kept = split_off(known, n, generator=torch.Generator().manual_seed(seed))
    else:
        asked, kept = photographs(queries), known
    return asked, References.of_photographs(kept, inference, metric=metric, strict=strict, progress=progress)


def photographs(listing: Listing) -> list[Photograph]:
    """The labelled images of a listing; how many have no label is a remark."""
    found = [Photograph(listing.file(record), record.label) for record in listing if record.label is not None]
    if len(found) < len(listing):
        remark(f"{len(listing) - len(found):,} of {len(listing):,} images have no label and are left out")
    if not found:
        raise InputError(f"{listing.root} has no labels; expected a folder of class folders, or a CSV with path,label")
    return found
