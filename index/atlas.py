"""A gallery in two dimensions: principal components, or UMAP; and how far off each image lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..errors import InputError, MissingExtraError
from .inspection.classes import NEAREST
from .inspection.neighbours import Neighbours
from .search import Ids

if TYPE_CHECKING:
    from ..progress import Progress
    from .reader import GalleryReader

Projection: TypeAlias = Literal["pca", "umap"]
Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

_BLOCK_BYTES = 16 << 20  # of vectors in double precision
_UMAP_INPUT, _UMAP_LEAST = 50, 16  # components that UMAP is given; images, one more than its neighbours


@dataclass(frozen=True, eq=False)
class Atlas:
    """The images of a gallery as points of a plane.

    Attributes:
        ids: of the images, (n,), ascending.
        points: where they lie, (n, 2); their unit is that of the vectors that rank, or UMAP's own.
        method: `"pca"` or `"umap"`.
        shares: of the variance of all vectors that the two axes hold, 0 … 1; None for UMAP.
        outliers: distance of each image to its fifth nearest other one, (n,); None where it was not asked for.
    """

    ids: Ids
    points: Floats
    method: Projection
    shares: tuple[float, float] | None
    outliers: Floats | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)


def atlas_of(
    gallery: GalleryReader,
    method: Projection = "pca",
    *,
    outliers: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Atlas:
    """The images of a gallery in two dimensions, by the vectors that rank: unit vectors with the cosine metric.

    Args:
        gallery: with at least one image; with UMAP, 16.
        method: `"pca"`, or `"umap"` (extra `umap`), which is given the first 50 principal components.
        outliers: find the fifth nearest of every image too, which takes a search for each.
        seed: of UMAP.
        progress: called with the number of images searched and in all.

    Raises:
        InputError: too few images.
        MissingExtraError: UMAP is not installed.
    """
    least = _UMAP_LEAST if method == "umap" else 1
    if len(gallery) < least:
        raise InputError(f"{gallery.folder} holds {len(gallery)} images; an atlas by {method} needs {least}")
    far = None
    if outliers:  # the distance to the last other image where there are fewer than five, 0 of a single one
        is_single = len(gallery) < 2
        far = np.zeros(1, np.float32) if is_single else Neighbours.of(gallery, k=NEAREST, progress=progress).farthest
    if method == "pca":
        points, (first, second) = principal_components(gallery, 2)
        return Atlas(gallery.ids, points, method, (float(first), float(second)), far)
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise MissingExtraError("UMAP is not installed: pip install 'distcam[umap]'; or take pca") from error
    components = principal_components(gallery, _UMAP_INPUT)[0]
    points = np.asarray(UMAP(random_state=seed, n_jobs=1).fit_transform(components), np.float32)
    return Atlas(gallery.ids, points, method, None, far)


def principal_components(gallery: GalleryReader, count: int) -> tuple[Floats, Doubles]:
    """The first components of all images, (n, count), and their shares of the variance.

    The covariance, (d, d), is summed block by block. The largest loading of each direction is positive. Where a gallery
    has fewer dimensions, the others are 0.
    """
    dim = gallery.spec.embedding_dim
    total, products, kept = np.zeros(dim), np.zeros((dim, dim)), min(dim, count)
    origin = gallery.ranking_vectors(gallery.ids[:1]).astype(np.float64)  # near the mean, so that no digits cancel
    for vectors in _blocks(gallery, origin):
        total += vectors.sum(0)
        products += vectors.T @ vectors
    mean = total / len(gallery)
    covariance = products / len(gallery) - np.outer(mean, mean)
    variances, directions = eigh(covariance, subset_by_index=(dim - kept, dim - 1))
    found, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(kept)])
    points = np.zeros((len(gallery), count), np.float32)
    row = 0
    for vectors in _blocks(gallery, origin):
        points[row : row + len(vectors), :kept] = (vectors - mean) @ directions
        row += len(vectors)
    variance = float(covariance.trace())
    return points, np.pad(found / variance if variance > 0 else found * 0, (0, count - kept))


def _blocks(gallery: GalleryReader, origin: Doubles) -> Iterator[Doubles]:
    step = max(1, _BLOCK_BYTES // (8 * gallery.spec.embedding_dim))
    for start in range(0, len(gallery), step):
        yield gallery.ranking_vectors(gallery.ids[start : start + step]) - origin
