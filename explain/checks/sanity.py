"""Sanity checks: does a map change when what it claims to explain changes, the network, the match, or the class?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders.layers import require_layer
from ...errors import InputError, ShapeError
from ...metrics.maps import spearman


class Randomisation(NamedTuple):
    """Correlation of maps with those of the trained network while its weights are drawn anew, from the output down."""

    stages: tuple[str, ...]
    correlation: Float[Tensor, "s n"]

    def table(self) -> str:
        """A Markdown table: mean rank correlation after each stage; near 1 at the end is a failed check."""
        each = zip(self.stages, self.correlation.mean(1).tolist(), strict=True)
        rows = [f"| `{name}` | {mean:.2f} |" for name, mean in each]
        return "\n".join(["| drawn anew, down to | rank correlation |", "|---|---:|", *rows])


def randomise_parameters(
    model: nn.Module,
    explain: Callable[[nn.Module], Float[Tensor, "*n h w"]],
    *,
    stages: Sequence[str] | None = None,
    seed: int = 0,
) -> Randomisation:
    """Cascading randomisation of a network's parameters from the output down, and the maps after every stage.

    Works on a copy: the model, its mode, and the global random numbers stay as they are. A part is drawn anew as its
    own `reset_parameters` does it, batch norms forget their statistics; parameters of modules without that method are
    drawn from a normal distribution with the mean and spread they had.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, 2018, §3.1 (cascading randomisation, Spearman).
    """
    owners = [name for name, part in model.named_modules() if name and any(True for _ in part.parameters(False))]
    names = tuple(reversed(owners) if stages is None else stages)
    for name in names:
        require_layer(model, name)
    if not names:
        raise InputError(f"{type(model).__name__} has no parameters that could be randomised")
    network = copy.deepcopy(model)
    original = explain(network).detach().clone()
    found = []
    for number, name in enumerate(names):
        _draw_anew(network.get_submodule(name), seed + number)
        found.append(spearman(original, explain(network).detach()).flatten())
    return Randomisation(names, torch.stack(found))


def match_sensitivity(maps: Float[Tensor, "*b n h w"]) -> Float[Tensor, "*b"]:
    """Rank correlation of the map for the first reference with the others' maps, in [-1, 1]: 1 = blind to the match.

    Usually n = 2 (the least): the map for the best match and that for a random gallery image. With more references it
    is the mean over the pairs of the first and another. The class-agnostic map has 1 by construction, and so does any
    explanation that shows the object whatever it is compared with; read every good-looking map beside this number.

    >>> match_sensitivity(torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]]))
    tensor(-1.)
    """
    if maps.ndim < 3 or maps.shape[-3] < 2:
        raise ShapeError(
            f"match sensitivity compares two maps or more, as (…, n, rows, columns); got {tuple(maps.shape)}"
        )
    others = maps[..., 1:, :, :]
    return spearman(maps[..., :1, :, :].expand_as(others), others).mean(-1)


def match_randomisation(
    explain: Callable[[Tensor], Float[Tensor, "b n h w"]],
    references: Float[Tensor, "b d"],
    gallery: Float[Tensor, "g d"],
    *,
    seed: int = 0,
) -> Float[Tensor, " b"]:
    """Rank correlation of each map with the one for a random gallery vector in the match's place, in [-1, 1].

    1 means that the map would look the same for any match; the class-agnostic map has 1 by construction. Gallery
    vectors equal to the match are not drawn, unless there are no others.

    >>> response = torch.rand(1, 3, 4, 4)
    >>> from distcam.explain import dist_cam
    >>> explain = lambda vectors: dist_cam(response, vectors, weighting="caam")
    >>> match_randomisation(explain, torch.rand(1, 3), torch.rand(5, 3))
    tensor([1.])
    """
    if references.ndim != 2 or gallery.ndim != 2 or not len(gallery) or gallery.shape[1] != references.shape[1]:
        raise ShapeError(
            f"expected references (b, d) and a gallery (g, d) of one dimension, g at least 1; got "
            f"{tuple(references.shape)} and {tuple(gallery.shape)}"
        )
    other = (gallery[None] != references[:, None]).any(-1).double().cpu()
    other = torch.where(other.any(1, keepdim=True), other, 1.0)
    drawn = torch.multinomial(other, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return match_sensitivity(explain(torch.stack([references, gallery[drawn.to(gallery.device)]], 1)))


def two_object_preference(
    map_a: Float[Tensor, "*n h w"],
    map_b: Float[Tensor, "*n h w"],
    region_a: Float[Tensor, "*n h w"],
    region_b: Float[Tensor, "*n h w"],
) -> Float[Tensor, "*n"]:
    """Share of maps that prefer the object of their class, in {0, .25, .5, .75, 1}; one half is chance.

    Each image shows an object of class A and one of class B. The map for A should be higher, in the mean, on A than on
    B, and the map for B the other way round; each counts one half, a tie half of that. A map that does not depend on
    the class gets exactly one half. NaN where a region is empty once their common part is taken away.

    >>> on_a = torch.tensor([[1.0, 0.0]])
    >>> two_object_preference(on_a, on_a, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor(0.5000)
    """
    if not map_a.shape == map_b.shape == region_a.shape == region_b.shape:
        raise ShapeError(
            f"maps and regions have one shape; got {tuple(map_a.shape)}, {tuple(map_b.shape)}, "
            f"{tuple(region_a.shape)}, {tuple(region_b.shape)}"
        )
    shared = torch.minimum(region_a, region_b)
    only_a, only_b = region_a - shared, region_b - shared

    def prefers(maps: Tensor, *regions: Tensor) -> Tensor:
        own, other = ((maps * region).sum((-2, -1)) / region.sum((-2, -1)) for region in regions)
        return torch.where((own - other).isnan(), own - other, ((own - other).sign() + 1) / 2)  # sign(NaN) is 0

    return (prefers(map_a, only_a, only_b) + prefers(map_b, only_b, only_a)) / 2


def _draw_anew(part: nn.Module, seed: int) -> None:
    """New parameters for a module and all below it; the global generators are as before."""
    devices = {p.device for p in part.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(seed)
        for module in part.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.randn_like(parameter) * parameter.std(correction=0) + parameter.mean())
