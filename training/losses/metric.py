"""Metric losses: pytorch-metric-learning's pair and proxy losses, miners and distances under names of a recipe.

They have a memory that a resumed run continues with, and are gathered over the processes of a distributed run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils import distributed
from torch import Tensor, nn

from ...errors import InputError
from ..engine.step import Step, Term, accuracy, in_shares, single_labels
from ..recipes.tables import check_name, check_options, parameters_of

VectorSpace = Literal["embedding", "pooled"]
Name = str | Mapping[str, Any]  # "batch_hard", or {kind = "triplet_margin", margin = 0.1}


@dataclass(frozen=True)
class _Loss:
    """A loss of pytorch-metric-learning; `defaults` are ours where the library's would surprise."""

    make: Any
    has_classes: bool = False
    is_per_image: bool = False  # the value is a mean over images, so nothing has to be gathered
    defaults: Mapping[str, Any] = field(default_factory=dict)


_BATCH_HARD = {"margin": 0.3, "miner": "batch_hard", "distance": "l2", "reducer": "mean"}

LOSSES: Mapping[str, _Loss] = {
    "triplet": _Loss(losses.TripletMarginLoss),
    "batch_hard_triplet": _Loss(losses.TripletMarginLoss, defaults=_BATCH_HARD),
    "multi_similarity": _Loss(losses.MultiSimilarityLoss),
    "contrastive": _Loss(losses.ContrastiveLoss),
    "supcon": _Loss(losses.SupConLoss),
    "circle": _Loss(losses.CircleLoss),
    "ntxent": _Loss(losses.NTXentLoss),
    "nca": _Loss(losses.NCALoss),
    "angular": _Loss(losses.AngularLoss),
    "lifted_structure": _Loss(losses.LiftedStructureLoss),
    "tuplet_margin": _Loss(losses.TupletMarginLoss),
    "fast_ap": _Loss(losses.FastAPLoss),
    "proxy_anchor": _Loss(losses.ProxyAnchorLoss, has_classes=True),
    "proxy_nca": _Loss(losses.ProxyNCALoss, has_classes=True, is_per_image=True),
    "arcface": _Loss(losses.ArcFaceLoss, has_classes=True, is_per_image=True),
    "subcenter_arcface": _Loss(losses.SubCenterArcFaceLoss, has_classes=True, is_per_image=True),
    "cosface": _Loss(losses.CosFaceLoss, has_classes=True, is_per_image=True),
    "sphereface": _Loss(losses.SphereFaceLoss, has_classes=True, is_per_image=True),
    "large_margin_softmax": _Loss(losses.LargeMarginSoftmaxLoss, has_classes=True, is_per_image=True),
    "normalized_softmax": _Loss(losses.NormalizedSoftmaxLoss, has_classes=True, is_per_image=True),
    "soft_triple": _Loss(losses.SoftTripleLoss, has_classes=True, is_per_image=True),
}

MINERS: Mapping[str, Any] = {
    "batch_hard": miners.BatchHardMiner,
    "batch_easy_hard": miners.BatchEasyHardMiner,
    "multi_similarity": miners.MultiSimilarityMiner,
    "triplet_margin": miners.TripletMarginMiner,
    "pair_margin": miners.PairMarginMiner,
    "angular": miners.AngularMiner,
    "distance_weighted": miners.DistanceWeightedMiner,
    "hdc": miners.HDCMiner,
}

_raw = {"normalize_embeddings": False}
_DISTANCES: Mapping[str, Any] = {
    "cosine": distances.CosineSimilarity,
    "dot": partial(distances.DotProductSimilarity, **_raw),
    "l2": partial(distances.LpDistance, **_raw),
    "l1": partial(distances.LpDistance, **_raw, p=1),
    "unit_l2": distances.LpDistance,  # pytorch-metric-learning's own default
    "snr": distances.SNRDistance,
}

_REDUCERS: Mapping[str, Any] = {
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "avg_non_zero": reducers.AvgNonZeroReducer,
    "per_anchor": reducers.PerAnchorReducer,
}

_NOT_IN_A_RECIPE = {
    *("self", "args", "kwargs", "num_classes", "embedding_size", "distance", "reducer", "collect_stats"),
    *("mat_based_loss", "weight_init_func", "weight_regularizer", "weight_reg_weight", "is_inverted"),
    *("embedding_regularizer", "embedding_reg_weight", "aggregation_func", "learn_beta"),
}
_SEVERAL_VECTORS = frozenset({"subcenter_arcface", "soft_triple"})


