"""`distcam atlas`: a gallery in two dimensions, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .. import library
from ..command import Commands, refuse_unused
from ..console import answer, progress_bar
from ..options import AsJson, GalleryPath, ReadsImages, Root, option

app = Commands()
EXAMPLE = "Example: `distcam atlas photos.gallery --out atlas.html`"


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def atlas(
    gallery: GalleryPath,
    out_path: Path = option(..., "The HTML FILE to write.", "--out"),
    method: Literal["pca", "umap"] = option("pca", "`pca`, or `umap` (pip install 'distcam[umap]')."),
    outliers: bool = option(True, "Find each image's fifth nearest other one, which says how far off it lies."),
    thumbnails: int = option(500, "Images, drawn at random, that the file shows; about 4 KB each.", min=0),
    seed: int = option(0, "Of the first directions, and of UMAP."),
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a gallery in two dimensions as one HTML file: colour, filter, zoom, encircle, list."""
    if not thumbnails:
        refuse_unused("where no image is opened", "root", "max_pixels", remedy="let --thumbnails be 1 at least")
    from ...retrieval.atlas import axes_of, write_atlas

    with library.index.Gallery.open(gallery, root=root) as opened:
        with progress_bar("placing points") as progress:
            found = opened.atlas(method, outliers=outliers, seed=seed, progress=progress)
        write_atlas(out_path, opened, found, thumbnails=thumbnails)
    size = out_path.stat().st_size
    content = {"out": str(out_path), "images": len(found), "method": method, "shares": found.shares, "bytes": size}
    answer(content, f"{axes_of(found)}\n{out_path}: {size / 1e6:.1f} MB", as_json=as_json)
