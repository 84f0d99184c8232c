"""Random changes to a batch of images, and the same ones to the masks and boxes that belong to them.

What becomes of an image is hashed from (seed, epoch, its place in the epoch, its index): neither the batch size nor
the number of workers shows.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ..engine.step import Mix, Regions
from ..recipes.tables import NotNegative, Share, Table, limited

HalfShare = Annotated[float, limited(lambda value: 0 <= value <= 0.5, "a number from 0 to 0.5")]
Bounds = tuple[float, float]


class AugmentSettings(Table):
    """Random changes of a training image, in the order of the attributes."""

    flip: Share = 0.5  # probability of a mirror image
    shift: HalfShare = 0.1  # largest move across and down, as a share of the side; what enters repeats the edge
    # smallest and largest share of the area that is cut out and enlarged again; (1, 1) for the whole image
    crop: Bounds = (1.0, 1.0)
    crop_ratio: Bounds = (0.75, 4 / 3)  # narrowest and widest shape of what is cut out, width : height
    # "input" cuts from the image as the network would see it; "file" from the original, which is read anew every epoch:
    # areas and shapes are then those of the image itself, and shift is not used
    crop_from: Literal["input", "file"] = "input"
    # crop_from = "file": in place of crop, the smallest and largest side in pixels that an image is brought to before a
    # window of the network's size is cut out anywhere: the shorter side with data.fit = "crop", the longer one with
    # "pad", both with "squash"
    resize: tuple[int, int] | None = None
    rotate: NotNegative = 0.0  # largest angle, in degrees, either way
    brightness: Share = 0.0  # 0.4 multiplies by a number from 0.6 to 1.4
    contrast: Share = 0.0  # likewise, the distance from the image's mean grey
    saturation: Share = 0.0  # likewise, the distance from the pixel's own grey
    hue: HalfShare = 0.0  # largest turn of the colour circle, as a share of it, at most 0.5; slow
    grey: Share = 0.0  # probability of an image without colour
    erase: Share = 0.0  # probability that a rectangle takes the image's mean colour; masks and boxes stay
    erase_area: Bounds = (0.02, 0.33)  # smallest and largest share of the area that is painted over
    # side of a square, as a share of the image's shorter side, that takes the mean colour of the encoder's transform,
    # around any place of every image (DeVries and Taylor, Cutout, 2017); masks and boxes stay
    cutout: Share = 0.0
    mixup: NotNegative = 0.0  # parameter of the Beta distribution that blends two images, 0.2 for example; 0 for none
    # the same for pasting a rectangle of another image, 1.0 for example. With both, batches take turns by chance.
    cutmix: NotNegative = 0.0
    # the same for mixup of what one of the `manifold_layers`, drawn for each batch, hands on (Verma et al., Manifold
    # Mixup, 2019); 2.0 for example. "" is the image, other names are layers of the backbone.
    manifold_mixup: NotNegative = 0.0
    manifold_layers: tuple[str, ...] = ("", "layer1", "layer2")
    mix_share: Share = 1.0  # share of the batches that are mixed, if any of the three is on

    def _check(self) -> None:
        if self.rotate > 180:
            raise InputError(f"expected rotate from 0 to 180, got {self.rotate}")
        for name, most in (("crop", 1.0), ("erase_area", 1.0), ("crop_ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(f"expected {name} as 0 < lowest <= highest <= {most:g}, got {low} and {high}")
        if self.resize is not None and not 0 < self.resize[0] <= self.resize[1]:
            raise InputError(f"expected resize as 0 < smallest <= largest, got {self.resize[0]} and {self.resize[1]}")
        if self.manifold_mixup and (self.mixup or self.cutmix or not self.manifold_layers):
            raise InputError("manifold_mixup goes without mixup and cutmix, and needs a layer or more")
        cuts = (self.crop != (1.0, 1.0)) + (self.resize is not None)
        if self.crop_from == "file" and cuts != 1:
            raise InputError(f'crop_from = "file" needs crop or resize, got {"both" if cuts else "neither"}')
        if self.crop_from == "input" and self.resize is not None:
            raise InputError('resize needs crop_from = "file"')

    def _unused(self) -> dict[str, str]:
        off = {"crop_ratio": self.crop == (1.0, 1.0), "erase_area": self.erase == 0, "mix_share": not self.mixes}
        off["manifold_layers"] = self.manifold_mixup == 0
        whom = {"crop_ratio": "crop = [1, 1]", "erase_area": "erase = 0", "manifold_layers": "manifold_mixup = 0"}
        whom["mix_share"] = "mixup = 0, cutmix = 0 and manifold_mixup = 0"
        unused = {key: whom[key] for key, is_off in off.items() if is_off}
        return unused | ({"shift": 'crop_from = "file"'} if self.crop_from == "file" else {})

    @classmethod
    def none(cls) -> AugmentSettings:
        """Images as they are."""
        return cls(flip=0.0, shift=0.0)

    @property
    def mixes(self) -> bool:
        """True if images of a batch are blended."""
        return self.mixup > 0 or self.cutmix > 0 or self.manifold_mixup > 0


_DRAWS = 20  # numbers per image; each change has its own, so switching one on leaves the others as they were
_FLIP, _SHIFT, _CROP, _ROTATE, _COLOUR, _ERASE, _CUTOUT = 0, 1, 3, 7, 8, 13, 18
PLACE = slice(_CROP, _ROTATE)  # of what is cut out: area, shape, and its place across and down


def uniforms(seed: int, epoch: int, place: Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Float[Tensor, "b _draws"]:
    """Numbers in [0, 1) for every image, each a hash of its key (SplitMix64; Steele, Lea, Flood 2014)."""
    key = _hashed(np.array([seed], dtype=np.uint64))
    for part in (np.array([epoch]), place.numpy(), index.numpy()):
        key = _hashed(key + part.astype(np.uint64))
    bits = _hashed(key[:, None] + _hashed(np.arange(_DRAWS, dtype=np.uint64)))
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53).float().clamp_(max=1 - 2**-24)


def _hashed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def augment(
    pixels: UInt8[Tensor, "b 3 h w"],
    settings: AugmentSettings,
    chance: Float[Tensor, "b _draws"],
    *,
    regions: Regions | None = None,
) -> tuple[UInt8[Tensor, "b 3 h w"], Regions | None]:
    """The batch after everything that happens to single images; regions that end up outside are left out."""
    if settings.crop != (1.0, 1.0) or settings.rotate:
        pixels, raster = _resampled(pixels, settings, chance, regions)
    else:
        pixels, raster = _moved(pixels, settings, chance, regions)
    pixels = _recoloured(pixels, settings, chance)
    if settings.erase:
        pixels = _erased(pixels, settings, chance)
    if regions is None or raster is None:
        return pixels, regions
    return pixels, regions.chosen(raster.flatten(1).any(1), raster)


def _moved(
    pixels: Tensor, settings: AugmentSettings, chance: Tensor, regions: Regions | None
) -> tuple[Tensor, Tensor | None]:
    """Mirrored and shifted by whole pixels: one gather, no resampling."""
    if not settings.flip and not settings.shift:
        return pixels, None if regions is None else regions.raster
    height, width = pixels.shape[-2:]
    most = torch.tensor([round(settings.shift * height), round(settings.shift * width)])
    move = (chance[:, _SHIFT : _SHIFT + 2] * (2 * most + 1)).long() - most
    rows = torch.arange(height) + move[:, :1]
    columns = torch.arange(width) + move[:, 1:]
    columns = torch.where(chance[:, _FLIP, None] < settings.flip, columns.flip(1), columns)
    raster = None
    if regions is not None:
        down, across = rows[regions.row], columns[regions.row]
        inside = (down >= 0) & (down < height), (across >= 0) & (across < width)
        visible = inside[0][:, :, None] & inside[1][:, None, :]
        raster = _gathered(regions.raster[:, None], down, across)[:, 0] * visible
    return _gathered(pixels, rows, columns), raster


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    flat = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view(images.shape)


def _resampled(
    pixels: Tensor, settings: AugmentSettings, chance: Tensor, regions: Regions | None
) -> tuple[Tensor, Tensor | None]:
    """Mirrored, shifted, cut out and turned in one bilinear resampling; masks take the nearest pixel."""
    aspect = pixels.shape[-1] / pixels.shape[-2]
    low, high = settings.crop
    area = low + (high - low) * chance[:, _CROP]
    log_low, log_high = math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])
    shape = torch.exp(log_low + (log_high - log_low) * chance[:, _CROP + 1])
    shape = torch.where(area < 1, shape, torch.ones(()))  # nothing but the whole image has its area
    size = torch.stack([(area * shape / aspect).sqrt(), (area / shape * aspect).sqrt()], 1)
    size = torch.where(area[:, None] < 1, size.clamp(max=1), torch.ones(()))
    center = (2 * chance[:, _CROP + 2 : _CROP + 4] - 1) * (1 - size)
    center = center + (2 * chance[:, [_SHIFT + 1, _SHIFT]] - 1) * 2 * settings.shift
    angle = torch.deg2rad((2 * chance[:, _ROTATE] - 1) * settings.rotate)
    mirror = torch.where(chance[:, _FLIP] < settings.flip, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([size[:, 0] * mirror * cos, -size[:, 1] * sin / aspect, center[:, 0]], 1)
    down = torch.stack([size[:, 0] * mirror * sin * aspect, size[:, 1] * cos, center[:, 1]], 1)
    matrix = torch.stack([across, down], 1)  # from places of the new image to the old one's, both in [-1, 1]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    images = functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    raster = None
    if regions is not None:
        own = grid[regions.row]
        raster = functional.grid_sample(regions.raster[:, None], own, mode="nearest", align_corners=False)[:, 0]
    return images.round_().to(torch.uint8), raster


def _recoloured(pixels: Tensor, settings: AugmentSettings, chance: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue, grey: torchvision's formulas, with one factor per image."""
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    if not any((*strengths, settings.hue, settings.grey)):
        return pixels
    from torchvision.transforms.v2 import functional as image_functional

    factor = 1 + (2 * chance[:, _COLOUR : _COLOUR + 3] - 1) * torch.tensor(strengths)
    brightness, contrast, saturation = factor[:, :, None, None, None].unbind(1)
    levels = pixels.float()
    if settings.brightness:
        levels = (levels * brightness).clamp_(0, 255)
    if settings.contrast:
        mean = image_functional.rgb_to_grayscale(levels).mean((1, 2, 3), keepdim=True)
        levels = torch.lerp(mean, levels, contrast).clamp_(0, 255)
    if settings.saturation:
        levels = torch.lerp(image_functional.rgb_to_grayscale(levels), levels, saturation).clamp_(0, 255)
    if settings.hue:
        turns = ((2 * chance[:, _COLOUR + 3] - 1) * settings.hue).tolist()
        changed = [image_functional.adjust_hue(x / 255, turn) * 255 for x, turn in zip(levels, turns, strict=True)]
        levels = torch.stack(changed)
    if settings.grey:
        grey = chance[:, _COLOUR + 4, None, None, None] < settings.grey
        levels = torch.where(grey, image_functional.rgb_to_grayscale(levels), levels)
    return levels.round_().clamp_(0, 255).to(torch.uint8)


def _erased(pixels: Tensor, settings: AugmentSettings, chance: Tensor) -> Tensor:
    """A rectangle of some images painted over with their mean colour (Zhong et al., Random Erasing, 2020)."""
    own = chance[:, _ERASE : _ERASE + 5]
    low, high = settings.erase_area
    area = low + (high - low) * own[:, 1]
    shape = torch.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * own[:, 2])
    sides = torch.stack([(area / shape).sqrt(), (area * shape).sqrt()], 1).clamp(max=1)
    inside = _rectangles(sides, own[:, 3:5], pixels.shape[-2], pixels.shape[-1])
    inside &= (own[:, 0] < settings.erase)[:, None, None]
    mean = pixels.float().mean((2, 3), keepdim=True).round_().to(torch.uint8)
    return torch.where(inside[:, None], mean, pixels)


def cut_out(
    images: Float[Tensor, "b 3 h w"], settings: AugmentSettings, chance: Float[Tensor, "b _draws"]
) -> Float[Tensor, "b 3 h w"]:
    """Normalised images, in each a square of zeros around a place drawn by chance, which the border may cut."""
    if not settings.cutout:
        return images
    height, width = images.shape[-2:]
    side = round(settings.cutout * min(height, width))
    centre = (chance[:, _CUTOUT : _CUTOUT + 2] * chance.new_tensor([height, width])).floor()
    start = centre - side // 2
    rows, columns = torch.arange(height, device=chance.device), torch.arange(width, device=chance.device)
    down = (rows >= start[:, :1]) & (rows < start[:, :1] + side)
    across = (columns >= start[:, 1:]) & (columns < start[:, 1:] + side)
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)


def _rectangles(sides: Float[Tensor, "b 2"], place: Float[Tensor, "b 2"], height: int, width: int) -> Tensor:
    """True inside a rectangle of these sides (down, across, as shares), somewhere in the image."""
    whole = torch.tensor([height, width])
    size = (sides * whole).round()
    start = (place * (whole - size + 1)).floor()
    stop = start + size
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows >= start[:, :1]) & (rows < stop[:, :1])
    across = (columns >= start[:, 1:]) & (columns < stop[:, 1:])
    return down[:, :, None] & across[:, None, :]


def mix_images(
    images: Float[Tensor, "b 3 h w"], settings: AugmentSettings, seed: tuple[int, ...], *, regions: Regions | None
) -> tuple[Float[Tensor, "b 3 h w"], Mix | None, Regions | None]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of normalised images; `seed` says which batch it is.

    Where Manifold Mixup's layer is one of the network's, the images stay, and the mix says where they are blended.
    """
    generator = np.random.default_rng([0x313, *seed])
    if not settings.mixes or len(images) < 2 or generator.random() >= settings.mix_share:
        return images, None, regions
    cuts = settings.cutmix > 0 and (settings.mixup == 0 or generator.random() < 0.5)
    strength = settings.cutmix if cuts else settings.mixup or settings.manifold_mixup
    share = float(generator.beta(strength, strength))
    place = torch.from_numpy(generator.random((1, 2))).to(images.device, torch.float32)
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    if settings.manifold_mixup and (layer := str(generator.choice(settings.manifold_layers))):
        return images, Mix(partner, share, layer), regions
    if not cuts:
        return torch.lerp(images[partner], images, share), Mix(partner, share), regions
    height, width = images.shape[-2:]
    pasted = _rectangles(torch.full((1, 2), math.sqrt(1 - share)), place, height, width)
    mixed = torch.where(pasted[:, None], images[partner], images)
    if regions is not None:
        raster = regions.raster * ~pasted
        regions = regions.chosen(raster.flatten(1).any(1), raster)
    return mixed, Mix(partner, 1 - float(pasted.float().mean())), regions
