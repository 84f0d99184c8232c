"""Small networks of other libraries, written as their users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def photograph(path: Path, *, size: tuple[int, int] = (96, 72), seed: int = 0) -> Path:
    """A JPEG with large soft shapes in it."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def folder_of_transformers(kind: str, path: Path, *, processor: bool = True) -> Path:
    """A folder as `save_pretrained` writes it: a DINOv2, a CLIP, a SigLIP, a BERT."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, own = _made(transformers, kind)
        model.save_pretrained(path)
    if processor and own is not None:
        own.save_pretrained(path)
    return path


def _made(transformers: Any, kind: str) -> tuple[Any, Any]:
    seen = {**TOWER, "image_size": 32, "patch_size": 8}
    if kind == "dinov2":
        config = transformers.Dinov2Config(**{**seen, "image_size": 56, "patch_size": 14})
        sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
        return transformers.Dinov2Model(config), transformers.BitImageProcessor(
            **sizes, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
        )
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(vocab_size=100, **TOWER)), None
    written = {**TOWER, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        seen, written = {**seen, "projection_dim": 16}, {**written, "projection_dim": 16}
        both = transformers.CLIPConfig(vision_config=seen, text_config=written, projection_dim=16)
        return transformers.CLIPModel(both), transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    both = transformers.SiglipConfig(vision_config=seen, text_config=written)
    return transformers.SiglipModel(both), transformers.SiglipImageProcessor(size={"height": 32, "width": 32})


CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"},
}


def folder_of_open_clip(path: Path) -> Path:
    """A folder as open_clip reads it by `local-dir:`, with weights."""
    import json

    import open_clip

    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps(CLIP), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{path}", load_weights=False)
    torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
    return path
