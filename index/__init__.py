"""The gallery on disk, neighbour search, and class prototypes.

Names load on first use: reading a gallery's facts needs neither torch nor FAISS.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
