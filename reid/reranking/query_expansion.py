"""Features made better without training: expanded by their neighbours, freed of their camera, pooled over views.

Everything here sees unlabelled test images only. It still sees all of them at once, which one query in the field does
not, so a score should say which of these were used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError, ShapeError
from ...metrics.distances import Distinct
from ..distances import FeatureDistances, blocks
from ..policies import Identity

__all__ = ["CameraStatistics", "camera_normalised", "expand_queries", "pool_views", "unit_rows"]

Floats = NDArray[np.floating[Any]]
CameraStatistics = Literal["mean", "standard"]


def unit_rows(features: ArrayLike, *, name: str = "features") -> Floats:
    """The same vectors with length 1.

    Raises:
        InputError: a row is zero or not finite.
    """
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
    own = _own_places(query_images, gallery_images, (len(query), len(gallery)))
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


def _own_places(
    query: Sequence[str] | None, gallery: Sequence[str] | None, shape: tuple[int, int]
) -> list[NDArray[np.intp]]:
    """Where each query itself lies in the gallery."""
    if query is None or gallery is None:
        return [np.empty(0, np.intp)] * shape[0]
    if (len(query), len(gallery)) != shape:
        raise ShapeError(f"expected {shape[0]} query and {shape[1]} gallery names, got {len(query)} and {len(gallery)}")
    places: dict[str, list[int]] = {}
    for place, name in enumerate(gallery):
        places.setdefault(str(name), []).append(place)
    return [np.array(places.get(str(name), []), np.intp) for name in query]


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
