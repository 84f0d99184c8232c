"""PAIR-X (Shrack et al. 2025, arXiv:2503.22881) as far as it is compared here: relevance of places, and lines.

Lines join cells of an intermediate feature map that are each other's nearest by L2; a line weighs the product of the
relevance of its two ends. Relevance is layer-wise relevance propagation of cos · ∂cos/∂embedding down to that map,
Σ_c |R_c| at each cell: batch norms are folded into convolutions, convolutions follow the z⁺ rule (Bach et al. 2015;
Montavon et al. 2017), activations pass relevance on, average pooling shares it by what each place adds. Sums of
residual branches hand it to both. The image of coloured pairs, another pass back for each of ten lines, is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from distcam.encoders import Encoder

LAYERS = {"mobilenet_v2": "features.10", "lite": "blocks.3", "resnet18": "layer3", "squeezenet": "features.10"}
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
TINY = 1e-6


class _ZPlus(torch.autograd.Function):
    """A convolution whose gradient is relevance by the z⁺ rule, also where inputs are negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: nn.Conv2d, positive: nn.Conv2d, negative: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x)
        ctx.signed = positive, negative
        found: Tensor = own(x)
        return found

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (x,), (positive, negative) = ctx.saved_tensors, ctx.signed
        parts = [x.clamp(min=0).requires_grad_(), x.clamp(max=0).requires_grad_()]
        with torch.enable_grad():
            z = positive(parts[0]) + negative(parts[1])
            back = torch.autograd.grad(z, parts, relevance / (z + TINY))
        return sum((part * own for part, own in zip(parts, back, strict=True)), torch.zeros_like(x)), None, None, None


def _relevant(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """What a convolution computes, with the pass back of `_ZPlus`."""
    own, positive, negative = (copy.deepcopy(convolution) for _ in range(3))
    positive.weight.clamp_(min=0)
    negative.weight.clamp_(max=0)
    if positive.bias is not None and negative.bias is not None:
        positive.bias.clamp_(min=0)
        negative.bias.zero_()
    return lambda x: _ZPlus.apply(x, own, positive, negative)  # type: ignore[no-any-return]


def _passed(activation: nn.Module, x: Tensor) -> Tensor:
    """An activation that hands relevance on as it is."""
    return x + (activation(x) - x).detach()


class PairX:
    """An encoder without a head, whose passes back carry relevance, not gradients; the one given is left as it is."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        for module in list(self.encoder.modules()):
            _fold_batch_norms(module)
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.forward = _relevant(module)
            elif isinstance(module, ACTIVATIONS):
                module.forward = partial(_passed, type(module)())
        named = dict(self.encoder.backbone.named_modules())
        ending = next(own for each, own in LAYERS.items() if each in name)  # stride 16
        self.layer = next(each for each in named if each == ending or each.endswith(f".{ending}"))
        named[self.layer].register_forward_hook(self._watch)

    def _watch(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._features = output
        if output.requires_grad:
            output.retain_grad()

    def __call__(self, images: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Features (b, c, h, w) of normalised images, and relevance (b, h, w) for the embeddings (b, d) of others."""
        with torch.enable_grad():
            found = self.encoder(images.clone().requires_grad_())
            embedding = found.embedding.detach().requires_grad_()
            cosine = functional.cosine_similarity(embedding, other)
            (asked,) = torch.autograd.grad(cosine, embedding, cosine.detach())
            feature_map = found.feature_map
            shares = feature_map.detach() / (feature_map.detach().sum((2, 3), keepdim=True) + TINY)
            feature_map.backward(shares * asked[:, :, None, None])
        relevance = self._features.grad
        assert relevance is not None, self.layer
        return self._features.detach(), relevance.abs().sum(1)


def _fold_batch_norms(module: nn.Module) -> None:
    """Every batch norm behind a convolution becomes part of it, and itself does nothing (but for its activation)."""
    before: nn.Module | None = None
    for child in module.children():
        if isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(before, child)
            before.weight, before.bias = folded.weight.requires_grad_(False), folded.bias.requires_grad_(False)
            child.register_buffer("running_mean", torch.zeros_like(child.bias))
            child.register_buffer("running_var", torch.full_like(child.bias, 1 - child.eps))
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        before = child


def lines(one: Tensor, other: Tensor, relevance: tuple[Tensor, Tensor], limit: int = 20) -> tuple[Tensor, Tensor]:
    """The strongest lines between two maps (c, h, w) as cells (n, 2) of each, (row, column)."""
    distance = torch.cdist(one.flatten(1).T, other.flatten(1).T)
    best, back = distance.argmin(1), distance.argmin(0)
    place = (back[best] == torch.arange(len(best))).nonzero()[:, 0]
    strength = relevance[0].flatten()[place] * relevance[1].flatten()[best[place]]
    place = place[strength.argsort(descending=True)[:limit]]
    shapes = one.shape[1:], other.shape[1:]
    sides = zip((place, best[place]), shapes, strict=True)
    found = [torch.stack(torch.unravel_index(cells, tuple(shape)), 1) for cells, shape in sides]
    return found[0], found[1]
