"""Channel weights from running the network again: with a channel left out, or on the image seen through a channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...metrics.maps import normalise, upsample
from ..layer_runs import LayerView


def ablation_weights(view: LayerView, *, batch_size: int = 32) -> Float[Tensor, "b m k"]:
    """Ablation-CAM's weight of each channel: the share of the score that is lost with it, `(y - y_k) / |y|`.

    y_k is the score when the channel's map is 0. The paper divides by y; the magnitude keeps the meaning of the sign
    for negative scores (logits, minus a distance). A score of 0 divides by 1.

    Source: Desai and Ramaswamy, Ablation-CAM, 2020, Eq. 3.
    """
    run = view.run
    share = run.can_share(view.score)

    def without(rows: Tensor, channels: Tensor) -> Any:
        def silence(maps: Tensor) -> None:
            maps[torch.arange(len(rows), device=maps.device), channels] = 0

        return run.replay(rows, silence, share=share)

    remaining = _for_each_channel(view, without, batch_size=batch_size)
    y = view.scores.detach()[..., None]
    return (y - remaining) / torch.where(y == 0, 1.0, y.abs())


def score_weights(view: LayerView, *, batch_size: int = 32) -> Float[Tensor, "b m k"]:
    """Score-CAM's weight of each channel: the softmax over channels of y on the image seen through the channel.

    The image is multiplied by the channel's map, first resized to the image (bilinear, align_corners=False) and then
    scaled to [0, 1]; a constant map shows nothing of the image. The paper subtracts the score of a baseline image,
    which is the same for all channels and so leaves the softmax as it is. Where all channels score exactly alike,
    nothing of the image was asked about (an empty set of pixels), and the weights are 0.

    Source: Wang et al., Score-CAM, 2020, Eq. 5-7.
    """
    run, activations = view.run, view.run.activations

    def seen_through(rows: Tensor, channels: Tensor) -> Any:
        images = run.images[rows]
        masks = normalise(upsample(activations[rows, channels], (images.shape[-2], images.shape[-1])))
        with torch.no_grad():
            return run.model(images * masks[:, None].to(images))

    scores = _for_each_channel(view, seen_through, batch_size=batch_size)
    is_asked = (scores != scores[..., :1]).any(-1, keepdim=True) | (scores.shape[-1] == 1)
    return scores.softmax(-1) * is_asked


def _for_each_channel(
    view: LayerView, output: Callable[[Tensor, Tensor], Any], *, batch_size: int
) -> Float[Tensor, "b m k"]:
    """The scores of the outputs for each image and channel; `batch_size` channels of one image at a time."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} should be 1 or more")
    n_images, n_channels = view.run.activations.shape[:2]
    pairs = torch.cartesian_prod(torch.arange(n_images), torch.arange(n_channels)).to(view.run.images.device)
    with torch.no_grad():
        chunks = [some for of_image in torch.split(pairs, n_channels) for some in torch.split(of_image, batch_size)]
        scores = [view.score(output(*some.unbind(1)), some[:, 0]) for some in chunks]
    return torch.cat(scores).reshape(n_images, n_channels, -1).mT
