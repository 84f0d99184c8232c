"""Procedural scenes: the same seed draws the same, and what a scene says about itself is what its pixels show."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distcam.errors import InputError
from distcam.synthetic.blueprint import Blueprint, ToyPart, blueprints
from distcam.synthetic.painter import BACKGROUNDS
from distcam.synthetic.scene import Scene, draw_scene
from distcam.synthetic.scene_set import SceneSet, draw_scenes, write_scenes

CLASSES = blueprints(12)
TOY = Blueprint(
    "toy",
    (
        ToyPart("ears", "triangle", "amber", 0.4),
        ToyPart("body", "disc", "indigo"),
        ToyPart("badge", "star", "cream", 0.5),
    ),
)


def scene_of(*numbers: int, seed: int = 0, **options: object) -> Scene:
    chosen = [CLASSES[number] for number in numbers]
    return draw_scene(chosen, generator=np.random.default_rng(seed), **{"size": 64, **options})


# --- classes ----------------------------------------------------------------------------------------


def test_a_longer_list_of_classes_begins_with_the_shorter_one() -> None:
    assert blueprints(30)[:7] == blueprints(7)


def test_another_seed_gives_other_classes() -> None:
    assert {each.looks for each in blueprints(30)}.isdisjoint(each.looks for each in blueprints(30, seed=1))


@pytest.mark.parametrize("relatives", [0.0, 0.35, 1.0])
def test_classes_differ_in_name_and_in_looks(relatives: float) -> None:
    classes = blueprints(300, relatives=relatives)
    assert len({each.name for each in classes}) == len({each.looks for each in classes}) == 300


def test_a_relative_shares_all_but_one_part_with_an_earlier_class() -> None:
    classes = blueprints(20, relatives=1.0)
    for number, each in enumerate(classes[1:], start=1):
        assert any(len(each.looks - other.looks) == 1 == len(other.looks - each.looks) for other in classes[:number])


def test_every_class_has_a_body_two_to_four_other_parts_and_no_colour_twice() -> None:
    for each in blueprints(100):
        assert 3 <= len(each.parts) <= 5
        assert [part.place for part in each.parts].count("body") == 1
        assert len({part.colour for part in each.parts}) == len(each.parts)


def test_parts_come_from_back_to_front() -> None:
    for each in blueprints(50):
        place = each.parts.index(each.body)
        assert [part.is_limb for part in each.parts] == [number < place for number in range(len(each.parts))]


def test_a_blueprint_of_ones_own_can_be_drawn() -> None:
    scene = draw_scene([TOY], generator=np.random.default_rng(0), background="sand", clutter=0)
    shown = scene.objects[0]
    assert [part.name for part in shown.blueprint.parts] == [
        "amber triangle ears",
        "indigo disc body",
        "cream star badge",
    ]
    assert np.unique(shown.part_map).tolist() == [0, 1, 2, 3]


# --- one scene ----------------------------------------------------------------------------------------


def test_the_same_generator_state_draws_the_same_pixels() -> None:
    first, second = scene_of(0, 1, seed=3), scene_of(0, 1, seed=3)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.boxes == second.boxes
    assert first.image.tobytes() != scene_of(0, 1, seed=4).image.tobytes()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_fills_the_picture_and_is_textured(background: str) -> None:
    scene = scene_of(0, background=background, size=(48, 80))
    pixels = np.asarray(scene.image)
    assert scene.background == background
    assert pixels.shape == (48, 80, 3)
    assert pixels[scene.class_map([scene.label]) == 0].std() > 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_objects=st.integers(1, 4), height=st.integers(32, 90), width=st.integers(32, 90))
def test_boxes_masks_and_parts_agree(seed: int, n_objects: int, height: int, width: int) -> None:
    scene = scene_of(*range(n_objects), seed=seed, size=(height, width))
    seen = np.zeros((height, width), dtype=int)
    for each, (_, box) in zip(scene.objects, scene.boxes, strict=True):
        rows, columns = np.nonzero(each.mask)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)  # tight
        seen += each.mask
    assert seen.max() == 1  # no pixel belongs to two objects


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_objects=st.integers(2, 6))
def test_boxes_of_several_objects_hardly_overlap(seed: int, n_objects: int) -> None:
    boxes = [box for _, box in scene_of(*range(n_objects), seed=seed, size=96).boxes]
    for number, box in enumerate(boxes):
        for other in boxes[:number]:
            assert box.intersection(other).area <= 0.12 * min(box.area, other.area)  # 0.05 before rounding to pixels


def test_the_smallest_picture_shows_the_largest_number_of_objects() -> None:
    for seed in range(10):
        scene = scene_of(*range(12), seed=seed, size=32, clutter=60)
        assert all(each.mask.any() for each in scene.objects)


def test_the_mask_covers_the_colours_of_the_parts() -> None:
    scene = draw_scene([TOY], generator=np.random.default_rng(5), background="meadow", clutter=0)
    pixels = np.asarray(scene.image).astype(int)
    body = pixels[scene.objects[0].part_map == 2]
    assert (body[:, 2] > body[:, 0]).mean() > 0.95  # indigo is bluer than red, a meadow is not
    assert (pixels[~scene.objects[0].mask][:, 2] > pixels[~scene.objects[0].mask][:, 0]).mean() < 0.2


def test_a_class_map_numbers_the_classes_asked_for() -> None:
    scene = scene_of(0, 1)
    classes = scene.class_map([CLASSES[5].name, CLASSES[1].name])
    assert set(np.unique(classes)) == {0, 2}
    assert np.array_equal(classes == 2, scene.objects[1].mask)


# --- many scenes ----------------------------------------------------------------------------------------


def test_a_scene_does_not_depend_on_how_many_others_are_drawn() -> None:
    few = list(draw_scenes(CLASSES, per_class=1, size=40))
    many = list(draw_scenes(CLASSES, per_class=3, size=40))
    assert [scene.image.tobytes() for scene in few] == [scene.image.tobytes() for scene in many[::3]]


def test_splits_and_seeds_give_other_scenes() -> None:
    options = [{}, {"split": "query"}, {"seed": 1}]
    scenes = [next(draw_scenes(CLASSES, per_class=1, size=40, **each)) for each in options]
    assert len({scene.image.tobytes() for scene in scenes}) == 3


def test_scenes_with_two_objects_show_both_and_are_labelled_by_the_first() -> None:
    scenes = list(draw_scenes(CLASSES, per_class=2, size=40, two_object_share=1.0))
    assert [scene.label for scene in scenes] == [each.name for each in CLASSES for _ in range(2)]
    for scene in scenes:
        (first, _), (second, _) = scene.boxes
        assert first == scene.label != second
        assert scene.class_map([second]).any()


def test_the_share_of_two_object_scenes_is_kept() -> None:
    scenes = list(draw_scenes(CLASSES, per_class=20, size=32, two_object_share=0.25))
    assert sum(len(scene.objects) == 2 for scene in scenes) / len(scenes) == pytest.approx(0.25, abs=0.08)


def test_neither_the_whole_picture_nor_its_middle_finds_the_object() -> None:
    scenes = list(draw_scenes(CLASSES, per_class=12, size=40, two_object_share=0))
    boxes = [scene.boxes[0][1] for scene in scenes]
    shares = [box.area / 40**2 for box in boxes]
    assert 0.15 < np.mean(shares) < 0.3
    assert max(shares) < 0.5  # the whole picture never reaches an IoU of 0.5
    assert np.mean([box.contains(20, 20) for box in boxes]) < 0.6


def test_backgrounds_can_be_tied_to_a_class() -> None:
    tied = {CLASSES[0].name: ["waves"], CLASSES[1].name: ["sand", "wood"]}
    scenes = list(draw_scenes(CLASSES[:3], per_class=12, size=32, backgrounds=tied))
    seen = {each.name: {scene.background for scene in scenes if scene.label == each.name} for each in CLASSES[:3]}
    assert seen[CLASSES[0].name] == {"waves"}
    assert seen[CLASSES[1].name] == {"sand", "wood"}
    assert len(seen[CLASSES[2].name]) > 3


# --- scenes on disk ----------------------------------------------------------------------------------------


def test_a_written_set_reads_back(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    written = write_scenes(
        tmp_path / "scenes",
        classes=CLASSES[:3],
        splits={"gallery": 2, "query": 1},
        size=48,
        two_object_share=0.5,
        masks=True,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert SceneSet.read(tmp_path / "scenes") == written
    assert steps == [(number, 9) for number in range(1, 10)]
    assert written.splits == ("gallery", "query")
    assert written.labels == tuple(each.name for each in CLASSES[:3])
    assert len(written) == 9
    assert len(written.of_split("query")) == 3
    drawn = list(draw_scenes(CLASSES[:3], per_class=2, split="gallery", size=48, two_object_share=0.5))
    for record, scene in zip(written.of_split("gallery"), drawn, strict=True):
        pixels = np.asarray(Image.open(written.file(record)), dtype=float)
        assert np.abs(pixels - np.asarray(scene.image)).mean() < 4  # a JPEG of that very scene
        mask = Image.open(written.mask_file(record))
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), scene.class_map(written.labels))
        assert record.boxes == scene.boxes


def test_the_tables_have_the_columns_of_ordinary_ones(tmp_path: Path) -> None:
    written = write_scenes(tmp_path / "s", classes=CLASSES[:2], splits={"train": 1}, size=32, two_object_share=1)
    with (tmp_path / "s/scenes.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "split", "background"]
    assert rows[0][:3] == [f"train/{CLASSES[0].name}/0000.jpg", CLASSES[0].name, "train"]
    with (tmp_path / "s/boxes.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "x1", "y1", "x2", "y2"]
    assert [row[1] for row in rows] == [label for record in written.records for label, _ in record.boxes]


def test_a_killed_run_leaves_no_set_and_can_be_run_again(tmp_path: Path) -> None:
    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def run(**options: object) -> SceneSet:
        return write_scenes(tmp_path / "s", classes=CLASSES[:2], splits={"train": 2}, size=32, **options)

    with pytest.raises(KeyboardInterrupt):
        run(progress=die)
    assert not (tmp_path / "s").exists()
    assert len(run()) == 4
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


# --- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [0, -3])
def test_no_classes_are_refused(n_classes: int) -> None:
    with pytest.raises(InputError, match=rf"n_classes of at least 1, got {n_classes}"):
        blueprints(n_classes)


def test_an_unknown_background_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown background 'stripe', nearest is 'stripes'"):
        scene_of(0, background="stripe")


def test_unknown_names_of_a_part_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown colour 'tael', nearest is 'teal'"):
        ToyPart("body", "disc", "tael")
    with pytest.raises(InputError, match=r"unknown place 'eye', nearest is 'eyes'"):
        ToyPart("eye", "disc", "teal")


def test_a_blueprint_without_a_body_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected one body and no place twice, got eyes"):
        Blueprint("ghost", (ToyPart("eyes", "disc", "ink", 0.3),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 31}, r"at least 32 pixels a side, got 31 x 31"),
        ({"size": (64, 8)}, r"got 64 x 8"),
        ({"clutter": 61}, r"clutter from 0 to 60, got 61"),
    ],
)
def test_settings_outside_their_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scene_of(0, **options)


def test_a_scene_needs_an_object() -> None:
    with pytest.raises(InputError, match=r"expected 1 to 12 objects in a scene, got 0"):
        scene_of()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, r"one scene per class or more, got 0"),
        ({"seed": -1}, r"seed of 0 or more, got -1"),
        ({"two_object_share": 1.5}, r"two_object_share in \[0, 1\], got 1.5"),
        ({"classes": CLASSES[:1]}, r"pass more classes or two_object_share=0"),
        ({"classes": CLASSES[:1] * 2}, r"different names, got '\w+' twice"),
        ({"backgrounds": {"nobody": ["sand"]}}, r"unknown class in backgrounds 'nobody', nearest is"),
        ({"backgrounds": {CLASSES[0].name: "sand"}}, r"a list of one or more backgrounds"),
        ({"backgrounds": {CLASSES[0].name: ["snad"]}}, r"nearest is 'sand'"),
        ({"size": 16}, r"at least 32 pixels"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_first_scene_is_drawn(options: dict[str, object], message: str) -> None:
    arguments = {"classes": CLASSES, "per_class": 1, **options}
    with pytest.raises(InputError, match=message):
        draw_scenes(arguments.pop("classes"), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {}}, r"expected one split or more"),
        ({"splits": {"../up": 1}}, r"names of letters, digits, - and _ for splits and classes, got '../up'"),
        ({"quality": 0}, r"quality from 1 to 95, got 0"),
        ({"size": 8}, r"at least 32 pixels"),
    ],
)
def test_a_wrong_setting_leaves_nothing_on_disk(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_scenes(tmp_path / "s", **{"classes": CLASSES[:2], "splits": {"train": 1}, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"is taken; choose another folder"):
        write_scenes(tmp_path, classes=CLASSES[:2], splits={"train": 1}, size=32)
    (tmp_path / "empty").mkdir()
    assert len(write_scenes(tmp_path / "empty", classes=CLASSES[:2], splits={"train": 1}, size=32)) == 2


def test_reading_what_is_no_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no scenes.csv; write a set with write_scenes first"):
        SceneSet.read(tmp_path)
    (tmp_path / "scenes.csv").write_text("path,label,split,background\na.jpg,toy,train,sand\n")
    with pytest.raises(InputError, match=r"holds damaged tables"):
        SceneSet.read(tmp_path)
    written = write_scenes(tmp_path / "s", classes=CLASSES[:2], splits={"train": 1}, size=32)
    with pytest.raises(InputError, match=r"no split 'test' in .*; there are train"):
        written.of_split("test")
