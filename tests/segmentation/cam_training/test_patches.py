"""Complementary patches: exact complements, the share that is seen, and the two extreme cases."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from distcam.errors import InputError, MissingExtraError
from distcam.images import Transform
from distcam.segmentation.cam_training.class_maps import class_maps, scaled_maps
from distcam.segmentation.cam_training.cpn import CpnSettings, cpcr_loss, tcp_loss
from distcam.segmentation.cam_training.patches import GridPatches, PatchPair, SuperpixelPatches, grid


def images(count: int = 3, height: int = 20, width: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    hidden=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_the_two_images_are_the_image_and_show_no_pixel_twice(
    height: int, width: int, sizes: list[int], hidden: float, seed: int
) -> None:
    whole = images(2, height, width)
    pair = GridPatches(sizes, hidden=hidden).draw(whole, generator=seeded(seed))
    one, other = pair.images(whole)
    assert torch.equal(one + other, whole)
    assert torch.equal((one * other), torch.zeros_like(whole))
    assert torch.equal(pair.visible, (one != 0).any(1))
    torch.testing.assert_close(pair.share, pair.visible.float().mean((1, 2)))


def test_hidden_pixels_have_the_mean_colour_of_the_training_set() -> None:
    transform = Transform(size=(4, 4))
    white = transform.normalise(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8))
    one, other = GridPatches([2]).draw(white, generator=seeded()).images(white)
    shown = transform.denormalise(one)
    mean = torch.tensor(transform.mean)[:, None]
    assert torch.allclose(shown[0][:, (one == 0).all(1)[0]], mean.expand(-1, int((one == 0).all(1).sum())))
    assert torch.allclose(shown[0][:, (other == 0).all(1)[0]], torch.tensor(1.0))


def test_a_grid_starts_in_the_corner_and_is_cut_at_the_far_edges() -> None:
    expected = [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert grid(3, 5, 2).tolist() == expected
    pair = GridPatches([2], hidden=0.5).draw(images(1, 3, 5), generator=seeded(3))
    for number in range(6):
        assert len(set(pair.visible[0][torch.tensor(expected) == number].tolist())) == 1


def test_shares_of_the_side_are_an_eighth_and_a_quarter_by_default() -> None:
    drawn = GridPatches().draw(images(32, 16, 24), generator=seeded())
    fours = sum(bool((grid_of(seen, 4) != grid_of(seen, 4)[:, :1]).sum() == 0) for seen in drawn.visible)
    assert 5 < fours < 27  # some in squares of 4, the others of 2


def grid_of(seen: torch.Tensor, side: int) -> torch.Tensor:
    """The pixels of each square as a row."""
    return seen.unfold(0, side, side).unfold(1, side, side).reshape(-1, side * side).int()


def test_about_the_asked_for_share_is_hidden() -> None:
    for hidden in (0.3, 0.5, 0.7):
        pair = GridPatches([2], hidden=hidden).draw(images(200, 20, 20), generator=seeded())
        assert float(1 - pair.share.mean()) == pytest.approx(hidden, abs=0.01)


def test_a_seed_repeats_the_draw_and_another_one_does_not() -> None:
    draw = [GridPatches([2, 4]).draw(images(4), generator=seeded(seed)).visible for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    torch.manual_seed(5)
    first = GridPatches([2]).draw(images(4)).visible
    torch.manual_seed(5)
    assert torch.equal(first, GridPatches([2]).draw(images(4)).visible)


def test_the_share_of_patches_differs_from_that_of_pixels_where_patches_are_cut() -> None:
    whole = images(1, 3, 3)
    pixels = GridPatches([2]).draw(whole, generator=seeded(0))
    patches = GridPatches([2], share="patches").draw(whole, generator=seeded(0))
    assert torch.equal(pixels.visible, patches.visible)
    corner = torch.tensor([[0, 1], [2, 3]]) == 0
    assert corner.any()
    shown = sum(bool(pixels.visible[0, row, column]) for row in (0, 2) for column in (0, 2))
    assert float(patches.share[0]) == shown / 4
    assert float(pixels.share[0]) == pytest.approx(float(pixels.visible.float().mean()))


def test_no_draw_hides_everything_or_nothing_unless_the_image_is_one_patch() -> None:
    rare = GridPatches([4], hidden=0.02).draw(images(200, 8, 8), generator=seeded())
    assert not bool(rare.is_whole.any())
    single = GridPatches([99]).draw(images(20, 8, 8), generator=seeded())
    assert bool(single.is_whole.all())
    assert set(single.share.tolist()) == {0.0, 1.0}


# --- the two extreme cases --------------------------------------------------------------------------------------------


def maps_of(pictures: torch.Tensor) -> torch.Tensor:
    """Class maps of a fixed little network that sees 9×9 pixels, and no brightness that is not there."""
    kernel = torch.randn(4, 3, 9, 9, generator=seeded(1))
    feature_map = functional.conv2d(pictures, kernel, padding=4, stride=4).relu()
    return scaled_maps(class_maps(feature_map, torch.rand(2, 4, generator=seeded(2))))


@pytest.mark.parametrize("seed", range(4))
def test_a_patch_as_large_as_the_image_teaches_tcp_nothing_and_leaves_cpcr_the_refinement_alone(seed: int) -> None:
    whole = images(5, 16, 16, seed)
    pair = GridPatches([16]).draw(whole, generator=seeded(seed))
    one, other = pair.images(whole)
    original, hidden, complement = maps_of(whole), maps_of(one), maps_of(other)
    assert tcp_loss(original, (hidden, complement), share=pair.share).item() == 0
    refined = torch.rand(5, 2, 4, 4, generator=seeded(seed))
    value = cpcr_loss(
        original, (hidden, complement), (refined, refined), share=pair.share, settings=CpnSettings(ohem=False)
    )
    assert value.item() == pytest.approx((original - refined).abs().mean().item(), rel=1e-5)


def test_the_smaller_the_patches_the_more_a_network_that_averages_sees_the_whole_image_twice() -> None:
    """Patches of one pixel under a network that blurs 64 of them: both maps become the whole image's, and TCP 0."""
    smooth = functional.interpolate(images(8, 4, 4).abs(), (256, 256), mode="bilinear")

    def blurred(pictures: torch.Tensor) -> torch.Tensor:
        return scaled_maps(functional.avg_pool2d(pictures, 64))

    losses = []
    for side in (1, 16, 128):
        pair = GridPatches([side]).draw(smooth, generator=seeded())
        one, other = pair.images(smooth)
        losses.append(tcp_loss(blurred(smooth), (blurred(one), blurred(other)), share=pair.share).item())
        if side == 1:
            torch.testing.assert_close(blurred(one), blurred(smooth), atol=0.1, rtol=0)
    assert losses[0] < 0.02 < losses[1] < losses[2]


