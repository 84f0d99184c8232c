"""Training encoders: one loop, an objective that is a weighted sum of losses, and everything a run needs besides.

Names load on first use, since torch and pytorch-metric-learning take seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .engine.distributed import World, current_world
    from .engine.loop import BatchSource, fit
    from .engine.outcome import FitResult
    from .engine.step import Batch, HasClassWeights, Losses, Mix, Objective, Progress, Regions, Step, Term
    from .losses.classifier import load_classifier, save_classifier
    from .losses.registry import TERMS, TermContext, build_objective
    from .recipes.settings import OptimiserSettings, ScheduleSettings, Settings

_HOME = {
    "TERMS": "losses.registry",
    "Batch": "engine.step",
    "BatchSource": "engine.loop",
    "FitResult": "engine.outcome",
    "HasClassWeights": "engine.step",
    "Losses": "engine.step",
    "Mix": "engine.step",
    "Objective": "engine.step",
    "OptimiserSettings": "recipes.settings",
    "Progress": "engine.step",
    "Regions": "engine.step",
    "ScheduleSettings": "recipes.settings",
    "Settings": "recipes.settings",
    "Step": "engine.step",
    "Term": "engine.step",
    "TermContext": "losses.registry",
    "World": "engine.distributed",
    "build_objective": "losses.registry",
    "current_world": "engine.distributed",
    "fit": "engine.loop",
    "load_classifier": "losses.classifier",
    "save_classifier": "losses.classifier",
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
