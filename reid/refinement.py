"""What may be done to features between encoding and evaluation, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.reid_records import Protocol, ReidData, ReidImage
from ..errors import InputError
from .features import Features
from .reranking.query_expansion import CameraStatistics, camera_normalised, expand_queries, pool_views, unit_rows

__all__ = ["Refinement", "refined"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Refinement:
    """What is done to features or distances before they are evaluated, in this order; nothing by default.

    Attributes:
        camera_statistics: take out what images of one camera have in common (see `camera_normalised`).
        multi_query: each query becomes the mean of all query images of its identity and camera, and of the set's own
            multi-query images.
        expansion: neighbours and alpha of query expansion (see `expand_queries`).
        reranking: k1, k2 and the original distance's share (see `rerank_features`).
    """

    camera_statistics: CameraStatistics | None = None
    multi_query: bool = False
    expansion: tuple[int, float] | None = None
    reranking: tuple[int, int, float] | None = None

    def describe(self) -> list[str]:
        """One plain line per step; "none" if there is none."""
        lines = []
        if self.camera_statistics is not None:
            lines.append(f"camera normalisation: {self.camera_statistics} of each camera's test images")
        if self.multi_query:
            lines.append("multi-query: mean direction of a query's images in its camera")
        if self.expansion is not None:
            lines.append("query expansion: {} neighbours, alpha {:g}".format(*self.expansion))
        if self.reranking is not None:
            lines.append("re-ranking: k1 {}, k2 {}, original share {:g}".format(*self.reranking))
        return lines or ["refinement: none"]


def refined(
    data: ReidData,
    features: Features,
    sides: tuple[tuple[ReidImage, ...], tuple[ReidImage, ...]],
    *,
    protocol: Protocol,
    steps: Refinement,
) -> tuple[Floats, Floats]:
    """Query and gallery vectors after every step but re-ranking.

    Raises:
        InputError: features are missing, or views would be pooled that must not be.
    """
    if steps.multi_query:
        _check_views(sides[0], protocol)
    queries, gallery = sides
    views = (*queries, *(data.of("multi_query") if steps.multi_query else ()))
    query, answers = features.of(views), features.of(gallery)
    if steps.camera_statistics is not None:
        images, vectors = (*views, *gallery), unit_rows(np.concatenate([query, answers]))
        unique = {image.path: place for place, image in enumerate(images)}  # what is query and gallery counts once
        places = list(unique.values())
        cameras = [images[place].camera for place in places]
        normal = camera_normalised(vectors[places], cameras, statistics=steps.camera_statistics)
        row = {path: i for i, path in enumerate(unique)}
        query, answers = (normal[[row[image.path] for image in side]] for side in (views, gallery))
    if steps.multi_query:
        query = pool_views(query, [(str(image.identity), str(image.camera)) for image in views])
        answers = unit_rows(answers)
    query = query[: len(queries)]
    if steps.expansion is not None:
        neighbours, alpha = steps.expansion
        names = [[image.path for image in side] for side in sides]
        query = expand_queries(
            query, answers, neighbours=neighbours, alpha=alpha, query_images=names[0], gallery_images=names[1]
        )
        answers = unit_rows(answers)
    return query, answers


def _check_views(queries: tuple[ReidImage, ...], protocol: Protocol) -> None:
    """Pooling must not mix a query with what it is looking for."""
    if any(image.camera is None for image in queries):
        raise InputError("multi-query pools the images of one identity by one camera; some queries have no camera")
    if protocol.same_camera == "keep" and any(image.role == "test" for image in queries):
        raise InputError("multi-query with same_camera='keep' would pool queries with their own matches")
