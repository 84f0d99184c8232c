"""The atlas of a gallery as a page: points, columns and some thumbnails in one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..explain.drawing.page import write_html
from ..images import read_image
from ..images.inline import to_data_uri
from ..index import Gallery
from ..remarks import remark

if TYPE_CHECKING:
    from ..index.atlas import Atlas

_SIDE = 96  # pixels of a thumbnail


def write_atlas(path: str | PathLike[str], gallery: Gallery, atlas: Atlas, *, thumbnails: int = 500) -> Path:
    """Write an atlas as one HTML file: no network, no server, no further file.

    Args:
        path: the file to write; an existing one is replaced.
        gallery: whose atlas it is, unchanged since.
        atlas: see `Gallery.atlas`.
        thumbnails: how many images, drawn at random, are shown by a thumbnail of 96 pixels, about 4 KB each.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(atlas))[:thumbnails])
    shown = {}
    for place in chosen.tolist():
        try:
            image = read_image(gallery.item(int(atlas.ids[place])))
        except (OSError, ImageError):
            continue
        image.thumbnail((_SIDE, _SIDE))
        shown[str(place)] = to_data_uri(image, "jpeg")
    if len(shown) < len(chosen):
        remark(f"{len(chosen) - len(shown)} of {len(chosen)} images cannot be opened, and have no thumbnail")
    notes = [axes_of(atlas)]
    if shown:
        size = sum(map(len, shown.values())) / 1e6
        notes.append(f"Thumbnails of {len(shown):,} of {len(atlas):,} images, drawn at random, {size:.1f} MB.")
    data = {**atlas_data(gallery, atlas), "thumbnails": shown}
    return write_html(path, "atlas.html", package=__package__, title=gallery.folder.name, notes=notes, data=data)


def axes_of(atlas: Atlas) -> str:
    """What the two axes are, in a sentence."""
    if atlas.shares is None:
        return f"{len(atlas):,} images by UMAP: near points are alike, far distances mean little."
    first, second = atlas.shares
    return (
        f"{len(atlas):,} images by principal components, with {first:.0%} and {second:.0%} of the variance: points "
        "that lie together may still differ in the other directions."
    )


def atlas_data(gallery: Gallery, atlas: Atlas) -> dict[str, Any]:
    """An atlas as JSON for the page: numbers little-endian in base64, columns as values and a code for each image."""
    snapshot = gallery.snapshot
    places = snapshot.places(atlas.ids)
    columns = {name: snapshot.column(name) for name in snapshot.column_names[1:]}
    return {
        "name": gallery.folder.name,
        "axes": axes_of(atlas),
        "ids": atlas.ids.tolist(),
        "points": _packed(atlas.points, "<f4"),
        "paths": list(snapshot.paths(places)),
        "columns": [
            {"name": name, "values": list(column.values), "codes": _packed(column.codes[places], "<i4")}
            for name, column in columns.items()
        ],
        "outliers": None if atlas.outliers is None else _packed(atlas.outliers, "<f4"),
    }


def _packed(values: NDArray[Any], kind: str) -> str:
    return b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")
