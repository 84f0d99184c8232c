"""CPN: the maps of two images that hide complementary patches should add up to the map of the whole one.

    L      = L_cls + L_tcp + L_cpcr
    L_cls  = (ℓ(Y_o) + ℓ(Y_h) + ℓ(Y_h̄)) / 3, the multi-label soft margin loss of the pooled maps      [CPN] Eq. 13
    L_tcp  = |λ Y_h + λ̄ Y_h̄ - Y_o| + |λ Ỹ_h + λ̄ Ỹ_h̄ - Ỹ_o|                                            [CPN] Eq. 14
    L_cpcr = |(Y_o - λ Y_h) - λ̄ Ỹ_h̄| + |(Y_o - λ̄ Y_h̄) - λ Ỹ_h|, the hardest fifth of it              [CPN] Eq. 15

Y are maps on a common scale, absent classes 0; Ỹ are refined (`refinement`). |·| is the mean over positions and
classes, in L_cpcr with the background among them, of each image's hardest positions and classes.

What the paper leaves open, and where the published code departs from it; each departure is an option, and
`official_compat` sets them all:

- No gradient goes through the pair's maps in the sum of Eq. 6. So in L_tcp the sum is the constant that Y_o follows, in
  both terms. The published code leaves the refined sum free (`free_refined_pair`).
- In L_cpcr what is left over, Y_o - λ Y_h, is a constant, as in the published code: L_cpcr trains the refinement, and
  the network learns from L_cls and L_tcp. With a gradient through Y_o (`free_minuend`) networks trained from scratch
  found the way out of making all maps alike, and did not even learn to classify. The published code also keeps of the
  minuend the highest class of each position only (`one_hot`).
- Printed, the first term of Eq. 15 ends in Y_h̄ without a tilde. The cross between plain and refined maps is what the
  loss is for, and the published code has it in both terms, as we do; `printed_cpcr` follows the print.
- The published code adds a loss that no equation has: the mean of the lowest quarter of the highest refined class map
  (`min_pooling`). It also scales maps by their range (`scaling`) and has the softmax of PRCM over positions
  (`prcm_softmax`).
- The published code enlarges the maps to the image first (`resolution = "image"`). At the network's own resolution the
  losses say the same for a fraction of the time.
- The paper starts from ImageNet weights whose batch norms are frozen. Where they are not frozen, `batch_norm` says
  whose statistics they use. A network from scratch has to know the classes first: until the epoch `start` it learns
  from whole images alone, which is the plain CAM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...errors import InputError
from ...training.engine.step import Step, Term
from ...training.losses.attention import statistics_frozen
from ...training.losses.registry import TermContext, checked_term
from ..pseudo_masks.class_maps import Scaling, class_maps, scaled_maps, with_background
from .map_term import MapTerm, hardest, min_pooling_loss, refinement_for, require_plain_maps
from .patches import GridPatches, Patches, PatchPair, SuperpixelPatches
from .refinement import PrcmSoftmax, read_stages, stage_layers

__all__ = ["OFFICIAL", "Cpn", "build_cpn", "cpcr_loss", "tcp_loss"]

BatchNorm = Literal["joint", "separate", "original"]
OFFICIAL: Mapping[str, Any] = {
    "free_refined_pair": True,
    "one_hot": True,
    "min_pooling": 1.0,
    "scaling": "range",
    "prcm_softmax": "pixel",
    "resolution": "image",
}
"""What `official_compat` stands for, where it is not said otherwise."""


# --- the losses as functions of maps ----------------------------------------------------------------------------------


def tcp_loss(
    original: Float[Tensor, "b c h w"],
    pair: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    *,
    share: Float[Tensor, " b"],
    free_pair: bool = False,
) -> Tensor:
    """One term of L_tcp: how far the pair's weighted sum is from the whole image's map, mean over all elements.

    Args:
        original: Y_o, which follows.
        pair: Y_h and Y_h̄, constants.
        share: λ.
        free_pair: let gradients through the pair.

    Source: [CPN] Eq. 14.

    >>> one = torch.ones(1, 1, 1, 2)
    >>> tcp_loss(one, (one, one * 0), share=torch.tensor([0.25])).item()               # |0.25 - 1|
    0.75
    """
    part = share[:, None, None, None]
    together = part * pair[0] + (1 - part) * pair[1]
    return ((together if free_pair else together.detach()) - original).abs().mean()


def cpcr_loss(
    original: Float[Tensor, "b c h w"],
    pair: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    refined: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]],
    *,
    share: Float[Tensor, " b"],
    hard_share: float | None = 0.2,
    free_minuend: bool = False,
    one_hot: bool = False,
    printed: bool = False,
) -> Tensor:
    """L_cpcr: what the whole map leaves when one image's is taken away should be the other's refined map.

    Args:
        original: Y_o with the background.
        pair: Y_h and Y_h̄ with theirs; constants where they are taken away.
        refined: Ỹ_h and Ỹ_h̄.
        share: λ.
        hard_share: of each image's elements, those with the largest errors; None for all.
        free_minuend: let gradients through Y_o.
        one_hot: of what is left over, keep each position's highest class only.
        printed: the plain Y_h̄ in the first term, as Eq. 15 is printed.

    Source: [CPN] Eq. 15.
    """
    part = share[:, None, None, None]
    (hidden, complement), (refined_hidden, refined_complement) = pair, refined
    total = original.new_zeros(())
    for seen, seen_share, other, other_share in (
        (hidden, part, complement if printed else refined_complement, 1 - part),
        (complement, 1 - part, refined_hidden, part),
    ):
        left = original - seen_share * seen.detach()
        left = left if free_minuend else left.detach()
        left = left * (left == left.amax(1, keepdim=True)) if one_hot else left
        total = total + hardest((left - other_share * other).abs(), hard_share)
    return total


# --- the term ---------------------------------------------------------------------------------------------------------


class Cpn(MapTerm):
    """The complementary patch network: three branches with one network, and a refinement that learns beside it.

    Args:
        encoder: gives the channels of map and stages.
        n_classes: number of classes.
        tcp: whether L_tcp takes part; without it, and without `cpcr`, the pair only adds to L_cls.
        cpcr: whether L_cpcr does; it needs a refinement.
        ohem: L_cpcr of the hardest elements alone.
        hard_share: how many those are.
        pcm: whether PCM refines.
        prcm: whether PRCM does; without both there is no refinement.
        prcm_softmax: see `Prcm`.
        patches: "grid" or "superpixels".
        sizes: of the grid's squares, in pixels or as shares of the shorter side.
        segments: of the superpixels.
        hidden: p_h.
        share: what λ counts, "pixels" or "patches".
        replacement: draw superpixels with replacement; see `SuperpixelPatches`.
        tcp_weight: of L_tcp, 1 in the paper.
        cpcr_weight: of L_cpcr, 1 in the paper.
        power: a of the background's score.
        scaling: "max" or "range"; see `scaled_maps`.
        resolution: where the losses are computed: at the maps' size ("map") or the "image"'s.
        batch_norm: of a network whose batch norms are not frozen. "joint": one pass, statistics of all three branches.
            "separate": three passes, each branch its own. "original": the pair passes with the running statistics and
            leaves them alone, so that they stay those of whole images.
        start: the epoch in which the pair comes in, from 0; before, this is the plain CAM.
        stages: the layers of stages 3 and 4; see `stage_layers`.
        free_refined_pair: see the module's text.
        free_minuend: see the module's text.
        one_hot: see the module's text.
        printed_cpcr: see the module's text.
        min_pooling: weight of that loss; see the module's text.

    Source: [CPN] §3.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        *,
        tcp: bool = True,
        cpcr: bool = True,
        ohem: bool = True,
        hard_share: float = 0.2,
        pcm: bool = True,
        prcm: bool = True,
        prcm_softmax: PrcmSoftmax = "class",
        patches: Literal["grid", "superpixels"] = "grid",
        sizes: Sequence[float] = (0.125, 0.25),
        segments: int = 200,
        hidden: float = 0.5,
        share: Literal["pixels", "patches"] = "pixels",
        replacement: bool = False,
        tcp_weight: float = 1.0,
        cpcr_weight: float = 1.0,
        power: float = 1.0,
        scaling: Scaling = "max",
        resolution: Literal["map", "image"] = "map",
        batch_norm: BatchNorm = "joint",
        start: int = 0,
        stages: Sequence[str] | None = None,
        free_refined_pair: bool = False,
        free_minuend: bool = False,
        one_hot: bool = False,
        printed_cpcr: bool = False,
        min_pooling: float = 0.0,
    ) -> None:
        super().__init__(encoder.pooled_dim, n_classes)
        if cpcr and not (pcm or prcm):
            raise InputError("cpcr compares plain with refined maps; switch pcm or prcm on, or cpcr off")
        if not 0 < hard_share <= 1 or min(tcp_weight, cpcr_weight, min_pooling) < 0 or start < 0:
            raise InputError("expected 0 < hard_share <= 1, weights of at least 0, and an epoch to start in from 0 on")
        for name, value, known in (
            ("batch_norm", batch_norm, ("joint", "separate", "original")),
            ("resolution", resolution, ("map", "image")),
            ("patches", patches, ("grid", "superpixels")),
        ):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
        self.tcp_weight, self.cpcr_weight = tcp_weight * tcp, cpcr_weight * cpcr
        self.hard_share = hard_share if ohem else None
        self.scaling, self.power, self.resolution, self.batch_norm = scaling, power, resolution, batch_norm
        self.start, self.min_pooling = start, min_pooling
        self.free_refined_pair, self.free_minuend = free_refined_pair, free_minuend
        self.one_hot, self.printed_cpcr = one_hot, printed_cpcr
        self.patches: Patches = (
            GridPatches(sizes, hidden=hidden, share=share)
            if patches == "grid"
            else SuperpixelPatches(
                encoder.transform, segments=segments, hidden=hidden, share=share, replacement=replacement
            )
        )
        if pcm or prcm:
            self.stages = tuple(stages) if stages is not None else stage_layers(encoder)
            self.refinement = refinement_for(
                encoder, self.stages, pcm=pcm, prcm=prcm, prcm_softmax=prcm_softmax, scaling=scaling, power=power
            )

    def forward(self, step: Step) -> Tensor:
        """L; its parts are in the step's log."""
        if step.progress.epoch < self.start:
            return super().forward(step)
        labels, images = self.labels(step), step.batch.images
        pair = self.patches.draw(images)
        branches, features = self._branches(step, images, pair)
        maps = class_maps(branches, self.weight)
        original, hidden, complement = maps.chunk(3)
        value = self.classification(step, original, labels)
        for other in (hidden, complement):
            value = value + functional.multilabel_soft_margin_loss(other.mean((-2, -1)), labels)
        total = value / 3
        step.log["cls"] = float(total.detach())
        step.log["whole_pairs"] = float(pair.is_whole.float().mean())
        return total + self._regularised(step, maps, features, labels, pair)

    def _branches(self, step: Step, images: Tensor, pair: PatchPair) -> tuple[Tensor, Tensor | None]:
        """Feature maps of I, I_h and I_h̄, one after another, and X of all three."""
        hidden, complement = pair.images(images)
        groups = [[images, hidden, complement]]
        if _learns_statistics(step.encoder):
            groups = {
                "joint": groups,
                "separate": [[images], [hidden], [complement]],
                "original": [[images], [hidden, complement]],
            }[self.batch_norm]
        maps: list[Tensor] = []
        stages: list[list[Tensor]] = []
        with read_stages(step.encoder, self.stages) as reader:
            for number, group in enumerate(groups):
                frozen = self.batch_norm == "original" and number
                with statistics_frozen(step.encoder) if frozen else nullcontext():
                    maps.append(step.encode(torch.cat(group)).feature_map)
                stages.append(reader.stages)
        feature_map = torch.cat(maps)
        if self.refinement is None:
            return feature_map, None
        joined = [torch.cat(own) for own in zip(*stages, strict=True)]
        size = (feature_map.shape[-2], feature_map.shape[-1])
        return feature_map, self.refinement.features(joined, torch.cat([images, hidden, complement]), size)

    def _regularised(
        self, step: Step, maps: Tensor, features: Tensor | None, labels: Tensor, pair: PatchPair
    ) -> Tensor:
        """The weighted sum of L_tcp, L_cpcr, and the loss that is in no paper."""
        thrice = labels.repeat(3, 1)
        scaled = scaled_maps(self._sized(maps, step), thrice, scaling=self.scaling)
        refined = None
        if self.refinement is not None and features is not None:
            refined = self._sized(self.refinement.refine(maps, features, thrice), step)
        total = maps.new_zeros(())
        if self.tcp_weight:
            original, hidden, complement = scaled.chunk(3)
            tcp = tcp_loss(original, (hidden, complement), share=pair.share)
            if refined is not None:
                original, hidden, complement = refined[:, 1:].chunk(3)
                free = self.free_refined_pair
                tcp = tcp + tcp_loss(original, (hidden, complement), share=pair.share, free_pair=free)
            step.log["tcp"] = float(tcp.detach())
            total = total + self.tcp_weight * tcp
        if self.cpcr_weight and refined is not None:
            original, hidden, complement = with_background(scaled, power=self.power).chunk(3)
            _, refined_hidden, refined_complement = refined.chunk(3)
            cpcr = cpcr_loss(
                original,
                (hidden, complement),
                (refined_hidden, refined_complement),
                share=pair.share,
                hard_share=self.hard_share,
                free_minuend=self.free_minuend,
                one_hot=self.one_hot,
                printed=self.printed_cpcr,
            )
            step.log["cpcr"] = float(cpcr.detach())
            total = total + self.cpcr_weight * cpcr
        if self.min_pooling and refined is not None:
            total = total + self.min_pooling * min_pooling_loss(refined[:, 1:])
        return total

    def _sized(self, maps: Tensor, step: Step) -> Tensor:
        if self.resolution == "map":
            return maps
        return functional.interpolate(maps, step.batch.images.shape[-2:], mode="bilinear", align_corners=False)


def _learns_statistics(encoder: Encoder) -> bool:
    norms = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return any(norm.training for norm in norms)


def build_cpn(options: Mapping[str, Any], context: TermContext) -> Term:
    """CPN from a recipe: the options of `Cpn`, and `official_compat`."""
    require_plain_maps(context.encoder, "cpn")
    own = dict(options)
    if own.pop("official_compat", False):
        own = {**OFFICIAL, **own}
    return checked_term("cpn", partial(Cpn, context.encoder, context.n_classes), own)
