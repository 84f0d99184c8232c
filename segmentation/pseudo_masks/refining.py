"""Class scores refined by the image: a walk to where it looks alike (AffinityNet), and a dense CRF.

    T = D⁻¹ A^∘β,   scores ← T scores, t times          (A^∘β: every entry to the power β; D: sums of its rows)

Learnt affinities embed each position by a 1×1 convolution on the frozen feature map and the image's colours.
The CRF needs the extra `crf`, which a C++ compiler builds.
Source: Ahn and Kwak, Learning Pixel-level Semantic Affinity (AffinityNet), 2018, §3.2-3.3 and Eq. 5-6; Krähenbühl and
Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...encoders import Encoder
from ...encoders.layers import evaluating
from ...encoders.weight_files import drawn_from
from ...errors import InputError, MissingExtraError, ShapeError
from ...images.masks import VOID, Mask
from ...progress import Progress
from ...training.recipes.tables import Count, Natural, Positive, Table
from ..data import MaskedImages

Offset = tuple[int, int]


class WalkSettings(Table):
    """Reach and strictness of a random walk.

    Attributes:
        radius: positions further away have no affinity.
        power: β; a larger one lets only the most alike positions exchange anything.
        steps: t.
        background: power of the background's score, `(1 - max)^power`, which walks along.
        side: the longer side of the grid that is walked on, in positions.
        colour: the difference of colours (mean over red, green, blue, in [0, 1]) at which an affinity is 1/e.
    """

    radius: Count = 5
    power: Positive = 8.0
    steps: Natural = 16
    background: Positive = 1.0
    side: Count = 64
    colour: Positive = 0.25


def neighbours(radius: int) -> list[Offset]:
    """The offsets (down, across) within the radius, a position itself among them."""
    steps = range(-radius, radius + 1)
    return [(down, across) for down in steps for across in steps if down**2 + across**2 <= radius**2]


def shifted(maps: Float[Tensor, "*c h w"], offset: Offset, *, fill: float = 0.0) -> Float[Tensor, "*c h w"]:
    """At each position what lies at the offset from it; `fill` beyond the edge."""
    (down, across), (height, width) = offset, maps.shape[-2:]
    if abs(down) >= height or abs(across) >= width:
        return torch.full_like(maps, fill)
    margins = (max(-across, 0), max(across, 0), max(-down, 0), max(down, 0))
    padded = functional.pad(maps, margins, value=fill)
    top, left = max(down, 0), max(across, 0)
    return padded[..., top : top + height, left : left + width]


def affinities(features: Float[Tensor, "d h w"], offsets: Sequence[Offset]) -> Float[Tensor, "o h w"]:
    """`exp(-mean_d |f(x) - f(x + offset)|)`, 0 outside the image (AffinityNet, Eq. 1; a mean as in its code)."""
    inside = features.new_ones(1, *features.shape[1:])
    rows = []
    for offset in offsets:
        difference = (features - shifted(features, offset)).abs().mean(0, keepdim=True)
        rows.append(torch.exp(-difference) * shifted(inside, offset))
    return torch.cat(rows)


def random_walk(
    scores: Float[Tensor, "c h w"],
    affinity: Float[Tensor, "o h w"],
    offsets: Sequence[Offset],
    *,
    power: float = 8.0,
    steps: int = 16,
) -> Float[Tensor, "c h w"]:
    """The scores after `steps` steps, each a mean over neighbours."""
    if affinity.shape != (len(offsets), *scores.shape[1:]):
        raise ShapeError(f"expected affinities {(len(offsets), *scores.shape[1:])}, got {tuple(affinity.shape)}")
    weights = affinity**power
    weights = weights / weights.sum(0).clamp(min=1e-12)
    for _ in range(steps):
        moved = torch.zeros_like(scores)
        for weight, offset in zip(weights, offsets, strict=True):
            moved += weight * shifted(scores, offset)
        scores = moved
    return scores


def _colours(image: Image.Image, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """The image's colours in [0, 1] on a grid of `size` = (rows, columns)."""
    small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255)


