from ..datasets.registry import read_data
from ..datasets.reid_records import Protocol, ReidData, ReidImage
from ..synthetic.walkers import WalkerSet, write_walkers
from .assessment import Answer, Assessment, Failure, Promotion, assess
from .auditing import Audit, audit
from .evaluation import evaluate_distances, evaluate_features
from .features import Features, encode_data, read_features, write_features
from .pairs import BODY_PARTS, STRIPES, PairExplanation, PartShare, explain_pair, pair_energy, pairs_panel
from .policies import Labels, changed_protocol
from .refinement import Refinement, camera_normalised, expand_queries, pool_views
from .reranking import Reranking, SharedNeighbours, rerank_features
from .results import CameraPair, Evaluation, QueryResults
from .training import ReidRecipe, TestSettings, WalkerSettings, train
from .verification import Identification, OperatingPoint, Verification

__all__ = [
    "BODY_PARTS",
    "STRIPES",
    "Answer",
    "Assessment",
    "Audit",
    "CameraPair",
    "Evaluation",
    "Failure",
    "Features",
    "Identification",
    "Labels",
    "OperatingPoint",
    "PairExplanation",
    "PartShare",
    "Promotion",
    "Protocol",
    "QueryResults",
    "Refinement",
    "ReidData",
    "ReidImage",
    "ReidRecipe",
    "Reranking",
    "SharedNeighbours",
    "TestSettings",
    "Verification",
    "WalkerSet",
    "WalkerSettings",
    "assess",
    "audit",
    "camera_normalised",
    "changed_protocol",
    "encode_data",
    "evaluate_distances",
    "evaluate_features",
    "expand_queries",
    "explain_pair",
    "pair_energy",
    "pairs_panel",
    "pool_views",
    "read_data",
    "read_features",
    "rerank_features",
    "train",
    "write_features",
    "write_walkers",
]
