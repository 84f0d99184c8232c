"""Few-shot classifiers by their names: Prototypes, SimpleShot, BD-CSPN, nearest neighbours, Baseline, Baseline++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..errors import InputError
from .classifiers import (
    Centre,
    Classifier,
    FeatureTransform,
    FewShotClassifier,
    FewShotMetric,
    L2Normalise,
    PowerTransform,
    check_shapes,
    closeness,
)


@dataclass(frozen=True, eq=False)
class ByMetric(FewShotClassifier):
    """A classifier that compares by squared Euclidean distance (`l2`) or by cosine."""

    metric: FewShotMetric = "l2"

    def __post_init__(self) -> None:
        if self.metric not in ("l2", "cosine"):
            raise InputError(f"metric must be 'l2' or 'cosine', got {self.metric!r}")
        object.__setattr__(self, "name", self.name or f"{type(self).__name__.lower()}-{self.metric}")

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The bank after the transforms; for `l2` moved to its mean, which no distance notices but rounding does."""
        features = super().prepare(features)
        return features - features.mean(0) if self.metric == "l2" else features


@dataclass(frozen=True, eq=False)
class Prototypes(ByMetric):
    """Nearest class mean.

    With `l2` a logit is 2 q·p − ‖p‖² = −‖q − p‖² + ‖q‖²: the negative squared distance up to a term that all ways of a
    query share, so order, margins and softmax are those of −‖q − p‖². With `cosine` it is cos(q, p), where p is the
    mean of the support as it is, not of unit vectors.

    Source: Snell et al. 2017, arXiv:1703.05175, Eq. 1–2.
    """

    def prototypes(self, support: Float[Tensor, "b n k d"]) -> Float[Tensor, "b n d"]:
        """The mean of each way's support."""
        return support.mean(2)

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Closeness of each query to each prototype."""
        check_shapes(support, query)
        return closeness(query, self.prototypes(support), self.metric)


@dataclass(frozen=True, eq=False)
class NearestNeighbour(ByMetric):
    """The class of the single nearest support image; with one shot the same answer as `Prototypes`.

    A logit is the closeness of the nearest of the way's K support images, in the units of `Prototypes`.
    """

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Closeness of each query to the nearest support image of each way."""
        check_shapes(support, query)
        to_images = closeness(query, support.flatten(1, 2), self.metric)
        return to_images.view(*to_images.shape[:2], *support.shape[1:3]).amax(-1)


def simple_shot(variant: Literal["UN", "L2N", "CL2N"] = "CL2N", *, mean: Centre | Tensor | None = None) -> Prototypes:
    """Nearest class mean by squared Euclidean distance after the paper's feature transformation.

    Args:
        variant: UN leaves the features, L2N scales them to unit length, CL2N subtracts the base classes' mean first.
        mean: for CL2N the mean feature of the base classes, or a `Centre` that says what else it is the mean of.

    Raises:
        InputError: CL2N without a mean, or a mean that would not be used.

    Source: Wang et al. 2019, arXiv:1911.04623, §3.
    """
    if variant not in ("UN", "L2N", "CL2N"):
        raise InputError(f"variant must be UN, L2N or CL2N, got {variant!r}")
    if (variant == "CL2N") != (mean is not None):
        raise InputError(
            "CL2N needs `mean`, the mean feature of the base classes (centring by test images is transductive: "
            f"Centre(mean, source='test')); UN and L2N take none; got variant {variant} and mean {type(mean).__name__}"
        )
    steps: list[FeatureTransform] = [] if variant == "UN" else [L2Normalise()]
    if mean is not None:
        steps.insert(0, mean if isinstance(mean, Centre) else Centre(mean))
    return Prototypes("l2", transforms=tuple(steps), name=f"simpleshot-{variant}")


