"""Readouts: the vector that a network of any library is searched by, as a map whose mean over places is that vector."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .layers import Tap, as_feature_map, closest, eagerly

READOUTS: Mapping[str, str] = {
    "auto": "the vector that the model's authors rank by",
    "mean": "the mean of the last map, or of the patch tokens",
    "class": "the class token behind the last norm",
    "class+mean": "the class token and the mean of the patch tokens, one behind the other",
    "attention": "the attention pooling that the model ends with",
}


def read_out(model: nn.Module, readout: str = "auto", *, layer: str | None = None) -> nn.Module:
    """A network from images to the map (b, p, rows, columns) whose mean over places is the vector that is searched.

    Args:
        model: a network of timm, transformers or open_clip, or any other that returns a map, tokens or a vector.
        readout: one of `READOUTS`.
        layer: read the output of this layer in place of the model's own.

    Raises:
        InputError: an unknown readout or layer.
    """
    if readout not in READOUTS:
        raise InputError(f"no readout {readout!r}; nearest: {closest(readout, list(READOUTS))}")
    return ReadOut(model if layer is None else Tap(model, layer), readout)


class ReadOut(nn.Module):
    """A network read out as a map whose mean over places is the vector that is searched."""

    def __init__(self, source: nn.Module, readout: str) -> None:
        super().__init__()
        self.source = source
        self.readout = readout

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p rows columns"]:
        """The map."""
        with eagerly(self.source):
            features = getattr(self.source, "forward_features", self.source)(images)
        features = getattr(features, "last_hidden_state", features)
        return as_feature_map(features, (images.shape[2], images.shape[3]), origin=type(self.source).__name__)

    def extra_repr(self) -> str:
        """The readout, for `print(encoder)`."""
        return f"readout={self.readout}"
