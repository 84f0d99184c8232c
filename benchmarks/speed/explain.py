"""The price of maps: ten matches in plain forward passes, 32 targets in forward and backward passes, and peak memory.

    pip install '.[bench]'
    python benchmarks speed/explain

One process, one thread, random weights, 224×224.

1. ResNet-50, one query, ten stored gallery vectors; every method returns ten maps of 224×224, and what is shown without
   options ten of Dist-CAM beside them. The peers explain the cosine similarity to each stored vector with Grad-CAM at
   `layer4`, each in the fastest way that its documentation shows (batch of copies, or one forward and ten gradients);
   xaitk-saliency by its sliding window of 144 masks, which serve all ten. `--encoder` names another network, without
   peers.
2. A classifier (`--classifier`) and a batch of 32 images, each with a class of its own: one map each, in forward and
   backward passes of that batch.
3. Peak memory of each method, in a process of its own, beyond what the process held when the networks were built.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from machine import command_of, describe_machine, interleave, ratio_table
from torch import Tensor, nn
from torchvision.models import get_model

from distcam.encoders import Encoder
from distcam.encoders.backbones.networks import load_network
from distcam.explain import WEIGHTINGS, ClassScore, Surroundings, dist_cam, explain_image, ratio_maps, upsample

GRADIENT_METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "segxrescam")
Methods = dict[str, Callable[[], object]]


class CosineTo:
    """Similarity to one stored vector: the target the peers differentiate."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def __call__(self, output: Tensor) -> Tensor:
        return F.cosine_similarity(output, self.reference, dim=-1)


def plain_model(name: str) -> nn.Module:
    """A network of torchvision with its pooled vector as output."""
    model = get_model(name)
    setattr(model, "fc" if hasattr(model, "fc") else "classifier", nn.Identity())
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


def shown(encoder: Encoder, image: Tensor, references: Tensor) -> Callable[[], Tensor]:
    """Forward pass, the ten maps that are shown without options, and those of Dist-CAM beside them."""
    vectors = F.normalize(references, dim=1)
    around = Surroundings(vectors.mean(0), border=vectors.mean(0).flip(0), images=len(references))

    @torch.inference_mode()
    def run() -> Tensor:
        response = encoder(image).feature_map
        maps = ratio_maps(response, references[None], around, is_class=False).maps
        return upsample(torch.cat([maps, dist_cam(response, references[None])], 1), (224, 224))

    return run


def peers(model: nn.Module, image: Tensor, references: Tensor) -> Methods:
    """Every peer that is installed."""
    methods: Methods = {}
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
    try:
        from xaitk_saliency.impls.gen_descriptor_sim_sal.similarity_scoring import SimilarityScoring
        from xaitk_saliency.impls.perturb_image.sliding_window import SlidingWindow

        @torch.inference_mode()
        def xaitk() -> object:
            masks = SlidingWindow().perturb(np.zeros((224, 224, 3), dtype=np.uint8))
            own = model(image)[0].numpy()
            visible = torch.from_numpy(masks.astype(np.float32))[:, None]
            perturbed = torch.cat([model(image * some) for some in visible.split(16)]).numpy()
            return SimilarityScoring("cosine").generate(own, references.numpy(), perturbed, masks)

        methods["xaitk-saliency, 144 masks for all ten"] = xaitk
    except ImportError as error:
        print(f"xaitk-saliency left out: {error}")
    return methods


def for_matches(options: argparse.Namespace) -> Methods:
    """One query and ten matches; the plain forward pass first."""
    model = plain_model(options.encoder)
    encoder = Encoder.load(options.encoder, weights="random", seed=options.seed).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        references = torch.rand(options.matches, model(image).shape[1])

    @torch.inference_mode()
    def plain() -> Tensor:
        return model(image)

    own = {f"distcam `{weighting}`": ours(encoder, image, references, weighting) for weighting in WEIGHTINGS}
    others = {} if options.no_peers or options.encoder != "resnet50" else peers(model, image, references)
    default = {"distcam without options, Dist-CAM beside": shown(encoder, image, references)}
    return {"plain forward": plain, **default, **own, **others}


def for_classes(options: argparse.Namespace) -> Methods:
    """A batch of images with a class each; one forward and backward pass of the batch first."""
    network = load_network(options.classifier, weights="random", seed=options.seed)
    model, layer = network.model, network.layer
    images, classes = torch.randn(options.batch, 3, 224, 224), torch.arange(options.batch)

    def plain() -> object:
        model.zero_grad()
        model(images).gather(1, classes[:, None]).sum().backward()
        return None

    def explained(method: str) -> Callable[[], object]:
        return lambda: explain_image(model, images, target=ClassScore(classes), method=method, layer=layer)

    methods: Methods = {"forward + backward": plain}
    return methods | {f"distcam {method}": explained(method) for method in options.methods.split(",")}


def memory_table(options: argparse.Namespace, tables: dict[str, Methods]) -> str:
    """A Markdown table of peak memory; every method runs in a new process."""
    lines = ["| method | MiB |", "|---|---:|"]
    for table, methods in tables.items():
        for name in methods:
            given = [
                "--classifier",
                options.classifier,
                "--batch",
                str(options.batch),
                "--matches",
                str(options.matches),
                "--methods",
                options.methods,
                "--encoder",
                options.encoder,
            ]
            command = [*command_of(__name__), *given, "--memory-of", table, name]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            lines.append(f"| {name} | {float(run.stdout.split()[-1]):.0f} |")
    return "\n".join(lines)


def peak_of(methods: Methods, name: str) -> float:
    """MiB by which one run of a method raises this process's peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    methods[name]()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--matches", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classifier", default="resnet50")
    parser.add_argument("--methods", default=",".join(GRADIENT_METHODS), help="of part 2, with commas between them")
    parser.add_argument("--encoder", default="resnet50", help="of part 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peers", action="store_true", help="part 1 with our methods alone, for more rounds")
    parser.add_argument("--only", choices=["matches", "classes", "memory"], nargs="+")
    parser.add_argument("--memory-of", nargs=2, metavar=("TABLE", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    makers = {"matches": for_matches, "classes": for_classes}
    if options.memory_of:
        table, name = options.memory_of
        print(peak_of(makers[table](options), name))
        return
    parts = options.only or ["matches", "classes", "memory"]
    print(
        describe_machine("torch", "torchcam", "captum", "grad-cam", "xaitk-saliency"),
        f"1 thread, seed {options.seed}, {options.rounds} rounds, CPU time",
    )
    tables = {name: make(options) for name, make in makers.items() if name in parts or "memory" in parts}
    for name, methods in tables.items():
        if name in parts:
            print(f"\n{ratio_table(interleave(methods, rounds=options.rounds), base=next(iter(methods)))}")
    if "memory" in parts:
        print(f"\n{memory_table(options, tables)}")
