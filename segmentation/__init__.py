"""Weakly supervised segmentation: from image-level labels to masks, and what the maps of a segmenter mean.

Names load on first use, since torch takes seconds to import.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
