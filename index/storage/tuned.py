"""What tuning found out about a gallery's search index, as the manifest keeps it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tuning"]

_GROWTH = 2.0  # times as many images, or as few, and the number of lists no longer fits


@dataclass(frozen=True)
class Tuning:
    """An index that was chosen by measuring, and what was measured on the gallery's own images, each without itself.

    Attributes:
        factory: the FAISS factory string; the gallery's `index` as long as it holds.
        effort: nprobe (inverted file) or efSearch (graph); None where there is no such knob.
        overfetch: how many times the usual number of candidates are re-scored.
        images: how many there were.
        recall_at_1: share of the true nearest that were found, after exact re-scoring, in [0, 1].
        recall_at_10: the same of the nearest ten.
        recall_at_100: the same of the nearest hundred.
        latency_ms: median of single queries, k = 10.
        latency_p95_ms: their 95th percentile.
        batch_ms: per query, when all are asked at once.
        bytes_per_vector: memory of the index and its ids.
        build_seconds: training and filling.
        queries: how many asked.
        seed: of their draw and of the training.
        threads: of FAISS, when many queries are asked.
        device: `"cpu"`, or where a GPU was used.
        machine: processor and cores.
        date: of the measurement, ISO 8601.
    """

    factory: str
    effort: int | None
    overfetch: int
    images: int
    recall_at_1: float
    recall_at_10: float
    recall_at_100: float
    latency_ms: float
    latency_p95_ms: float
    batch_ms: float
    bytes_per_vector: float
    build_seconds: float
    queries: int
    seed: int
    threads: int
    device: str
    machine: str
    date: str

    def __post_init__(self) -> None:
        if self.overfetch < 1 or self.images < 0 or (self.effort is not None and self.effort < 1):
            raise ValueError("a tuned index needs a positive effort and over-fetch")

    def is_due(self, images: int) -> bool:
        """Whether a gallery of so many images should be tuned again."""
        return images > _GROWTH * self.images or images < self.images / _GROWTH
