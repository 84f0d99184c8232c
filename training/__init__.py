"""Training encoders: losses from pytorch-metric-learning, one plain loop."""

from .fit import LOSSES, FitResult, fit

__all__ = ["LOSSES", "FitResult", "fit"]
