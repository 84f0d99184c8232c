from ..metrics.intervals import Interval as Interval, Intervals as Intervals, required_episodes as required_episodes
from .classifiers import (
    BDCSPN as BDCSPN,
    Classifier as Classifier,
    NearestNeighbour as NearestNeighbour,
    Prototypes as Prototypes,
    simple_shot as simple_shot,
)
from .episodes import EpisodeManifest as EpisodeManifest
from .evaluation import (
    Comparison as Comparison,
    EpisodeResult as EpisodeResult,
    compare as compare,
    evaluate as evaluate,
)
from .explanation import DecisionMap as DecisionMap, decision_map as decision_map, episode_maps as episode_maps
from .fine_tuning import FineTuned as FineTuned, baseline as baseline, baseline_plus_plus as baseline_plus_plus
from .methods import classifier_of as classifier_of
from .results import ResultFile as ResultFile, load_result as load_result
from .sampling import sample_episodes as sample_episodes
from .support import support_quality as support_quality, support_sensitivity as support_sensitivity
from .transforms import (
    Centre as Centre,
    FeatureTransform as FeatureTransform,
    L2Normalise as L2Normalise,
    PowerTransform as PowerTransform,
)
