"""`distcam index restore`: put a copy of a gallery into its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...remarks import counted
from ..console import print_json, say
from ..options import AsJson

EXAMPLE = "Example: `distcam index restore backup/photos.gallery photos.gallery`"


def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A copy of a gallery; it is checked first.")],
    gallery: Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery to replace, or a new folder.")],
    as_json: AsJson = False,
) -> None:
    """Replace a gallery by a copy in one step, or copy one to a new folder; readers and servers go on meanwhile.

    Copying files over a gallery that is in use breaks it for whoever reads it; this does not.
    """
    from ...index import Gallery, restore_gallery

    restore_gallery(source, gallery)
    images = len(Gallery.open(gallery, verify=False))
    if as_json:
        print_json({"gallery": str(gallery), "from": str(source), "images": images})
        return
    say(f"{counted(images, 'image')} in {gallery}, as in {source}")
