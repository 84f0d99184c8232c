"""Targets: which number of a network's output a map explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..encoders.encoding import Encoding
from ..encoders.regions import region_mask
from ..errors import InputError, ShapeError
from ..images.geometry import Box
from ..metrics.maps import largest_component
from .inputs import METRICS, Metric, refuse_non_finite

NamedPixels = Literal["all", "predicted", "component"]


class ComponentAt(NamedTuple):
    """The 8-connected region of predicted pixels that holds this one; empty where another class is predicted."""

    row: int
    column: int


Pixels = NamedPixels | ComponentAt | Box | tuple[int, int] | Tensor


@dataclass(frozen=True, eq=False)
class TargetScore:
    """A target with nothing left open: m numbers for each image, larger for more of what is asked."""

    measure: Callable[[Any, Tensor], Tensor]  # (output, rows) → (r, m); row i of the output belongs to image `rows[i]`
    n_images: int  # b

    def __call__(self, output: Any, rows: Int[Tensor, " r"] | None = None) -> Float[Tensor, "r m"]:
        """The numbers for an output of the network; without `rows` it holds all images, in order."""
        return self.measure(output, torch.arange(self.n_images) if rows is None else rows)


@runtime_checkable
class Target(Protocol):
    """Anything that turns a network's output into a `TargetScore`."""

    def fix(self, output: Any) -> TargetScore:
        """The score for images with this output."""


@dataclass(frozen=True, eq=False)
class ClassScore:
    """The score (logit) of a class, from an output (b, c).

    `index` is one class for all images; a tensor (b,) with one for each image; (b, m) or (1, m) with m for each image;
    or None, the class with the highest score.

    >>> logits = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    >>> ClassScore(torch.tensor([[0, 1]])).fix(logits)(logits)
    tensor([[1., 5.],
            [3., 2.]])
    """

    index: int | Tensor | None = None

    def fix(self, output: Any) -> TargetScore:
        """The score for images with this output; InputError for a class that is none, ShapeError for a misfit."""
        logits = _scores(output, n_dims=2)
        asked = logits.argmax(1, keepdim=True) if self.index is None else _asked(self.index, logits)

        def measure(output: Any, rows: Tensor) -> Tensor:
            return _scores(output, n_dims=2).gather(1, asked[rows.to(asked.device)])

        return TargetScore(measure, len(logits))