def metric_term(name: str, *, dim: int, n_classes: int, options: Mapping[str, Any] | None = None) -> MetricTerm:
    """A metric loss by name, with its own options, spelt as in pytorch-metric-learning, and these.

    - `on`: "embedding" (default) or "pooled".
    - `miner`: a key of `MINERS`, or a table with `kind` and options; it compares by `distance` too, if one is given.
    - `distance`: "cosine", "dot", "l2", "l1" (vectors as they are), "unit_l2" (scaled to length 1), "snr", or a table.
    - `reducer`: "mean", "sum", "avg_non_zero", "per_anchor".
    - `memory`: how many vectors of earlier batches the batch is compared with as well (cross-batch memory).

    "batch_hard_triplet" is that of re-identification; `margin=0, smooth_loss=true` is its soft margin. "contrastive"
    with a similarity ("cosine", "dot") has the margins 1 and 0 unless others are given.
    """
    check_name("metric loss", name, LOSSES)
    given = dict(LOSSES[name].defaults) | dict(options or {})
    check_options(name, given, _settable(LOSSES[name].make) | {"on", "miner", "distance", "reducer", "memory"})
    on, memory = given.pop("on", "embedding"), given.pop("memory", 0)
    check_name("space", on, ("embedding", "pooled"))
    distance = _part("distance", given.pop("distance", None), _DISTANCES)
    shared = {} if distance is None else {"distance": distance}
    miner = _part("miner", given.pop("miner", None), MINERS, **shared)
    reducer = _part("reducer", given.pop("reducer", None), _REDUCERS)
    if reducer is not None:
        given["reducer"] = reducer
    if distance is not None:
        given["distance"] = distance
        if name == "contrastive" and distance.is_inverted:
            given = {"pos_margin": 1, "neg_margin": 0} | given
    if LOSSES[name].has_classes:
        given |= {"num_classes": n_classes, "embedding_size": dim}
    loss = _made(name, LOSSES[name].make, given)
    if memory:
        supported = losses.CrossBatchMemory.supported_losses()
        if type(loss).__name__ not in supported:
            able = sorted(known for known, entry in LOSSES.items() if entry.make.__name__ in supported)
            raise InputError(f"{name} cannot use a memory of earlier batches; {', '.join(able)} can")
        if memory < 0:
            raise InputError(f"expected `memory` as a number of vectors, got {memory}")
        loss = losses.CrossBatchMemory(loss, embedding_size=dim, memory_size=memory, miner=miner)
        miner = None
    has_class_vectors = LOSSES[name].has_classes and on == "embedding"
    return (ProxyTerm if has_class_vectors else MetricTerm)(name, loss, miner, on=on)


class MetricTerm(Term):
    """A metric loss of pytorch-metric-learning, with its miner; `metric_term` makes it.

    In a distributed run the vectors of all processes are compared, and averaging the gradients gives that of the whole
    batch's loss. Mixed images count with both labels. A cross-batch memory is part of the state dict.
    """

    reads = "vector"
    loss: Any
    memory_position: Tensor

    def __init__(self, name: str, loss: nn.Module, miner: nn.Module | None, *, on: VectorSpace = "embedding") -> None:
        super().__init__()
        self.name = name
        self.loss = loss
        self.miner = miner
        self.on = on
        self.is_gathered = not LOSSES[name].is_per_image
        if isinstance(loss, losses.CrossBatchMemory):
            # The library keeps the queue's position in plain attributes, which no state dict holds.
            self.register_buffer("memory_position", torch.zeros(2, dtype=torch.long))
            after_loading: Any = self.register_load_state_dict_post_hook
            after_loading(_restore_memory_position)

    def forward(self, step: Step) -> Tensor:
        """The loss of the batch."""
        single_labels(step.batch, self.name)
        vectors: Tensor = getattr(step.encoding, self.on)
        self.note(step, vectors)
        if step.batch.mix is not None and isinstance(self.loss, losses.CrossBatchMemory):
            raise InputError(f"{self.name} has a memory, in which a mixed image has no class; use no mixup or cutmix")
        return in_shares(step.batch, lambda labels: self._value(vectors, labels))

    def note(self, step: Step, vectors: Tensor) -> None:
        """Add to the step's log; nothing where there are no class vectors."""

    def _value(self, vectors: Tensor, labels: Tensor) -> Tensor:
        if self.is_gathered:
            vectors, labels = gather_vectors(vectors, labels)
        loss, has_memory = self.loss, isinstance(self.loss, losses.CrossBatchMemory)
        if has_memory and len(vectors) > loss.memory_size:
            raise InputError(
                f"the memory of {self.name} holds {loss.memory_size} vectors, fewer than a batch of {len(vectors)}; "
                "set `memory` to several batches"
            )
        found = () if self.miner is None else (self.miner(vectors, labels),)
        # Without a single pair the library returns a zero of its own, cut off from the graph or even a plain number.
        value: Tensor = vectors.sum() * 0 + loss(vectors, labels, *found)
        if has_memory:
            self.memory_position.copy_(torch.tensor([loss.queue_idx, int(loss.has_been_filled)]))
        return value


