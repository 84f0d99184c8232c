"""Why a classifier answered as it did: its references and each query in the space where the logits are formed.

The steps before a classifier (unit length, centring, BD-CSPN's shift) take a query q to scale·q + offset, with a scale
and an offset that are known once q is. What a classifier makes of that is a class vector and a bias per way, given the
query's length. Since q is the mean of its feature map, the logit difference of two ways divides among the positions of
the map without remainder for all of them, and not only for plain prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..explain import dist_cam
from .classifiers import BDCSPN, Classifier, NearestNeighbour, Prototypes
from .explanation import DecisionMap
from .fine_tuning import FineTuned
from .transforms import Centre, L2Normalise

__all__ = ["Answers", "answers_of"]


@dataclass(frozen=True, eq=False)
class Answers:
    """The queries of one episode and what they were compared with.

    Attributes:
        metric: how they were compared; `linear` is a class vector and a bias per way.
        references: what stands for each way before each query: its prototype, its nearest support image, or its class
            vector, (m, n, d).
        scale: of each query, (m,).
        offset: of each query, (m, d).
        query: scale·q + offset, (m, d).
        bias: of `linear`, (m, n); 0 if left out.
    """

    metric: Literal["l2", "cosine", "linear"]
    references: Float[Tensor, "m n d"]
    scale: Float[Tensor, " m"]
    offset: Float[Tensor, "m d"]
    query: Float[Tensor, "m d"]
    bias: Float[Tensor, "m n"] | None = None

    def __getitem__(self, row: int) -> Answers:
        """One query alone."""
        part = slice(row, row + 1)
        bias = None if self.bias is None else self.bias[part]
        return Answers(self.metric, self.references[part], self.scale[part], self.offset[part], self.query[part], bias)

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
        """Raw maps of each query towards each way: Dist-CAM to its reference, or for `linear` the class's own CAM."""
        seen = own * self.scale[:, None, None, None] + self.offset[:, :, None, None]
        if self.metric == "linear":
            return dist_cam(seen, self.references, metric="dot", weighting="dot")
        return dist_cam(seen, self.references, metric=self.metric)

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


def answers_of(classifier: Classifier, support: Float[Tensor, "n k d"], query: Float[Tensor, "m d"]) -> Answers | None:
    """The answers of a classifier to all queries of one episode, from raw features; None where no map is exact.

    There is none for classifiers of other kinds, and after a power transform.
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
        support = step(support)
    query = query * scale[:, None] + offset
    if isinstance(classifier, BDCSPN):
        prototypes, shifted = classifier.rectify(support[None], query[None])
        offset = offset + shifted[0] - query
        return Answers("cosine", prototypes.expand(len(query), -1, -1), scale, offset, shifted[0])
    if isinstance(classifier, FineTuned):
        weight, bias = (each.expand(len(query), *each.shape[1:]) for each in classifier.fit(support[None]))
        return Answers("linear", weight, scale, offset, query, bias)
    if isinstance(classifier, Prototypes):
        references = support.mean(1).expand(len(query), -1, -1)
    else:
        references = _nearest(support, query, classifier.metric)
    return Answers(classifier.metric, references, scale, offset, query)


def _nearest(
    support: Float[Tensor, "n k d"], query: Float[Tensor, "m d"], metric: Literal["l2", "cosine"]
) -> Float[Tensor, "m n d"]:
    """The support image of each way that is nearest to each query."""
    a, b = (support, query) if metric == "l2" else (normalize(support, dim=-1), normalize(query, dim=-1))
    nearest = (a[None] - b[:, None, None]).square().sum(-1).argmin(-1)
    return support[torch.arange(len(support)), nearest]
