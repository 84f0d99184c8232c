"""Names of architectures and weight files, known without importing torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..files import is_file

CHECKPOINT_SUFFIX = ".safetensors"
OWN_ARCHITECTURES = ("conv4", "resnet12", "resnet38", "wrn28_10")
"""Built here, beside torchvision's; there are no weights of them to download."""

LIBRARIES = {"timm": "timm", "hf": "transformers", "open_clip": "open_clip"}
"""What names of other libraries begin with, `timm:NAME`, and the library; its extra is called as it."""

_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")


def library_of(name: str) -> str | None:
    """The prefix of a name that another library knows, "timm" of "timm:vit_tiny_patch16_224"; None for other names."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in LIBRARIES else None


def needs_weights(name: str) -> str:
    """The error where a network is named and its weights are not."""
    if (prefix := library_of(name)) is not None:
        return (
            f"{name} needs weights: a FILE, 'pretrained' ({LIBRARIES[prefix]}'s own, downloaded or from its cache), or "
            "'random' (for trials)"
        )
    return f"{name} needs weights: a FILE, 'imagenet' (downloads them), or 'random' (for trials)"


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
    with suppress(OSError), Path(name).open("rb") as file:  # whoever reads it will say so
        if file.read(9)[8:] == b"{":  # behind the length of the header of safetensors
            return
        raise InputError(
            f"{name} is a file of weights alone, which does not say what network they are of; name the architecture, "
            f"and give this file as its weights{options}"
        )