@dataclass(frozen=True, eq=False)
class BDCSPN(FewShotClassifier):
    """Prototype rectification: queries are moved to the support's mean, and confident ones join the prototypes.

    Transductive: it sees all queries of an episode at once. Equally many queries per class flatter it, so look at
    Dirichlet queries too. All vectors are brought to unit length by `prepare`. The query shift is used for the
    pseudo-labels and for the decision; a way with fewer than `n_confident` pseudo-labelled queries takes those it has.
    A query that is equally near to two ways joins neither, and those equally confident as the last that joins, join.

    Attributes:
        n_confident: pseudo-labelled queries per way that join its prototype; their Z.
        epsilon: sharpness of the weights exp(ε·cos); their ε.

    Source: Liu et al. 2020, arXiv:1911.10713, §3.
    """

    n_confident: int = 8
    epsilon: float = 10.0

    def __post_init__(self) -> None:
        if self.n_confident < 0 or not 0 <= self.epsilon <= 50:
            raise InputError(f"expected n_confident ≥ 0 and 0 ≤ ε ≤ 50, got {self.n_confident} and {self.epsilon}")
        object.__setattr__(self, "name", self.name or "bd-cspn")

    @property
    def is_transductive(self) -> bool:
        """Always."""
        return True

    def prepare(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The bank after the transforms, at unit length."""
        return normalize(super().prepare(features), dim=-1)

    def rectify(
        self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """The rectified prototypes and the shifted queries."""
        query = query + (support.mean((1, 2)) - query.mean(1))[:, None]  # cross-class bias
        basic = normalize(support.mean(2), dim=-1)
        support_cosine = torch.einsum("bnkd,bnd->bnk", support, basic)
        query_cosine = closeness(query, basic, "cosine")

        # Intra-class bias: the Z most confident queries among those that a way would win.
        confidence = query_cosine.softmax(-1)
        nearest = query_cosine.topk(min(2, query_cosine.shape[2]), dim=2).values
        is_clear = nearest[..., 0] - nearest[..., -1] > 8 * torch.finfo(query.dtype).eps
        is_won = (query_cosine == nearest[..., :1]) & is_clear[..., None]
        ranked = torch.where(is_won, confidence, -1.0)
        top = ranked.topk(min(self.n_confident, query.shape[1]), dim=1).values
        joins = is_won & (ranked >= top.amin(1, keepdim=True)) if self.n_confident else torch.zeros_like(is_won)

        support_weight = (self.epsilon * support_cosine).exp()
        query_weight = (self.epsilon * query_cosine).exp() * joins
        total = support_weight.sum(-1) + query_weight.sum(1)
        weighted = torch.einsum("bnk,bnkd->bnd", support_weight, support) + query_weight.mT @ query
        return weighted / total[..., None], query

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Cosine of each shifted query with each rectified prototype."""
        check_shapes(support, query)
        prototypes, shifted = self.rectify(support, query)
        return closeness(shifted, prototypes, "cosine")


@dataclass(frozen=True, eq=False)
class FineTuned(FewShotClassifier):
    """A linear or cosine classifier trained on the support with SGD.

    The weights start at the same random place, and the support is shuffled in the same order, in every episode: answers
    depend on `seed` but not on which other episodes are evaluated with them.

    Attributes:
        head: `linear` has a weight and a bias per class; `cosine` multiplies the cosine to a class vector by `scale`
            and by a length per class that is trained too (weight normalisation leaves it in the authors' code).
        scale: of the cosine head.
        epochs: passes over the support.
        batch_size: support images in a step.
        learning_rate: of SGD, with momentum 0.9 and dampening 0.9.
        weight_decay: of SGD.
        seed: of the first weights and of the order.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2 and its published settings.
    """

    bytes_at_a_time: ClassVar[int] = 16 << 20  # about a hundred episodes: a step costs little more than one's

    head: Literal["linear", "cosine"] = "cosine"
    scale: float = 2.0
    epochs: int = 100
    batch_size: int = 4
    learning_rate: float = 0.01
    weight_decay: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in ("linear", "cosine"):
            raise InputError(f"head must be 'linear' or 'cosine', got {self.head!r}")
        if min(self.epochs, self.batch_size) < 1 or min(self.learning_rate, self.scale) <= 0 or self.weight_decay < 0:
            raise InputError(
                "expected epochs ≥ 1, batch_size ≥ 1, learning_rate > 0, scale > 0 and weight_decay ≥ 0, got "
                f"{self.epochs}, {self.batch_size}, {self.learning_rate}, {self.scale}, {self.weight_decay}"
            )
        object.__setattr__(self, "name", self.name or ("baseline++" if self.head == "cosine" else "baseline"))

    def logits(self, support: Float[Tensor, "b n k d"], query: Float[Tensor, "b m d"]) -> Float[Tensor, "b m n"]:
        """Scores of each episode's own classifier for its queries."""
        check_shapes(support, query)
        weight, bias = self.fit(support)
        return torch.baddbmm(bias[:, None], self._normalised(query), weight.mT)

    def fit(self, support: Float[Tensor, "b n k d"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
        """The trained classifiers: class vectors and biases; those of `cosine` are for queries of length 1."""
        b, n, k, _ = support.shape
        labels = torch.arange(n, device=support.device).repeat_interleave(k)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            parameters = self._initial(support, generator)
            rates: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
            optimiser = torch.optim.SGD(parameters, **rates, momentum=0.9, dampening=0.9, foreach=True)
            vectors = self._normalised(support.flatten(1, 2))
            for _ in range(self.epochs):
                order = torch.randperm(n * k, generator=generator).to(support.device)
                for rows in torch.split(order, self.batch_size):
                    weight, second = parameters
                    if self.head == "linear":
                        scores = torch.baddbmm(second[:, None], vectors[:, rows], weight.mT)
                    else:
                        scores = (vectors[:, rows] @ weight.mT) * self._length(weight, second)[:, None]
                    target = labels[rows].expand(b, -1)
                    loss = b * cross_entropy(scores.flatten(0, 1), target.flatten())  # the sum of the episodes' means
                    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                        parameter.grad = gradient
                    optimiser.step()
        weight, second = (parameter.detach() for parameter in parameters)
        if self.head == "linear":
            return weight, second
        return weight * self._length(weight, second)[..., None], torch.zeros_like(second)

    def _initial(self, support: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The weight of every class, uniform in ±1/√d as torch's linear layer, and its bias 0 or its length."""
        b, n, _, d = support.shape
        weight = (2 * torch.rand(n, d, generator=generator) - 1) / d**0.5
        second = torch.zeros(n) if self.head == "linear" else weight.norm(dim=1)
        copies = (value.to(support).expand(b, *value.shape).contiguous() for value in (weight, second))
        return [nn.Parameter(value) for value in copies]  # a copy for every episode

    def _normalised(self, vectors: Tensor) -> Tensor:
        """The vectors, of unit length for the cosine head."""
        return normalize(vectors, dim=-1) if self.head == "cosine" else vectors

    def _length(self, weight: Tensor, length: Tensor) -> Tensor:
        """Factor that gives a class vector of the cosine head its own length times the scale."""
        factor: Tensor = self.scale * length / torch.linalg.vector_norm(weight, dim=-1)
        return factor


def baseline(**settings: Any) -> FineTuned:
    """A linear layer trained on the support.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2, Baseline.
    """
    return FineTuned(head="linear", **settings)


def baseline_plus_plus(**settings: Any) -> FineTuned:
    """A cosine classifier trained on the support.

    Source: Chen et al. 2019, arXiv:1904.04232, §3.2, Baseline++.
    """
    return FineTuned(head="cosine", **settings)


METHODS: dict[str, Callable[[Tensor | Centre | None], Classifier]] = {
    "proto": lambda _: Prototypes("l2", name="proto"),
    "proto-cosine": lambda _: Prototypes("cosine", name="proto-cosine"),
    "proto-power": lambda _: Prototypes("l2", transforms=(PowerTransform(),), name="proto-power"),
    "nn": lambda _: NearestNeighbour("l2", name="nn"),
    "nn-cosine": lambda _: NearestNeighbour("cosine", name="nn-cosine"),
    "simpleshot-un": lambda _: replace(simple_shot("UN"), name="simpleshot-un"),
    "simpleshot-l2n": lambda _: replace(simple_shot("L2N"), name="simpleshot-l2n"),
    "simpleshot-cl2n": lambda mean: replace(simple_shot("CL2N", mean=mean), name="simpleshot-cl2n"),
    "baseline": lambda _: baseline(),
    "baseline++": lambda _: baseline_plus_plus(),
    "bdcspn": lambda _: BDCSPN(name="bdcspn"),
}


def needs_base_mean(method: str) -> bool:
    """True if the method centres by the mean feature of the base classes."""
    return method == "simpleshot-cl2n"


def classifier_of(method: str, *, mean: Tensor | Centre | None = None) -> Classifier:
    """The classifier of that name, a key of `METHODS`; `mean` is for those that centre by the base classes' mean.

    Raises:
        InputError: an unknown name, or a mean is needed and not given.

    >>> classifier_of("proto-cosine").describe()["setting"]
    'inductive'
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise InputError(f"no few-shot method {method!r}; {hint}")
    if needs_base_mean(method) and mean is None:
        raise InputError(f"{method} needs the mean feature of the base classes, and this data has no base part")
    return METHODS[method](mean)
