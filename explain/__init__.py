"""Maps of what speaks for a match or a class: Dist-CAM and its peers, what they refer to, and how they are drawn."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
