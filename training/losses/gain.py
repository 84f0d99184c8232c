"""GAIN: attention that is trained, because what lies outside it should not be enough to recognise the class.

    w^c = GAP(∂ s^c / ∂ f),   A^c = ReLU(Σ_k w_k^c f_k)                                  [GAIN] Eq. 1-2
    I* = I - T(A^c) ⊙ I,      T(A) = sigmoid(ω (A - σ))                                  [GAIN] Eq. 3-4
    L_am = mean over the image's classes of s^c(I*)                                      [GAIN] Eq. 5
    L_p  = mean (A^c - H^c)²                        for images with a mask H             [GAIN] Eq. 7
    L_bbox = mean [(1 - B) ⊙ A^c]² + [B ⊙ (A^c - S)]²   for images with a box B          [GAIN] Eq. 9

What the paper leaves open, and how it is settled here: docs/guides/losses.md.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoding
from ...encoders.layers import evaluating
from ...errors import InputError
from ...explain import channel_weights, fold, upsample
from ..engine.step import Regions, Step, Targets, true_classes
from ..recipes.tables import check_name
from .attention import LateTerm, gradient_weights, gradients_off, map_of_places, scaled, statistics_frozen, weighted_map


def attention_map(feature_map: Float[Tensor, "t k h w"], weights: Float[Tensor, "t k"]) -> Float[Tensor, "t h w"]:
    """A^c, not negative, raw: Grad-CAM of given channel weights ([GAIN] Eq. 2)."""
    return weighted_map(feature_map, weights).clamp(min=0)


def without(feature_map: Float[Tensor, "b k h w"], constant: Float[Tensor, "b k"] | None) -> Float[Tensor, "b k h w"]:
    """A map without the part of tokens that is the same at all places."""
    return feature_map if constant is None else feature_map - constant[..., None, None]


def soft_mask(
    attention: Float[Tensor, "t h w"], size: tuple[int, int], *, sigma: float = 0.5, omega: float = 10.0
) -> Float[Tensor, "t rows columns"]:
    """T(A), at the image's size: near 1 where A is above `sigma` of its range, else near 0 ([GAIN] Eq. 4)."""
    return torch.sigmoid(omega * (scaled(upsample(attention, size)) - sigma))


def hidden(images: Float[Tensor, "t 3 h w"], mask: Float[Tensor, "t h w"]) -> Float[Tensor, "t 3 h w"]:
    """I*: normalised images in which what the mask covers has the mean colour ([GAIN] Eq. 3)."""
    return images - mask.unsqueeze(1) * images


def mask_loss(attention: Float[Tensor, "r h w"], masks: Float[Tensor, "r rows columns"]) -> Float[Tensor, " r"]:
    """Mean squared difference of the attention, in [0, 1], from a mask reduced to its size by area ([GAIN] Eq. 7)."""
    return (scaled(attention) - _reduced(masks, attention)).square().mean((-2, -1))


def box_loss(
    attention: Float[Tensor, "r h w"], boxes: Float[Tensor, "r rows columns"], saliency: Float[Tensor, "r h w"]
) -> Float[Tensor, " r"]:
    """Attention outside the box, and its difference from the saliency inside, squared, mean ([GAIN] Eq. 9)."""
    attention, inside = scaled(attention), _reduced(boxes, attention)
    outer, inner = (1 - inside) * attention, inside * (attention - saliency)
    return (outer.square() + inner.square()).mean((-2, -1))


@torch.no_grad()
def contrast_saliency(
    images: Float[Tensor, "r 3 rows columns"], boxes: Float[Tensor, "r rows columns"], size: tuple[int, int]
) -> Float[Tensor, "r h w"]:
    """A saliency prior for boxes, in [0, 1]: how far a cell's colour is from the mean colour outside the box.

    1 is the largest contrast inside. If nothing is outside, the whole image's mean stands in (after Achanta et al.).
    """
    cells = functional.interpolate(images, size, mode="area")
    inside = functional.interpolate(boxes.unsqueeze(1), size, mode="area")
    outside = 1 - inside
    is_full = outside.sum((-2, -1), keepdim=True) < 1e-6
    outside = torch.where(is_full, torch.ones_like(outside), outside)
    mean = (cells * outside).sum((-2, -1), keepdim=True) / outside.sum((-2, -1), keepdim=True)
    contrast = torch.linalg.vector_norm(cells - mean, dim=1)
    largest = (contrast * (inside[:, 0] > 0)).amax((-2, -1), keepdim=True)
    return torch.where(largest > 1e-6, contrast / largest.clamp(min=1e-6), 0.0).clamp(max=1)


