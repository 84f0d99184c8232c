"""Augmentation: repeatable per image, masks move with images, and the fast path costs next to nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as peer

from distcam.errors import InputError
from distcam.training.data.augment import AugmentSettings, augment, cut_out, mix_images, uniforms
from distcam.training.engine.step import Regions


def pictures(count=8, height=20, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator, device="cpu")


def chance(count=8, *, seed=0, epoch=0):
    place = torch.arange(count, device="cpu")
    return uniforms(seed, epoch, place, place)


def marked(count=8, height=20, width=16):
    """Images that are white on a rectangle, and that rectangle as their region."""
    raster = torch.zeros(count, height, width)
    raster[:, 6:14, 4:10] = 1
    pixels = (raster[:, None] * 255).expand(-1, 3, -1, -1).to(torch.uint8)
    row = torch.arange(count)
    return pixels, Regions(row, row * 0, torch.zeros(count, dtype=torch.bool), raster)


ALL = AugmentSettings(
    crop=(0.4, 1.0), rotate=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.3, erase=0.5
)


def test_numbers_are_uniform_and_depend_on_every_part_of_the_key() -> None:
    numbers = uniforms(1, 2, torch.arange(4000), torch.arange(4000))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert torch.histc(numbers, 20, 0, 1).sub(4000).abs().max() < 6 * 62  # 4000 a bin, σ = 62
    assert torch.corrcoef(numbers.T).triu(1).abs().max() < 0.08
    place, index = torch.tensor([3]), torch.tensor([4])
    keys = [
        (1, 2, place, index),
        (2, 2, place, index),
        (1, 3, place, index),
        (1, 2, index, index),
        (1, 2, place, place),
    ]
    assert len({tuple(uniforms(*key)[0].tolist()) for key in keys}) == 5


@pytest.mark.parametrize("settings", [AugmentSettings(), ALL])
def test_an_image_is_changed_alike_whatever_batch_it_is_in(settings) -> None:
    pixels, numbers = pictures(), chance()
    whole = augment(pixels, settings, numbers)[0]
    parts = [augment(pixels[i : i + 1], settings, numbers[i : i + 1])[0] for i in range(8)]
    assert (whole.int() - torch.cat(parts).int()).abs().max() <= 1  # float sums may round another way
    assert not torch.equal(whole, augment(pixels, settings, chance(epoch=1))[0])


def test_nothing_is_changed_unasked() -> None:
    pixels = pictures()
    assert torch.equal(augment(pixels, AugmentSettings.none(), chance())[0], pixels)


def test_the_callers_images_stay_as_they_are() -> None:
    pixels = pictures()
    augment(pixels, ALL, chance())
    assert torch.equal(pixels, pictures())


def test_flip_and_shift_by_hand() -> None:
    numbers = torch.full((1, 20), 0.99)  # no flip, moved by the most: 0.25 · 4 = 1
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    moved = augment(pixels, AugmentSettings(shift=0.25), numbers)[0][0, 0]
    assert moved.tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [13, 14, 15, 15], [13, 14, 15, 15]]
    numbers[0, 0] = 0.1
    assert torch.equal(augment(pixels, AugmentSettings(shift=0), numbers)[0], pixels.flip(3))


def test_resampling_flips_and_turns_as_torchvision_does() -> None:
    pixels, numbers = pictures(1, 16, 16), torch.full((1, 20), 0.5)
    numbers[0, 0] = 0.1
    flipped = augment(pixels, AugmentSettings(shift=0, rotate=1e-6), numbers)[0]
    assert torch.equal(flipped, pixels.flip(3))
    numbers[0, 0], numbers[0, 7] = 0.9, 1.0
    turned = augment(pixels, AugmentSettings(flip=0, shift=0, rotate=30), numbers)[0]
    expected = peer.rotate(pixels, 30, interpolation=peer.InterpolationMode.BILINEAR)
    inside = (slice(None), slice(None), slice(5, 11), slice(5, 11))  # they fill the corners with black
    assert (turned[inside].int() - expected[inside].int()).abs().max() <= 2


def test_a_crop_equals_cutting_out_and_enlarging() -> None:
    pixels, numbers = pictures(1, 16, 16), torch.full((1, 20), 0.5)
    numbers[0, 5:7] = torch.tensor([0.0, 0.0])  # top left
    cut = augment(pixels, AugmentSettings(flip=0, shift=0, crop=(0.25, 0.25)), numbers)[0]
    expected = peer.resized_crop(pixels, 0, 0, 8, 8, [16, 16], antialias=False)
    assert (cut[..., :-1, :-1].int() - expected[..., :-1, :-1].int()).abs().max() <= 1  # beyond lies more image


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.sampled_from([0.0, 15.0]), st.sampled_from([0.5, 1.0]))
def test_masks_move_with_their_images(seed, rotate, crop) -> None:
    pixels, regions = marked()
    changed, kept = augment(
        pixels, AugmentSettings(rotate=rotate, crop=(crop, 1.0)), chance(seed=seed), regions=regions
    )
    assert kept is not None
    shown = changed[kept.row, 0] > 127
    differs = (shown != kept.raster.bool()).float().mean((1, 2))
    assert differs.max() < 0.05  # nearest against bilinear, at the edge


def test_what_leaves_the_image_is_left_out() -> None:
    _, regions = marked(2)
    raster = torch.zeros(2, 20, 16)
    raster[0, 0, 0], raster[1, 10, 8] = 1, 1
    numbers = torch.full((2, 20), 0.99)
    moved = augment(
        pictures(2),
        AugmentSettings(shift=0.1),
        numbers,
        regions=Regions(regions.row, regions.label, regions.is_box, raster),
    )[1]
    assert moved is not None
    assert moved.row.tolist() == [1]
    assert moved.raster[0, 8, 6] == 1


def test_colours_change_by_torchvisions_formulas() -> None:
    pixels, numbers = pictures(1), torch.full((1, 20), 0.75)  # factors 1 + 0.5 · strength
    cases = {
        "brightness": peer.adjust_brightness(pixels, 1.2),
        "contrast": peer.adjust_contrast(pixels, 1.2),
        "saturation": peer.adjust_saturation(pixels, 1.2),
        "hue": peer.adjust_hue(pixels, 0.2),
    }
    for name, expected in cases.items():
        own = augment(pixels, AugmentSettings(shift=0, flip=0, **{name: 0.4}), numbers)[0]
        assert (own.int() - expected.int()).abs().max() <= 1, name
    grey = augment(pixels, AugmentSettings(shift=0, flip=0, grey=1.0), numbers)[0]
    assert (grey.int() - peer.rgb_to_grayscale(pixels, num_output_channels=3).int()).abs().max() <= 1


def test_erasing_paints_the_mean_colour_over_a_share_of_the_area() -> None:
    pixels = pictures(400)
    erased = augment(pixels, AugmentSettings(flip=0, shift=0, erase=0.5), chance(400))[0]
    share = (erased != pixels).any(1).float().mean((1, 2))
    assert 0.4 < float((share > 0).float().mean()) < 0.6
    assert float(share[share > 0].min()) > 0.01
    assert float(share.max()) < 0.36
    first = int((share > 0).nonzero()[0])
    where = (erased[first] != pixels[first]).any(0)
    mean = pixels[first].float().mean((1, 2)).round().to(torch.uint8)
    assert torch.equal(erased[first][:, where], mean[:, None].expand(-1, int(where.sum())))


def test_mixup_blends_by_its_share() -> None:
    images = torch.rand(6, 3, 8, 8)
    mixed, mix, _ = mix_images(images, AugmentSettings(mixup=1.0), (0, 0, 0), regions=None)
    assert mix is not None
    expected = mix.share * images + (1 - mix.share) * images[mix.partner]
    torch.testing.assert_close(mixed, expected)
    again = mix_images(images, AugmentSettings(mixup=1.0), (0, 0, 0), regions=None)[0]
    assert torch.equal(mixed, again)


def test_cutmix_pastes_a_rectangle_and_says_how_much_is_left() -> None:
    images = torch.rand(6, 3, 20, 16)
    for step in range(10):
        _, regions = marked(6)
        mixed, mix, left = mix_images(images, AugmentSettings(cutmix=1.0), (0, 0, step), regions=regions)
        own = (mixed == images).all(1)
        moved = mix.partner != torch.arange(6)
        assert torch.allclose(own[moved].float().mean((1, 2)), torch.tensor(mix.share), atol=1e-6)
        shown = {int(row): raster for row, raster in zip(left.row, left.raster, strict=True)}
        for row in range(6):
            if moved[row]:
                assert torch.equal(shown.get(row, torch.zeros(20, 16)), regions.raster[row] * own[row])


def test_only_the_asked_share_of_batches_is_mixed() -> None:
    images = torch.rand(2, 3, 4, 4)
    settings = AugmentSettings(mixup=0.4, cutmix=1.0, mix_share=0.3)
    mixed = [mix_images(images, settings, (0, 0, step), regions=None)[1] is not None for step in range(300)]
    assert 0.2 < sum(mixed) / 300 < 0.4
    assert mix_images(images, AugmentSettings(), (0,), regions=None)[1] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip": 1.5}, "flip: expected a number from 0 to 1, got 1.5"),
        ({"crop": (0.8, 0.2)}, "crop as 0 < lowest <= highest <= 1, got 0.8 and 0.2"),
        ({"hue": 0.7}, "hue: expected a number from 0 to 0.5"),
        ({"mixup": -1.0}, "mixup: expected 0 or more"),
        ({"manifold_mixup": 1.0, "cutmix": 1.0}, "manifold_mixup goes without mixup and cutmix"),
        ({"cutout": 1.5}, "cutout: expected a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message) -> None:
    with pytest.raises(InputError, match=message):
        AugmentSettings(**values)


@pytest.mark.parametrize("crop", [(0.4, 1.0), (1.0, 1.0)])
def test_everything_is_made_on_the_device_of_the_images(crop) -> None:
    device = torch.device("meta")  # which refuses tensors of another one
    settings = AugmentSettings(crop=crop, brightness=0.4, contrast=0.4, saturation=0.4, grey=0.3, erase=0.5, mixup=0.4)
    with device:
        pixels, _ = augment(pictures().to(device), settings, chance().to(device))
        assert pixels.device == device
        images, mix, _ = mix_images(pixels.float(), settings, (0, 0), regions=None)
        assert images.device == mix.partner.device == device


# --- cutout and manifold mixup ----------------------------------------------------------------------------------------


def test_cutout_zeroes_a_square_around_any_place_which_the_border_may_cut() -> None:
    numbers = uniforms(0, 0, torch.arange(400), torch.arange(400))
    cut = cut_out(torch.ones(400, 3, 20, 16), AugmentSettings(cutout=0.5), numbers) == 0
    assert torch.equal(cut[:, 0], cut[:, 2])
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert int(rows.max()) == int(columns.max()) == 8  # half of the shorter side
    assert int(rows.min()) == int(columns.min()) == 4  # a square around a place on the border
    assert cut.any(0).all()
    centre = (numbers[:, 18:20] * torch.tensor([20, 16])).long()
    assert cut[torch.arange(400), 0, centre[:, 0], centre[:, 1]].all()
    assert torch.equal(cut_out(torch.ones(4, 3, 20, 16), AugmentSettings(), numbers[:4]), torch.ones(4, 3, 20, 16))


def test_manifold_mixup_draws_a_layer_for_each_batch_and_leaves_the_images_to_the_network() -> None:
    settings = AugmentSettings(manifold_mixup=2.0, manifold_layers=("", "a", "b"))
    images, seen = torch.rand(6, 3, 4, 4), set()
    for number in range(40):
        mixed, mix, _ = mix_images(images, settings, (0, 0, number), regions=None)
        assert mix is not None
        seen.add(mix.layer)
        expected = images if mix.layer else torch.lerp(images[mix.partner], images, mix.share)
        assert torch.equal(mixed, expected)
    assert seen == {"", "a", "b"}
