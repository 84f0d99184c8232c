"""The text tower of a library's model, with its tokenizer: from texts to vectors in the space of image embeddings.

The tower is the library's own network without its image side. Its tokenizer's files travel in the checkpoint, so that
texts are taken in another process without the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, WeightsError
from ..remarks import remark
from .libraries.models import fetching
from .names import WITH_TEXT
from .state_dicts import load_state

_KEPT = "text_tokenizer."  # names of a tokenizer's files among a checkpoint's tensors
_IMAGE_SIDES = ("visual", "vision_model", "visual_projection")


class TextTower(nn.Module):
    """Texts to vectors, exactly as by `encode_text` of open_clip, or `get_text_features` of transformers."""

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.network, own = copy(network), network._modules  # the image side stays where it is
        self.network._modules = {name: None if name in _IMAGE_SIDES else part for name, part in own.items()}
        self.tokenizer = tokenizer

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, as long as the library makes them."""
        device = next(self.parameters()).device
        network: Any = self.network
        if hasattr(network, "encode_text"):
            vectors: Tensor = network.encode_text(self.tokenizer(list(texts)).to(device))
            return vectors.float()
        is_clip = network.config.model_type == "clip"
        how = {"padding": "longest" if is_clip else "max_length", "return_tensors": "pt"}  # as each was trained
        length = network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), truncation=True, max_length=length, **how).to(device)
        taken = ("input_ids", "attention_mask") if is_clip else ("input_ids",)  # SigLIP attends to its padding
        found = network.get_text_features(**{key: tokens[key] for key in taken if key in tokens})
        features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return features.float()


def text_tower(
    whole: nn.Module, name: str, options: Mapping[str, Any], *, state: Mapping[str, Tensor] | None = None
) -> TextTower | None:
    """The text tower of a model that its library has built; None, with a remark, without a tokenizer or weights.

    The tokenizer is found by the model's name; `state` are weights in place of those that the model has.
    """
    try:
        with fetching(name):
            tower = TextTower(whole, _tokenizer(whole, name.partition(":")[2], options))
    except (InputError, WeightsError, ImportError) as error:
        remark(f"no tokenizer, so this encoder takes no texts: {str(error).partition('; pass')[0]}")
        return None
    if state is not None:
        images = {each for each in whole.state_dict() if each.startswith(_IMAGE_SIDES)}
        try:
            load_state(tower.network, state, origin=name, spare=images)
        except WeightsError:
            remark(f"{name}: the weights are of its image side alone, so this encoder takes no texts", stacklevel=5)
            return None
    return tower


def restored_tower(
    whole: nn.Module | None, name: str, options: Mapping[str, Any], *, tensors: dict[str, Tensor]
) -> TextTower | None:
    """The text tower of a checkpoint, whose weights are yet to be loaded; its tokenizer leaves the tensors."""
    files = {each.removeprefix(_KEPT): tensors.pop(each) for each in list(tensors) if each.startswith(_KEPT)}
    if whole is None or not any(each.startswith("text.") for each in tensors):
        return None
    with TemporaryDirectory(prefix="distcam-tokenizer-") as folder:
        for file, content in files.items():
            if not re.fullmatch(r"[\w-][\w.-]*\.(json|txt|model|jinja)", file):
                raise WeightsError(f"expected a tokenizer's file, got {file!r} in the checkpoint")
            Path(folder, file).write_bytes(content.numpy().tobytes())
        return TextTower(whole, _tokenizer(whole, name.partition(":")[2], options, folder=folder if files else None))


def _tokenizer(whole: nn.Module, name: str, options: Mapping[str, Any], *, folder: str | None = None) -> Any:
    """The tokenizer of a model, from the files in a folder, else from the library or its cache."""
    if hasattr(whole, "get_text_features"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder or name, trust_remote_code=False)
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = options["config"]["text_cfg"]
    settings = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(**settings)
    return HFTokenizer(folder or text["hf_tokenizer_name"], tokenizer_mode=text.get("tokenizer_mode"), **settings)


def keep_tower(tower: nn.Module | None, tensors: dict[str, Tensor], *, path: str | os.PathLike[str]) -> None:
    """Add a tokenizer's files to a checkpoint's tensors, as bytes; a tower of the user's own leaves, with a remark."""
    if tower is not None and not isinstance(tower, TextTower):
        remark(f"{path}: the text tower is a module of your own, so the checkpoint takes no texts", stacklevel=4)
        for name in [name for name in tensors if name.startswith("text.")]:
            del tensors[name]
    tokenizer: Any = getattr(tower, "tokenizer", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    if not isinstance(tower, TextTower) or not hasattr(tokenizer, "save_pretrained"):
        return  # open_clip's own comes with the package
    with TemporaryDirectory(prefix="distcam-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            tensors[f"{_KEPT}{file.name}"] = torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).copy())


def vectors_of(tower: nn.Module | None, texts: Sequence[str], *, architecture: str) -> Float[Tensor, "n d"]:
    """The tower's vectors; InputError without a tower, and for anything but a list of texts that are not empty."""
    if tower is None:
        raise InputError(f"{architecture} has no text tower, so it takes no text; {WITH_TEXT}")
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"expected a list of texts, none of them empty, got {texts!r}")
    vectors: Tensor = tower(list(texts))
    return vectors
