"""Small networks that learn from masks, and what is left to learn without the pixels that a map calls important."""

from __future__ import annotations

import pytest
import torch
from dark_cells import cells
from segmenters.judging_maps import ask_objects
from segmenters.pixel_data import PixelData, predict
from segmenters.roar import remove_and_retrain, whole_explanations
from segmenters.small_segmenters import FitSettings, MobileSegmenter, SmallSegmenter, as_image, fit_segmenter, score
from torch import nn

from distcam.errors import InputError, ShapeError
from distcam.images import Transform
from distcam.segmentation.data import MaskedImages

TRANSFORM = Transform(32, fit="squash")


# ------------------------------------------------------------------------------------------------- networks, retraining


def test_a_small_network_learns_the_cells_and_the_same_seed_the_same_weights():
    data = cells(12, seed=0)
    settings = FitSettings(epochs=6, batch_size=6, learning_rate=1e-2)
    one, other = (SmallSegmenter(2, width=6) for _ in range(2))
    losses = fit_segmenter(one, data, settings)
    assert losses[-1] < 0.6 * losses[0]
    assert fit_segmenter(other, data, settings) == losses
    assert score(one, cells(4, seed=1)).mean_iou > 0.5
    assert not one.training
    assert as_image(data.images[0], TRANSFORM).size == (32, 32)


def test_roar_takes_the_objects_away_and_only_the_linear_fill_leaves_no_hole_in_their_shape(data):
    maps = (data.classes.float(), data.classes.float())
    seen: list[PixelData] = []

    def fit(given: PixelData) -> nn.Module:
        seen.append(given)
        return nn.Identity()

    def contrast(_: nn.Module, test: PixelData) -> float:
        green = test.images[:, 1]
        return float(green[data.classes == 0].mean() - green[data.classes == 1].mean())

    for fill in ("linear", "mean"):
        values = remove_and_retrain(data, data, maps, fit, fractions=(0, 0.4), measure=contrast, fill=fill)
        hole_shows = values[1] > 0.5 * values[0]
        assert hole_shows == (fill == "mean")
        assert seen[-2] is data
        changed = (seen[-1].images != data.images).any(1)
        assert changed.float().mean() == pytest.approx(0.4, abs=0.02)
        assert (seen[-1].classes == data.classes).all()
    assert seen[-1].images.eq(0).float().mean() == pytest.approx(0.4, abs=0.01)
    with pytest.raises(InputError, match="from 0 to less than 1"):
        remove_and_retrain(data, data, maps, fit, fractions=(1.0,), measure=contrast)
    with pytest.raises(ShapeError, match="expected maps"):
        remove_and_retrain(data, data, (maps[0][:1], maps[1]), fit, fractions=(0.1,), measure=contrast)


def test_the_explanation_of_a_whole_picture_is_the_largest_of_its_classes(data, model):
    found = whole_explanations(model, data, method="hirescam", layer="features")
    assert found.shape == data.classes.shape
    predicted = predict(model, data.images)
    assert found[predicted == 0].eq(0).all()
    assert found.amax((1, 2)).tolist() == [1, 1, 1]
    assert whole_explanations(model, data, method="random", layer="features", seed=1).std() > 0


def test_data_that_does_not_fit_is_refused(data):
    unknown = PixelData(data.images, torch.full_like(data.classes, 255), data.instances, data.names)
    with pytest.raises(InputError, match="nothing to learn"):
        fit_segmenter(SmallSegmenter(2, width=2), unknown)
    with pytest.raises(InputError, match="at least one epoch"):
        FitSettings(epochs=0)


@pytest.mark.data
def test_camvid_is_read_and_a_mobile_network_scores_it(real_data):
    pictures = MaskedImages.from_camvid(real_data / "camvid", "val").subset(range(2))
    data = PixelData.of_masks(pictures, Transform((48, 64), fit="squash"))
    assert data.background is None
    assert data.names[:2] == ("sky", "building")
    assert data.instances.max() > 11
    weights = next((real_data / "weights").glob("mobilenet_v2*.pth"))
    model = MobileSegmenter(11, weights=weights).eval()
    assert predict(model, data.images).shape == data.classes.shape
    questions = ask_objects(data, 0, data.classes[0])
    assert questions.asked.flatten(1).any(1).all()
