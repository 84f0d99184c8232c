"""Re-identification: an evaluation that states its protocol with every number, and re-ranking that scales."""

from __future__ import annotations

from .evaluation import evaluate_distances, evaluate_features
from .policies import Labels, Protocol
from .reranking import Reranking, SharedNeighbours, rerank_features
from .results import CameraPair, Evaluation, QueryResults
from .verification import Identification, OperatingPoint, Verification

__all__ = [
    "CameraPair",
    "Evaluation",
    "Identification",
    "Labels",
    "OperatingPoint",
    "Protocol",
    "QueryResults",
    "Reranking",
    "SharedNeighbours",
    "Verification",
    "evaluate_distances",
    "evaluate_features",
    "rerank_features",
]
