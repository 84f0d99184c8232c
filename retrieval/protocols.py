"""What a retrieval number means: which images are asked for, which are searched, what counts, and how ties fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..metrics.distances import METRICS, Metric
from ..metrics.ranking import TIES

__all__ = ["RECALL_AT", "Protocol"]

RECALL_AT: Mapping[str, tuple[int, ...]] = {
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30),
}
"""The k of R@k that papers report on each benchmark; 1, 2, 4, 8 elsewhere."""


@dataclass(frozen=True)
class Protocol:
    """The decisions behind an evaluation, printed with every number.

    Attributes:
        metric: which distance ranks.
        recall_at: the k of R@k, ascending.
        clusters: whether to cluster for NMI.
        seed: of the clustering and of the bootstrap.
        resamples: bootstrap resamples behind each standard error.
    """

    metric: Metric = "cosine"
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    clusters: bool = True
    seed: int = 0
    resamples: int = 1000

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"expected a metric out of {', '.join(METRICS)}, got {self.metric!r}")
        if not self.recall_at or min(self.recall_at) < 1 or list(self.recall_at) != sorted(set(self.recall_at)):
            raise InputError(f"expected recall_at to be ascending numbers from 1, got {self.recall_at}")
        if self.resamples < 2:
            raise InputError(f"a standard error needs at least 2 resamples, got {self.resamples}")

    def to_dict(self) -> dict[str, Any]:
        """The decisions for JSON, with those that are not options."""
        return {
            **asdict(self),
            "recall_at": list(self.recall_at),
            "own_image": "excluded",
            "ties": TIES,
            "queries_without_relevant_image": "left out",
        }

    def describe(self) -> list[str]:
        """The decisions in words, one line each."""
        clustering = f"k-means (FAISS, 20 iterations, seed {self.seed}) with as many clusters as classes"
        return [
            f"distance {self.metric}, exact; equal distances: {TIES}",
            "a query's own image takes no rank; queries without a relevant image are left out of the means",
            "R@k: a relevant image among the first k; R-precision, MAP@R: up to rank R, the number of relevant images; "
            "mAP: over the whole ranking",
            *([f"NMI: {clustering} over the queries, arithmetic normalisation"] if self.clusters else []),
            f"±: standard errors, {self.resamples} bootstrap resamples of the queries / of the classes",
        ]
