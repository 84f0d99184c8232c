"""Manifold Mixup's part in a forward pass: what a layer hands on of each image, blended with its partner's.

Source: Verma et al. 2019, arXiv:1806.05236, Eq. 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ...encoders import Encoder
from ...encoders.layers import require_layer
from ...encoders.readouts import source_of
from ...errors import InputError


@contextmanager
def blended(encoder: Encoder, layer: str, *, partner: Int[Tensor, " b"] | None, share: float) -> Iterator[None]:
    """Inside, an image keeps `share` of what the backbone's layer hands on, the rest is its partner's; "": nothing is.

    Raises:
        InputError: the backbone has no such layer.
    """
    if not layer or partner is None:
        yield
        return
    backbone, _ = source_of(encoder.backbone)
    try:
        require_layer(backbone, layer)
    except InputError as error:
        raise InputError(f"augment.manifold_layers: {error}") from None

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return torch.lerp(output[partner], output, share)

    handle = backbone.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
