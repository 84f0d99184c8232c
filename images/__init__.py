"""From files to pixels: untrusted images, the network's input geometry, listings of folders and tables.

`Transform` and the data sets are imported on first use, so that listing and reading files do not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily
from .geometry import Box
from .listing import ImageRecord, Listing, list_images
from .loading import IMAGE_SUFFIXES, MAX_PIXELS, MIN_SIDE, as_rgb, image_size, pixel_limit, read_image, set_pixel_limit

if TYPE_CHECKING:
    from ..datasets.retrieval import Dataset, DatasetRecord, dataset_layouts, load_dataset
    from .transform import Transform

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Box",
    "Dataset",
    "DatasetRecord",
    "ImageRecord",
    "Listing",
    "Transform",
    "as_rgb",
    "dataset_layouts",
    "image_size",
    "list_images",
    "load_dataset",
    "pixel_limit",
    "read_image",
    "set_pixel_limit",
]


_HOME = {
    "Dataset": ".datasets.retrieval",
    "DatasetRecord": ".datasets.retrieval",
    "Transform": "transform",
    "dataset_layouts": ".datasets.retrieval",
    "load_dataset": ".datasets.retrieval",
}

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
