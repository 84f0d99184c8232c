"""The price of a readout's map: the model's own vector, and the map whose mean it is, in turns in one process.

    pip install '.[timm]'
    python benchmarks speed/readouts [--batch-size 4] [--rounds 15]

Random weights, one thread, CPU time. The ratio beside each map is to the model's own vector.
"""

from __future__ import annotations

import argparse

import timm
import torch
from machine import describe_machine, interleave, ratio_table

from distcam.encoders.readouts import making_maps, read_out

MODELS = {
    "vit_small_patch16_224": ("class token", 224),
    "vit_small_patch14_reg4_dinov2": ("class token", 518),
    "vit_base_patch16_siglip_224": ("attention pooling", 224),
    "vit_small_patch16_dinov3": ("mean of tokens", 256),
    "resnet50": ("grid", 224),
    "convnext_tiny": ("grid, norm behind the mean", 224),
    "tf_efficientnetv2_b0": ("grid", 224),
}


def table_of(name: str, *, batch_size: int, rounds: int) -> str:
    """The table of one model."""
    kind, side = MODELS[name]
    model = timm.create_model(name, num_classes=0).eval()
    readout, images = read_out(model), torch.randn(batch_size, 3, side, side)

    def vector() -> object:
        with making_maps(False):
            return readout(images)

    with torch.no_grad():
        methods = {"the model": lambda: model(images), "vector": vector, "map": lambda: readout(images)}
        seconds = interleave(methods, rounds=rounds)
    heading = f"{name} ({kind}), {batch_size} images of {side}×{side}"
    return f"\n{heading}\n\n{ratio_table(seconds, base='the model')}"


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine("torch", "timm"))
    for name in options.models:
        print(table_of(name, batch_size=options.batch_size, rounds=options.rounds))
