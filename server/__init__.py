"""A gallery in service: a REST API that answers queries and explains them, and the page on top of it."""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