# --- superpixels ------------------------------------------------------------------------------------------------------


def squares() -> tuple[Transform, torch.Tensor]:
    """An image of four colours in quarters, normalised."""
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[0, 0, :16] = 250
    pixels[0, 1, :, 16:] = 250
    transform = Transform(32)
    return transform, transform.normalise(pixels)


def test_superpixels_follow_edges_and_make_exact_complements() -> None:
    pytest.importorskip("skimage", reason="superpixels need pip install 'distcam[segment]'")
    transform, whole = squares()
    pair = SuperpixelPatches(transform, segments=4, compactness=1.0).draw(whole, generator=seeded(1))
    for rows in (slice(0, 16), slice(16, 32)):
        for columns in (slice(0, 16), slice(16, 32)):
            assert len(set(pair.visible[0, rows, columns].flatten().tolist())) == 1
    one, other = pair.images(whole)
    assert torch.equal(one + other, whole)


def test_superpixels_are_remembered_by_the_image_s_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="superpixels need pip install 'distcam[segment]'")
    from distcam.segmentation.cam_training import patches as module

    calls: list[int] = []
    found = module.slic_segments
    monkeypatch.setattr(module, "slic_segments", lambda *a, **k: calls.append(1) or found(*a, **k))
    transform, whole = squares()
    source = SuperpixelPatches(transform, segments=4, remembered=1)
    source.draw(whole)
    source.draw(whole)
    assert len(calls) == 1
    source.draw(whole.flip(-1))
    source.draw(whole)
    assert len(calls) == 3  # one image is remembered, not two


def test_drawing_with_replacement_hides_39_percent_as_the_published_code_does() -> None:
    source = SuperpixelPatches(Transform(32), replacement=True)
    generator = seeded()
    shares = [float(source._chosen(300, generator).float().mean()) for _ in range(50)]
    assert np.mean(shares) == pytest.approx(1 - np.exp(-0.5), abs=0.005)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    transform, whole = squares()
    with pytest.raises(MissingExtraError, match=r"pip install 'distcam\[segment\]'"):
        SuperpixelPatches(transform).draw(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridPatches([]), "sides in whole pixels"),
        (lambda: GridPatches([0]), "sides in whole pixels"),
        (lambda: GridPatches([2.5]), "sides in whole pixels"),
        (lambda: GridPatches([float("nan")]), "sides in whole pixels"),
        (lambda: GridPatches([2], hidden=1.0), "between 0 and 1"),
        (lambda: GridPatches([2], share="area"), "pixels"),
        (lambda: SuperpixelPatches(Transform(8), segments=0), "segments"),
    ],
)
def test_settings_that_make_no_pair_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_the_small_examples_come_out_as_by_hand() -> None:
    pair = PatchPair(torch.tensor([[[True, False]]]), torch.tensor([0.5]))
    one, other = pair.images(torch.full((1, 1, 1, 2), 3.0))
    assert (one.tolist(), other.tolist()) == ([[[[3.0, 0.0]]]], [[[[0.0, 3.0]]]])
    whole = torch.ones(1, 1, 1, 2)
    assert tcp_loss(whole, (whole, whole * 0), share=torch.tensor([0.25])).item() == 0.75  # |0.25 - 1|
    assert grid(2, 3, 2).tolist() == [[0, 0, 1], [0, 0, 1]]
