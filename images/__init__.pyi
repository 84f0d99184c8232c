from .datasets import (
    Dataset as Dataset,
    DatasetRecord as DatasetRecord,
    dataset_layouts as dataset_layouts,
    load_dataset as load_dataset,
)
from .geometry import Box as Box
from .listing import ImageRecord as ImageRecord, Listing as Listing, list_images as list_images
from .loading import (
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
    MAX_PIXELS as MAX_PIXELS,
    MIN_SIDE as MIN_SIDE,
    as_rgb as as_rgb,
    image_size as image_size,
    pixel_limit as pixel_limit,
    read_image as read_image,
    set_pixel_limit as set_pixel_limit,
)
from .transform import Transform as Transform
