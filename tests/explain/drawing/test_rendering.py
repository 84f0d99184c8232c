"""Colours, overlays, contours, boxes and panels, down to the pixel."""

from __future__ import annotations

import base64
import doctest
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import distcam.explain.drawing.rendering as colours_module
from distcam.errors import InputError, ShapeError
from distcam.explain import Tile, colourise, contour, draw_box, grid, overlay, upsample
from distcam.explain.drawing.panels import DrawStyle, _shortened, legend, map_panel, map_rows, map_tiles
from distcam.explain.drawing.rendering import COLOUR_SCALES, text_font
from distcam.images import Box, Transform
from distcam.images.inline import to_data_uri


def picture(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 100, 50)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def heat_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("colours", ["inferno", "viridis", "gray"])
def test_sequential_scales_get_lighter_all_the_way(colours: str) -> None:
    ramp = colourise(np.linspace(0, 1, 256)[None], colours=colours)[0].astype(float)
    luminance = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -0.5).all()
    assert luminance[-1] - luminance[0] > 150


def test_the_diverging_scale_is_lightest_in_the_middle() -> None:
    ramp = colourise(np.linspace(0, 1, 255)[None], colours="blue-orange")[0].astype(float)
    luminance = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[:128]) > 0).all()
    assert (np.diff(luminance[127:]) < 0).all()
    assert ramp[0, 2] > ramp[0, 0]  # blue below
    assert ramp[-1, 0] > ramp[-1, 2]  # orange above


@pytest.mark.parametrize("colours", ["inferno", "viridis"])
def test_the_named_scales_are_the_known_ones(colours: str) -> None:
    known = {  # every 51st of the published 256 colours
        "inferno": [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)],
        "viridis": [(68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37)],
    }
    ramp = colourise(np.linspace(0, 1, 6)[None], colours=colours)[0]
    np.testing.assert_allclose(ramp, known[colours], atol=1)


def test_tensors_and_arrays_are_drawn_alike() -> None:
    heat = heat_map(5, 6)
    assert np.array_equal(colourise(heat), colourise(heat.numpy()))
    assert colourise(heat.half().requires_grad_()).shape == (5, 6, 3)


@pytest.mark.parametrize("bad", [[[0.0, 1.5]], [[-0.2, 1.0]], [[0.0, float("nan")]]])
def test_a_raw_map_is_refused_and_the_message_says_how_to_scale_it(bad: list[list[float]]) -> None:
    for draw in (colourise, lambda heat: overlay(picture(), heat), lambda heat: contour(picture(), heat)):
        with pytest.raises(InputError, match=r"values in \[0, 1\].*distcam.explain.normalise"):
            draw(torch.tensor(bad))


# ----------------------------------------------------------------------------------------------------- overlay


def test_opacity_zero_is_the_picture_and_one_the_colours() -> None:
    heat = heat_map(30, 40)
    assert np.array_equal(overlay(picture(), heat, opacity=0.0), picture())
    assert np.array_equal(overlay(picture(), heat, opacity=1.0), colourise(heat))


def test_half_opacity_by_hand() -> None:
    drawn = overlay(picture(), torch.ones(1, 1), colours="gray")  # white over (200, 100, 50)
    assert drawn.getpixel((7, 7)) == (228, 178, 153)  # halves round up


def test_heat_alpha_leaves_cold_parts_alone() -> None:
    heat = torch.tensor([[0.0, 1.0]])
    drawn = overlay(picture(40, 30), heat, alpha="heat", opacity=1.0, colours="gray")
    assert drawn.getpixel((0, 0)) == (200, 100, 50)
    assert drawn.getpixel((39, 0)) == (255, 255, 255)