@dataclass(frozen=True, eq=False)
class PixelScore:
    """The scores (logits) of a class summed over a set of pixels, from an output (b, c, h, w) or {"out": (b, c, h, w)}.

    An empty set of pixels (nothing of the class was predicted) has the score 0, and every map that depends on the
    question is 0.

    Attributes:
        category: the class, as in `ClassScore.index`, but never None.
        pixels: in pixels of the output,
            "all": the whole image;
            "predicted": where the class has the highest score;
            "component": the largest 8-connected region of "predicted";
            a `ComponentAt`: the region of "predicted" that holds a pixel;
            a `Box`: the pixels with their centre inside;
            (row, column): one pixel;
            a boolean tensor (h, w), (b, h, w) or (b, m, h, w): a mask;
            a tensor of whole numbers (h, w) or (b, h, w): a map of labels, the ground truth, of which the pixels
            labelled with the category are taken.

    Source: [Seg-HiRes] Eq. 5.

    >>> logits = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 9.0], [0.0, 0.0]]]])    # class 1 wins one pixel
    >>> [PixelScore(0, pixels).fix(logits)(logits).item() for pixels in ("all", "predicted", (1, 0))]
    [10.0, 8.0, 3.0]
    """

    category: int | Tensor
    pixels: Pixels = "predicted"

    def fix(self, output: Any) -> TargetScore:
        """The score for images with this output; InputError for a class or place outside, ShapeError for a misfit."""
        logits = _scores(output, n_dims=4)
        mask = self._mask(logits.detach(), asked := _asked(self.category, logits))

        def measure(output: Any, rows: Tensor) -> Tensor:
            logits, own = _scores(output, n_dims=4), rows.to(asked.device)
            planes = logits[torch.arange(len(own), device=asked.device)[:, None], asked[own]]
            return (planes * mask[own]).sum((-2, -1))

        return TargetScore(measure, len(logits))

    def _mask(self, logits: Float[Tensor, "b c h w"], asked: Int[Tensor, "b m"]) -> Bool[Tensor, "b m h w"]:
        """The set of pixels, for each image and class."""
        shape = (*asked.shape, *logits.shape[-2:])
        if isinstance(self.pixels, Tensor):
            return _given_mask(self.pixels, asked, shape).to(logits.device)
        if self.pixels == "all":
            return torch.ones(shape, dtype=torch.bool, device=logits.device)
        predicted = logits.argmax(1)[:, None] == asked[..., None, None]  # where each class has the highest score
        if self.pixels == "predicted":
            return predicted
        if self.pixels == "component":
            regions = [torch.from_numpy(largest_component(mask)) for mask in predicted.flatten(0, 1)]
            return torch.stack(regions).reshape(shape).to(logits.device)
        if isinstance(self.pixels, str):
            raise InputError(
                f"pixels={self.pixels!r} is not known; choose one of {', '.join(get_args(NamedPixels))}, "
                "or give a Box, a (row, column), or a mask"
            )
        larger = _rectangle(self.pixels, shape, logits.device)
        region = torch.zeros_like(larger)
        while isinstance(self.pixels, ComponentAt) and not torch.equal(larger & predicted, region):
            region = larger & predicted  # the 8-connected regions that the rectangle lies in
            larger = functional.max_pool2d(region.float(), 3, stride=1, padding=1).bool()
        return region if isinstance(self.pixels, ComponentAt) else larger


