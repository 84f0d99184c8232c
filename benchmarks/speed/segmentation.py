"""What weakly supervised training costs: a CPN step against three plain steps.

    python benchmarks speed/segmentation [--architecture resnet18] [--size 112] [--rounds 7]

CPN cannot do with less than three passes, of the image and of two with complementary patches; the ratio says what is
left for refinement and losses. Forward and backward of one batch, taking turns in one process on one thread, float32 on
a CPU, CPU time. Images are random; the map has an eighth of their side.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
from machine import describe_machine, interleave, ratio_table

from distcam.encoders import Encoder
from distcam.images import Transform
from distcam.segmentation.cam_training.training import SEGMENTATION_TERMS
from distcam.training import Batch, Step, TrainingProgress
from distcam.training.losses.registry import TermContext, build_objective

CLASSES = 20

METHODS: Mapping[str, Mapping[str, object]] = {
    "CPN": {"kind": "cpn"},
    "CPN without PRCM": {"kind": "cpn", "prcm": False},
    "CPN, losses at the image's size": {"kind": "cpn", "resolution": "image"},
    "CPN, superpixels": {"kind": "cpn", "patches": "superpixels"},
    "SEAM": {"kind": "seam"},
}


def step_of(encoder: Encoder, batch: Batch, spec: Mapping[str, object], *, times: int = 1) -> Callable[[], object]:
    """Forward and backward of one batch with one loss, so many times."""
    context = TermContext(encoder, [str(i) for i in range(CLASSES)], multi_label=True)
    objective = build_objective([spec], context, terms=SEGMENTATION_TERMS)

    def run() -> None:
        for _ in range(times):
            objective(Step(encoder, batch, TrainingProgress(epoch=0, epochs=1, step=0))).total.backward()
            for module in (encoder, objective):
                module.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18", help="a ResNet or MobileNet, dilated; or resnet38")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="also SEAM, superpixels, and losses at the image's size")
    options = parser.parse_args()
    torch.set_num_threads(1)

    transform = Transform(options.size)
    own = {} if options.architecture == "resnet38" else {"output_stride": 8}
    encoder = Encoder.load(options.architecture, weights="random", options=own, transform=transform)
    encoder = encoder.to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.size, options.size, generator=generator)
    labels = (torch.rand(options.batch_size, CLASSES, generator=generator) < 0.1).float()
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(options.batch_size))

    print(describe_machine("torch"), f"1 thread, {options.rounds} rounds, CPU time")
    print(f"{options.architecture}, {options.size} pixels, batches of {options.batch_size}\n")
    base = "three plain steps"
    chosen = METHODS if options.all else {name: METHODS[name] for name in ("CPN", "CPN without PRCM")}
    steps = {base: step_of(encoder, batch, {"kind": "multi_label"}, times=3)}
    steps |= {name: step_of(encoder, batch, spec) for name, spec in chosen.items()}
    print(ratio_table(interleave(steps, rounds=options.rounds), base=base))
