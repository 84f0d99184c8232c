"""An encoder for other runtimes, as ONNX or as a program of `torch.export`: one input, an embedding and its map.

Pixels go in as the transform leaves them (RGB bytes, resized and cut); mean and deviation are part of the program. The
map's mean over rows and columns is the embedding, so a service in any language can search and explain: the map times a
match's vector is where the similarity lies.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .._version import __version__
from ..encoders import Encoder, affine_of
from ..encoders.folding import fold
from ..errors import DistcamError, InputError, MissingExtraError
from ..files import replacing, write_text

TOLERANCE = 1e-4


class Export(NamedTuple):
    """A program that was written, and how far it is from the encoder it was made of."""

    path: Path
    difference: float  # largest of the outputs, over the encoder's largest absolute value where that exceeds 1
    images: int  # that it was measured on
    described: dict[str, Any]  # what was written beside the program


class _Program(nn.Module):
    """Bytes of pixels to embedding and response map."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, pixels: UInt8[Tensor, "b 3 rows columns"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d h w"]]:
        encoder = self.encoder
        feature_map = encoder.backbone(encoder.transform.normalise(pixels))  # an `Encoding` would fix the batch size
        response = fold(feature_map, pooling=encoder.pooling, head=encoder.head)
        return encoder.embed(encoder.pooling(feature_map)), response.map


def export_encoder(encoder: Encoder, path: str | os.PathLike[str], pixels: UInt8[Tensor, "b 3 rows columns"]) -> Export:
    """Write an encoder as a program with two outputs and a free batch size, checked on images; a JSON stands beside it.

    It is in evaluation mode, and its head affine, or the map would hold to first order only. `path` is `.onnx` (needs
    the extra `onnx`), or `.pt2` for `torch.export.load`; `pixels` are two images or more, as its transform leaves them.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{path.name}: an encoder is exported as .onnx or .pt2")
    if len(pixels) < 2:
        raise InputError(f"expected at least two images to check on, got {len(pixels)}")
    if affine_of(encoder.head) is None:
        raise InputError(
            f"the head {type(encoder.head).__name__} is not affine, so its map changes with each image and is exact to "
            "first order only; export the encoder with another head, or without one"
        )
    program = _Program(encoder)
    with torch.no_grad():
        expected = program(pixels)
    described = _described(encoder, expected)
    with replacing(path) as aside:
        write = _written_onnx if path.suffix == ".onnx" else _written_torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters about themselves
            answered = write(_traced(program, pixels, encoder.architecture), aside, json.dumps(described))
        difference = max(_difference(answered, program, pixels), _difference(answered, program, pixels[:1]))
        if not difference <= TOLERANCE:
            raise DistcamError(
                f"{path.name} answers otherwise than {encoder.short_name}: the largest difference is {difference:.1e}, "
                f"at most {TOLERANCE:g} was expected; nothing is kept"
            )
    write_text(path.with_suffix(".json"), json.dumps(described, indent=2) + "\n")
    return Export(path, difference, len(pixels), described)


def _described(encoder: Encoder, outputs: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Facts that a service needs to feed the program and to compare its vectors, as JSON can hold them."""
    dim, rows, columns = outputs[1].shape[1:]
    height, width = encoder.transform.height, encoder.transform.width
    return {
        "distcam": __version__,
        "encoder": encoder.short_name,
        "fingerprint": encoder.fingerprint,
        "transform": encoder.transform.to_dict(),
        "input": {"pixels": f"uint8, (batch, 3, {height}, {width}), RGB; mean and std are applied inside"},
        "outputs": {
            "embedding": f"float32, (batch, {dim}), not normalised",
            "response_map": f"float32, (batch, {dim}, {rows}, {columns}); its mean over places is the embedding",
        },
    }


def _traced(program: nn.Module, pixels: Tensor, name: str) -> Any:
    """The program with a free batch size."""
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad():
            return torch.export.export(program, (pixels[:2],), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises whatever a network provokes
        why = str(error).strip().partition("\n")[0]
        raise InputError(f"{name} cannot be traced by torch.export ({why or type(error).__name__})") from error


def _written_torch(traced: Any, path: Path, told: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """A program of `torch.export` in a file, and as it runs from there."""
    with path.open("wb") as file:
        torch.export.save(traced, file, extra_files={"distcam.json": told})
    with path.open("rb") as file:
        run: Callable[[Tensor], Sequence[Tensor]] = torch.export.load(file).module()
    return run


def _written_onnx(traced: Any, path: Path, told: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """A program of ONNX likewise."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter wants it
    except ImportError as error:
        raise MissingExtraError(f"ONNX needs {error.name}, which is not here: pip install 'distcam[onnx]'") from error
    names = ["embedding", "response_map"]
    exported = torch.onnx.export(traced, input_names=["pixels"], output_names=names, dynamo=True, verbose=False)
    assert exported is not None
    model = exported.model_proto
    model.metadata_props.add(key="distcam", value=told)
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(each) for each in session.run(names, {"pixels": pixels.numpy()})]


def _difference(run: Callable[[Tensor], Sequence[Tensor]], program: nn.Module, pixels: Tensor) -> float:
    with torch.no_grad():
        pairs = list(zip(run(pixels), program(pixels), strict=True))
    return max(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)) for ours, theirs in pairs)
