"""Affinities that are learnt: which neighbouring positions belong to one thing, from nothing but cues.

A 1×1 convolution on the frozen encoder's feature map and the picture's colours embeds each position; two positions have
the affinity `exp(-mean |e_i - e_j|)`. Positive pairs are neighbours with cues of one class, negative ones with cues of
two; undecided positions teach nothing. The random walk then spreads the maps along what was learnt.

Source: Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level Supervision (AffinityNet), 2018, §3.2-3.3.
Theirs reads three stages of its network and trains them; here the encoder stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...encoders.encoder import evaluating
from ...encoders.weights.reading import drawn_from
from ...errors import InputError, WeightsError
from ..data import VOID, Mask, MaskedImages
from .random_walk import colour_features, neighbours, shifted

__all__ = ["AffinityNet", "AffinitySettings", "affinity_loss", "train_affinity"]


@dataclass(frozen=True)
class AffinitySettings:
    """How affinities are learnt.

    Attributes:
        dim: length of a position's embedding.
        radius: pairs further apart are not looked at.
        epochs: passes over the pictures.
        batch_size: pictures per step.
        learning_rate: of Adam.
        side: rows and columns of the grid of positions, on which the walk will be.
        seed: of the weights and of the order of the pictures.
    """

    dim: int = 16
    radius: int = 3
    epochs: int = 8
    batch_size: int = 8
    learning_rate: float = 1e-2
    side: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "radius", "epochs", "batch_size", "side"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise InputError(f"expected a learning_rate above 0, got {self.learning_rate}")


class Described(NamedTuple):
    """What positions are embedded from, of one or more pictures."""

    feature_map: Float[Tensor, "b k h w"]
    colours: Float[Tensor, "b 3 rows columns"]


class AffinityNet(nn.Module):
    """An encoder that stays as it is, and the embedding of its positions.

    Args:
        encoder: frozen.
        dim: length of the embedding.
        side: rows and columns of the grid of positions.
    """

    def __init__(self, encoder: Encoder, *, dim: int = 16, side: int = 32) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side
        self.embed = nn.Conv2d(encoder.pooled_dim + 3, dim, 1)

    @torch.no_grad()
    def describe_image(self, image: Image.Image) -> Described:
        """What the embedding is made from: the feature map, each vector scaled to length √k, and the colours."""
        transform = self.encoder.transform.adapted(fit="squash")
        device = next(self.encoder.parameters()).device
        with evaluating(self.encoder):
            feature_map = self.encoder(transform.normalise(transform(image)[None]).to(device)).feature_map
        length = feature_map.norm(dim=1, keepdim=True).clamp(min=1e-6)
        colours = colour_features(image, (self.side, self.side))
        return Described(feature_map / length * feature_map.shape[1] ** 0.5, colours[None].to(device))

    def forward(self, described: Described) -> Float[Tensor, "b e h w"]:
        """The embeddings on the grid; the feature map is enlarged to it."""
        size = described.colours.shape[-2:]
        enlarged = functional.interpolate(described.feature_map, size, mode="bilinear", align_corners=False)
        return functional.elu(self.embed(torch.cat([enlarged, described.colours], 1)))

    @torch.no_grad()
    def features(self, image: Image.Image) -> Float[Tensor, "e h w"]:
        """A picture's embeddings: what `refine_by_walk` takes, on the CPU."""
        embedded: Tensor = self(self.describe_image(image))
        return embedded[0].cpu()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the embedding into a `.safetensors` file; the encoder has its own.

        Raises:
            WeightsError: the file cannot be written.
        """
        config = {
            "kind": "affinity",
            "dim": self.embed.out_channels,
            "side": self.side,
            "encoder": self.encoder.fingerprint,
        }
        write_checkpoint(path, config, self.embed.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: Encoder) -> AffinityNet:
        """What `save` wrote, around its encoder.

        Raises:
            WeightsError: no such file, or one of another encoder.
        """
        config, tensors = read_checkpoint(path)
        if config.get("kind") != "affinity" or config.get("encoder") != encoder.fingerprint:
            raise WeightsError(f"{path}: holds no affinities of the encoder {encoder.short_name}")
        with built_from_header(path, "affinities"):
            net = cls(encoder, dim=config["dim"], side=config["side"])
            net.embed.load_state_dict(tensors)
        return net.eval()


def affinity_loss(
    embedded: Float[Tensor, "b e h w"], cues: Int[Tensor, "b h w"], offsets: Sequence[tuple[int, int]]
) -> Tensor:
    """`(L+_background + L+_foreground + 2 L-) / 4`: mean -log a of alike pairs, and mean -log(1 - a) of unlike ones.

    A kind of pair that the batch does not have counts 0.

    Args:
        embedded: by position.
        cues: 0 background, c + 1 class c, 255 undecided.
        offsets: from one position of a pair to the other.

    Source: AffinityNet, Eq. 3-4.
    """
    kinds: list[list[Tensor]] = [[], [], []]
    for offset in offsets:
        other = shifted(cues, offset, fill=VOID)
        distance = (embedded - shifted(embedded, offset)).abs().mean(1)
        known = (cues != VOID) & (other != VOID)
        same = known & (cues == other)
        kinds[0].append(distance[same & (cues == 0)])
        kinds[1].append(distance[same & (cues > 0)])
        kinds[2].append(-torch.log1p(1e-5 - torch.exp(-distance[known & ~same])))
    background, foreground, unlike = (torch.cat(kind) for kind in kinds)
    zero = embedded.sum() * 0
    means = [values.mean() if len(values) else zero for values in (background, foreground, unlike)]
    return (means[0] + means[1] + 2 * means[2]) / 4


def train_affinity(
    encoder: Encoder,
    data: MaskedImages,
    cues: Sequence[Mask],
    *,
    settings: AffinitySettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AffinityNet:
    """Affinities learnt from the cues of every picture; feature maps are computed once and kept.

    Args:
        encoder: stays as it is, on its device.
        data: the pictures.
        cues: one for each picture, in its size.
        settings: `AffinitySettings()` if left out.
        progress: called with (steps done, steps in all).

    Raises:
        InputError: cues for another number of pictures, or cues that make no pair to learn from.
    """
    settings = settings or AffinitySettings()
    if len(cues) != len(data):
        raise InputError(f"expected cues for each of the {len(data)} pictures, got {len(cues)}")
    with drawn_from(settings.seed):
        net = AffinityNet(encoder, dim=settings.dim, side=settings.side)
    net.to(next(encoder.parameters()).device)
    every = [net.describe_image(data.image(i)) for i in range(len(data))]
    described = Described(*(torch.cat(parts) for parts in zip(*every, strict=True)))
    small = torch.stack([_reduced(mask, (settings.side, settings.side)) for mask in cues])
    small = small.to(described.colours.device)
    if not ((small != VOID) & (small != 0)).any():
        raise InputError("no picture has a cue of a class, so there are no affinities to learn; lower the threshold")
    offsets = [(down, across) for down, across in neighbours(settings.radius) if (down, across) > (0, 0)]
    optimiser = torch.optim.Adam(net.embed.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = -(-len(data) // settings.batch_size)
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data), generator=generator)
        for step, batch in enumerate(torch.split(order, settings.batch_size)):
            loss = affinity_loss(net(Described(*(part[batch] for part in described))), small[batch], offsets)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            if progress is not None:
                progress(epoch * steps + step + 1, settings.epochs * steps)
    return net.eval()


def _reduced(mask: Mask, size: tuple[int, int]) -> Int[Tensor, "h w"]:
    """The mask on a coarser grid: what lies under each position's centre."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return torch.from_numpy(mask[rows[:, None], columns[None]].astype(np.int64))
