"""Metric GAIN: attention mining without a classifier; it is in no paper.

A is the Dist-CAM map against the running prototype of the image's class, and s is the similarity of the masked image to
that prototype.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoding
from ...encoders.layers import evaluating
from ...errors import InputError
from ...explain import channel_weights, fold
from ..data.labels import Targets, true_classes
from ..engine.step import Step
from ..recipes.tables import check_name
from .attention import gradients_off
from .gain import AttentionMining, attention_map

MetricWeighting = Literal["dist", "dist*s", "dist*excess", "dot", "dot_centered"]


class MetricGain(AttentionMining):
    """GAIN without a classifier: the Dist-CAM map against the own class's prototype, and the similarity to it.

    A prototype is the running mean of its class's embeddings, each scaled to length 1: the first batch's mean, then
    `momentum · old + (1 - momentum) · batch's mean`. It is a constant for the gradient; the image's own map is not.
    Prototypes are part of the state dict and stay as they are in evaluation mode. What is lowered is the cosine of the
    masked image's embedding and the prototype, as long as it is positive.

    Args:
        dim: length of the embedding.
        n_classes: number of classes.
        start: an epoch, or "adaptive"; see `LateTerm`.
        mining: weight of the masked image's similarity; 0 saves the masked pass.
        mask, box, sigma, omega: see `Gain`.
        weighting: of the Dist-CAM map; see `distcam.explain.channel_weights`. The mean that two of them need is that of
            the prototypes.
        momentum: how much of a prototype a batch leaves as it was.
        second_order: whether the channel weights are part of the gradient graph.
        freeze_am: what the masked pass leaves untrained: "no" or "all".
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        start: int | Literal["adaptive"] = 0,
        mining: float = 1.0,
        mask: float = 10.0,
        box: float = 10.0,
        sigma: float = 0.5,
        omega: float = 10.0,
        weighting: MetricWeighting = "dist",
        momentum: float = 0.9,
        second_order: bool = False,
        freeze_am: Literal["no", "all"] = "no",
    ) -> None:
        super().__init__(start=start, mining=mining, mask=mask, box=box, sigma=sigma, omega=omega)
        check_name("weighting", weighting, ("dist", "dist*s", "dist*excess", "dot", "dot_centered"))
        check_name("freeze_am", freeze_am, ("no", "all"))
        if not 0 <= momentum < 1:
            raise InputError(f"expected a momentum of at least 0 and below 1, got {momentum}")
        self.weighting, self.momentum, self.second_order = weighting, momentum, second_order
        self.freeze_am = freeze_am
        self.prototypes: Tensor
        self.is_known: Tensor
        self.register_buffer("prototypes", torch.zeros(n_classes, dim))
        self.register_buffer("is_known", torch.zeros(n_classes, dtype=torch.bool))

    def forward(self, step: Step) -> Tensor:
        """The weighted sum, against prototypes in which this batch has its part already."""
        if self.training:
            self._follow(step.encoding.embedding.detach(), true_classes(step.batch))
        return super().forward(step)

    def attention(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """The positive part of the Dist-CAM map."""
        with evaluating(step.encoder.head):  # a head that is not affine is folded to first order, in this mode only
            folded = fold(step.encoding.feature_map, pooling=step.encoder.pooling, head=step.encoder.head).map
        maps = targets.of(folded)
        query, known = maps.mean((-2, -1)), functional.normalize(self.prototypes[self.is_known])
        weights = channel_weights(
            query if self.second_order else query.detach(),
            self.prototypes[targets.label].unsqueeze(1),
            metric="cosine",
            weighting=self.weighting,
            mean=known.sum(0) / max(len(known), 1) if self.weighting in ("dist*excess", "dot_centered") else None,
        )
        return attention_map(maps, weights[:, 0])

    def recognition(self, step: Step, masked: Encoding, targets: Targets) -> Float[Tensor, " t"]:
        """Cosine to the class's prototype, 0 if negative or if the class has none yet."""
        del step
        similarity = functional.cosine_similarity(masked.embedding, self.prototypes[targets.label])
        return similarity.clamp(min=0) * self.is_known[targets.label]

    def frozen(self, step: Step) -> AbstractContextManager[None]:
        """Keep constant what `freeze_am` names."""
        return gradients_off(step.encoder) if self.freeze_am == "all" else nullcontext()

    @torch.no_grad()
    def _follow(self, embedding: Tensor, targets: Targets) -> None:
        unit = functional.normalize(targets.of(embedding)) * targets.share[:, None]
        total = torch.zeros_like(self.prototypes).index_add_(0, targets.label, unit)
        count = torch.zeros_like(self.prototypes[:, 0]).index_add_(0, targets.label, targets.share)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for sums in (total, count):
                torch.distributed.all_reduce(sums)
        here = count > 0
        mean = total / count.clamp(min=1e-12)[:, None]
        moved = torch.where(self.is_known[:, None], torch.lerp(mean, self.prototypes, self.momentum), mean)
        self.prototypes.copy_(torch.where(here[:, None], moved, self.prototypes))
        self.is_known |= here
