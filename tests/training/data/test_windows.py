"""Crops cut from the original files: torchvision's crops are the oracle, a ramp of colours the ruler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as oracle

from distcam.errors import InputError
from distcam.images import Box, Transform, list_images
from distcam.training.data.augment import AugmentSettings, uniforms
from distcam.training.data.batches import TrainingBatches, Window
from distcam.training.data.outlines import Outline, RegionSettings
from distcam.training.data.samplers import shuffled
from distcam.training.data.training_set import TrainingSet
from distcam.training.recipes.recipe import Recipe

SHARE = AugmentSettings(flip=0.0, crop=(0.2, 0.6), crop_from="file")


def sized(*sides: int, **settings) -> AugmentSettings:
    return AugmentSettings(flip=0.0, crop_from="file", resize=(min(sides), max(sides)), **settings)


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(width: int, height: int) -> Image.Image:
    """Red says how far to the right a pixel lies, green how far down."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], 2).round().astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            ramp(90 + 30 * number, 60).save(tmp_path / name / f"{number}.png")
    return tmp_path


def batches(data: TrainingSet, settings: AugmentSettings) -> TrainingBatches:
    return TrainingBatches(data, shuffled(len(data), batch_size=len(data), drop_last=False, seed=0), augment=settings)


# --- one window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 200), (200, 330)])
@pytest.mark.parametrize("chance", uniforms(7, 0, torch.arange(4), torch.arange(4))[:, 3:7].tolist())
def test_a_share_of_the_area_is_torchvisions_resized_crop(size, chance) -> None:
    image, window = noise(*size), Window.drawn(Transform(48, fit="pad"), SHARE, chance)
    box = window.view(*size)
    assert 0 <= box.left < box.right <= size[0]
    assert 0 <= box.top < box.bottom <= size[1]
    assert box.area / (size[0] * size[1]) == pytest.approx(0.2 + 0.4 * chance[0], rel=0.05)
    whole = [round(edge) for edge in (box.top, box.left, box.height, box.width)]
    cut = oracle.resized_crop(oracle.pil_to_tensor(image), *whole, [48, 48], antialias=True)
    assert (window(image).float() - cut.float()).abs().mean() < 12  # edges between pixels are rounded there
    exact = image.resize((48, 48), Image.Resampling.BILINEAR, box=tuple(box))
    assert (window(image).int() - oracle.pil_to_tensor(exact).int()).abs().max() <= 2


def test_shapes_are_those_of_the_images_own_pixels() -> None:
    settings = AugmentSettings(crop=(0.1, 0.1), crop_ratio=(2.0, 2.0), crop_from="file")
    for size in ((400, 200), (200, 400), (300, 300)):
        box = Window.drawn(Transform(64), settings, (0.5, 0.5, 0.3, 0.3)).view(*size)
        assert box.width / box.height == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(
    ("fit", "whole"), [("squash", (600, 600)), ("crop", (900, 600)), ("pad", (600, 400))], ids=["squash", "crop", "pad"]
)
def test_a_window_of_an_image_brought_to_600(fit, whole) -> None:
    """The resized image, then torchvision's crop: 448 of 600, as the fine-grained table of CAM-loss has it."""
    image, window = noise(750, 500), Window.drawn(Transform(448, fit=fit), sized(600), (0.0, 0.0, 0.25, 1.0))
    resized = image.resize((whole[0], image.height), Image.Resampling.BILINEAR).resize(whole, Image.Resampling.BILINEAR)
    left, top = round(0.25 * (whole[0] - 448)), whole[1] - 448
    cut = oracle.pil_to_tensor(resized)[:, max(top, 0) : max(top, 0) + 448, left : left + 448]
    seen = window(image)
    assert torch.equal(seen[:, -cut.shape[1] :] if top >= 0 else seen[:, -top:], cut)
    if top < 0:  # what is smaller than the window stands in a margin
        assert (seen[:, :-top] == torch.tensor([124, 116, 104])[:, None, None]).all()


def test_a_jpeg_is_decoded_as_finely_as_its_window_needs(tmp_path) -> None:
    file = tmp_path / "large.jpg"
    ramp(1600, 1200).save(file, quality=95)
    coarse = Window.drawn(Transform(32), AugmentSettings(crop=(0.9, 0.9), crop_from="file"), (0.5,) * 4)
    fine = Window.drawn(Transform(32), AugmentSettings(crop=(0.001, 0.001), crop_from="file"), (0.5,) * 4)
    assert coarse.reduction(1600, 1200) == 8
    assert fine.reduction(1600, 1200) == 1
    with Image.open(file) as image:
        assert (fine.read(file)[0].int() - fine(image.copy()).int()).abs().max() <= 2


