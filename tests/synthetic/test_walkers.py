"""Synthetic walkers: layout, repeatability, look-alikes, and masks that fit the pictures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam.errors import InputError
from distcam.reid import WalkerSet, audit, write_walkers
from distcam.synthetic.bodies import PARTS, draw_pedestrian
from distcam.synthetic.pedestrians import ITEMS, Camera, Moment, Walker


@pytest.fixture(scope="module")
def walkers(tmp_path_factory: pytest.TempPathFactory) -> WalkerSet:
    return write_walkers(tmp_path_factory.mktemp("walkers") / "set", identities=16, cameras=3, images_per_camera=2)


def test_the_set_has_the_layout_of_market(walkers: WalkerSet) -> None:
    data = walkers.data
    assert data.format == "market"
    assert data.images[0].path.startswith("bounding_box_train/0001_c")
    train, test = ({i.identity for i in images} for images in (data.of("train"), data.queries))
    assert train == set(range(1, 9))
    assert test == set(range(9, 17))
    assert {image.identity for image in data.gallery} == test | {0, -1}
    with Image.open(data.file(data.images[0])) as image:
        assert (image.size, image.format) == ((64, 128), "JPEG")


def test_an_audit_finds_nothing_to_complain_about(walkers: WalkerSet) -> None:
    found = audit(walkers.data)
    assert found.problems == ()
    assert found.without_match == ()
    assert found.duplicates == ()


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    walkers, again, other = (
        write_walkers(tmp_path / name, identities=4, cameras=2, images_per_camera=2, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    for file in ("walkers.csv", "parts.csv", walkers.data.images[0].path, walkers.data.gallery[-1].path):
        assert (walkers.folder / file).read_bytes() == (again.folder / file).read_bytes()
    assert (walkers.folder / "parts.csv").read_bytes() != (other.folder / "parts.csv").read_bytes()


def test_look_alikes_are_mutual_and_on_the_same_side(walkers: WalkerSet) -> None:
    alike = {int(row["identity"]): int(row["look_alike"]) for row in walkers.rows() if row["look_alike"]}
    assert len(alike) == 6  # 0.4 of 16, in pairs
    for identity, other in alike.items():
        assert alike[other] == identity
        assert (identity <= 8) == (other <= 8)


@pytest.mark.parametrize("item", ITEMS)
def test_somebody_changed_differs_in_one_item(item: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(5):
        walker = Walker.draw(random)
        before, after = asdict(walker), asdict(walker.changed(item, random))
        assert [name for name in before if before[name] != after[name]] == [item]


def test_masks_and_boxes_say_the_same(walkers: WalkerSet) -> None:
    boxes = defaultdict(dict)
    for row in walkers.part_rows():
        boxes[row["path"]][row["part"]] = row
    for path in list(boxes)[:20]:
        mask = walkers.mask(path)
        assert mask.shape == (128, 64)
        assert {PARTS[number] for number in np.unique(mask)} - {"background"} == set(boxes[path])
        for part, row in boxes[path].items():
            seen = walkers.mask(path, part)
            left, top, right, bottom = (int(row[name]) for name in ("x1", "y1", "x2", "y2"))
            assert seen.sum() == int(row["pixels"]) == seen[top:bottom, left:right].sum()


def test_a_part_is_where_its_colour_is() -> None:
    random = np.random.default_rng(0)
    camera = Camera.draw(np.random.default_rng(1), number=0)
    walker = Walker.draw(random)
    clothes = {"top_colour": "red", "pattern": "plain", "bag": "backpack", "bag_colour": "green"}
    walker = Walker(**{**asdict(walker), **clothes})
    moment = Moment("back", 0.3, 0.9, 0.5, 0.08)
    image, mask = draw_pedestrian(walker, camera, moment, generator=random)
    pixels = np.asarray(image, dtype=float)
    red, green, _ = pixels[mask == PARTS.index("top")].mean(axis=0)
    assert red > 1.3 * green
    red, green, _ = pixels[mask == PARTS.index("bag")].mean(axis=0)
    assert green > 1.1 * red


def test_cameras_disagree_about_colours_and_backdrops() -> None:
    walker, moment = Walker.draw(np.random.default_rng(0)), Moment("front", 0.3, 0.9, 0.5, 0.08)
    tones = []
    for number in range(4):
        camera = Camera.draw(np.random.default_rng([9, number]), number=number)
        image, mask = draw_pedestrian(walker, camera, moment, generator=np.random.default_rng(1))
        tones.append(np.asarray(image, dtype=float)[mask == PARTS.index("top")].mean(axis=0))
    distances = [np.abs(a - b).max() for i, a in enumerate(tones) for b in tones[:i]]
    assert min(distances) > 3
    assert max(distances) > 30


def test_junk_holds_part_of_a_body_and_an_empty_place_nobody(walkers: WalkerSet) -> None:
    seen = defaultdict(set)
    for row in walkers.part_rows():
        seen[row["path"]].add(row["part"])
    junk = [image for image in walkers.data.gallery if image.identity == -1]
    assert sum({"hair", "shoes"} <= seen[image.path] for image in junk) < len(junk) / 3
    nobody = [image for image in walkers.data.gallery if image.identity == 0 and seen[image.path] <= {"occluder"}]
    assert nobody


def test_arguments_out_of_range_and_taken_folders_are_refused(walkers: WalkerSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is taken"):
        write_walkers(walkers.folder)
    for wrong in ({"identities": 3}, {"cameras": 1}, {"images_per_camera": 1}, {"junk": 1.5}, {"seed": -1}):
        with pytest.raises(InputError, match="expected"):
            write_walkers(tmp_path / "new", **wrong)
    with pytest.raises(InputError, match=r"holds no walkers.csv"):
        WalkerSet.read(tmp_path)
    with pytest.raises(InputError, match="no part 'hat'; there are background, skin"):
        walkers.mask(walkers.data.images[0].path, "hat")


def test_a_set_without_masks_says_so(tmp_path: Path) -> None:
    written = write_walkers(tmp_path / "set", identities=4, cameras=2, images_per_camera=2, masks=False, junk=0)
    assert not (tmp_path / "set" / "masks").exists()
    with pytest.raises(InputError, match="write the set with masks"):
        WalkerSet.read(tmp_path / "set").mask(written.data.images[0].path)
