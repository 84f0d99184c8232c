"""Explaining segmenters: crowds of objects, questions about one of them, what maps answer, and retraining without."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from segmenters.crowds import draw_cells, draw_crowd, draw_crowds
from segmenters.judging_maps import ASKS, REFERENCES, MapScores, ask_objects, judge_maps, maps_for
from segmenters.pixel_data import PixelData, predict
from torch import nn

import distcam.metrics.maps as boxes
from distcam.errors import InputError, ShapeError
from distcam.explain import METHODS
from distcam.synthetic.blueprint import blueprints

# -------------------------------------------------------------------------------------------------------------- crowds


def test_cells_are_many_close_and_apart():
    crowd = draw_cells(generator=np.random.default_rng(0), size=96, count=14)
    assert crowd.count >= 12
    regions, _ = label(crowd.classes == 1, np.ones((3, 3)))
    assert regions.max() == crowd.count  # no two touch
    for number in range(1, crowd.count + 1):
        own = crowd.instances == number
        assert len(np.unique(regions[own])) == 1
        assert own.sum() > 40
    near = np.stack([_grown(crowd.instances == number, 8) for number in range(1, crowd.count + 1)]).sum(0)
    assert (near > 1).any()  # but neighbours are a few pixels away


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    wide = torch.from_numpy(mask)[None].float()
    return nn.functional.max_pool2d(wide, 2 * by + 1, stride=1, padding=by)[0].bool().numpy()


def test_a_picture_depends_on_its_own_number_only():
    def draw(generator: np.random.Generator):
        return draw_cells(generator=generator, size=40, count=4)

    few, many = (draw_crowds(draw, count=n, seed=5) for n in (2, 3))
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
    assert not np.array_equal(np.asarray(many[0].image), np.asarray(draw_crowds(draw, count=1, seed=6)[0].image))


def test_a_crowd_shows_one_class_several_times_among_others():
    crowd = draw_crowd(blueprints(3), generator=np.random.default_rng(1), size=64, same=3, others=2)
    classes = [np.unique(crowd.classes[crowd.instances == number]).tolist() for number in range(1, 6)]
    assert all(len(own) == 1 for own in classes)
    assert classes[0] == classes[1] == classes[2]
    assert classes[0] not in (classes[3], classes[4])
    assert ((crowd.classes > 0) == (crowd.instances > 0)).all()


def test_crowds_that_cannot_be_are_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="size from 32"):
        draw_cells(generator=generator, size=20)
    with pytest.raises(InputError, match="two classes where there are others"):
        draw_crowd(blueprints(1), generator=generator, others=1)


def test_doctests():
    assert doctest.testmod(boxes).failed == 0


# ----------------------------------------------------------------------------------------------------------- questions


def test_the_ways_to_ask_about_one_object(data, model):
    predicted = predict(model, data.images)
    asked = {by: ask_objects(data, 0, predicted[0], by=by) for by in ASKS}
    for by in ("component", "box", "point"):
        questions = asked[by]
        assert len(questions) == data.instances[0].max()
        assert not (questions.asked & questions.others).any()
        union = questions.asked | questions.others
        assert (union == (data.classes[0] == 1)).all()
    assert (asked["component"].pixels & ~asked["component"].asked).sum() == 0
    assert (asked["point"].pixels.sum((1, 2)) == 1).all()
    assert (asked["point"].pixels & asked["component"].pixels).flatten(1).any(1).all()
    assert (asked["box"].pixels | ~asked["component"].asked).all()
    assert len(asked["class"]) == 1
    assert (asked["class"].pixels[0] == (predicted[0] == 1)).all()
    assert len(ask_objects(data, 0, predicted[0], most=2)) == 2
    assert ask_objects(data, 0, torch.zeros_like(predicted[0])) is None  # nothing was found
    with pytest.raises(InputError, match="choose one of component"):
        ask_objects(data, 0, predicted[0], by="corner")


def test_the_point_lies_farthest_inside():
    classes = torch.zeros(1, 9, 12, dtype=torch.long)
    classes[0, 1:8, 1:8] = 1
    classes[0, 4, 8:11] = 1  # a tail
    instances = classes.clone()
    instances[0, 0, 11], classes[0, 0, 11] = 2, 1
    data = PixelData(torch.zeros(1, 3, 9, 12), classes, instances, ("background", "thing"), 0)
    questions = ask_objects(data, 0, classes[0], by="point", least_pixels=5)
    assert questions.pixels.nonzero().tolist() == [[0, 4, 4]]
    assert questions.others.sum() == 1


# ------------------------------------------------------------------------------------------------------------ measures


def test_every_method_and_reference_answers_and_says_what_it_is(data, model):
    questions = ask_objects(data, 0, predict(model, data.images)[0], most=2)
    found = maps_for(model, data.images[:1], questions, methods=[*METHODS, *REFERENCES], layer="features")
    assert set(found) == {*METHODS, *REFERENCES}
    assert all(len(maps) == 2 for maps in found.values())
    assert not torch.equal(found["random"][0], found["random"][1])
    assert (found["asked"] == questions.pixels).all()


def test_seg_hires_answers_in_the_object_and_seg_grad_everywhere(data, model):
    scores = judge_maps(model, data, methods=["hirescam", "gradcam", "asked", "full"], layer="features", road=())
    hires, coarse, asked, full = (scores[name] for name in ("hirescam", "gradcam", "asked", "full"))
    for exact in (hires, asked):
        assert exact.pointing.eq(1).all()
        torch.testing.assert_close(exact.energy, torch.ones_like(exact.energy))
        assert exact.own_peak.eq(1).all()
    assert coarse.own_energy.mean() < 0.4
    assert coarse.own_peak.mean() < 0.5
    assert full.pointing.eq(0).all()
    assert full.own_peak.eq(0).all()
    share = torch.cat(
        [ask_objects(data, row, predict(model, data.images)[row]).asked.double().mean((1, 2)) for row in range(3)]
    )
    torch.testing.assert_close(full.energy, share)
    assert hires.road.isnan().all()
    assert hires.interval("road") is None
    mean, low, high = coarse.interval("own_energy")
    assert low <= mean <= high
    assert mean == pytest.approx(float(coarse.own_energy.mean()))


def test_road_prefers_the_pixels_asked_about_to_chance(data, model):
    scores = judge_maps(model, data, methods=["asked", "random"], layer="features", road=(0.1,), most=2)
    assert scores["asked"].road.mean() > scores["random"].road.mean() + 0.1


def test_questions_about_classes_have_no_others(data, model):
    found = judge_maps(model, data, methods=["hirescam"], layer="features", by="class", road=())["hirescam"]
    assert found.own_peak.isnan().all()
    assert found.pointing.eq(1).all()
    assert len(MapScores.cat([found, found]).image) == 2 * len(found.image)


def test_nothing_to_ask_and_methods_that_are_none_are_refused(data, model):
    with pytest.raises(InputError, match="nothing to ask about"):
        judge_maps(model, data, methods=["hirescam"], layer="features", least_pixels=10**6)
    with pytest.raises(InputError, match="nearest"):
        judge_maps(model, data, methods=["hirescan"], layer="features")


def test_masks_of_another_size_than_the_images_are_refused(data):
    with pytest.raises(ShapeError, match="maps of classes and instances"):
        PixelData(data.images, data.classes[:1], data.instances, data.names)
