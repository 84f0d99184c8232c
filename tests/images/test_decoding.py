"""JPEGs that are decoded at the size that a network sees: nearly the same pixels, the same place, the same size."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distcam.images import Box, Transform, read_image
from distcam.images.geometry import Fitting
from distcam.images.loading import read_levels

FITS = ("pad", "squash", "crop")
OLD = {"size": [32, 32], "fit": "pad", "resize": None, "mean": [0.5] * 3, "std": [0.5] * 3, "channels": "rgb",
       "interpolation": "bilinear", "fill": [0, 0, 0]}  # fmt: skip


def jpeg(width: int, height: int, *, mode: str = "RGB", orientation: int = 1, seed: int = 0, **options: Any) -> bytes:
    """A soft scene, as a photograph of so many pixels is."""
    values = np.random.default_rng(seed).integers(64, 192, (max(height // 48, 2), max(width // 48, 2), 3), np.uint8)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    image.save(stream, "JPEG", quality=92, exif=exif, **options)
    return stream.getvalue()


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(150, 900), height=st.integers(150, 900), orientation=st.integers(1, 8),
    mode=st.sampled_from(["RGB", "L", "CMYK"]), progressive=st.booleans(), fit=st.sampled_from(FITS),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_decoded_at_a_fraction_differs_by_two_grey_levels_at_most(
    width: int, height: int, orientation: int, mode: str, progressive: bool, fit: Literal["pad"], seed: int
) -> None:
    data = jpeg(width, height, mode=mode, orientation=orientation, seed=seed, progressive=progressive)
    fitting, whole = Fitting(32, fit=fit, interpolation="bicubic" if seed % 2 else "bilinear"), read_image(data)
    levels, size = read_levels(data, fitting)
    assert size == whole.size
    assert np.abs(levels.astype(int) - fitting.levels(whole)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS)
def test_a_reduced_copy_whose_edge_is_no_whole_pixel_lies_where_the_image_lies(orientation: int, fit: Any) -> None:
    data = jpeg(8 * 61 + 1, 8 * 63 + 1, orientation=orientation)  # 7/8 of the last row and column is padding
    fitting = Fitting(16, fit=fit)
    assert fitting.reduction(*read_image(data).size) == 8
    difference = read_levels(data, fitting)[0].astype(int) - fitting.levels(read_image(data))
    assert np.abs(difference).max() <= 2


def test_a_reduction_keeps_two_and_a_half_times_what_is_seen() -> None:
    assert Fitting(224).reduction(4032, 3024) == 4
    assert Fitting(224, fit="crop").reduction(4032, 3024) == 4
    assert [Fitting(100, fit="squash").reduction(side, side) for side in (499, 500, 999, 1000, 2000)] == [1, 2, 2, 4, 8]
    assert Fitting(100, fit="squash").reduction(2000, 499) == 1
    assert Fitting(100, fit="squash", decoding="full").reduction(2000, 2000) == 1


def test_other_formats_and_full_decoding_are_bit_for_bit_what_they_were() -> None:
    image = read_image(jpeg(400, 300))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    for data, fitting in ((stream.getvalue(), Fitting(32)), (jpeg(400, 300), Fitting(32, decoding="full"))):
        assert np.array_equal(read_levels(data, fitting)[0], fitting.levels(image))


def test_transforms_of_earlier_versions_decode_in_full_and_are_described_as_they_were() -> None:
    old = Transform.from_dict(OLD)
    assert old.decoding == "full"
    assert old.to_dict() == OLD
    assert old.adapted(size=64).decoding == "full"
    new = Transform(32)
    assert new.to_dict()["decoding"] == "scaled"
    assert Transform.from_dict(new.to_dict()) == new != Transform(32, decoding="full")


def test_a_reduced_copy_is_seen_through_its_own_rectangle() -> None:
    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).astype(np.uint8).reshape(64, 64))
    fitting = Fitting(16, fit="crop", resize=20)
    same = fitting.levels(image, (128, 128), Box(0, 0, 64, 64))
    assert np.array_equal(same, fitting.levels(image))