@pytest.mark.parametrize("opacity", [0.1, 0.5, 0.77])
def test_whole_numbers_draw_what_floats_would_to_within_a_grey_level(opacity: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    heat = heat_map(30, 40)
    drawn = overlay(Image.fromarray(pixels), heat, opacity=opacity)
    assert np.abs(np.asarray(drawn) - (pixels + opacity * (colourise(heat) - pixels.astype(float)))).max() <= 1


def test_the_map_is_enlarged_as_upsample_does() -> None:
    heat = heat_map(7, 5)
    drawn = overlay(picture(41, 33), heat, opacity=1.0, colours="gray")
    expected = colourise(upsample(heat, (33, 41)), colours="gray")
    assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 1


def test_the_map_lies_on_the_view_and_the_rest_is_dimmed() -> None:
    image = picture(60, 40)
    view = Box(10, 5, 50, 35)
    drawn = np.asarray(overlay(image, heat_map(3, 4), view=view, opacity=1.0))
    inside = np.asarray(overlay(picture(40, 30), heat_map(3, 4), opacity=1.0))
    assert np.array_equal(drawn[5:35, 10:50], inside)
    assert drawn[0, 0].tolist() == [80, 40, 20]  # 0.4 of (200, 100, 50)
    assert drawn[34, 50].tolist() == [80, 40, 20]


def test_a_view_beyond_the_picture_shows_the_middle_of_the_map() -> None:
    heat = torch.zeros(4, 4)
    heat[1:3] = 1  # the picture is the middle half of the padded square
    drawn = np.asarray(overlay(picture(40, 20), heat, view=Box(0, -10, 40, 30), opacity=1.0, colours="gray"))
    assert (drawn[5:15] == 255).all()


def test_the_view_of_a_transform_fits() -> None:
    image = Image.new("RGB", (90, 60))
    transform = Transform(32, fit="crop")
    view = transform.view(*image.size)
    drawn = np.asarray(overlay(image, torch.ones(2, 2), view=view, opacity=1.0, colours="gray"))
    rows, columns = np.nonzero(drawn[..., 0])
    assert (columns.min(), columns.max() + 1) == (round(view.left), round(view.right))
    assert (rows.min(), rows.max() + 1) == (round(view.top), round(view.bottom))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_mode_becomes_rgb_and_the_argument_stays(mode: str) -> None:
    image = picture().convert(mode)
    before = image.tobytes()
    for drawn in (
        overlay(image, heat_map(3, 3)),
        contour(image, heat_map(3, 3)),
        draw_box(image, Box(2, 2, 9, 9), "cat"),
    ):
        assert (drawn.mode, drawn.size) == ("RGB", (40, 30))
    assert image.mode == mode
    assert image.tobytes() == before


def test_unusable_options_are_refused() -> None:
    for options, message in (
        ({"opacity": 1.5}, "opacity=1.5 should be from 0 to 1"),
        ({"view": Box(50, 0, 90, 30)}, "does not touch the image of 40×30 pixels"),
    ):
        with pytest.raises(InputError, match=message):
            overlay(picture(), torch.eye(3), **options)


# ------------------------------------------------------------------------------------------- contour and boxes


def test_the_contour_follows_the_level() -> None:
    ramp = torch.linspace(0, 1, 101).expand(20, 101)  # value 0.3 in column 30
    drawn = np.asarray(contour(picture(101, 20, (0, 0, 0)), ramp, 0.3, colour=(255, 255, 255)))
    assert drawn[10, :, 0].argmax() in (29, 30, 31)
    assert drawn[10, :25].max() == 0
    assert drawn[10, 36:].max() == 0


def test_a_level_that_the_map_never_has_draws_nothing() -> None:
    assert np.array_equal(contour(picture(), torch.full((4, 4), 0.2), 0.7), picture())


def test_the_box_is_drawn_on_its_own_edge_pixels() -> None:
    drawn = np.asarray(draw_box(picture(40, 30), Box(10, 5, 30, 25), colour=(0, 255, 0), width=2))
    green = (drawn == (0, 255, 0)).all(-1)
    rows, columns = np.nonzero(green)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 5, 30, 25)
    assert not green[10:20, 15:25].any()


def test_a_box_beyond_the_picture_and_an_empty_one_are_no_error() -> None:
    for box in (Box(-20, -20, 90, 90), Box(100, 100, 120, 120), Box(5, 5, 5, 5)):
        assert draw_box(picture(), box, "a label that is much longer than the picture").size == (40, 30)


