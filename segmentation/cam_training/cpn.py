"""CPN: the maps of two images that hide complementary patches should add up to the map of the whole one.

    L      = L_cls + L_tcp + L_cpcr
    L_cls  = (ℓ(Y_o) + ℓ(Y_h) + ℓ(Y_h̄)) / 3, the multi-label soft margin loss of the pooled maps      [CPN] Eq. 13
    L_tcp  = |λ Y_h + λ̄ Y_h̄ - Y_o| + |λ Ỹ_h + λ̄ Ỹ_h̄ - Ỹ_o|                                            [CPN] Eq. 14
    L_cpcr = |(Y_o - λ Y_h) - λ̄ Ỹ_h̄| + |(Y_o - λ̄ Y_h̄) - λ Ỹ_h|, the hardest fifth of it              [CPN] Eq. 15

Y are maps on a common scale, absent classes 0; Ỹ are refined. What the paper leaves open, and where the published code
departs from it (`official_compat`), is in docs/guides/segment.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...errors import InputError
from ...training.engine.step import Step, Term, multi_hot
from ...training.losses.attention import statistics_frozen
from ...training.losses.registry import TermContext
from ...training.recipes.tables import NotNegative, parse
from .class_maps import class_maps, hardest, min_pooling_loss, read_stages, scaled_maps, with_background
from .map_term import MapSettings, MapTerm, renamed
from .patches import GridPatches, Patches, PatchPair, SuperpixelPatches

AUTHORS_CODE: Mapping[str, Any] = {
    "detach_refined_pair": False,
    "one_hot": True,
    "min_pooling": 1.0,
    "scaling": "range",
    "prcm_softmax": "pixel",
    "resolution": "image",
}
"""Preset of the published code: what `official_compat` in a recipe sets where the recipe does not say otherwise."""

_EARLIER_NAMES = {
    "free_refined_pair": "detach_refined_pair",
    "free_minuend": "detach_minuend",
    "printed_cpcr": "as_printed_in_paper",
}


def tcp_loss(
    original: Float[Tensor, "b c h w"],
    pair: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    *,
    share: Float[Tensor, " b"],
    detach_pair: bool = True,
) -> Tensor:
    """One term of L_tcp: mean distance of the pair's weighted sum from the whole image's map ([CPN] Eq. 14)."""
    part = share[:, None, None, None]
    together = part * pair[0] + (1 - part) * pair[1]
    return ((together.detach() if detach_pair else together) - original).abs().mean()


class CpnSettings(MapSettings):
    """Options of CPN, under the names that a recipe gives them."""

    tcp: bool = True  # L_tcp takes part; without it, and without `cpcr`, the pair only adds to L_cls
    cpcr: bool = True  # L_cpcr takes part; it needs a refinement
    patches: Literal["grid", "superpixels"] = "grid"
    sizes: tuple[float, ...] = (0.125, 0.25)  # of the grid's squares, in pixels or as shares of the shorter side
    segments: int = 200  # of the superpixels
    hidden: float = 0.5  # p_h
    share: Literal["pixels", "patches"] = "pixels"  # λ counts "pixels" or "patches"
    replacement: bool = False  # draw superpixels with replacement; see `SuperpixelPatches`
    tcp_weight: NotNegative = 1.0  # of L_tcp, 1 in the paper
    cpcr_weight: NotNegative = 1.0  # of L_cpcr, 1 in the paper
    resolution: Literal["map", "image"] = "map"  # of the losses: the maps' size ("map") or the "image"'s
    # of batch norms that are not frozen. "joint": one pass, statistics of all three branches. "separate": each branch
    # its own. "original": the pair passes with the running statistics and leaves them alone.
    batch_norm: Literal["joint", "separate", "original"] = "joint"
    detach_refined_pair: bool = True  # no gradient goes through the refined maps' sum in L_tcp
    # what is left over in L_cpcr is a constant, so that L_cpcr trains the refinement alone. With a gradient through Y_o
    # networks from scratch make all maps alike.
    detach_minuend: bool = True
    # the first term of Eq. 15 has the plain Y_h̄, without the tilde that the print lacks.
    as_printed_in_paper: bool = False

    def _check(self) -> None:
        super()._check()
        if self.cpcr and not (self.pcm or self.prcm):
            raise InputError("cpcr compares plain with refined maps; switch pcm or prcm on, or cpcr off")


def cpcr_loss(
    original: Float[Tensor, "b c h w"],
    pair: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    refined: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    *,
    share: Float[Tensor, " b"],
    settings: CpnSettings,
) -> Tensor:
    """L_cpcr: the whole map less one image's should be the other's refined map ([CPN] Eq. 15)."""
    part = share[:, None, None, None]
    (hidden, complement), (refined_hidden, refined_complement) = pair, refined
    total = original.new_zeros(())
    for seen, seen_share, other, other_share in (
        (hidden, part, complement if settings.as_printed_in_paper else refined_complement, 1 - part),
        (complement, 1 - part, refined_hidden, part),
    ):
        left = original - seen_share * seen.detach()
        left = left.detach() if settings.detach_minuend else left
        left = left * (left == left.amax(1, keepdim=True)) if settings.one_hot else left
        total = total + hardest((left - other_share * other).abs(), settings.compared)
    return total


class Cpn(MapTerm):
    """The complementary patch network: three branches, and a refinement that learns beside them ([CPN] §3)."""

    def __init__(self, encoder: Encoder, n_classes: int, settings: CpnSettings | None = None) -> None:
        super().__init__(encoder.pooled_dim, n_classes)
        own = self.settings = settings or CpnSettings()
        self.patches: Patches
        common: dict[str, Any] = {"hidden": own.hidden, "share": own.share}
        if own.patches == "grid":
            self.patches = GridPatches(own.sizes, **common)
        else:
            common |= {"segments": own.segments, "replacement": own.replacement}
            self.patches = SuperpixelPatches(encoder.transform, **common)
        self.add_refinement(encoder, own)

    def forward(self, step: Step) -> Tensor:
        """L; its parts are in the step's log."""
        if step.progress.epoch < self.settings.start:
            return super().forward(step)
        labels, images = multi_hot(step.batch, "Cpn"), step.batch.images
        pair = self.patches.draw(images)
        branches, features = self.branches(step, images, pair)
        maps = class_maps(branches, self.weight)
        original, hidden, complement = maps.chunk(3)
        value = self.classification(step, original, labels)
        for other in (hidden, complement):
            value = value + functional.multilabel_soft_margin_loss(other.mean((-2, -1)), labels)
        total = step.noted("cls", value / 3)
        step.log["whole_pairs"] = pair.is_whole.float().mean()
        return total + self.regularisation(step, maps, features, labels=labels, share=pair.share)

    def branches(self, step: Step, images: Tensor, pair: PatchPair) -> tuple[Tensor, Tensor | None]:
        """Feature maps of I, I_h and I_h̄, one after another, and X of all three."""
        views = [images, *pair.images(images)]
        norms = [part for part in step.encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        groups = [views]
        if any(norm.training for norm in norms):
            by_way = {"joint": [views], "separate": [[view] for view in views], "original": [views[:1], views[1:]]}
            groups = by_way[self.settings.batch_norm]
        maps: list[Tensor] = []
        stages: list[list[Tensor]] = []
        with read_stages(step.encoder, self.stages) as read:
            for number, group in enumerate(groups):
                frozen = self.settings.batch_norm == "original" and number
                with statistics_frozen(step.encoder) if frozen else nullcontext():
                    maps.append(step.encode(torch.cat(group)).feature_map)
                stages.append(read())
        feature_map = torch.cat(maps)
        if self.refinement is None:
            return feature_map, None
        joined = [torch.cat(own) for own in zip(*stages, strict=True)]
        size = (feature_map.shape[-2], feature_map.shape[-1])
        return feature_map, self.refinement.features(joined, torch.cat(views), size)

    def regularisation(
        self, step: Step, maps: Tensor, features: Tensor | None, *, labels: Tensor, share: Tensor
    ) -> Tensor:
        """The weighted sum of L_tcp, L_cpcr, and the loss that is in no paper."""
        own = self.settings
        thrice = labels.repeat(3, 1)
        scaled = scaled_maps(self._sized(maps, step), thrice, scaling=own.scaling)
        refined = None
        if self.refinement is not None and features is not None:
            refined = self._sized(self.refinement.refine(maps, features, thrice), step)
        total = maps.new_zeros(())
        if own.tcp and own.tcp_weight:
            whole, *pair = scaled.chunk(3)
            tcp = tcp_loss(whole, (pair[0], pair[1]), share=share)
            if refined is not None:
                whole, *pair = refined[:, 1:].chunk(3)
                tcp = tcp + tcp_loss(whole, (pair[0], pair[1]), share=share, detach_pair=own.detach_refined_pair)
            total = total + own.tcp_weight * step.noted("tcp", tcp)
        if own.cpcr and own.cpcr_weight and refined is not None:
            whole, *pair = with_background(scaled, power=own.power).chunk(3)
            _, *crossed = refined.chunk(3)
            cpcr = cpcr_loss(whole, (pair[0], pair[1]), (crossed[0], crossed[1]), share=share, settings=own)
            total = total + own.cpcr_weight * step.noted("cpcr", cpcr)
        if own.min_pooling and refined is not None:
            total = total + own.min_pooling * min_pooling_loss(refined[:, 1:])
        return total

    def _sized(self, maps: Tensor, step: Step) -> Tensor:
        if self.settings.resolution == "map":
            return maps
        return functional.interpolate(maps, step.batch.images.shape[-2:], mode="bilinear", align_corners=False)


def build_cpn(options: Mapping[str, Any], context: TermContext) -> Term:
    """CPN from a recipe: the options of `CpnSettings`, and `official_compat` for those of the authors' code."""
    own = renamed("cpn", options, _EARLIER_NAMES, context.encoder)
    if own.pop("official_compat", False):
        own = {**AUTHORS_CODE, **own}
    return Cpn(context.encoder, context.n_classes, parse(CpnSettings, own, "loss.cpn"))
