"""From files to pixels: untrusted images, the network's input geometry, listings of folders and tables."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
