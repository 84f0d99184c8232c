from .engine.environment import World, current_world
from .engine.loop import fit
from .engine.outcome import FitResult
from .engine.step import Batch, BatchSource, HasClassWeights, Losses, Mix, Objective, Progress, Regions, Step, Term
from .losses.classifier import load_classifier, save_classifier
from .losses.registry import TERMS, TermContext, build_objective
from .recipes.settings import OptimiserSettings, ScheduleSettings, Settings

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
