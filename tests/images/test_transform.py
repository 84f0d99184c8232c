"""`Transform`: the pixels a network sees, and where in the image they lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms import v2

from distcam.errors import ImageError, InputError
from distcam.images import Box, Transform

sides = st.integers(8, 90)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def torchvision_crop(image: Image.Image, transform: Transform) -> torch.Tensor:
    interpolation = v2.InterpolationMode(transform.interpolation)
    resize, crop = v2.Resize(transform.resize, interpolation), v2.CenterCrop([transform.height, transform.width])
    return v2.functional.pil_to_tensor(crop(resize(image)))


def whole_then_crop(image: Image.Image, transform: Transform) -> torch.Tensor:
    """The slow way: the whole image's width, then its height, then the part (which adds black where there is none)."""
    width, height, left, top = transform._placement(*image.size)
    resample = Image.Resampling[transform.interpolation.upper()]
    whole = image.resize((width, image.height), resample).resize((width, height), resample)
    return v2.functional.pil_to_tensor(whole.crop((left, top, left + transform.width, top + transform.height)))


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 400), (400, 500), (257, 256), (224, 224), (64, 40), (40, 64), (1999, 301)])
def test_crop_equals_torchvision_within_one_grey_level(size: tuple[int, int], interpolation: Any) -> None:
    transform, image = Transform(224, fit="crop", interpolation=interpolation), noise(*size)
    assert (transform(image).int() - torchvision_crop(image, transform).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(333, 500), (300, 1100)])
def test_crop_equals_torchvision_on_tall_pictures_whatever_order_pillow_takes(size: tuple[int, int]) -> None:
    transform, image = (
        Transform(224, fit="crop"),
        noise(*size).filter(ImageFilter.GaussianBlur(2)),
    )  # as sharp as a photograph
    assert (transform(image).int() - torchvision_crop(image, transform).int()).abs().max() <= 1


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(sides, sides),
    output=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    extra=st.integers(0, 9),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_crop_equals_resizing_the_whole_for_any_size(
    size: tuple[int, int], output: tuple[int, int], extra: int, interpolation: Any
) -> None:
    transform, image = (
        Transform(output, fit="crop", resize=max(output) + extra, interpolation=interpolation),
        noise(*size),
    )
    difference = (transform(image).int() - whole_then_crop(image, transform).int()).abs()
    assert difference.shape == (3, *output)
    assert difference.max() <= 2
    assert (difference > 1).float().mean() <= max(5e-3, 1 / difference.numel())


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(60, 900), (900, 60)])
def test_width_is_resized_before_height_whatever_the_shape(size: tuple[int, int], fit: Any) -> None:
    image, transform = noise(*size), Transform(32, fit=fit, interpolation="bicubic", fill=(0, 0, 0))
    assert (transform(image).int() - whole_then_crop(image, transform).int()).abs().max() <= 1


def test_a_long_image_is_never_resized_as_a_whole() -> None:
    image = Image.new("RGB", (200_000, 8), (9, 8, 7))  # torchvision would make 6.4 million x 256 pixels of it
    assert Transform(224, fit="crop")(image).amax((1, 2)).tolist() == [9, 8, 7]


def test_squash_resizes_the_whole_image() -> None:
    image = noise(50, 31)
    expected = np.asarray(image.resize((20, 30), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(Transform((30, 20), fit="squash")(image), expected)


def test_pad_centres_the_whole_image_on_the_fill() -> None:
    image = Image.new("RGB", (40, 20), (200, 100, 50))
    seen = Transform(16, fit="pad", fill=(1, 2, 3))(image)  # scale 0.4: 16 x 8, 4 rows above and below
    assert seen[:, 4:12].unique(dim=1).flatten().unique().tolist() == [50, 100, 200]
    assert seen[:, :4].amin((1, 2)).tolist() == seen[:, 12:].amax((1, 2)).tolist() == [1, 2, 3]


def test_pad_keeps_at_least_a_pixel_of_a_thin_image() -> None:
    seen = Transform(16, fit="pad", fill=(0, 0, 0))(Image.new("RGB", (4000, 8), (255, 255, 255)))
    assert (seen[0] == 255).sum() == 16


def test_the_result_is_contiguous_bytes_that_may_be_written_to() -> None:
    image = noise(30, 30)
    before = image.tobytes()
    seen = Transform((20, 24), fit="crop")(image)
    assert seen.dtype == torch.uint8
    assert seen.is_contiguous()
    seen.zero_()
    assert image.tobytes() == before


def test_bgr_reverses_the_channels() -> None:
    image = noise(30, 30)
    assert torch.equal(Transform(20, channels="bgr")(image), Transform(20)(image).flip(0))


def test_other_modes_are_converted_as_read_image_does() -> None:
    assert Transform(8)(Image.new("RGBA", (9, 9), (0, 0, 0, 0))).min() == 255
    deep = Image.fromarray(np.full((9, 9), 257 * 7, np.uint16))
    assert Transform(8)(deep).unique().tolist() == [7]
    with pytest.raises(ImageError, match="float values outside"):
        Transform(8)(Image.new("F", (9, 9), 99.0))


# --- geometry ---------------------------------------------------------------------------------------------------------

TRANSFORMS = [
    Transform(96, fit="crop"),
    Transform((64, 128), fit="crop"),
    Transform((128, 64), fit="crop", resize=160),
    Transform(96, fit="squash"),
    Transform((64, 128), fit="pad", fill=(0, 0, 0)),
    Transform((128, 64), fit="pad", fill=(0, 0, 0)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: f"{t.fit} {t.height}x{t.width}")
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (61, 60), (97, 403)])
def test_a_rectangle_drawn_in_the_image_is_found_where_view_says(transform: Transform, size: tuple[int, int]) -> None:
    width, height = size
    view = transform.view(width, height).intersection(Box(0, 0, width, height))
    x, y = view.center  # within what every transform sees, and away from its middle
    drawn = Box(*map(round, (x - 0.4 * view.width, y - 0.3 * view.height, x + 0.1 * view.width, y + 0.4 * view.height)))
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((drawn.left, drawn.top, drawn.right - 1, drawn.bottom - 1), fill=(255, 255, 255))

    light = transform(image)[0].double() / 255
    across, down = light.sum(0), light.sum(1)  # antialiasing moves no light: areas and centres are exact to a rounding
    x = float((across * (torch.arange(transform.width) + 0.5)).sum() / across.sum())
    y = float((down * (torch.arange(transform.height) + 0.5)).sum() / down.sum())
    seen_width, seen_height = float(light.max(0).values.sum()), float(light.max(1).values.sum())
    found = transform.locate(
        Box(x - seen_width / 2, y - seen_height / 2, x + seen_width / 2, y + seen_height / 2), width, height
    )

    pixel = max(transform.view(width, height).width / transform.width, 1)
    np.testing.assert_allclose(found, drawn, atol=0.5 * pixel)
    np.testing.assert_allclose(found.center, drawn.center, atol=0.05 * pixel)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(8, 3000), height=st.integers(8, 3000), rows=st.integers(1, 300), columns=st.integers(1, 300))
