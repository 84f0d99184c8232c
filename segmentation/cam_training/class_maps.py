"""Class maps as scores of a segmentation: raw, on a common scale, and beside a score of the background.

With feature map f and one weight vector per class:

    Y^c = Σ_k w_k^c f_k,   logit_c = GAP(Y^c)           a 1×1 convolution without bias, then pooling
    Y^c ← ReLU(Y^c) / max Y^c, 0 for absent classes
    Y^background = (1 - max_c Y^c)^a                                              [CPN] Eq. 16

PCM and PRCM refine them by what the image shows: positions that look alike have the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.layers import evaluating, require_layer, returned_by
from ...encoders.readouts import source_of
from ...errors import InputError
from ...training.recipes.tables import Table

Scaling = Literal["max", "range"]
_EPS = 1e-5


def class_maps(feature_map: Float[Tensor, "b k h w"], weights: Float[Tensor, "c k"]) -> Float[Tensor, "b c h w"]:
    """Y, raw and signed; its mean over positions is the class's logit."""
    return functional.conv2d(feature_map, weights[:, :, None, None])


def scaled_maps(
    maps: Float[Tensor, "b c h w"], labels: Float[Tensor, "b c"] | None = None, *, scaling: Scaling = "max"
) -> Float[Tensor, "b c h w"]:
    """The maps in [0, 1], each without its negative part and on its own scale, inside the gradient graph.

    A map without shape, or of a class that `labels` say is absent, is 0. "range" also subtracts the minimum.
    """
    if scaling not in ("max", "range"):
        raise InputError(f"unknown scaling {scaling!r}: expected 'max' or 'range'")
    positive = maps.clamp(min=0)
    low, high = positive.amin((-2, -1), keepdim=True), positive.amax((-2, -1), keepdim=True)
    has_shape = high - low > _EPS
    if scaling == "range":
        positive, high = positive - low, high - low
    scaled = torch.where(has_shape, positive / high.where(has_shape, 1.0), 0.0)
    return scaled if labels is None else scaled * labels[:, :, None, None].to(scaled)


def with_background(scaled: Float[Tensor, "b c h w"], *, power: float = 1.0) -> Float[Tensor, "b c_plus_1 h w"]:
    """The background's score `(1 - max_c Y^c)^a` ([CPN] Eq. 16), then the classes, as masks number them, in [0, 1]."""
    if power <= 0:
        raise InputError(f"expected a power above 0, got {power}")
    return torch.cat([(1 - scaled.amax(1, keepdim=True)).clamp(0, 1) ** power, scaled], 1)


def hardest(errors: Float[Tensor, "b c h w"], share: float | None) -> Tensor:
    """The mean of each image's largest errors, that share of all of its elements; of all if `share` is None."""
    flat = errors.flatten(1)
    return flat.mean() if share is None else flat.topk(max(int(share * flat.shape[1]), 1), dim=1).values.mean()


