"""Training encoders: one loop, an objective that is a weighted sum of losses, and everything a run needs besides.

Names load on first use, since torch and pytorch-metric-learning take seconds to import.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