def refine_by_walk(
    scores: Float[np.ndarray, "c h w"],
    image: Image.Image,
    *,
    settings: WalkSettings | None = None,
    features: Float[Tensor, "d rows columns"] | None = None,
) -> Float[np.ndarray, "c_and_background h w"]:
    """The scores of the background and the classes after the walk, in the image's pixels; the largest one wins.

    A class that is 0 everywhere stays so. Learnt `features`, on their own grid, stand in for the image's colours.
    ShapeError: scores of another size than the image.
    """
    if scores.shape[1:] != (image.height, image.width):
        raise ShapeError(f"expected scores of {image.height} x {image.width} pixels, got {scores.shape[1:]}")
    settings = settings or WalkSettings()
    if features is None:
        scale = min(settings.side / max(image.size), 1.0)
        size = (max(round(image.height * scale), 1), max(round(image.width * scale), 1))
        features = _colours(image, size) / settings.colour
    background = (1 - scores.max(0, keepdims=True).clip(0, 1)) ** settings.background  # Eq. 2
    stacked = np.concatenate([background, scores])
    small = functional.interpolate(torch.from_numpy(stacked).float()[None], features.shape[-2:], mode="area")[0]
    offsets = neighbours(settings.radius)
    walked = random_walk(small, affinities(features, offsets), offsets, power=settings.power, steps=settings.steps)
    full = functional.interpolate(walked[None], scores.shape[1:], mode="bilinear", align_corners=False)[0]
    refined: np.ndarray = full.numpy()
    return refined


class AffinitySettings(Table):
    """Options of the training of affinities."""

    dim: Count = 16  # length of a position's embedding
    radius: Count = 3  # pairs further apart are not looked at
    epochs: Count = 8  # passes over the images
    batch_size: Count = 8  # images per step
    learning_rate: Positive = 1e-2  # of Adam
    side: Count = 32  # rows and columns of the grid of positions, on which the walk will be
    seed: int = 0  # of the weights and of the order of the images


class AffinityNet(nn.Module):
    """An encoder that stays as it is, and the embedding of its positions."""

    def __init__(self, encoder: Encoder, *, dim: int = 16, side: int = 32) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side
        self.embed = nn.Conv2d(encoder.pooled_dim + 3, dim, 1)

    @torch.no_grad()
    def inputs(self, image: Image.Image) -> tuple[Float[Tensor, "1 k h w"], Float[Tensor, "1 3 rows columns"]]:
        """The feature map, each vector scaled to length √k, and the colours."""
        transform = self.encoder.transform.adapted(fit="squash")
        device = next(self.encoder.parameters()).device
        with evaluating(self.encoder):
            feature_map = self.encoder(transform.normalise(transform(image)[None]).to(device)).feature_map
        length = feature_map.norm(dim=1, keepdim=True).clamp(min=1e-6)
        colours = _colours(image, (self.side, self.side))
        return feature_map / length * feature_map.shape[1] ** 0.5, colours[None].to(device)

    def forward(
        self, feature_map: Float[Tensor, "b k h w"], colours: Float[Tensor, "b 3 rows columns"]
    ) -> Float[Tensor, "b e rows columns"]:
        """The embeddings on the grid; the feature map is enlarged to it."""
        enlarged = functional.interpolate(feature_map, colours.shape[-2:], mode="bilinear", align_corners=False)
        return functional.elu(self.embed(torch.cat([enlarged, colours], 1)))

    @torch.no_grad()
    def features(self, image: Image.Image) -> Float[Tensor, "e h w"]:
        """An image's embeddings: what `refine_by_walk` takes, on the CPU."""
        embedded: Tensor = self(*self.inputs(image))
        return embedded[0].cpu()


def affinity_loss(embedded: Float[Tensor, "b e h w"], cues: Int[Tensor, "b h w"], offsets: Sequence[Offset]) -> Tensor:
    """`(L+_background + L+_foreground + 2 L-) / 4`; pairs that the batch lacks count 0 (AffinityNet, Eq. 3-4)."""
    kinds: list[list[Tensor]] = [[], [], []]
    for offset in offsets:
        other = shifted(cues, offset, fill=VOID)
        distance = (embedded - shifted(embedded, offset)).abs().mean(1)
        known = (cues != VOID) & (other != VOID)
        same = known & (cues == other)
        kinds[0].append(distance[same & (cues == 0)])
        kinds[1].append(distance[same & (cues > 0)])
        kinds[2].append(-torch.log1p(1e-5 - torch.exp(-distance[known & ~same])))
    found = [torch.cat(kind) for kind in kinds]
    means = [values.mean() if len(values) else embedded.sum() * 0 for values in found]
    return (means[0] + means[1] + 2 * means[2]) / 4


