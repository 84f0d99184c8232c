from ..datasets.episodes import EpisodeManifest
from ..metrics.intervals import Interval, Intervals, required_episodes
from .classifiers import Centre, Classifier, FeatureTransform, L2Normalise, PowerTransform
from .evaluation import Comparison, compare, evaluate, support_quality, support_sensitivity
from .explanation import DecisionMap, decision_map, episode_maps
from .methods import (
    BDCSPN,
    FineTuned,
    NearestNeighbour,
    Prototypes,
    baseline,
    baseline_plus_plus,
    classifier_of,
    simple_shot,
)
from .results import EpisodeResult, ResultFile, load_result
from .sampling import sample_episodes

__all__ = [
    "BDCSPN",
    "Centre",
    "Classifier",
    "Comparison",
    "DecisionMap",
    "EpisodeManifest",
    "EpisodeResult",
    "FeatureTransform",
    "FineTuned",
    "Interval",
    "Intervals",
    "L2Normalise",
    "NearestNeighbour",
    "PowerTransform",
    "Prototypes",
    "ResultFile",
    "baseline",
    "baseline_plus_plus",
    "classifier_of",
    "compare",
    "decision_map",
    "episode_maps",
    "evaluate",
    "load_result",
    "required_episodes",
    "sample_episodes",
    "simple_shot",
    "support_quality",
    "support_sensitivity",
]
