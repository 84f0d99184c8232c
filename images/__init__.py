"""From files to pixels: untrusted images, the network's input geometry, listings of folders and tables.

`Transform` is imported on first use, so that listing and reading files do not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .geometry import Box
from .listing import ImageRecord, Listing, list_images
from .loading import IMAGE_SUFFIXES, MAX_PIXELS, MIN_SIDE, as_rgb, read_image

if TYPE_CHECKING:
    from .transform import Transform

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Box",
    "ImageRecord",
    "Listing",
    "Transform",
    "as_rgb",
    "list_images",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name != "Transform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(".transform", __name__).Transform


def __dir__() -> list[str]:
    return sorted(__all__)