def _reduced(raster: Tensor, attention: Tensor) -> Tensor:
    return functional.interpolate(raster.unsqueeze(1), attention.shape[-2:], mode="area").squeeze(1)


class AttentionMining(LateTerm):
    """Attention mining and the losses of masks and boxes, whatever attention and recognition are."""

    def __init__(
        self,
        *,
        start: int | Literal["adaptive"] = 0,  # an epoch, or "adaptive"; see `LateTerm`
        mining: float = 1.0,  # weight of L_am; 0 saves the masked pass
        mask: float = 10.0,  # weight of L_p
        box: float = 10.0,  # weight of L_bbox
        sigma: float = 0.5,  # σ, the threshold of the soft mask, in the attention's range [0, 1]
        omega: float = 10.0,  # ω, its steepness
        # L_p and L_bbox: the "mean" of the squares over positions, or their "sum", 196 times as much at 14×14
        positions: Literal["mean", "sum"] = "mean",
        # L_p and L_bbox of an image's n classes: their "sum", or their "mean", the 1/n of Eq. 7 and 9
        classes: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(start)
        check_name("positions", positions, ("mean", "sum"))
        check_name("classes", classes, ("sum", "mean"))
        self.positions, self.classes = positions, classes
        if min(mining, mask, box) < 0 or omega <= 0:
            raise InputError(f"expected weights of at least 0 and omega > 0, got {mining}, {mask}, {box} and {omega}")
        self.mining, self.mask, self.box, self.sigma, self.omega = mining, mask, box, sigma, omega

    @abstractmethod
    def attention(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """A raw map, not negative, for each pair of an image and a class."""

    @abstractmethod
    def recognition(self, step: Step, masked: Encoding, targets: Targets) -> Float[Tensor, " t"]:
        """A score of how much of its class each masked image still shows, bounded below."""

    def frozen(self, step: Step) -> AbstractContextManager[None]:
        """Keep constant what the masked pass does not train."""
        del step
        return nullcontext()

    def forward(self, step: Step) -> Tensor:
        """The weighted sum of the three losses; what of them was computed is in the step's log."""
        total = step.encoding.pooled.sum() * 0  # also where no image has a class or a region
        targets = true_classes(step.batch)
        if self.mining and len(targets):
            total = total + self.mining * step.noted("attention_mining", self._mined(step, targets))
        if step.batch.regions is None or not len(step.batch.regions.row):
            return total
        regions = step.batch.regions.merged()
        for name, weight, chosen in (("masks", self.mask, ~regions.is_box), ("boxes", self.box, regions.is_box)):
            if weight and bool(chosen.any()):
                value = self._guided(step, regions, chosen) / len(step.batch)
                total = total + weight * step.noted(f"attention_{name}", value)
        return total

    def _mined(self, step: Step, targets: Targets) -> Tensor:
        """L_am: one more pass over the images, with the attended region hidden."""
        images = targets.of(step.batch.images)
        attention = self.attention(step, targets)
        mask = soft_mask(attention, (images.shape[-2], images.shape[-1]), sigma=self.sigma, omega=self.omega)
        with statistics_frozen(step.encoder), self.frozen(step):
            masked = step.encode(hidden(images, mask))
            recognition = self.recognition(step, masked, targets)
        return targets.mean(recognition, n_images=len(step.batch))

    def _guided(self, step: Step, regions: Regions, chosen: Tensor) -> Tensor:
        """The sum of L_p or L_bbox over the chosen regions, all of one kind."""
        row, label, raster = regions.row[chosen], regions.label[chosen], regions.raster[chosen]
        attention = self.attention(step, Targets(row, label, torch.ones_like(row, dtype=torch.float32)))
        size = (attention.shape[-2], attention.shape[-1])
        if regions.is_box[chosen][0]:
            boxes, given = raster.clamp(max=1), (raster - 1).clamp(min=0)
            prior = contrast_saliency(step.batch.images[row], boxes, size)
            is_given = given.amax((1, 2), keepdim=True) > 0
            values = box_loss(attention, boxes, torch.where(is_given, _reduced(given, attention), prior))
        else:
            values = mask_loss(attention, raster)
        if self.positions == "sum":
            values = values * (size[0] * size[1])
        if self.classes == "mean" and step.batch.labels.ndim == 2:
            values = values / (step.batch.labels[row] > 0).sum(1).clamp(min=1)
        return values.sum()


class Gain(AttentionMining):
    """GAIN as a term, beside a classification loss ([GAIN] Eq. 1-10): GAIN-self, with regions in the data GAIN-ext."""

    def __init__(
        self,
        *,
        # s^c(I*); "auto" is softmax for one class per image and sigmoid for several
        score: Literal["auto", "softmax", "sigmoid", "logit"] = "auto",
        # s^c of the map: the class's "logit", as in the paper, blind to what lowers the other classes' logits; or the
        # "log_odds" of its probability, which is the logit itself where images show several classes
        evidence: Literal["logit", "log_odds"] = "logit",
        second_order: bool = False,  # whether w^c is part of the gradient graph
        # what the masked pass leaves untrained: "no", "classifier", or "all"
        freeze_am: Literal["no", "classifier", "all"] = "no",
        **mining: Any,  # start, weights, and soft mask; see `AttentionMining`
    ) -> None:
        super().__init__(**mining)
        check_name("score", score, ("auto", "softmax", "sigmoid", "logit"))
        check_name("evidence", evidence, ("logit", "log_odds"))
        check_name("freeze_am", freeze_am, ("no", "classifier", "all"))
        self.score, self.evidence = score, evidence
        self.second_order, self.freeze_am = second_order, freeze_am

    def attention(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """Grad-CAM of the classes."""
        feature_map, classifier = map_of_places(step, "GAIN"), step.need_classifier("GAIN")
        score = self.evidence if step.batch.labels.ndim == 1 else "logit"
        weights = gradient_weights(
            step.encoder, feature_map, classifier, targets, score=score, second_order=self.second_order
        )
        return attention_map(targets.of(without(feature_map, step.encoding.constant)), weights)

    def recognition(self, step: Step, masked: Encoding, targets: Targets) -> Float[Tensor, " t"]:
        """The class's probability."""
        logits = step.need_classifier("GAIN").logits(masked.embedding)
        score = self.score
        if score == "auto":
            score = "sigmoid" if step.batch.labels.ndim == 2 else "softmax"
        if score == "softmax":
            logits = logits.softmax(1)
        own = logits.gather(1, targets.label[:, None])[:, 0]
        return own.sigmoid() if score == "sigmoid" else own

    def frozen(self, step: Step) -> AbstractContextManager[None]:
        """Keep constant what `freeze_am` names."""
        if self.freeze_am == "no":
            return nullcontext()
        parts = [step.need_classifier("GAIN"), *([step.encoder] if self.freeze_am == "all" else [])]
        return gradients_off(*parts)


MetricWeighting = Literal["dist", "dist*s", "dist*excess", "dot", "dot_centered"]


class MetricGain(AttentionMining):
    """GAIN without a classifier: A is the Dist-CAM map against the own class's prototype, s the cosine to it.

    It is in no paper. A prototype is the running mean of its class's normalised embeddings, constant for the gradient,
    and part of the state dict.
    """

    def __init__(
        self,
        dim: int,  # length of the embedding
        n_classes: int,  # number of classes
        *,
        weighting: MetricWeighting = "dist",  # see `distcam.explain.channel_weights`; a mean is the prototypes'
        momentum: float = 0.9,  # how much of a prototype a batch leaves as it was
        second_order: bool = False,  # whether the channel weights are part of the gradient graph
        freeze_am: Literal["no", "all"] = "no",  # what the masked pass leaves untrained: "no" or "all"
        **mining: Any,  # start, weights, and soft mask; see `AttentionMining`
    ) -> None:
        super().__init__(**mining)
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
            feature_map, constant = map_of_places(step, "metric GAIN"), step.encoding.constant
            folded = fold(feature_map, pooling=step.encoder.pooling, head=step.encoder.head, constant=constant)
        query = targets.of(folded.map.mean((-2, -1)))
        known = functional.normalize(self.prototypes[self.is_known])
        weights = channel_weights(
            query if self.second_order else query.detach(),
            self.prototypes[targets.label].unsqueeze(1),
            metric="cosine",
            weighting=self.weighting,
            mean=known.sum(0) / max(len(known), 1) if self.weighting in ("dist*excess", "dot_centered") else None,
        )
        return attention_map(targets.of(without(folded.map, folded.constant)), weights[:, 0])

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
