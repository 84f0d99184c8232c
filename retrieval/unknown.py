"""A gallery of vectors whose encoder nobody has: it can be searched by what it holds, and by vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ..encoders import Encoder, Encoding
from ..errors import UnknownEncoderError
from ..index.storage.manifest import EncoderEntry

__all__ = ["UnknownInference"]


class UnknownInference:
    """Stands in for an `Inference`; whatever needs a forward pass, or the way pictures are prepared, is refused.

    Raises:
        UnknownEncoderError: from everything but the encoder's name.
    """

    device = torch.device("cpu")

    def __init__(self, entry: EncoderEntry) -> None:
        self.encoder = cast("Encoder", _UnknownEncoder(entry))

    def transform(self, _picture: Any) -> Tensor:
        """Refused."""
        raise _refusal()

    read = transform

    def encode_images(self, _images: Sequence[Any]) -> Encoding:
        """Refused."""
        raise _refusal()

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


def _refusal() -> UnknownEncoderError:
    return UnknownEncoderError(
        "the gallery's encoder is not at hand: its own images and vectors can be searched for, but no picture can be "
        "encoded or explained; --encoder CHECKPOINT names one"
    )
