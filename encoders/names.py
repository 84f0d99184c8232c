"""Names of architectures and weight files, known without importing torch."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..files import is_file

CHECKPOINT_SUFFIX = ".safetensors"
OWN_ARCHITECTURES = (
    *("conv4", "resnet12", "resnet38", "wrn28_10"),
    *("resnet56", "resnet110", "resnext29_8x64d", "densenet_bc_190_40", "pyramidnet200"),  # CIFAR's
)
"""Built here, beside torchvision's; there are no weights of them to download."""

LIBRARIES = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}
"""What names of other libraries begin with, `timm:NAME`, and the library; its extra is called as it."""

WITH_TEXT = (
    "encoders that do are open_clip:ViT-B-32, open_clip:ViT-B-16-SigLIP2, and hf: CLIP, SigLIP and SigLIP2 models "
    "with their tokenizer"
)
_IMAGENET = "'imagenet' (downloads them)"
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")


def library_of(name: str) -> str | None:
    """The prefix of a name that another library knows, "timm" of "timm:vit_tiny_patch16_224"; None for other names."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in LIBRARIES else None


def needs_weights(name: str) -> str:
    """The error where a network is named and its weights are not."""
    prefix = library_of(name)
    published = f"'pretrained' ({LIBRARIES[prefix]}'s own, downloaded or from its cache)" if prefix else _IMAGENET
    if name.startswith("osnet_"):
        return f"{name} needs weights: a FILE of torchreid or fast-reid, or 'random' (for trials)"
    return f"{name} needs weights: a FILE, {published}, or 'random' (for trials)"


_MAGICS = {
    b"GGUF": "a GGUF file of quantised weights",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"TFL3": "a TensorFlow Lite model",
}


def program_in(path: str | os.PathLike[str]) -> str:
    """The words for a file that is a whole program or of another framework, and no weights of torch; "" for others."""
    with suppress(Exception), Path(path).open("rb") as file:  # of whatever is broken whoever reads it will say so
        begin = file.read(8)
        if begin[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                names = [name.partition("/")[2] for name in archive.namelist()]
            if any(name.startswith("code/") or name == "constants.pkl" for name in names):
                return "a TorchScript program"
            if any(name.startswith(("models/", "data/weights/")) or name == "archive_format" for name in names):
                return "a program of torch.export"
        for magic, words in _MAGICS.items():
            if magic in (begin[:4], begin[4:8]):
                return words
    return "an ONNX program" if os.fspath(path).endswith(".onnx") and is_file(path) else ""


def refuse_weight_file(name: str, *, options: str = "") -> None:
    """Refuse a file of weights in the place of an architecture or a checkpoint; `options` name the way to pass both."""
    if library_of(name) is not None:
        return
    if not is_file(name):
        if name.endswith(_WEIGHT_SUFFIXES):
            raise InputError(f"{name}: no such file; expected an architecture's name or a checkpoint of distcam")
        return
    if not ("." in name or "/" in name) or name.endswith(CHECKPOINT_SUFFIX):
        return  # an architecture's name, or a checkpoint; of one that is damaged whoever reads it says so
    if program := program_in(name):
        raise InputError(
            f"{name} is {program}, which cannot be read out at a layer; name the architecture, and give the "
            f"state_dict() of its network as the weights{options}"
        )
    with suppress(OSError), Path(name).open("rb") as file:  # whoever reads it will say so
        if file.read(9)[8:] == b"{":  # behind the length of the header of safetensors
            return
        raise InputError(
            f"{name} is a file of weights alone, which does not say what network they are of; name the architecture, "
            f"and give this file as its weights{options}"
        )
