"""Re-identification: an evaluation that states its protocol with every number, re-ranking that scales, and training.

Names load on first use: evaluating features needs neither torch nor an encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
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
    from .reranking.k_reciprocal import Reranking, SharedNeighbours, rerank_features
    from .results import CameraPair, Evaluation, QueryResults
    from .training import ReidRecipe, TestSettings, WalkerSettings, train
    from .verification import Identification, OperatingPoint, Verification

_HOME = {
    "BODY_PARTS": "pairs",
    "STRIPES": "pairs",
    "Answer": "assessment",
    "Assessment": "assessment",
    "Audit": "auditing",
    "CameraPair": "results",
    "Evaluation": "results",
    "Failure": "assessment",
    "Features": "features",
    "Identification": "verification",
    "Labels": "policies",
    "OperatingPoint": "verification",
    "PairExplanation": "pairs",
    "PartShare": "pairs",
    "Promotion": "assessment",
    "Protocol": ".datasets.reid_records",
    "QueryResults": "results",
    "Refinement": "refinement",
    "ReidData": ".datasets.reid_records",
    "ReidImage": ".datasets.reid_records",
    "ReidRecipe": "training",
    "Reranking": "reranking.k_reciprocal",
    "SharedNeighbours": "reranking.k_reciprocal",
    "TestSettings": "training",
    "Verification": "verification",
    "WalkerSet": ".synthetic.walkers",
    "WalkerSettings": "training",
    "assess": "assessment",
    "audit": "auditing",
    "camera_normalised": "refinement",
    "changed_protocol": "policies",
    "encode_data": "features",
    "evaluate_distances": "evaluation",
    "evaluate_features": "evaluation",
    "expand_queries": "refinement",
    "explain_pair": "pairs",
    "pair_energy": "pairs",
    "pairs_panel": "pairs",
    "pool_views": "refinement",
    "read_data": ".datasets.registry",
    "read_features": "features",
    "rerank_features": "reranking.k_reciprocal",
    "train": "training",
    "write_features": "features",
    "write_walkers": ".synthetic.walkers",
}

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

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
