"""CAM-loss: features are to light up where the image's own class does, and nowhere else.

    CAM_i = Σ_k w_k^i f_k,   CAAM = Σ_k f_k                                     [CAM-loss] Eq. 1-3
    L_cam = (1 / HW) Σ |CAAM' - CAM_i'|, both min-max scaled per image          [CAM-loss] Eq. 4

W enters the map detached, or it drifts towards ones, where the loss is 0. Heads, GeM, mixup: docs/guides/losses.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.heads import IdentityHead, affine_of
from ...errors import InputError
from ...explain import fold
from ...remarks import remark
from ..engine.step import HasClassWeights, Step, true_classes
from ..recipes.tables import check_name
from .attention import LateTerm, above_rounding, gradient_weights, map_of_places, pooled_weights, scaled

MapNorm = Literal["l1", "l2"]


def cam_differences(
    maps: Float[Tensor, "t k h w"],
    weights: Float[Tensor, "t k"],
    *,
    detach_target: bool = False,
    norm: MapNorm = "l1",
    eps: float = 1e-8,
) -> Float[Tensor, " t"]:
    """L_cam of each feature map with its own class's weights, in [0, 1] ([CAM-loss] Eq. 1-4, Algorithm 1).

    0, and without a gradient, where the class-agnostic map is flat; see `above_rounding`.
    """
    both = torch.stack([torch.ones_like(weights), weights], 1) @ maps.flatten(2)  # one product for both
    caam, cam = both.reshape(len(maps), 2, *maps.shape[-2:]).unbind(1)
    caam, cam = scaled(above_rounding(caam, maps), eps=eps), scaled(cam, eps=eps)
    differences = map_difference(caam, cam.detach() if detach_target else cam, norm)
    return torch.where(caam.detach().amax((-2, -1)) > 0, differences, 0.0)


def map_difference(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"], norm: MapNorm = "l1"
) -> Float[Tensor, " b"]:
    """Mean over positions of the absolute ("l1") or squared ("l2") difference."""
    difference = one - other
    return (difference.abs() if norm == "l1" else difference.square()).mean((-2, -1))


def say_flat(whose: str, is_flat: Bool[Tensor, " t"]) -> bool:
    """Remark on a first batch's maps that are flat, if any are; True: once is enough, as it waits for the device."""
    if count := int(is_flat.sum()):
        remark(
            f"{whose} of its first batch are flat for {count} of {len(is_flat)}, so it teaches nothing there; so they "
            "are behind a layer norm whose weights are all alike, as weights=random has them before it has learnt"
        )
    return True


