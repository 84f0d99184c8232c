"""Losses that know the classes by a vector each: the classifier with its cross entropy, and the center loss.

Class activation maps are drawn with a classifier's weights, so it has a file of its own beside the encoder's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pytorch_metric_learning import distances
from torch import Tensor, nn
from torch.nn import functional

from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...errors import InputError, WeightsError
from ..engine.step import HasClassWeights, Step, Term, accuracy, in_shares, single_labels
from ..recipes.tables import check_name
from .metric import ProxyTerm, VectorSpace, gather_vectors


class ClassifierTerm(Term):
    """Cross entropy of a linear or cosine classifier; soft margin per class if labels are 0/1 columns.

    Cosine: `scale · cos(w_c, e)` (Chen et al., A Closer Look at Few-shot Classification, 2019, §3.2). With a margin the
    image's own class must lead by it: its logit is m less in the loss (Liang et al., Soft-Margin Softmax for Deep
    Classification, 2017).
    """

    reads = "vector"

    def __init__(
        self,
        dim: int,  # length of the embedding
        n_classes: int,  # number of classes
        *,
        multi_label: bool = False,  # labels are 0/1 columns; the loss is the multi-label soft margin loss
        head: Literal["linear", "cosine"] = "linear",
        bias: bool = True,  # of the linear head
        scale: float = 10.0,  # of the cosine head; what it starts from if it is learnt
        learn_scale: bool = False,  # whether the cosine head's scale is trained (its logarithm is)
        label_smoothing: float = 0.0,  # ε; the label's own class gets 1 - ε + ε/C, the others ε/C
        margin: float = 0.0,  # m, by which the own class's logit is lowered in the loss (soft-margin softmax)
    ) -> None:
        super().__init__()
        check_name("classifier head", head, ("linear", "cosine"))
        if not 0 <= label_smoothing < 1 or scale <= 0:
            raise InputError(f"expected 0 <= label_smoothing < 1 and scale > 0, got {label_smoothing} and {scale}")
        if margin < 0:
            raise InputError(f"expected margin of at least 0, got {margin}")
        if multi_label and (label_smoothing or margin):
            name = "label_smoothing" if label_smoothing else "margin"
            raise InputError(f"{name} is for one class per image; these labels are 0/1 columns")
        linear = nn.Linear(dim, n_classes, bias=bias and head == "linear")
        self.weight, self.bias = linear.weight, linear.bias
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)
        self.head, self.multi_label, self.label_smoothing, self.margin = head, multi_label, label_smoothing, margin

    def class_weights(self) -> Float[Tensor, "c d"]:
        """One vector per class, inside the gradient graph."""
        return self.weight

    def logits(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """The classes' scores."""
        if self.head == "linear":
            return functional.linear(embedding, self.weight, self.bias)
        cosine = functional.linear(functional.normalize(embedding), functional.normalize(self.weight))
        return self.log_scale.exp() * cosine

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch."""
        batch = step.batch
        if (batch.labels.ndim == 2) != self.multi_label:
            kind = "0/1 columns" if self.multi_label else "class indices"
            raise InputError(f"the classifier expects {kind}, got labels of shape {tuple(batch.labels.shape)}")
        logits = self.logits(step.encoding.embedding)
        with torch.no_grad():
            step.log["accuracy"] = accuracy(logits, batch)
        if self.multi_label:
            return in_shares(batch, lambda own: functional.multilabel_soft_margin_loss(logits, own.to(logits.dtype)))

        def value(own: Tensor) -> Tensor:
            lowered = logits - self.margin * functional.one_hot(own, logits.shape[1]) if self.margin else logits
            return functional.cross_entropy(lowered, own, label_smoothing=self.label_smoothing)

        return in_shares(batch, value)


class CenterTerm(Term):
    """Center loss (Wen et al. 2016, Eq. 2): squared distance of each vector to its class's center, mean over images.

    The centers follow by a rule of their own, no optimiser: `c_j ← c_j - rate · (2 / B) Σ_{i of class j} (c_j - f_i)`
    after each batch in training mode, from N(0, 1) on (Luo et al., Bag of Tricks for Person Re-ID, 2019, §3.6).
    """

    reads = "vector"
    default_weight = 5e-4

    def __init__(self, dim: int, n_classes: int, *, on: VectorSpace = "pooled", rate: float = 0.5) -> None:
        super().__init__()
        check_name("space", on, ("embedding", "pooled"))
        self.on, self.rate = on, rate
        self.centers: Tensor
        self.register_buffer("centers", torch.randn(n_classes, dim))

    def forward(self, step: Step) -> Tensor:
        """The loss against the centers as they are before this batch moves them."""
        labels, mix = single_labels(step.batch, "center"), step.batch.mix
        vectors: Tensor = getattr(step.encoding, self.on)
        rows = [(labels, 1.0)] if mix is None else [(labels, mix.share), (labels[mix.partner], 1 - mix.share)]
        value = sum(share * (vectors - self.centers[row]).square().sum(1).mean() for row, share in rows)
        if self.training:
            self._follow(vectors.detach(), rows)
        assert isinstance(value, Tensor)
        return value

    @torch.no_grad()
    def _follow(self, vectors: Tensor, rows: list[tuple[Tensor, float]]) -> None:
        gradient = torch.zeros_like(self.centers)
        for labels, share in rows:
            everyone, theirs = gather_vectors(vectors, labels)
            pull = (self.centers[theirs] - everyone) * (2 * share / len(everyone))
            gradient.index_add_(0, theirs, pull)
        self.centers -= self.rate * gradient


def save_classifier(
    path: str | os.PathLike[str], classifier: HasClassWeights, class_names: Sequence[str], *, fingerprint: str
) -> None:
    """Write the class weights of a trained objective into one `.safetensors` file, beside the encoder's.

    Proxies become a linear or cosine classifier with the same logits, or, where they are compared by a distance, with
    logits in the same order. `fingerprint` is that of the encoder. InputError: class weights that are no such
    classifier, as several vectors per class; WeightsError: the file cannot be written.
    """
    plain = classifier if isinstance(classifier, ClassifierTerm) else _plain(classifier)
    config = {
        "kind": "classifier",
        "head": plain.head,
        "multi_label": plain.multi_label,
        "class_names": list(class_names),
        "encoder": fingerprint,
    }
    write_checkpoint(path, config, plain.state_dict())


def load_classifier(path: str | os.PathLike[str]) -> tuple[ClassifierTerm, list[str], str]:
    """A classifier that `save_classifier` wrote, its class names, and its encoder's fingerprint; or WeightsError."""
    config, tensors = read_checkpoint(path)
    if config.get("kind") != "classifier":
        raise WeightsError(f"{path}: holds no classifier; expected the file that training writes beside the encoder's")
    with built_from_header(path, "a classifier"):
        n_classes, dim = tensors["weight"].shape
        options: dict[str, Any] = {"head": config["head"], "multi_label": config["multi_label"]}
        with torch.random.fork_rng(devices=[]):
            classifier = ClassifierTerm(dim, n_classes, bias="bias" in tensors, **options)
        classifier.load_state_dict(tensors)
        names = [str(name) for name in config["class_names"]]
        if len(names) != n_classes:
            raise ValueError(f"{len(names)} names for {n_classes} classes")
        return classifier.eval(), names, str(config["encoder"])


