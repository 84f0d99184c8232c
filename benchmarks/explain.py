"""The price of explaining ten matches, in plain forward passes: distcam beside pytorch-grad-cam, torchcam and captum.

    pip install '.[bench]'
    python benchmarks/explain.py

One process, one thread, ResNet-50 with random weights at 224×224, one query, ten stored gallery vectors. Every method
returns ten maps of 224×224. The peers explain the cosine similarity to each stored vector with Grad-CAM at `layer4`,
each in the fastest way that its documentation shows (batch of copies, or one forward and ten gradients).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import describe_machine, interleave, ratio_table
from torch import Tensor, nn
from torchvision.models import resnet50

from distcam.encoders import Encoder
from distcam.explain import WEIGHTINGS, dist_cam, upsample


class CosineTo:
    """Similarity to one stored vector: the target the peers differentiate."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def __call__(self, output: Tensor) -> Tensor:
        return F.cosine_similarity(output, self.reference, dim=-1)


def plain_model() -> nn.Module:
    """torchvision's ResNet-50 with its pooled 2,048-d vector as output."""
    model = resnet50()
    model.fc = nn.Identity()
    return model.eval()


def ours(encoder: Encoder, image: Tensor, references: Tensor, weighting: str) -> Callable[[], Tensor]:
    """Forward pass and ten maps of one weighting."""
    mean = references.mean(0)

    @torch.inference_mode()
    def run() -> Tensor:
        encoding = encoder(image)
        maps = dist_cam(encoding.feature_map, references[None], weighting=weighting, mean=F.normalize(mean, dim=0))
        return upsample(maps, (224, 224))

    return run


def peers(model: nn.Module, image: Tensor, references: Tensor) -> dict[str, Callable[[], object]]:
    """Every peer that is installed."""
    methods: dict[str, Callable[[], object]] = {}
    targets = [CosineTo(reference) for reference in references]
    copies = image.repeat(len(references), 1, 1, 1)
    layer = model.get_submodule("layer4")
    try:
        from torchcam.methods import GradCAM as TorchcamGradCAM

        def torchcam() -> object:
            with TorchcamGradCAM(model, layer) as cam:
                output = model(image)
                maps = torch.stack(
                    [cam(targets=[target], scores=output, retain_graph=True)[0].squeeze(0) for target in targets]
                )
            return upsample(maps, (224, 224))

        methods["torchcam, one forward + ten gradients"] = torchcam
    except ImportError as error:
        print(f"torchcam left out: {error}")
    try:
        from captum.attr import LayerGradCam

        def captum() -> object:
            cam = LayerGradCam(lambda batch: F.cosine_similarity(model(batch), references, dim=-1), layer)
            return upsample(cam.attribute(copies, attr_dim_summation=True).squeeze(1).detach(), (224, 224))

        methods["captum LayerGradCam, batch of ten"] = captum
    except ImportError as error:
        print(f"captum left out: {error}")
    try:
        from pytorch_grad_cam import GradCAM

        def grad_cam() -> object:
            with GradCAM(model=model, target_layers=[layer]) as cam:
                return cam(input_tensor=copies, targets=targets)

        methods["pytorch-grad-cam, batch of ten"] = grad_cam
    except ImportError as error:
        print(f"pytorch-grad-cam left out: {error}")
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--matches", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = plain_model()
    encoder = Encoder.load("resnet50", weights="random", seed=options.seed).eval()
    image = torch.randn(1, 3, 224, 224)
    references = torch.rand(options.matches, 2048)

    @torch.inference_mode()
    def plain() -> Tensor:
        return model(image)

    methods: dict[str, Callable[[], object]] = {"plain forward": plain}
    methods |= {f"distcam `{weighting}`": ours(encoder, image, references, weighting) for weighting in WEIGHTINGS}
    methods |= peers(model, image, references)
    print(
        describe_machine("torch", "torchcam", "captum", "grad-cam"),
        f"1 thread, seed {options.seed}, {options.rounds} rounds, CPU time",
    )
    print(ratio_table(interleave(methods, rounds=options.rounds), base="plain forward"))


if __name__ == "__main__":
    main()
