"""Re-identification: an evaluation that states its protocol with every number, re-ranking that scales, and training.

Names load on first use: evaluating features needs neither torch nor an encoder.
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