# ------------------------------------------------------------------------------------------- panels and files


def tiles(n: int) -> list[Tile]:
    return [
        Tile(picture(50 + 10 * i, 60), f"{i}", "a rather long caption for so small a tile", (0, 114, 178))
        for i in range(n)
    ]


def test_a_panel_has_a_row_for_matches_one_for_the_query_and_one_for_the_match() -> None:
    query, maps, view = Tile(picture(), "query"), heat_map(3, 4, 4), Box(0, 0, 40, 30)
    drawn = {"view": view, "views": [view] * 3, "ends": ("low", "high")}
    two_rows = map_panel(map_rows(query, tiles(3), maps, None, look=DrawStyle(), **drawn))
    three_rows = map_panel(map_rows(query, tiles(3), maps, maps, look=DrawStyle(style="contour"), **drawn))
    assert two_rows.width == three_rows.width
    assert three_rows.height > two_rows.height + 100
    assert two_rows.getpixel((0, 0)) == (255, 255, 255)


def test_another_number_of_maps_is_refused_and_so_is_an_empty_grid() -> None:
    with pytest.raises(ShapeError, match="expected a map and a view for each of 3 images; got 2, 3"):
        map_tiles([picture()] * 3, heat_map(2, 4, 4), views=[Box(0, 0, 40, 30)] * 3)
    with pytest.raises(InputError, match="at least one image"):
        grid([[None]])


def test_a_tile_keeps_its_proportions_and_shows_its_frame() -> None:
    sheet = np.asarray(grid([[Tile(picture(80, 40, (9, 9, 9)), frame=(213, 94, 0))]], tile_size=60))
    rows, columns = np.nonzero((sheet != 255).any(-1))
    assert (columns.max() - columns.min() + 1, rows.max() - rows.min() + 1) == (60, 30)
    assert sheet[rows.min(), columns.min()].tolist() == [213, 94, 0]


@pytest.mark.parametrize("colours", COLOUR_SCALES)
def test_the_legend_runs_from_one_end_of_the_scale_to_the_other(colours: str) -> None:
    bar = np.asarray(legend(120, colours=colours))
    assert np.array_equal(bar[0, [0, -1]], colourise(np.array([[0.0, 1.0]]), colours=colours)[0])


def test_data_uris_hold_the_image() -> None:
    image = overlay(picture(), heat_map(3, 3))
    for kind in ("png", "jpeg", "webp"):
        head, _, data = to_data_uri(image, kind).partition(",")
        assert head == f"data:image/{kind};base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == image.size


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(colours_module).failed == 0


def test_a_panel_of_large_images_shows_what_their_overlays_would_made_small() -> None:
    pixels = np.kron(np.random.default_rng(0).integers(90, 160, (12, 15, 3), np.uint8), np.ones((40, 40, 1), np.uint8))
    image, maps = Image.fromarray(pixels), heat_map(2, 5, 5)
    view = Transform(96, fit="squash").view(*image.size)
    rows = map_rows(
        Tile(image), [Tile(image)] * 2, maps, maps, view=view, views=[view] * 2, look=DrawStyle(), ends=("a", "b")
    )
    drawn = map_panel(rows)
    whole = map_tiles([image] * 2, maps, views=[view] * 2)
    slow = grid([[Tile(image)] * 3, [None, *whole], [None, *whole]], tile_size=196, gap_after_first=28)
    assert drawn.size == slow.size
    columns = slice(240, None)  # without the legend
    assert np.abs(np.asarray(drawn)[:, columns].astype(int) - np.asarray(slow)[:, columns]).max() <= 2


def test_text_is_shortened_by_no_more_than_it_has_to() -> None:
    draw = ImageDraw.Draw(picture())
    for text in ("", "a", "W" * 60, "ILSVRC2012_val_00005866.jpeg"):
        short = _shortened(draw, text, 120, 13)
        if draw.textlength(text, font=text_font(13)) <= 120:
            assert short == text
        else:
            assert draw.textlength(short, font=text_font(13)) <= 120
            assert draw.textlength(text[: len(short)] + "…", font=text_font(13)) > 120
