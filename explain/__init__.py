"""Where in a picture its similarity to another lies: Dist-CAM, folding, boxes, measures, and drawing."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
