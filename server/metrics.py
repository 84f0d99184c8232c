"""Metrics for Prometheus: one registry per application, nothing global."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("distcam_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "distcam_request_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.refused = Counter("distcam_refused", "Requests refused, by reason.", ["reason"], registry=registry)
        self.batches = Histogram("distcam_batch_images", "Images of a batch.", buckets=_SIZES, registry=registry)
        self.steps = Histogram(
            "distcam_step_seconds", "Parts of the work.", ["step"], buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("distcam_queue_images", "Images that wait to be encoded.", registry=registry)
        self.images = Gauge("distcam_gallery_images", "Images in the gallery.", registry=registry)
        self.generation = Gauge("distcam_gallery_generation", "Generation of the gallery.", registry=registry)
        self.kept = Gauge("distcam_kept_bytes", "Memory of the queries that can be explained.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def batch_done(self, size: int, seconds: float) -> None:
        """Count a forward pass."""
        self.batches.observe(size)
        self.steps.labels("encode").observe(seconds)

    def gallery_changed(self, images: int, generation: int) -> None:
        """Set the gallery's size and generation."""
        self.images.set(images)
        self.generation.set(generation)

    def watch(self, queue: Callable[[], float], kept: Callable[[], float]) -> None:
        """Read the queue and the kept bytes when somebody asks."""
        self.queue.set_function(queue)
        self.kept.set_function(kept)

    def text(self) -> bytes:
        """All of them, in Prometheus's format."""
        return generate_latest(self.registry)
