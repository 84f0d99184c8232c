from .engine.distributed import World as World, current_world as current_world
from .engine.loop import BatchSource as BatchSource, fit as fit
from .engine.outcome import FitResult as FitResult
from .engine.step import (
    Batch as Batch,
    HasClassWeights as HasClassWeights,
    Losses as Losses,
    Mix as Mix,
    Objective as Objective,
    Progress as Progress,
    Regions as Regions,
    Step as Step,
    Term as Term,
)
from .losses.classifier import load_classifier as load_classifier, save_classifier as save_classifier
from .losses.registry import TERMS as TERMS, TermContext as TermContext, build_objective as build_objective
from .recipes.settings import (
    OptimiserSettings as OptimiserSettings,
    ScheduleSettings as ScheduleSettings,
    Settings as Settings,
)
