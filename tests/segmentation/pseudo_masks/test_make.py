"""Cues and pseudo masks from class scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from distcam.datasets.masked_images import VocFolder
from distcam.encoders import Encoder
from distcam.errors import ImageError, InputError, ShapeError
from distcam.images import Transform
from distcam.segmentation.data import MaskedImages, MaskIds
from distcam.segmentation.pseudo_masks.make import (
    CueSettings,
    CueStage,
    MaskMaker,
    border_contrast,
    foreground_cues,
    make_cues,
    make_masks,
    pseudo_mask,
)
from distcam.segmentation.pseudo_masks.sources import WeakSegmenter

scores_of_two = arrays(np.float64, (2, 4, 5), elements=st.integers(0, 100).map(lambda value: value / 100))


def test_pixels_above_a_fifth_of_the_maximum_are_cues() -> None:
    scores = np.array([[[0.5, 0.11, 0.1, 0.02, 0.0]]])
    assert make_cues(scores).tolist() == [[1, 1, 255, 0, 0]]  # 0.1 is a fifth, 0.02 below a twentieth of 0.5


def test_the_smaller_region_wins_and_the_score_if_asked() -> None:
    scores = np.array([[[1.0, 0.9, 0.8, 0.7]], [[0.0, 0.5, 1.0, 0.0]]])
    assert foreground_cues(scores).tolist() == [[1, 2, 2, 1]]
    assert foreground_cues(scores, conflicts="score").tolist() == [[1, 1, 2, 1]]


def test_a_class_that_is_not_shown_gets_nothing() -> None:
    assert (make_cues(np.zeros((2, 3, 3)), settings=CueSettings(background="none")) == 255).all()
    assert (make_cues(np.zeros((2, 3, 3))) == 0).all()


@settings(deadline=None, max_examples=25)
@given(scores_of_two, st.sampled_from(["smaller", "score"]))
def test_every_cue_is_above_its_threshold_and_every_pixel_above_one_is_a_cue(scores, conflicts) -> None:
    cues = foreground_cues(scores, conflicts=conflicts)
    inside = scores > 0.2 * scores.max((1, 2), keepdims=True)
    assert np.array_equal(cues != 255, inside.any(0))
    rows, columns = np.nonzero(cues != 255)
    assert inside[cues[rows, columns] - 1, rows, columns].all()


@settings(deadline=None, max_examples=15)
@given(scores_of_two, st.integers(-3, 3))
def test_cues_do_not_depend_on_the_scale_of_the_scores(scores, power) -> None:
    assert np.array_equal(foreground_cues(scores), foreground_cues(scores * 2.0**power))


def test_saliency_gives_the_background_a_share_of_the_pixels() -> None:
    scores = np.zeros((1, 10, 10))
    scores[0, 4:6, 4:6] = 1
    saliency = np.arange(100.0).reshape(10, 10)
    cues = make_cues(scores, settings=CueSettings(background="saliency", share=0.1), saliency=saliency)
    assert (cues[0] == 0).all()
    assert (cues == 0).sum() == 10
    assert (cues == 1).sum() == 4
    with pytest.raises(InputError, match="needs the image, or a map of what stands out"):
        make_cues(scores, settings=CueSettings(background="saliency"))


def test_what_differs_from_the_border_stands_out() -> None:
    values = np.full((60, 80, 3), 40, np.uint8)
    values[20:40, 30:50] = (200, 30, 30)
    contrast = border_contrast(Image.fromarray(values))
    assert contrast.shape == (60, 80)
    assert contrast[30, 40] == pytest.approx(1, abs=1e-3)
    assert contrast[5, 5] == pytest.approx(0, abs=1e-6)
    cues = make_cues(
        np.zeros((1, 60, 80)), image=Image.fromarray(values), settings=CueSettings(background="saliency", share=0.5)
    )
    assert (cues[22:38, 32:48] == 255).all()


def test_a_pseudo_mask_is_an_argmax_with_a_margin_of_doubt() -> None:
    scores = np.array([[[0.9, 0.35, 0.1]], [[0.0, 0.3, 0.5]]])
    assert pseudo_mask(scores, beta=0.3).tolist() == [[1, 1, 2]]
    assert pseudo_mask(scores, beta=0.3, margin=0.1).tolist() == [[1, 255, 2]]
    assert pseudo_mask(scores, beta=1 - scores.max(0)).tolist() == [[1, 0, 0]]


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"foreground: expected a number from 0 to below 1, got 1.5"):
        CueSettings(foreground=1.5)
    with pytest.raises(InputError, match=r"low = 0.3 lies above foreground = 0.2; pixels would be both"):
        CueSettings(low=0.3)


def test_a_picture_of_another_size_than_the_scores_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"in the scores' size \(4, 5\)"):
        make_cues(np.zeros((1, 4, 5)), settings=CueSettings(background="saliency"), image=Image.new("RGB", (4, 4)))


def test_a_picture_that_shows_no_class_is_background() -> None:
    assert make_cues(np.zeros((2, 1, 1))).tolist() == [[0]]


def test_the_best_background_score_of_a_crf_needs_true_masks_too(tmp_path) -> None:
    for side, name in enumerate("ab"):
        Image.new("RGB", (8, 8), (90 * side, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("path,labels\na.png,cat\nb.png,dog\n")
    data = MaskedImages.from_table(tmp_path / "labels.csv", ("cat", "dog"))
    encoder = Encoder.load("conv4", weights="random", options={"width": 4, "last_pool": False}, transform=Transform(32))
    source = WeakSegmenter(encoder, torch.ones(2, encoder.pooled_dim), ("cat", "dog"))
    for stage in (CueStage(refine="crf", beta="best"), CueStage(kind="pseudo_masks", beta="best")):
        with pytest.raises(InputError, match="needs images with true masks to choose it by"):
            make_masks(source, data, VocFolder(tmp_path / "masks", ("cat", "dog")), stage=stage, device="cpu")


@pytest.mark.parametrize("is_prepared", [False, True])
def test_each_look_at_an_image_decodes_it_once_and_no_scores_are_kept_longer(
    tmp_path, monkeypatch, is_prepared
) -> None:
    for folder, colour in (("images", (90, 0, 0)), ("masks", 1)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            Image.new("RGB" if folder == "images" else "L", (8, 8), colour).save(tmp_path / folder / f"{name}.png")
    data = MaskedImages.from_folder(tmp_path / "images", tmp_path / "masks", ("cat", "dog"))
    encoder = Encoder.load("conv4", weights="random", options={"width": 4, "last_pool": False}, transform=Transform(32))
    maker = MaskMaker(
        WeakSegmenter(encoder, torch.ones(2, encoder.pooled_dim), ("cat", "dog")), data, CueStage(), device="cpu"
    )
    decoded, decode = [], MaskedImages.image
    monkeypatch.setattr(MaskedImages, "image", lambda self, i: (decoded.append(i), decode(self, i))[1])
    if is_prepared:
        maker.prepare()
        assert decoded == [0, 1]
    masks = [maker.mask(i) for i in (0, 1)]
    assert decoded == [0, 1] * (1 + is_prepared)
    assert not maker._cache
    assert masks[0].shape == (8, 8)


def test_data_without_a_background_get_no_cues_of_it(tmp_path) -> None:
    for folder, colour in (("images", (90, 0, 0)), ("masks", 0)):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "images" else "L", (8, 8), colour).save(tmp_path / folder / "a.png")
    ids = MaskIds(first=0, void=9)
    data = MaskedImages.from_folder(tmp_path / "images", tmp_path / "masks", ("road", "sky"), ids=ids)
    encoder = Encoder.load("conv4", weights="random", options={"width": 4, "last_pool": False}, transform=Transform(32))
    source = WeakSegmenter(encoder, torch.zeros(2, encoder.pooled_dim), ("road", "sky"))  # maps that find nothing
    written = VocFolder(tmp_path / "cues", ("road", "sky"))
    metrics = make_masks(source, data, written, stage=CueStage(), device="cpu")
    assert written.read("a").min() == 255
    assert metrics["masks.coverage"] == 0


def test_cues_of_four_pixels_come_out_as_by_hand() -> None:
    scores = np.array([[[1.0, 0.9, 0.3, 0.0]], [[0.0, 0.1, 1.0, 0.0]]])
    assert foreground_cues(scores).tolist() == [[1, 1, 2, 255]]


def test_what_stands_out_may_come_from_files(tmp_path) -> None:
    """The darkest tenth of each saliency map is background; a missing map, or one of another size, is an error."""
    for folder in ("images", "saliency", "small"):
        (tmp_path / folder).mkdir()
    levels = np.full((10, 10), 200, np.uint8)
    levels[3] = 5
    Image.new("RGB", (10, 10), (90, 0, 0)).save(tmp_path / "images" / "a.png")
    Image.fromarray(levels).save(tmp_path / "saliency" / "a.png")
    Image.fromarray(levels[:9]).save(tmp_path / "small" / "a.png")
    (tmp_path / "t.csv").write_text("path,labels\nimages/a.png,cat\n")
    data = MaskedImages.from_table(tmp_path / "t.csv", ("cat",))
    encoder = Encoder.load("conv4", weights="random", options={"width": 4, "last_pool": False}, transform=Transform(32))
    source = WeakSegmenter(encoder, torch.zeros(1, encoder.pooled_dim), ("cat",))  # maps that find nothing
    stage = CueStage(sure=CueSettings(background="saliency"))
    name = data.names[0]

    def made(folder: str) -> np.ndarray:
        maps = MaskMaker(source, data, stage, saliency=tmp_path / folder, device="cpu")
        return maps.mask(0)

    (tmp_path / "saliency" / name).parent.mkdir(exist_ok=True, parents=True)
    for folder in ("saliency", "small"):
        target = tmp_path / folder / f"{name}.png"
        target.parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / folder / "a.png").replace(target)
    found = made("saliency")
    assert (found[3] == 0).all()
    assert (np.delete(found, 3, 0) == 255).all()
    with pytest.raises(ImageError, match="its saliency map"):
        made("small")
    with pytest.raises(ImageError, match="no such file"):
        made("images")
