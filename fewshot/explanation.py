"""Heat maps of few-shot answers: every query of an episode against every prototype, from one forward pass.

`episode_maps` is Dist-CAM; `decision_map` divides the difference of two logits among the positions without remainder;
`answers_of` does both for any classifier whose steps take a query q to scale·q + offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InputError, ShapeError
from ..explain import Norm, Surroundings, Weighting, dist_cam, ratio_maps
from ..metrics import Metric
from .classifiers import Centre, Classifier, FewShotMetric, L2Normalise
from .methods import BDCSPN, FineTuned, NearestNeighbour, Prototypes


def episode_maps(
    query_maps: Float[Tensor, "*e m k h w"],
    prototypes: Float[Tensor, "*e n k"],
    *,
    metric: Metric = "l2",
    weighting: Weighting = "dist",
    tau: float = 1.0,
    norm: Norm = "sum",
    mean: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "*e m n h w"]:
    """Raw Dist-CAM map of each query against each prototype of its episode, in one product.

    The maps explain a classifier on pooled vectors, such as `Prototypes`. For networks that classify flattened feature
    maps they explain another classifier. After `BDCSPN`, pass the rectified prototypes and `metric="cosine"`; its query
    shift is a constant vector without a position, and is in no map.

    Args:
        query_maps: feature maps of the M queries of an episode, or of several episodes.
        prototypes: pooled vectors of the N classes, for instance `Prototypes().prototypes(support)`.
        metric: how the classifier compares, `l2` or `cosine`.
        weighting: channel weights, see `distcam.explain.methods.dist_cam`.
        tau: softness of 1/D, see there.
        norm: normaliser of the weights, see there.
        mean: mean pooled vector, for the weightings that need one.

    Raises:
        ShapeError: channels or episodes of maps and prototypes differ.

    Source: [Dist-CAM] Eq. 4–7.
    """
    _check_maps(query_maps, prototypes)
    references = prototypes.unsqueeze(-3).expand(*query_maps.shape[:-3], *prototypes.shape[-2:])
    return dist_cam(query_maps, references, metric=metric, weighting=weighting, tau=tau, norm=norm, mean=mean)


class DecisionMap(NamedTuple):
    """The difference of two logits, divided among positions: `map.sum((-2, -1)) + constant` is the difference.

    Attributes:
        map: share of each position, (*e, m, h, w); positive where the query speaks for `first`.
        constant: what belongs to no position, (*e,): ‖second‖² − ‖first‖² for l2, 0 for cosine.
    """

    map: Float[Tensor, "*e m h w"]
    constant: Float[Tensor, "*e"]


def decision_map(
    query_maps: Float[Tensor, "*e m k h w"],
    first: Float[Tensor, "*e k"],
    second: Float[Tensor, "*e k"],
    *,
    metric: FewShotMetric = "l2",
) -> DecisionMap:
    """Exact map of the difference between the logits of prototypes `first` and `second` in each query.

    With q the mean of Q over h·w positions, −‖q − p‖² + ‖q − r‖² = Σ_xy 2/(h·w) Σ_k (p_k − r_k) Q_kxy + ‖r‖² − ‖p‖².
    For the cosine the unit prototypes take the place of p and r, 1/‖q‖ that of 2, and the constant is 0.

    Raises:
        ShapeError: channels or episodes of maps and prototypes differ.
        InputError: an unknown metric.

    >>> maps = torch.tensor([[[[4.0, 0.0]], [[0.0, 2.0]]]])  # one query, two channels, 1×2 positions; q = (2, 1)
    >>> decision_map(maps, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))  # −1 − (−4) = 3
    DecisionMap(map=tensor([[[ 8., -2.]]]), constant=tensor(-3.))
    """
    if metric not in ("l2", "cosine"):
        raise InputError(f"metric must be 'l2' or 'cosine', got {metric!r}")
    _check_maps(query_maps, torch.stack([first, second], dim=-2))
    n_positions = query_maps.shape[-2] * query_maps.shape[-1]
    if metric == "l2":
        towards, constant = 2 * (first - second), second.square().sum(-1) - first.square().sum(-1)
    else:
        towards = normalize(first, dim=-1) - normalize(second, dim=-1)
        constant = torch.zeros_like(towards[..., 0])
    share = torch.einsum("...mkhw,...k->...mhw", query_maps, towards) / n_positions
    if metric == "cosine":
        length = torch.linalg.vector_norm(query_maps.mean((-2, -1)), dim=-1).clamp(min=1e-12)
        share = share / length[..., None, None]
    return DecisionMap(share, constant)


def _check_maps(query_maps: Tensor, prototypes: Tensor) -> None:
    if (
        query_maps.ndim < 4
        or prototypes.ndim != query_maps.ndim - 2
        or query_maps.shape[:-4] != prototypes.shape[:-2]
        or query_maps.shape[-3] != prototypes.shape[-1]
    ):
        raise ShapeError(
            f"expected query maps (…, m, k, h, w) and prototypes (…, n, k) of the same episodes and channels, "
            f"got {tuple(query_maps.shape)} and {tuple(prototypes.shape)}"
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """The queries of one episode and what they were compared with, scale·q + offset.

    A way's reference is its prototype, its nearest support image, or for `linear` its class vector, which has a bias.
    `surroundings` are the support images on average, which the maps set a way's reference apart from.
    """

    metric: Literal["l2", "cosine", "linear"]
    references: Float[Tensor, "m n d"]
    scale: Float[Tensor, " m"]
    offset: Float[Tensor, "m d"]
    query: Float[Tensor, "m d"]
    bias: Float[Tensor, "m n"] | None = None
    surroundings: Surroundings | None = None

    def __getitem__(self, row: int) -> Answers:
        """One query alone."""
        fields = ("references", "scale", "offset", "query", "bias")
        own = {name: value[row : row + 1] for name in fields if (value := getattr(self, name)) is not None}
        return replace(self, **own)

    def _affine(self) -> tuple[Float[Tensor, "m n d"], Float[Tensor, "m n"]]:
        """Class vectors and biases that say what the classifier says of each query."""
        if self.metric == "l2":  # 2 q·p − ‖p‖²
            return 2 * self.references, -self.references.square().sum(-1)
        vectors = self.references
        if self.metric == "cosine":
            length = torch.linalg.vector_norm(self.query, dim=-1).clamp(min=1e-12)
            vectors = normalize(vectors, dim=-1) / length[:, None, None]
        return vectors, torch.zeros_like(vectors[..., 0]) if self.bias is None else self.bias

    def logits(self) -> Float[Tensor, "m n"]:
        """The classifier's logits, up to a term that all ways of a query share."""
        vectors, bias = self._affine()
        return torch.einsum("md,mnd->mn", self.query, vectors) + bias

    def maps(self, own: Float[Tensor, "m d h w"]) -> Float[Tensor, "m n h w"]:
        """Raw maps of each query towards each way: what sets its reference apart, or for `linear` the class's CAM."""
        seen = own * self.scale[:, None, None, None] + self.offset[:, :, None, None]
        if self.metric == "linear":
            return dist_cam(seen, self.references, metric="dot", weighting="dot")
        return ratio_maps(seen, self.references, self.surroundings, metric=self.metric, is_class=True).maps

    def decision(
        self, maps: Float[Tensor, "m d h w"], first: Int[Tensor, " m"], second: Int[Tensor, " m"]
    ) -> DecisionMap:
        """The logit of way `first` minus that of `second`, divided among positions; one pair of ways per query.

        `map.sum((-2, -1)) + constant` is the difference; the constant holds what has no position: the offset's share
        and the biases, for l2 the lengths of the references.
        """
        rows, (vectors, bias) = torch.arange(len(maps)), self._affine()
        towards = vectors[rows, first] - vectors[rows, second]
        share = torch.einsum("mdhw,md->mhw", maps, towards * self.scale[:, None]) / maps[0, 0].numel()
        return DecisionMap(share, bias[rows, first] - bias[rows, second] + (towards * self.offset).sum(-1))