class ProxyTerm(MetricTerm):
    """A metric loss with vectors that stand for classes, so that attention losses can ask which class is where."""

    @property
    def has_several_vectors(self) -> bool:
        """True if a class has more than one vector, so that it has logits and no class weights."""
        return self.name in _SEVERAL_VECTORS

    def class_weights(self) -> Float[Tensor, "c d"]:
        """The classes' vectors, inside the gradient graph."""
        if self.has_several_vectors:
            raise InputError(f"{self.name} has several vectors per class, so there is no one map; use Grad-CAM instead")
        weights: Tensor = self.loss.proxies if hasattr(self.loss, "proxies") else self.loss.W.mT
        return weights

    def logits(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Similarity to each class, as the loss scales it and without its margin; largest for the nearest class."""
        similarity: Tensor = self.loss.get_logits(embedding)
        return similarity if self.loss.distance.is_inverted or self.name == "normalized_softmax" else -similarity

    def note(self, step: Step, vectors: Tensor) -> None:
        """The accuracy of the nearest class vector, unless an earlier term has said its own."""
        if "accuracy" not in step.log:
            with torch.no_grad():
                step.log["accuracy"] = accuracy(self.logits(vectors), step.batch)


def gather_vectors(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and labels of all processes in the order of their ranks; as they are in a run of one process.

    Only the own vectors have a gradient, times the number of processes: the processes' mean is that of the whole loss.
    """
    if not distributed.is_distributed() or torch.distributed.get_world_size() == 1:
        return vectors, labels
    n_processes, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    scaled = n_processes * vectors - (n_processes - 1) * vectors.detach() if vectors.requires_grad else vectors
    everyone, theirs, _ = distributed.gather(scaled, labels)
    order = [*range(1, rank + 1), 0, *range(rank + 1, n_processes)]  # the library puts the own ones first
    parts, names = everyone.chunk(n_processes), theirs.chunk(n_processes)
    return torch.cat([parts[i] for i in order]), torch.cat([names[i] for i in order])


def _restore_memory_position(term: nn.Module, _: object) -> None:
    assert isinstance(term, MetricTerm)
    memory = term.loss
    memory.queue_idx = int(term.memory_position[0])
    memory.has_been_filled = bool(term.memory_position[1])


def _part(what: str, spec: Name | None, known: Mapping[str, Any], **given: Any) -> Any:
    """The library's distance, miner or reducer that a recipe names, alone or in a table with its options."""
    if spec is None:
        return None
    options = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = options.pop("kind", None)
    check_name(what, kind, known)
    make = known[str(kind)]
    check_options(f"{what} {kind}", options, _settable(make))
    return _made(str(kind), make, given | options)


def _settable(make: Any) -> frozenset[str]:
    return frozenset(parameter.name for parameter in parameters_of(make)) - _NOT_IN_A_RECIPE


def _made(name: str, make: Any, options: Mapping[str, Any]) -> Any:
    """The library's object; what it refuses by assertion or type becomes an error of ours."""
    try:
        with warnings.catch_warnings():  # its L-softmax hands tensors to scipy, which NumPy 2 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return make(**options)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: pytorch-metric-learning refuses {dict(options)}: {error or 'a failed check'}"
        ) from error
