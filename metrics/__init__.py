"""Measures that every task shares: distances, rankings, intervals. The names of the distances load nothing else."""

from typing import Literal, TypeAlias, get_args

__all__ = ["METRICS", "Metric"]

Metric: TypeAlias = Literal["cosine", "l2", "l1", "dot"]
METRICS: tuple[Metric, ...] = get_args(Metric)
