from ..datasets.layouts import DatasetRecord
from ..datasets.retrieval import Dataset, dataset_layouts, load_dataset
from .geometry import Box, as_rgb
from .image_sources import ImageRecord
from .listing import Listing, list_images
from .loading import IMAGE_SUFFIXES, MAX_PIXELS, MIN_SIDE, image_size, pixel_limit, read_image, set_pixel_limit
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
