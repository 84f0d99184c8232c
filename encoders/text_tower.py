"""The text tower of a library's model, with its tokenizer: from texts to vectors in the space of image embeddings.

The tower is the library's own network without its image side. Its tokenizer's files travel in the checkpoint, so that
texts are taken in another process without the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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

_KEPT = "text_tokenizer."  # names of a tokenizer's files among a checkpoint's tensors
_IMAGE_SIDES = ("visual", "vision_model", "visual_projection")


class TextTower(nn.Module):
    """Texts to vectors, exactly as the library's own `encode_text` (open_clip) or `get_text_features` (transformers).

    Args:
        network: the library's model for images and texts; the image side is let go.
        tokenizer: the model's own, as the library gives it.
    """

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.network = copy(network)  # the image side stays where it is
        self.network._modules = {
            name: None if name in _IMAGE_SIDES else part for name, part in network._modules.items()
        }
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, network: nn.Module, name: str, *, files: Mapping[str, bytes] | None = None) -> TextTower | None:
        """The text tower of a model `open_clip:NAME` or `hf:NAME`; None where it has none, or no tokenizer to be had.

        Args:
            network: for images and texts.
            name: of the model, or a folder's.
            files: of the tokenizer, where a checkpoint brings them; else it comes from the library or its cache.
        """
        make = _tokenizers(network, name.partition(":")[2])
        if make is None:
            return None
        try:
            with TemporaryDirectory(prefix="distcam-tokenizer-") as folder:
                for file, content in (files or {}).items():
                    Path(folder, file).write_bytes(content)
                return cls(network, make(folder if files else None))
        except Exception as error:  # each library has its own for what it cannot fetch
            why = " ".join(str(error).split()).partition(". ")[0]
            remark(f"{name}: its tokenizer is not to be had ({why}), so the encoder takes no texts", stacklevel=5)
            return None

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, as long as the library makes them."""
        device = next(self.parameters()).device
        network: Any = self.network
        if hasattr(network, "encode_text"):
            vectors: Tensor = network.encode_text(self.tokenizer(list(texts)).to(device))
            return vectors.float()
        length = network.config.text_config.max_position_embeddings
        padding = "longest" if network.config.model_type == "clip" else "max_length"  # as each was trained
        tokens = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        taken = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        if network.config.model_type != "clip":
            taken.pop("attention_mask", None)  # SigLIP attends to its padding
        found = network.get_text_features(**taken)
        features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return features.float()

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Add what a checkpoint needs beside the weights: the tokenizer's files, as bytes."""
        inner = getattr(self.tokenizer, "tokenizer", self.tokenizer)  # open_clip wraps those of transformers
        if not hasattr(inner, "save_pretrained"):
            return  # open_clip's own, which comes with the package
        with TemporaryDirectory(prefix="distcam-tokenizer-") as folder:
            inner.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                tensors[f"{_KEPT}{file.name}"] = torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).copy())

    @staticmethod
    def kept_files(tensors: dict[str, Tensor]) -> dict[str, bytes]:
        """Take the tokenizer's files out of a checkpoint's tensors.

        Raises:
            WeightsError: a name that is no plain file's.
        """
        files = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_KEPT)}
        for name in files:
            if not re.fullmatch(r"[\w-][\w.-]*\.(json|txt|model|jinja)", name.removeprefix(_KEPT)):
                raise WeightsError(f"expected a tokenizer's file, got {name!r} in the checkpoint")
        return {name.removeprefix(_KEPT): tensor.numpy().tobytes() for name, tensor in files.items()}


def _tokenizers(network: nn.Module, name: str) -> Callable[[str | None], Any] | None:
    """From a folder with a tokenizer's files (None: the library's own source) to the tokenizer of a model."""
    if hasattr(network, "encode_text"):
        import open_clip

        def of_open_clip(folder: str | None) -> Any:
            if folder is None:
                return open_clip.get_tokenizer(name)
            settings = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
            return open_clip.tokenizer.HFTokenizer(
                folder,
                context_length=settings.get("context_length", 77),
                tokenizer_mode=settings.get("tokenizer_mode"),
                **settings.get("tokenizer_kwargs", {}),
            )

        return of_open_clip
    if hasattr(network, "get_text_features"):
        from transformers import AutoTokenizer

        return lambda folder: AutoTokenizer.from_pretrained(folder or name, trust_remote_code=False)
    return None


def require_texts(texts: object) -> list[str]:
    """The texts as a list; InputError for anything else, and for one that is empty."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise InputError(f"expected a list of texts, got {texts!r}")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"expected texts that are not empty, got {list(texts)!r}")
    return list(texts)
