"""Names of architectures and weight files, known without importing torch."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import is_file

CHECKPOINT_SUFFIX = ".safetensors"
OWN_ARCHITECTURES = ("conv4", "resnet12", "resnet38", "wrn28_10")
"""Built here, beside torchvision's; there are no weights of them to download."""

_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")


def needs_weights(name: str) -> str:
    """The error where a network is named and its weights are not."""
    return f"{name} needs weights: a FILE, 'imagenet' (downloads them), or 'random' (for trials)"


def refuse_weight_file(name: str, *, options: str = "") -> None:
    """Refuse a file of weights in the place of an architecture or a checkpoint; `options` name the way to pass both."""
    if not is_file(name):
        if name.endswith(_WEIGHT_SUFFIXES):
            raise InputError(f"{name}: no such file; expected an architecture's name or a checkpoint of distcam")
    elif ("." in name or "/" in name) and not _is_safetensors(name):  # else an architecture's name
        raise InputError(
            f"{name} is a file of weights alone, which does not say what network they are of; name the architecture, "
            f"and give this file as its weights{options}"
        )


def _is_safetensors(name: str) -> bool:
    """True for a checkpoint, and for one that is damaged: whoever reads it says so."""
    if name.endswith(CHECKPOINT_SUFFIX):
        return True
    try:
        with Path(name).open("rb") as file:
            return file.read(9)[8:] == b"{"  # behind the length of the header
    except OSError:  # whoever reads it will say so
        return True