@torch.no_grad()
def _plain(term: HasClassWeights) -> ClassifierTerm:
    """A plain classifier that ranks the classes as proxies do."""
    refusal = InputError(f"{getattr(term, 'name', type(term).__name__)} cannot be kept as a classifier")
    if not isinstance(term, ProxyTerm) or term.has_several_vectors:
        raise refusal
    loss, distance = term.loss, term.loss.distance
    weight, bias, head = term.class_weights().detach(), None, "linear"
    scale = float(1 / loss.temperature if hasattr(loss, "temperature") else getattr(loss, "scale", 1.0))
    if term.name == "large_margin_softmax":
        weight = weight * scale
    elif term.name == "sphereface" or (term.name == "normalized_softmax" and not distance.normalize_embeddings):
        weight = functional.normalize(weight) * scale
    elif distance.normalize_embeddings:  # the nearest of unit vectors has the largest cosine
        head = "cosine"
    elif isinstance(distance, distances.LpDistance) and distance.p == 2:  # -|x - p|² = 2 p·x - |p|² - |x|²
        weight, bias = 2 * weight, -weight.square().sum(1)
    elif not isinstance(distance, distances.DotProductSimilarity):
        raise refusal
    options: dict[str, Any] = {"head": head, "bias": bias is not None, "scale": scale if head == "cosine" else 1.0}
    with torch.random.fork_rng(devices=[]):
        plain = ClassifierTerm(weight.shape[1], len(weight), **options).to(weight.device)
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain
