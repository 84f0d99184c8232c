"""Rectangles, upright RGB, and the geometry of `Transform`, without torch: a decoding process starts fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image

from ..errors import ImageError, InputError


class Box(NamedTuple):
    """A rectangle given by its pixel edges: x grows to the right, y downwards, right and bottom are exclusive.

    The first pixel of an image covers `Box(0, 0, 1, 1)`, so widths and areas need no `+ 1`. A box whose right edge is
    not beyond its left one (or bottom not beyond top) is empty: its area is 0.

    >>> Box(10, 20, 40, 60).area
    1200
    >>> Box(0, 0, 4, 4).iou(Box(2, 0, 6, 4))
    0.3333333333333333
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Distance from the left to the right edge in pixels, never negative."""
        return max(self.right - self.left, 0)

    @property
    def height(self) -> float:
        """Distance from the top to the bottom edge in pixels, never negative."""
        return max(self.bottom - self.top, 0)

    @property
    def area(self) -> float:
        """Area in square pixels, never negative."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """The middle as (x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def intersection(self, other: Box) -> Box:
        """The rectangle both boxes cover; empty (area 0) when they only touch or lie apart."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(left, top, max(left, right), max(top, bottom))

    def iou(self, other: Box) -> float:
        """Intersection over union in [0, 1]; 0.0 when both boxes are empty, also if they are the same."""
        shared = self.intersection(other).area
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def contains(self, x: float, y: float) -> bool:
        """True if the point lies inside; the left and top edges belong to the box, the right and bottom ones do not."""
        return self.left <= x < self.right and self.top <= y < self.bottom

    @classmethod
    def around(cls, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Self:
        """The tight box of the pixels that are marked; there is one at least."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return cls(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

    def scaled(self, x: float, y: float | None = None) -> Box:
        """The box in an image resized by the factor `x` across and `y` down (the same factor when `y` is left out)."""
        down = x if y is None else y
        return Box(self.left * x, self.top * down, self.right * x, self.bottom * down)

    def shifted(self, x: float, y: float) -> Box:
        """The box moved `x` pixels to the right and `y` pixels down."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def clipped(self, width: float, height: float) -> Box:
        """The part of the box inside an image of this size; empty, on the nearest edge, when it lies outside."""
        left, right = (min(max(edge, 0), width) for edge in (self.left, self.right))
        top, bottom = (min(max(edge, 0), height) for edge in (self.top, self.bottom))
        return Box(left, top, right, bottom)


def turned(box: Box, orientation: int, size: tuple[float, float]) -> Box:
    """A box of stored pixels, in an image of `size`, in those of the upright image.

    >>> turned(Box(0, 0, 3, 1), 6, (4, 2))  # the camera was held upright: what was left is now the top
    Box(left=1, top=0, right=2, bottom=3)
    """
    width, height = size
    left, top, right, bottom = box
    across, down = Box(width - right, top, width - left, bottom), Box(left, height - bottom, right, height - top)
    both = Box(across.left, down.top, across.right, down.bottom)
    flipped = {1: box, 2: across, 3: both, 4: down, 5: box, 6: down, 7: both, 8: across}[orientation]
    return flipped if orientation < 5 else Box(flipped.top, flipped.left, flipped.bottom, flipped.right)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_rgb(
    image: Image.Image, *, background: tuple[int, int, int] = (255, 255, 255), name: str = "<image>"
) -> Image.Image:
    """Any Pillow image as mode "RGB" under the rules of `read_image`; an opaque RGB image comes back as it is.

    Raises:
        ImageError: the numbers of an integer or float image have no known range; `name` stands for the file.
    """
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)  # `Image.convert` would saturate 16 bits and blacken [0, 1]
        low, high = values.min(), values.max()
        if image.mode == "F":
            if not (low >= 0 and high <= 1):  # written so that NaN is refused too
                raise ImageError(name, f"float values outside [0, 1] ({low:g} to {high:g}); scale them or save 8 bits")
            return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
        if low < 0 or high > 65535:
            raise ImageError(name, f"integer values outside 0…65535 ({low} to {high}); save 8 or 16 bits")
        tags = getattr(image, "tag_v2", {})
        peak = (1 << tags.get(258, (16,))[0]) - 1 if image.mode != "I" else 65535  # tag 258: BitsPerSample
        levels = (values.astype(np.uint32) * 255 + peak // 2) // peak
        if tags.get(262) == 0:  # PhotometricInterpretation "white is zero", which Pillow leaves alone for 16 bits
            levels = 255 - levels
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(layers, mask=layers)
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def bare(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, without the metadata that would let a second reader turn it again."""
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if upright is image and type(image) is not Image.Image:
        upright = image.copy()  # lets go of the decoder and of the file's bytes
    upright.info = {}
    return upright


DEFAULT_FIT: Literal["pad"] = "pad"  # the one default of every command; `benchmarks/ranking/fits.py` measures it
_CHOICES = {
    "fit": ("crop", "squash", "pad"),
    "channels": ("rgb", "bgr"),
    "interpolation": ("bilinear", "bicubic"),
    "decoding": ("scaled", "full"),
}
_FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # filter, radius


def _resized(image: Image.Image, size: tuple[int, int], box: Box, interpolation: str) -> Image.Image:
    """The part `box` of the image at `size` = (width, height), the same as resizing the whole image and cropping then.

    Neighbours outside the box enter the filter as they would then; rows far from it are left out. Width is resized
    before height, always, as Pillow itself did until version 13, which begins with the height of tall images. It rounds
    and clips in between, so the order shows, and an embedding should not depend on Pillow's version.
    """
    width, height = size
    resample, radius = _FILTERS[interpolation]
    reach = radius * max(box.height / height, 1) + 1
    first, last = max(math.floor(box.top - reach), 0), min(math.ceil(box.bottom + reach), image.height)
    if last - first > 0.8 * image.height:  # naming rows costs Pillow a pass over them, more than the rest would save
        first, last = 0, image.height
    narrowed = image.resize((width, last - first), resample, box=(box.left, first, box.right, last))
    return narrowed.resize(size, resample, box=(0, box.top - first, width, box.bottom - first))


@dataclass(frozen=True)
class Fitting:
    """The way an image is made to fit the input of a network; `Transform` documents the fields."""

    size: int | tuple[int, int] = 224
    fit: Literal["crop", "squash", "pad"] = DEFAULT_FIT
    resize: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr"] = "rgb"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fill: tuple[int, int, int] = (124, 116, 104)
    decoding: Literal["scaled", "full"] = "scaled"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"expected {name} to be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"expected size as a positive number or (height, width); got {self.size!r}")
        object.__setattr__(self, "size", size)
        if self.fit != "crop" and self.resize is not None:
            raise InputError(
                f'resize belongs to fit="crop"; got resize={self.resize} with fit="{self.fit}"; say fit="crop"'
            )
        if self.fit == "crop":
            resize = round(max(size) * 256 / 224) if self.resize is None else self.resize
            if resize < max(size):
                raise InputError(f"expected resize of at least {max(size)}, the longer side of size; got {resize}")
            object.__setattr__(self, "resize", resize)
        for name in ("mean", "std", "fill"):
            given = getattr(self, name)
            try:  # as Python's own numbers, which JSON can hold
                values = tuple(value if type(value) in (int, float) else value.item() for value in given)
                is_wrong = len(values) != 3 or not all(map(math.isfinite, values))
            except (AttributeError, TypeError, ValueError):
                is_wrong = True
            if is_wrong or (name == "std" and min(values) <= 0):
                raise InputError(f"expected three{' positive' * (name == 'std')} numbers for {name}; got {given!r}")
            object.__setattr__(self, name, values)

    @property
    def height(self) -> int:
        """Rows of the network's input."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Columns of the network's input."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def summary(self) -> str:
        """The treatment of an image, to be printed beside numbers: `'pad to 224×224'`."""
        return f"{self.fit} to {self.height}×{self.width}"

    def reduction(self, width: int, height: int) -> int:
        """How many times smaller an image of this size may be decoded: 8, 4, 2, or 1 for whole.

        What is left has at least 2.5 times the rows and columns that it is resized to, since with twice as many an
        image with detail in every pixel differs by ten grey levels.
        """
        across, down, _, _ = self._placement(width, height)
        spare = min(width / across, height / down) / 2.5
        fits = (times for times in (8, 4, 2) if times <= spare)
        return 1 if self.decoding == "full" else next(fits, 1)

    def levels(
        self, image: Image.Image, size: tuple[int, int] | None = None, whole: Box | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The network's view of one image, (3, height, width), grey levels 0 to 255.

        Args:
            image: the image, or a reduced copy of it.
            size: width and height of the image itself, if `image` is a reduced copy.
            whole: the rectangle of the whole image in the pixels of the copy.
        """
        image, size, whole = as_rgb(image), size or image.size, whole or Box(0, 0, *image.size)
        if self.fit == "pad":
            width, height, left, top = self._placement(*size)
            seen = Image.new("RGB", (self.width, self.height), self.fill)
            seen.paste(_resized(image, (width, height), whole, self.interpolation), (-left, -top))
        else:
            view = self.view(*size).scaled(whole.width / size[0], whole.height / size[1])
            seen = _resized(image, (self.width, self.height), view.shifted(*whole[:2]), self.interpolation)
        pixels = np.asarray(seen)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        return np.array(pixels.transpose(2, 0, 1), order="C")

    def view(self, width: int, height: int) -> Box:
        """The rectangle of a `width` x `height` image that becomes the network's input, in pixels of that image.

        It lies inside the image for "crop", is the image for "squash", and exceeds it by the margins for "pad".

        >>> Fitting(224, fit="crop").view(256, 512)
        Box(left=16.0, top=144.0, right=240.0, bottom=368.0)
        """
        resized_width, resized_height, left, top = self._placement(width, height)
        return Box(  # multiplied first: a far edge that is the image's own comes out exact
            left * width / resized_width,
            top * height / resized_height,
            (left + self.width) * width / resized_width,
            (top + self.height) * height / resized_height,
        )

    def locate(self, box: Box, width: int, height: int) -> Box:
        """A rectangle of the network's input in the original `width` x `height` image, clipped to it."""
        view = self.view(width, height)
        in_view = box.scaled(view.width / self.width, view.height / self.height)
        return in_view.shifted(view.left, view.top).clipped(width, height)

    def _placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height of the resized image, and where in it the input's left and top edges lie (pad: ≤ 0)."""
        if self.fit == "squash":
            return self.width, self.height, 0, 0
        if self.resize is None:
            scale = min(self.width / width, self.height / height)
            across, down = max(round(width * scale), 1), max(round(height * scale), 1)
            return across, down, -((self.width - across) // 2), -((self.height - down) // 2)
        # rounded as in torchvision: down for the longer side, to even for the offset
        shorter = min(width, height)
        across, down = int(self.resize * width / shorter), int(self.resize * height / shorter)
        return across, down, round((across - self.width) / 2), round((down - self.height) / 2)

    def adapted(
        self,
        *,
        size: int | tuple[int, int] | None = None,
        fit: Literal["crop", "squash", "pad"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Self:
        """The same for another input size, another way to make an image fit, or another mean or deviation.

        >>> Fitting(224).adapted(fit="squash") == Fitting(224, fit="squash")
        True
        """
        same = (size is None or Fitting(size).size == self.size) and (fit is None or fit == self.fit)
        colours: Any = {"mean": self.mean if mean is None else mean, "std": self.std if std is None else std}
        kept = replace(self, **colours)
        return kept if same else replace(kept, size=size or self.size, fit=fit or self.fit, resize=None)

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them; `from_dict` restores an equal transform. No decoding is "full"."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if (key, value) != ("decoding", "full")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The transform that `to_dict` described; missing keys take their defaults, decoding that of version 0.1."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                nearest = get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise InputError(f"expected the keys {', '.join(known)}; got {key!r}{hint}")
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{"decoding": "full", **options})
