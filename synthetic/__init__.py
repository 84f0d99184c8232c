"""Drawn data with everything known about it: scenes of objects, crowds of cells, and walkers before cameras."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
