from .engine.environment import World as World
from .engine.environment import current_world as current_world
from .engine.loop import fit as fit
from .engine.outcome import FitResult as FitResult
from .engine.step import Batch as Batch
from .engine.step import BatchSource as BatchSource
from .engine.step import HasClassWeights as HasClassWeights
from .engine.step import Losses as Losses
from .engine.step import Mix as Mix
from .engine.step import Objective as Objective
from .engine.step import Regions as Regions
from .engine.step import Step as Step
from .engine.step import Term as Term
from .engine.step import TrainingProgress as TrainingProgress
from .losses.classifier import load_classifier as load_classifier
from .losses.classifier import save_classifier as save_classifier
from .losses.registry import TERMS as TERMS
from .losses.registry import TermContext as TermContext
from .losses.registry import build_objective as build_objective
from .recipes.settings import OptimiserSettings as OptimiserSettings
from .recipes.settings import ScheduleSettings as ScheduleSettings
from .recipes.settings import Settings as Settings

# names until 0.2
Progress = TrainingProgress