@dataclass(frozen=True, eq=False)
class Similarity:
    """Closeness of the output vector to a reference; larger is closer, whatever the metric.

    cosine: the cosine, in [-1, 1] (0 to a vector of length 0); dot: the dot product; l2 and l1: minus the distance.

    Attributes:
        references: embeddings of matches or prototypes: (d,) or (m, d) for all images, or (b, m, d).
        metric: what the search ranks by.

    >>> vectors = torch.tensor([[3.0, 4.0]])
    >>> [Similarity(torch.tensor([0.0, 2.0]), metric).fix(vectors)(vectors).item() for metric in METRICS]
    [0.800000011920929, -3.605551242828369, -5.0, 8.0]
    """

    references: Float[Tensor, "*b d"]
    metric: Metric = "cosine"

    def fix(self, output: Any) -> TargetScore:
        """The score for images with this output, which is (b, d) or an `Encoding`; ShapeError where it does not fit."""
        if self.metric not in METRICS:
            raise InputError(f"metric={self.metric!r} is not known; choose one of {', '.join(METRICS)}")
        references = self.for_images(vector_of(output))

        def measure(output: Any, rows: Tensor) -> Tensor:
            vectors, others = vector_of(output), references[rows.to(references.device)]
            if self.metric == "cosine":
                vectors, others = functional.normalize(vectors, dim=-1), functional.normalize(others, dim=-1)
            if self.metric in ("cosine", "dot"):
                return (others @ vectors[..., None]).squeeze(-1)
            difference = vectors[:, None] - others
            if self.metric == "l1":
                return -difference.abs().sum(-1)
            return -difference.square().sum(-1).clamp(min=1e-30).sqrt()  # the floor: no infinite slope at distance 0

        return TargetScore(measure, len(references))

    def for_images(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b m d"]:
        """The references of each image, in dtype and on the device of the images' own vectors."""
        references = self.references
        refuse_non_finite("the references", references)
        n_images, n_dims = vectors.shape
        if references.ndim == 1:
            references = references[None]
        if references.ndim == 2:
            references = references.expand(n_images, -1, -1)
        if references.ndim != 3 or len(references) != n_images or references.shape[2] != n_dims:
            raise ShapeError(
                f"the output has shape {tuple(vectors.shape)}, so references are ({n_dims},), (m, {n_dims}) or "
                f"({n_images}, m, {n_dims}); got {tuple(self.references.shape)}"
            )
        return references.to(vectors)


def vector_of(output: Any) -> Tensor:
    """The vector that is searched: an encoding's embedding, or an output (b, d)."""
    vectors = output.embedding if isinstance(output, Encoding) else output
    if not isinstance(vectors, Tensor) or vectors.ndim != 2:
        raise ShapeError(f"a similarity needs an Encoding or an output (b, d); got {_described(output)}")
    return vectors


def distances(vectors: Tensor, others: Tensor, metric: Metric) -> Tensor:
    """(b, d) against (n, d): (b, n), smaller is nearer; 1 minus the cosine, minus the dot product, L2, or L1."""
    if metric == "cosine":
        return 1 - functional.normalize(vectors, dim=1) @ functional.normalize(others, dim=1).T
    if metric == "dot":
        return -vectors @ others.T
    return torch.cdist(vectors, others, p=1 if metric == "l1" else 2)


def _scores(output: Any, *, n_dims: int) -> Tensor:
    """The class scores of an output, with as many dimensions as the target needs."""
    scores = output.get("out") if isinstance(output, Mapping) else output
    if not isinstance(scores, Tensor) or scores.ndim != n_dims:
        expected = "(b, c)" if n_dims == 2 else '(b, c, h, w) or {"out": (b, c, h, w)}'
        raise ShapeError(f"this target needs an output {expected}; got {_described(output)}")
    return scores


def _asked(index: int | Tensor, scores: Tensor) -> Tensor:
    """The classes asked for, (b, m), each of them existing."""
    given = asked = torch.as_tensor(index, device=scores.device)
    n_images, n_classes = scores.shape[:2]
    if asked.ndim < 2:
        asked = asked.reshape(-1, 1)
    if given.ndim in (0, 2) and len(asked) == 1:
        asked = asked.expand(n_images, -1)
    if asked.ndim != 2 or len(asked) != n_images:
        raise ShapeError(
            f"{n_images} images need classes of shape ({n_images},), ({n_images}, m) or (1, m); "
            f"got {tuple(given.shape)}"
        )
    if asked.is_floating_point() or not bool(((asked >= 0) & (asked < n_classes)).all()):
        raise InputError(
            f"classes are whole numbers from 0 to {n_classes - 1}; got {sorted(set(asked.flatten().tolist()))}"
        )
    return asked.long()


def _given_mask(mask: Tensor, asked: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask, or the ground truth's pixels of the classes asked for, as (b, m, h, w)."""
    n_images, _, rows, columns = shape
    allowed = [(rows, columns), (n_images, rows, columns)] + [shape] * (mask.dtype == torch.bool)
    if mask.is_floating_point() or mask.shape not in allowed:
        raise ShapeError(
            f"a mask is boolean, a map of labels has whole numbers, and its shape is one of {allowed}; "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    mask = mask.to(asked.device)
    if mask.ndim < 4:
        mask = mask.expand(n_images, rows, columns)[:, None]
    return (mask if mask.dtype == torch.bool else mask == asked[..., None, None]).expand(shape)


def _rectangle(place: Box | tuple[int, int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The pixels with their centre in a box, or the one pixel at (row, column)."""
    rows, columns = shape[-2:]
    box = place if isinstance(place, Box) else Box(place[1], place[0], place[1] + 1, place[0] + 1)
    mask = torch.from_numpy(region_mask(box, (columns, rows))).to(device)
    if not bool(mask.any()):
        raise InputError(f"{place} holds no pixel of an output with {rows} rows and {columns} columns")
    return mask.expand(shape)


def _described(output: Any) -> str:
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