def train_affinity(
    encoder: Encoder,
    data: MaskedImages,
    cues: Sequence[Mask],
    *,
    settings: AffinitySettings | None = None,
    progress: Progress | None = None,
) -> AffinityNet:
    """Affinities learnt from the cues of every image; feature maps are computed once and kept."""
    settings = settings or AffinitySettings()
    if len(cues) != len(data):
        raise InputError(f"expected cues for each of the {len(data)} images, got {len(cues)}")
    with drawn_from(settings.seed):
        net = AffinityNet(encoder, dim=settings.dim, side=settings.side)
    net.to(next(encoder.parameters()).device)
    inputs = [net.inputs(data.image(i)) for i in range(len(data))]
    feature_map, colours = (torch.cat(parts) for parts in zip(*inputs, strict=True))
    middles = np.arange(settings.side) + 0.5  # of the positions, in units of the grid
    under = [mask[np.ix_(*((middles * n / settings.side).astype(int) for n in mask.shape))] for mask in cues]
    small = torch.from_numpy(np.stack(under).astype(np.int64)).to(colours.device)
    if not ((small != VOID) & (small != 0)).any():
        raise InputError("no image has a cue of a class, so there are no affinities to learn; lower the threshold")
    offsets = [offset for offset in neighbours(settings.radius) if offset > (0, 0)]
    optimiser = torch.optim.Adam(net.embed.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = -(-len(data) // settings.batch_size)
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data), generator=generator)
        for step, batch in enumerate(torch.split(order, settings.batch_size)):
            loss = affinity_loss(net(feature_map[batch], colours[batch]), small[batch], offsets)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            if progress is not None:
                progress(epoch * steps + step + 1, settings.epochs * steps)
    return net.eval()


class CrfSettings(Table):
    """The two pairwise terms: pixels of similar colour nearby, and pixels nearby.

    The defaults are those of DeepLab and of most weakly supervised work, for images of about 500 pixels a side; for
    others `scaled` makes the distances as large a part of the image.

    Attributes:
        steps: of mean field inference.
        colour_weight: of the term of position and colour.
        colour_position: its standard deviation in pixels.
        colour: its standard deviation in grey levels.
        smooth_weight: of the term of position alone.
        smooth_position: its standard deviation in pixels.
        least: probabilities are raised to this much, so that nothing is impossible.
    """

    steps: Natural = 10
    colour_weight: float = 10.0
    colour_position: Positive = 80.0
    colour: Positive = 13.0
    smooth_weight: float = 3.0
    smooth_position: Positive = 3.0
    least: Positive = 1e-4

    def scaled(self, factor: float) -> CrfSettings:
        """The same with both distances multiplied; a quarter for images of a quarter of the size."""
        return self.changed(
            colour_position=self.colour_position * factor, smooth_position=self.smooth_position * factor
        )


def dense_crf(
    image: Image.Image, scores: Float[np.ndarray, "c h w"], *, settings: CrfSettings | None = None
) -> Float[np.ndarray, "c h w"]:
    """The classes' probabilities after mean field inference, in [0, 1]; they sum to 1 over the classes.

    Scores, the background's first, are not negative; divided by their sum they are the unary probabilities. A class
    that is 0 everywhere is left out and stays 0. MissingExtraError: pydensecrf2 is not installed; ShapeError: scores
    of another size than the image.
    """
    try:
        from pydensecrf import densecrf
        from pydensecrf.utils import unary_from_softmax
    except ImportError:
        raise MissingExtraError("the dense CRF needs pydensecrf2: pip install 'distcam[crf]'") from None
    settings = settings or CrfSettings()
    if scores.shape[1:] != (image.height, image.width):
        raise ShapeError(f"expected scores of {image.height} x {image.width} pixels, got {scores.shape[1:]}")
    shown = np.flatnonzero(scores.max((1, 2)) > 0)
    result = np.zeros_like(scores, dtype=np.float32)
    if len(shown) < 2 or not settings.steps:
        total = scores.sum(0)
        np.divide(scores, total, out=result, where=total > 0)
        return result
    raised = np.clip(scores[shown].astype(np.float32), settings.least, None)
    field = densecrf.DenseCRF2D(image.width, image.height, len(shown))
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(raised / raised.sum(0))))
    field.addPairwiseGaussian(sxy=settings.smooth_position, compat=settings.smooth_weight)
    field.addPairwiseBilateral(
        sxy=settings.colour_position,
        srgb=settings.colour,
        rgbim=np.array(image.convert("RGB"), order="C"),  # it must be writable
        compat=settings.colour_weight,
    )
    found = np.asarray(field.inference(settings.steps), dtype=np.float32)
    result[shown] = found.reshape(len(shown), image.height, image.width)
    return result
