"""Training encoders: one loop, an objective that is a weighted sum of losses, and everything a run needs besides.

Names load on first use, since torch and pytorch-metric-learning take seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .classifier import load_classifier, save_classifier
    from .distributed import World, current_world
    from .loop import BatchSource, fit
    from .outcome import FitResult
    from .settings import OptimiserSettings, ScheduleSettings, Settings
    from .step import Batch, HasClassWeights, Losses, Mix, Objective, Progress, Regions, Step, Term
    from .terms import TERMS, TermContext, build_objective

_HOME = {
    "TERMS": "terms",
    "Batch": "step",
    "BatchSource": "loop",
    "FitResult": "outcome",
    "HasClassWeights": "step",
    "Losses": "step",
    "Mix": "step",
    "Objective": "step",
    "OptimiserSettings": "settings",
    "Progress": "step",
    "Regions": "step",
    "ScheduleSettings": "settings",
    "Settings": "settings",
    "Step": "step",
    "Term": "step",
    "TermContext": "terms",
    "World": "distributed",
    "build_objective": "terms",
    "current_world": "distributed",
    "fit": "loop",
    "load_classifier": "classifier",
    "save_classifier": "classifier",
}

__all__ = [
    "TERMS",
    "Batch",
    "BatchSource",
    "FitResult",
    "HasClassWeights",
    "Losses",
    "Mix",
    "Objective",
    "OptimiserSettings",
    "Progress",
    "Regions",
    "ScheduleSettings",
    "Settings",
    "Step",
    "Term",
    "TermContext",
    "World",
    "build_objective",
    "current_world",
    "fit",
    "load_classifier",
    "save_classifier",
]

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
