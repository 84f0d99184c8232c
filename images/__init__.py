"""From files to pixels: untrusted images, the network's input geometry, listings of folders and tables.

`Transform` and the data sets are imported on first use, so that listing and reading files do not load torch.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
