"""A gallery of vectors whose encoder nobody has: it can be searched by what it holds, and by vectors."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..encoders import Encoder, Encoding
from ..index.manifest import EncoderEntry
from .refusals import Refusal

__all__ = ["UnknownInference"]


class UnknownInference:
    """Stands in for an `Inference`; whatever needs a forward pass, or the way pictures are prepared, is refused.

    Raises:
        Refusal: 409, from everything but the encoder's name.
    """

    device = torch.device("cpu")

    def __init__(self, entry: EncoderEntry) -> None:
        self.encoder = cast("Encoder", _UnknownEncoder(entry))

    def transform(self, _picture: Any) -> Tensor:
        """Refused."""
        raise _refusal()

    read = transform

    def __call__(self, _pixels: Tensor) -> Encoding:
        """Refused."""
        raise _refusal()


class _UnknownEncoder:
    """Goes by the name that the gallery has for it, and has nothing else."""

    def __init__(self, entry: EncoderEntry) -> None:
        self.fingerprint = entry.fingerprint
        self.short_name = entry.short_name

    def __getattr__(self, name: str) -> NoReturn:
        raise _refusal()


def _refusal() -> Refusal:
    return Refusal(
        409,
        "the gallery's encoder is not known to this server: its own images and vectors can be searched for, but no "
        "picture can be encoded or explained; start the server with --encoder",
        reason="encoder",
    )
