"""Images opened by name: the items of a gallery, and those of a list that cannot be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import ImageError
from ..progress import Progress
from ..threads import in_threads
from .given.remote import fetched
from .items import widened
from .loading import read_image


def read_item(root: str | os.PathLike[str], path: str, *, margin: float = 0.0) -> Image.Image:
    """The image of a gallery's stored path: of a box the crop, wider by `margin`, which the gallery keeps."""
    return read_image(widened(Path(root, path), margin))


def unreadable(files: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None) -> dict[int, str]:
    """Place and reason of each file or URL that is no readable image; each is decoded once, by several threads."""

    def reason(file: str | os.PathLike[str]) -> str | None:
        try:
            read_image(fetched(file))
        except ImageError as error:
            return error.reason
        return None

    problems = in_threads(reason, files, progress=progress)
    return {number: problem for number, problem in enumerate(problems) if problem is not None}