def unpooled(encoder: Encoder, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
    """The map whose mean is the pooled vector: the feature map itself, except for GeM."""
    return fold(feature_map, pooling=encoder.pooling, head=IdentityHead()).map


class CamLoss(LateTerm):
    """CAM-loss as a term ([CAM-loss] Eq. 1-7, Algorithm 1)."""

    default_weight = 3.0
    has_looked = False

    def __init__(
        self,
        *,
        # the epoch from which it counts (20 of 160 in the paper), or "adaptive": after the first epoch with a training
        # accuracy of 50 % or more
        start: int | Literal["adaptive"] = "adaptive",
        # "cam", "gradcam", "gradcam++", or "auto": CAM where it exists, Grad-CAM where it does not
        method: Literal["auto", "cam", "gradcam", "gradcam++"] = "auto",
        # "pooled", the channels of the feature map, or "embedding", those of the folded map
        space: Literal["pooled", "embedding"] = "pooled",
        norm: MapNorm = "l1",  # "l1" is the paper's; "l2" takes the mean of squares
        # the weights get no gradient, as Algorithm 1 demands; nor in "gradcam" and "gradcam++", whatever they are
        detach_weights: bool = True,
        detach_target: bool = False,  # the class's map is a constant; the class-agnostic map alone moves
        eps: float = 1e-8,  # under which a map counts as flat; see `scaled`
    ) -> None:
        super().__init__(start)
        check_name("method", method, ("auto", "cam", "gradcam", "gradcam++"))
        check_name("space", space, ("pooled", "embedding"))
        check_name("norm", norm, ("l1", "l2"))
        self.method, self.space, self.norm, self.eps = method, space, norm, eps
        self.detach_weights, self.detach_target = detach_weights, detach_target

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images."""
        classifier, targets = step.need_classifier("CAM-loss"), true_classes(step.batch)
        encoder, maps = step.encoder, map_of_places(step, "CAM-loss")
        if self.method.startswith("gradcam") or (self.method == "auto" and not has_cam(encoder, classifier)):
            weights = gradient_weights(
                encoder,
                maps,
                classifier,
                targets,
                second_order=not self.detach_weights,
                plus_plus=self.method == "gradcam++",
            )
        else:
            of_classes = classifier.class_weights()
            of_classes = of_classes.detach() if self.detach_weights else of_classes
            if self.space == "embedding":
                maps = fold(maps, pooling=encoder.pooling, head=encoder.head).map
            else:
                maps, of_classes = unpooled(encoder, maps), pooled_weights(encoder, of_classes)
            weights = of_classes[targets.label]
        values = cam_differences(
            targets.of(maps), weights, detach_target=self.detach_target, norm=self.norm, eps=self.eps
        )
        self.has_looked = self.has_looked or say_flat("CAM-loss: the class-agnostic maps", values == 0)
        return targets.mean(values, n_images=len(step.batch))


def has_cam(encoder: Encoder, classifier: HasClassWeights) -> bool:
    """True if a class's map is a weighted sum of channels: an affine head, and one vector per class."""
    return affine_of(encoder.head) is not None and not getattr(classifier, "has_several_vectors", False)


def negative_cam(
    feature_map: Float[Tensor, "b k h w"],
    class_weights: Float[Tensor, "c k"],
    shown: Bool[Tensor, "b c"],
    *,
    n_negatives: int = 100,
    towards: Literal["uniform", "zero"] = "uniform",
) -> Tensor:
    """Distance of the maps of the likeliest absent classes from flat ones, mean over these classes and over images.

    "uniform": the Kullback-Leibler divergence of the map's softmax over positions from a uniform one; "zero": its mean
    square. Source: Sun et al., Fixing Localization Errors, 2020; their code adds the classes' divergences up.
    """
    scores = (feature_map.mean((-2, -1)) @ class_weights.mT).detach().masked_fill(shown, -torch.inf)
    best, classes = scores.topk(min(n_negatives, class_weights.shape[0]), dim=1)
    maps = class_weights[classes] @ feature_map.flatten(2)  # b, negatives, positions
    if towards == "zero":
        values = maps.square().mean(-1)
    else:
        uniform = torch.full_like(maps, 1 / maps.shape[-1])
        values = functional.kl_div(maps.log_softmax(-1), uniform, reduction="none").sum(-1)
    counts = best.isfinite()
    return ((values * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()


class NegativeCam(LateTerm):
    """Homogeneous negative CAM, see `negative_cam`; unlike CAM-loss it trains the class weights too."""

    def __init__(
        self,
        *,
        start: int | Literal["adaptive"] = 0,  # an epoch or "adaptive", as for CAM-loss
        n_negatives: int = 100,  # how many absent classes count
        towards: Literal["uniform", "zero"] = "uniform",  # "uniform" or "zero"
        detach_weights: bool = False,  # keeps the gradient from the class weights
    ) -> None:
        super().__init__(start)
        check_name("target of negative maps", towards, ("uniform", "zero"))
        if n_negatives < 1:
            raise InputError(f"expected n_negatives of at least 1, got {n_negatives}")
        self.n_negatives, self.towards, self.detach_weights = n_negatives, towards, detach_weights

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images."""
        weights = step.need_classifier("NegativeCAM").class_weights()
        weights = pooled_weights(step.encoder, weights.detach() if self.detach_weights else weights)
        targets, maps = true_classes(step.batch), unpooled(step.encoder, map_of_places(step, "NegativeCAM"))
        shown = torch.zeros(len(maps), len(weights), dtype=torch.bool, device=maps.device)
        rows = torch.arange(len(maps), device=maps.device) if targets.row is None else targets.row
        shown[rows, targets.label] = True
        return negative_cam(maps, weights, shown, n_negatives=self.n_negatives, towards=self.towards)
