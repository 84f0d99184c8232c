"""Features refined without training: freed of their camera, pooled over views, expanded by their neighbours.

All of it sees the unlabelled test images at once, which one query in the field does not: a score says what was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ..datasets.reid_records import Identity, ReidData, ReidImage, ReidProtocol
from ..errors import InputError, ShapeError
from ..metrics.distances import Distinct
from .distances import FeatureDistances, Floats, blocks
from .features import Features

CameraStatistics = Literal["mean", "standard"]


def unit_rows(features: ArrayLike, *, name: str = "features") -> Floats:
    """The same vectors with length 1."""
    array = np.asarray(features)
    array = array.astype(np.result_type(array.dtype, np.float32), copy=False)
    if array.ndim != 2:
        raise ShapeError(f"{name}: expected (images, dimensions), got shape {array.shape}")
    norms = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    if (bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
        raise InputError(f"{name}: row {bad[0]} is zero or not finite ({bad.size} such rows) and has no direction")
    return np.asarray(array / norms.astype(array.dtype))


def expand_queries(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    neighbours: int = 5,
    alpha: float = 0.0,
    query_images: Sequence[str] | None = None,
    gallery_images: Sequence[str] | None = None,
) -> Floats:
    """Each query as the direction of itself plus its nearest gallery images, (queries, dimensions), unit length.

    The query has weight 1, a neighbour max(cos, 0)^alpha: alpha = 0 is average query expansion, larger values trust
    near neighbours more. Junk must not be among the gallery images. Images that tie for the last places share them, so
    that no order of images changes the direction.

    Args:
        query_features: (queries, dimensions).
        gallery_features: (gallery images, dimensions).
        neighbours: how many gallery images take part; clipped to the gallery's size.
        alpha: see above; not negative.
        query_images: names, so that a query that is in the gallery too is not expanded by itself.
        gallery_images: names of the gallery images, likewise.

    Source: Chum et al. 2007 (AQE); Radenović et al. 2018, arXiv:1711.02512 (αQE).

    >>> expand_queries([[1.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]], neighbours=1).round(4).tolist()
    [[0.7071, 0.7071]]
    """
    if neighbours < 1 or not (np.isfinite(alpha) and alpha >= 0):
        raise InputError(f"expected at least 1 neighbour and alpha of at least 0, got {neighbours} and {alpha}")
    query = unit_rows(query_features, name="query features")
    gallery = unit_rows(gallery_features, name="gallery features")
    own: list[list[int]] = [[]] * len(query)  # where each query itself lies in the gallery
    if query_images is not None and gallery_images is not None:
        if (len(query_images), len(gallery_images)) != (len(query), len(gallery)):
            got = f"{len(query_images)} and {len(gallery_images)}"
            raise ShapeError(f"expected {len(query)} query and {len(gallery)} gallery names, got {got}")
        places: dict[str, list[int]] = {}
        for place, name in enumerate(gallery_images):
            places.setdefault(str(name), []).append(place)
        own = [places.get(str(name), []) for name in query_images]
    number, expanded = Distinct.of(gallery).number, query.copy()
    for queries, block in blocks(FeatureDistances(query, gallery)):
        for row, distance in zip(queries.tolist(), block, strict=True):
            distance[own[row]] = np.inf
            k = min(neighbours, distance.size)
            last = np.partition(distance, k - 1)[k - 1]
            nearest = np.flatnonzero((distance <= last) & np.isfinite(distance))
            nearest = nearest[np.lexsort((number[nearest], distance[nearest]))]
            weight = np.maximum(1 - distance[nearest], 0) ** alpha  # 0⁰ = 1, as plain AQE wants it
            is_last = distance[nearest] == last
            weight[is_last] *= (k - (~is_last).sum()) / max(1, is_last.sum())
            expanded[row] += weight.astype(expanded.dtype) @ gallery[nearest]
    return unit_rows(expanded, name="expanded queries")


def camera_normalised(
    features: ArrayLike, cameras: Sequence[Identity | None], *, statistics: CameraStatistics = "standard"
) -> Floats:
    """The vectors without what all images of their camera have in common, (images, dimensions), not unit length.

    `"mean"` subtracts the camera's mean, `"standard"` divides by its standard deviation per dimension as well, where
    that is not zero. Statistics are over the images given: hand over queries and gallery together, without junk.
    Identities are not looked at, but a camera that saw one identity only loses that identity.

    Args:
        features: (images, dimensions); normalise them before if lengths mean nothing.
        cameras: one per image, None where not known; those images count as one more camera.
        statistics: see above.

    Raises:
        InputError: a camera with a single image, whose mean says nothing; or features that are not finite.

    Source: per-camera standardisation, arXiv:2502.10195.

    >>> camera_normalised([[1.0], [3.0], [10.0], [20.0]], ["a", "a", "b", "b"], statistics="mean").ravel().tolist()
    [-1.0, 1.0, -5.0, 5.0]
    """
    if statistics not in get_args(CameraStatistics):
        raise InputError(f"statistics must be one of {get_args(CameraStatistics)}, got {statistics!r}")
    array = np.asarray(features)
    array = array.astype(np.result_type(array.dtype, np.float32), copy=False)
    if array.ndim != 2 or len(cameras) != len(array):
        raise ShapeError(f"expected (images, dimensions) and one camera per image, got {array.shape}, {len(cameras)}")
    if not np.isfinite(array).all():
        raise InputError("features are not finite; find out which image or layer produced them")
    names, codes = np.unique(["" if camera is None else f"camera {camera}" for camera in cameras], return_inverse=True)
    result = np.empty_like(array)
    for code, name in enumerate(names):
        own = np.flatnonzero(codes == code)
        if own.size < 2:
            raise InputError(f"{name or 'images without a camera'}: one image alone has no statistics of its camera")
        part = array[own].astype(np.float64)
        part -= part.mean(axis=0)
        if statistics == "standard":
            spread = part.std(axis=0)
            part /= np.where(spread > 0, spread, 1)
        result[own] = part
    return result


def pool_views(features: ArrayLike, groups: Sequence[object]) -> Floats:
    """Each vector replaced by the mean direction of its group, (images, dimensions), unit length.

    For multi-query evaluation a group is (identity, camera); for tracks, the track. Vectors count equally, whatever
    their length. The number of rows stays, so labels stay valid.

    >>> pool_views([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]], ["a", "a", "b"]).round(4).tolist()
    [[0.7071, 0.7071], [0.7071, 0.7071], [0.0, 1.0]]
    """
    unit = unit_rows(features)
    if len(groups) != len(unit):
        raise ShapeError(f"expected one group per image, got {len(groups)} groups for {len(unit)} images")
    numbers: dict[object, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.intp)
    sums = np.zeros((len(numbers), unit.shape[1]))
    np.add.at(sums, codes, unit)
    return unit_rows(sums.astype(unit.dtype), name="pooled features")[codes]


@dataclass(frozen=True)
class Refinement:
    """Steps between encoding and evaluation, in this order; none by default.

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
    protocol: ReidProtocol,
    steps: Refinement,
) -> tuple[Floats, Floats]:
    """Query and gallery vectors after every step but re-ranking."""
    queries, gallery = sides
    if steps.multi_query and any(image.camera is None for image in queries):
        raise InputError("multi-query pools the images of one identity by one camera; some queries have no camera")
    if steps.multi_query and protocol.same_camera == "keep" and any(image.role == "test" for image in queries):
        raise InputError("multi-query with same_camera='keep' would pool queries with their own matches")
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