def answers_of(
    classifier: Classifier, ways: Iterable[Float[Tensor, "k d"]], query: Float[Tensor, "m d"]
) -> Answers | None:
    """The answers of a classifier to all queries of one episode, from raw features; None where no map is exact.

    There is none for classifiers of other kinds, and after a power transform. Each way has its support (k, d); only for
    `Prototypes` may they differ in k.
    """
    if not isinstance(classifier, Prototypes | NearestNeighbour | BDCSPN | FineTuned):
        return None
    scale, offset = torch.ones_like(query[:, 0]), torch.zeros_like(query)
    is_unit = isinstance(classifier, BDCSPN) or (isinstance(classifier, FineTuned) and classifier.head == "cosine")
    steps = [*classifier.transforms, *([L2Normalise()] if is_unit else [])]
    for step in steps:
        if isinstance(step, L2Normalise):
            length = torch.linalg.vector_norm(query * scale[:, None] + offset, dim=-1).clamp(min=1e-12)
            scale, offset = scale / length, offset / length[:, None]
        elif isinstance(step, Centre):
            offset = offset - step.mean.to(offset)
        else:
            return None
        ways = [step(way) for way in ways]
    ways = list(ways)
    query = query * scale[:, None] + offset
    if isinstance(classifier, Prototypes):
        references = torch.stack([way.mean(0) for way in ways]).expand(len(query), -1, -1)
        return Answers(
            classifier.metric, references, scale, offset, query, None, _surroundings(ways, classifier.metric)
        )
    support = torch.stack(ways)
    if isinstance(classifier, BDCSPN):
        prototypes, shifted = classifier.rectify(support[None], query[None])
        offset = offset + shifted[0] - query
        around = _surroundings(ways, "cosine")
        return Answers("cosine", prototypes.expand(len(query), -1, -1), scale, offset, shifted[0], None, around)
    if isinstance(classifier, FineTuned):
        weight, bias = (each.expand(len(query), *each.shape[1:]) for each in classifier.fit(support[None]))
        return Answers("linear", weight, scale, offset, query, bias)
    a, b = (support, query) if classifier.metric == "l2" else (normalize(support, dim=-1), normalize(query, dim=-1))
    nearest = (a[None] - b[:, None, None]).square().sum(-1).argmin(-1)
    references = support[torch.arange(len(support)), nearest]
    return Answers(classifier.metric, references, scale, offset, query, None, _surroundings(ways, classifier.metric))


def _surroundings(ways: Sequence[Float[Tensor, "k d"]], metric: FewShotMetric) -> Surroundings:
    """The support images on average, in the classifier's space."""
    vectors = torch.cat(list(ways))
    vectors = normalize(vectors, dim=-1) if metric == "cosine" else vectors
    return Surroundings(vectors.mean(0), vectors.abs().mean(0), images=len(vectors), classes=len(ways))