# --- in batches -------------------------------------------------------------------------------------------------------


def test_an_epoch_cuts_each_file_anew_and_holds_no_pixels(folder) -> None:
    data = TrainingSet.from_listing(list_images(folder), Transform(24, fit="squash"), cache="none")
    source = batches(data, SHARE)
    [first], [again], [other] = list(source.epoch(0)), list(source.epoch(0)), list(source.epoch(1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    levels = data.transform.denormalise(first.images)
    red = levels[:, 0].flatten(1)
    assert ((red.amax(1) - red.amin(1)) < 0.95).all()  # a part of the ramp, at every pixel of the network's input


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_masks_and_boxes_are_cut_as_their_images_are(folder, fit) -> None:
    """The object is the right half of the ramp, so a pixel is marked where its red is above the middle."""
    listing, outlines = list_images(folder), {}
    for record in listing:
        file = listing.file(record)
        with Image.open(file) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
        mask[:, mask.shape[1] // 2 :] = 255
        Image.fromarray(mask).save(folder.parent / f"{record.label}{file.stem}.png")
        outlines[file] = [Outline(mask=folder.parent / f"{record.label}{file.stem}.png")]
    regions = RegionSettings(kind="mask", share=1.0)
    options = {"outlines": outlines, "regions": regions}
    data = TrainingSet.from_listing(listing, Transform(96, fit=fit), **options)
    [batch] = list(batches(data, SHARE).epoch(0))
    assert batch.regions is not None
    assert len(batch.regions.row)
    red = data.transform.denormalise(batch.images)[batch.regions.row, 0]
    away = (red - 0.5).abs() > 0.03
    assert torch.equal((batch.regions.raster > 0)[away], (red > 0.5)[away])


def test_few_shot_and_segmentation_sets_cut_from_their_originals() -> None:
    image = ramp(80, 80)
    pixels = torch.stack([Transform(16)(image)] * 2)
    data = TrainingSet.from_pixels(pixels, ["a", "b"], transform=Transform(16), original=lambda i: image)
    [batch] = list(batches(data, SHARE).epoch(0))
    assert batch.images.shape == (2, 3, 16, 16)
    assert not torch.equal(batch.images[0], batch.images[1])


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_from": "file"}, "needs crop or resize, got neither"),
        ({"crop_from": "file", "crop": [0.2, 1.0], "resize": [60, 60]}, "got both"),
        ({"resize": [60, 60]}, "needs crop_from"),
        ({"crop_from": "file", "resize": [60, 50]}, "smallest <= largest"),
        ({"crop_from": "file", "resize": [60, 60], "shift": 0.2}, "shift is not used by crop_from"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.from_dict({"data": {"images": "x"}, "loss": [{"kind": "cross_entropy"}], "augment": settings})


def test_images_in_memory_and_outlines_without_borders_are_refused(folder) -> None:
    data = TrainingSet.from_pixels(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"], transform=Transform(8))
    with pytest.raises(InputError, match="in memory alone"):
        batches(data, SHARE)
    listing = list_images(folder)
    outlines = {listing.file(record): [Outline(box=Box(10, 10, 50, 50))] for record in listing}
    data = TrainingSet.from_listing(
        listing, Transform(24, fit="crop"), outlines=outlines, regions=RegionSettings(kind="box", share=1.0)
    )
    with pytest.raises(InputError, match="cuts their borders off"):
        batches(data, SHARE)


def test_a_recipe_resizes_before_the_middle_is_cut_out(folder) -> None:
    recipe = Recipe.from_dict(
        {
            "data": {"images": str(folder), "size": 16, "fit": "crop", "resize": 22},
            "loss": [{"kind": "cross_entropy"}],
            "augment": {"crop_from": "file", "resize": [22, 22]},
            "run": {"epochs": 1},
        }
    )
    encoder = recipe.encoder.build(recipe.data, folder=recipe.folder, seed=0)
    assert encoder.transform.resize == 22
    data = recipe.open(encoder.transform, cache=folder)
    assert data.sets["train"].held is None
    assert data.sets["test"].held is not None