def min_pooling_loss(refined: Float[Tensor, "b c h w"]) -> Tensor:
    """Mean of the lowest quarter of the highest class scores, from SEAM's and CPN's code: some of it is no object."""
    highest = refined.amax(1).flatten(1)
    return highest.topk(max(highest.shape[1] // 4, 1), dim=1, largest=False).values.clamp(min=0).mean()


PrcmSoftmax = Literal["class", "pixel"]
_STAGES = {
    "resnet38": ("b5.relu_branch2a", "b6.relu_branch2a"),
    "conv4": ("encoder.2", "encoder.3"),
    "mobilenet_v2": ("features.13", "features.17"),
    "wrn28_10": ("layer2", "layer3"),
}


def affinity(embedded: Float[Tensor, "b d n"]) -> Float[Tensor, "b n n"]:
    """J, how alike two positions are, in [0, 1]: ReLU of their cosine ([CPN] Eq. 10)."""
    unit = functional.normalize(embedded, dim=1)
    return (unit.mT @ unit).clamp(min=0)


def pixel_correlation(maps: Float[Tensor, "b c h w"], embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
    """Y_pcm: the mean of the maps over the positions that are like each; 0 where none is ([CPN] Eq. 9)."""
    alike = affinity(embedded.flatten(2))
    # divided after the product, which is c/hw of the work
    refined = (maps.flatten(2) @ alike) / alike.sum(1, keepdim=True).clamp(min=1e-5)
    return refined.view_as(maps)


class Prcm(nn.Module):
    """Pixel-region correlation: each class's mean of X says which positions belong to it ([CPN] Eq. 11-12).

    The softmax is over a position's classes, or, as in the published code, over positions ("pixel", by √(c + 1)). The
    ReLU on φ(Z) is the published code's; Eq. 11 prints none.
    """

    def __init__(self, in_dim: int, dim: int, *, softmax: PrcmSoftmax = "class", relu: bool = True) -> None:
        super().__init__()
        self.softmax, self.relu = softmax, relu
        self.phi = nn.Linear(in_dim, dim, bias=False)

    def forward(
        self, maps: Float[Tensor, "b c h w"], features: Float[Tensor, "b x h w"], embedded: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Y_prcm."""
        attention = maps.flatten(2).softmax(2)
        regions = attention @ features.flatten(2).mT  # Z, (b, c, x): one vector per class
        projected = functional.relu(self.phi(regions)) if self.relu else self.phi(regions)
        relation = projected @ embedded.flatten(2)  # P_R, (b, c, hw)
        gate = relation.softmax(1) if self.softmax == "class" else (relation / maps.shape[1] ** 0.5).softmax(2)
        return maps * gate.view_as(maps)


class RefinementSettings(Table):
    """Options of the refinement, under the names that a recipe gives them."""

    pcm: bool = True  # refine by PCM
    prcm: bool = True  # refine by PRCM; without both there is no refinement
    prcm_softmax: PrcmSoftmax = "class"  # see `Prcm`
    prcm_relu: bool = True  # of φ(Z), as in the published code; false as Eq. 11 prints it
    scaling: Scaling = "max"  # see `scaled_maps`
    power: float = 1.0  # a of the background's score


class MapRefinement(nn.Module):
    """PCM and PRCM on one embedding g(X) of X, the image and what two stages of the network say about it.

        J_ij = ReLU(cos(g(X)_i, g(X)_j)),   Y_pcm,i = Σ_j Y_j J_ji / Σ_j J_ji                 PCM   [CPN] Eq. 9-10
        Z = softmax(Y) Xᵀ,   P_R = ReLU(φ(Z)) g(X),   Y_prcm = Y ∘ softmax(P_R)               PRCM  [CPN] Eq. 11-12

    Neither X nor the maps Y carry a gradient; the sum of Y_pcm and Y_prcm is the refined map.
    """

    def __init__(self, stage_dims: tuple[int, int], settings: RefinementSettings | None = None) -> None:
        super().__init__()
        self.stage_dims, own = stage_dims, settings or RefinementSettings()
        if not (own.pcm or own.prcm):
            raise InputError("a refinement needs pcm or prcm")
        self.settings = own
        self.from_stages = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1, bias=False) for inputs, outputs in zip(stage_dims, (64, 128), strict=True)
        )
        self.embed = nn.Conv2d(64 + 128 + 3, 192, 1, bias=False)
        self.prcm = Prcm(64 + 128 + 3, 192, softmax=own.prcm_softmax, relu=own.prcm_relu) if own.prcm else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.xavier_normal_(self.embed.weight)

    def options(self) -> dict[str, object]:
        """Stages and settings, as JSON can hold them."""
        own = self.settings.model_dump(include=set(RefinementSettings.model_fields))
        return {"stage_dims": list(self.stage_dims), **own}

    def features(
        self,
        stages: Sequence[Float[Tensor, "b _k _h _w"]],
        images: Float[Tensor, "b 3 rows columns"],
        size: tuple[int, int],
    ) -> Float[Tensor, "b 195 h w"]:
        """X in the size of the maps, learnt up to what comes from the network, which is a constant."""
        own = [
            functional.relu(_resized(convolution(stage.detach().float()), size))
            for convolution, stage in zip(self.from_stages, stages, strict=True)
        ]
        return torch.cat([_resized(images.detach(), size), *own], 1)

    def refine(
        self,
        maps: Float[Tensor, "b c h w"],
        features: Float[Tensor, "b 195 h w"],
        labels: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b c_plus_1 h w"]:
        """Ỹ, background first, of raw maps and X; with 0/1 columns the classes that an image does not show stay 0."""
        scaled = scaled_maps(maps, labels, scaling=self.settings.scaling)
        scores = with_background(scaled.detach(), power=self.settings.power)
        embedded = self.embed(features)
        parts = [pixel_correlation(scores, embedded)] if self.settings.pcm else []
        if self.prcm is not None:
            parts.append(self.prcm(scores, features, embedded))
        return torch.stack(parts).sum(0)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Larger maps are averaged over what falls into a cell, smaller ones interpolated."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return functional.interpolate(maps, size, mode="area")
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


@contextmanager
def read_stages(encoder: Encoder, layers: Sequence[str]) -> Iterator[Callable[[], list[Tensor]]]:
    """Inside, a function gives these layers' outputs in the last forward pass, without gradients, in this order."""
    backbone, _ = source_of(encoder.backbone)
    layers = [layer.removeprefix("source.") for layer in layers]
    outputs: dict[str, Tensor] = {}

    def keep(layer: str, _module: nn.Module, _inputs: object, output: object) -> None:
        outputs[layer] = returned_by(layer, output).detach()

    def stages() -> list[Tensor]:
        missing = next((layer for layer in layers if layer not in outputs), None)
        if missing is not None:
            raise InputError(f"layer {missing!r} did not run; encode images first, or name another stage")
        return [outputs[layer] for layer in layers]

    for layer in layers:
        require_layer(backbone, layer)
    handles = [backbone.get_submodule(layer).register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


def stage_layers(encoder: Encoder) -> tuple[str, str]:
    """The layers of stage 3 and stage 4: the last two resolutions or widths of the networks known by name."""
    if encoder.architecture in _STAGES:
        return _STAGES[encoder.architecture]
    names = {name for name, _ in source_of(encoder.backbone)[0].named_children()}
    if {"layer3", "layer4"} <= names:
        return ("layer3", "layer4")
    raise InputError(f'which layers of {encoder.architecture} are stages 3 and 4? Name them: stages = ["…", "…"]')


def stage_dims(encoder: Encoder, layers: Sequence[str]) -> tuple[int, int]:
    """The channels of two layers, found by encoding one black image."""
    if len(layers) != 2:
        raise InputError(f"expected two stages, got {len(layers)}: {', '.join(layers)}")
    weight = next(encoder.parameters())
    image = weight.new_zeros(1, 3, encoder.transform.height, encoder.transform.width)
    with evaluating(encoder), torch.no_grad(), read_stages(encoder, layers) as stages:
        encoder(image)
    first, second = stages()
    return first.shape[1], second.shape[1]