def test_view_lies_inside_covers_or_equals_the_image(width: int, height: int, rows: int, columns: int) -> None:
    image = Box(0, 0, width, height)
    crop = Transform((rows, columns), fit="crop").view(width, height)
    assert crop == crop.clipped(width, height)
    assert crop.area > 0
    assert Transform((rows, columns), fit="squash").view(width, height) == image
    pad = Transform((rows, columns), fit="pad").view(width, height)
    assert pad.intersection(image) == image


def test_view_by_hand() -> None:
    # 512 x 256: the shorter side is 256 already; 224 of 256 rows and 224 of 512 columns, from the middle
    assert Transform(224, fit="crop").view(512, 256) == Box(144, 16, 368, 240)
    # 100 x 50 into 20 x 20: a fifth, so 20 x 10 with 5 rows of margin, each 5 pixels of the image
    assert Transform(20, fit="pad").view(100, 50) == Box(0, -25, 100, 75)


def test_locate_clips_the_margins_away() -> None:
    assert Transform(20, fit="pad").locate(Box(0, 0, 20, 20), 100, 50) == Box(0, 0, 100, 50)
    assert Transform(20, fit="pad").locate(Box(0, 0, 10, 4), 100, 50).area == 0  # nothing but margin


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_normalise_equals_torchvision_and_leaves_the_pixels_alone() -> None:
    transform, pixels = Transform(16), torch.stack([Transform(16)(noise(20, 20, seed)) for seed in range(3)])
    before = pixels.clone()
    expected = v2.functional.normalize(
        v2.functional.to_dtype(pixels, torch.float32, scale=True), transform.mean, transform.std
    )
    torch.testing.assert_close(transform.normalise(pixels), expected)
    torch.testing.assert_close(transform.normalise(pixels.float()), expected)
    assert torch.equal(pixels, before)
    assert transform.normalise(pixels.double()).dtype == torch.float64


def test_denormalise_gives_intensities_back() -> None:
    pixels = Transform(16)(noise(20, 20))[None]
    torch.testing.assert_close(Transform(16).denormalise(Transform(16).normalise(pixels)), pixels / 255)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS, Transform(32, mean=(0.1, 0.2, 1 / 3), std=(1 / 255,) * 3, channels="bgr")]
)
def test_a_transform_survives_json_exactly(transform: Transform) -> None:
    restored = Transform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert restored == transform
    assert hash(restored) == hash(transform)
    assert restored.to_dict() == transform.to_dict()


def test_transforms_that_do_the_same_are_equal() -> None:
    assert Transform(224, fit="crop") == Transform((224, 224), resize=256, fit="crop")
    assert Transform(224, fit="crop").resize == 256
    assert Transform((256, 128), fit="crop").resize == 293  # 256 * 256 / 224 = 292.57
    assert Transform(224, fit="pad").resize is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"expected size as a positive number or \(height, width\); got 0"),
        ({"size": (1, 2, 3)}, "expected size as a positive number"),
        ({"fit": "stretch"}, "expected fit to be one of crop, squash, pad; got 'stretch'"),
        ({"interpolation": "nearest"}, "expected interpolation to be one of"),
        (
            {"size": 224, "fit": "crop", "resize": 200},
            "expected resize of at least 224, the longer side of size; got 200",
        ),
        ({"fit": "pad", "resize": 256}, 'resize belongs to fit="crop"'),
        ({"std": (1, 0, 1)}, "expected three positive numbers for std"),
        ({"mean": (1, 2)}, "expected three numbers for mean"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transform(**options)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match="got 'interpolaton'; did you mean 'interpolation'"):
        Transform.from_dict({"interpolaton": "bicubic"})
