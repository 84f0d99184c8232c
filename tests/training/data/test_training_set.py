"""Images to train on: labels, regions, files and memory, and the batches that come of them."""

from __future__ import annotations

import csv
import threading
import time

import pytest
import torch
from PIL import Image, ImageDraw

from distcam.errors import ImageError, InputError, ShapeError
from distcam.images import Box, Transform, list_images
from distcam.remarks import DistcamWarning
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training.data.augment import AugmentSettings
from distcam.training.data.batches import TrainingBatches
from distcam.training.data.outlines import Outline, RegionSettings, RegionTable, boxes_from, outlines_of, raster_of
from distcam.training.data.samplers import SamplerSettings, make_sampler, shuffled
from distcam.training.data.training_set import TrainingSet
from distcam.training.engine.environment import batch_on_device

SQUASH = Transform(32, fit="squash")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    return write_scenes(folder, classes=blueprints(4), splits={"train": 10, "test": 2}, size=64, masks=True)


def table(file, header, *rows):
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    return file


def picture(file, size=(40, 20), box=None, mode="RGB"):
    image = Image.new(mode, size)
    if box is not None:
        ImageDraw.Draw(image).rectangle(
            (box[0], box[1], box[2] - 1, box[3] - 1), fill="white" if mode == "RGB" else 255
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


# --- where images and labels come from --------------------------------------------------------------------------------


def test_a_folder_has_a_class_per_sub_folder(photos) -> None:
    listing = list_images(photos)
    data = TrainingSet.from_listing(listing, SQUASH)
    assert len(data) == 24
    assert data.per_class().tolist() == [6] * 4
    assert data.class_names == tuple(sorted({record.label for record in listing}))
    assert [data.class_names[i] for i in data.labels.tolist()] == [record.label for record in listing]
    assert data.names([0]) == [next(iter(listing)).path]
    assert data.held is not None


def test_pixels_are_the_same_from_memory_and_from_files(photos) -> None:
    listing, index = list_images(photos), torch.tensor([5, 0, 23])
    memory, files = (TrainingSet.from_listing(listing, SQUASH, cache=cache) for cache in ("memory", "none"))
    assert files.held is None
    assert torch.equal(memory.pixels(index), files.pixels(index))


def test_images_in_memory_bring_names_or_numbers() -> None:
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    named = TrainingSet.from_pixels(pixels, ["dog", "cat", "dog"], transform=SQUASH)
    assert (named.class_names, named.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    numbered = TrainingSet.from_pixels(pixels, torch.tensor([2, 0, 2]), transform=SQUASH)
    assert numbered.class_names == ("0", "1", "2")
    with pytest.raises(InputError, match="none shows '1'"):
        numbered.require_trainable()
    with pytest.raises(InputError, match="at least two classes, got 1"):
        TrainingSet.from_pixels(pixels, ["cat"] * 3, transform=SQUASH).require_trainable()
    with pytest.raises(ShapeError, match=r"expected uint8 pixels \(2, 3, 32, 32\), got torch.uint8 \(3, 3, 32, 32\)"):
        TrainingSet.from_pixels(pixels, ["cat", "dog"], transform=SQUASH)
    with pytest.raises(InputError, match="'bird' is none of the 2 classes"):
        TrainingSet.from_pixels(pixels, ["cat", "dog", "bird"], transform=SQUASH, class_names=["cat", "dog"])


def test_several_labels_come_from_one_cell_or_from_columns(tmp_path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    cells = table(tmp_path / "cells.csv", ["path", "labels"], ["a.png", "cat; dog"], ["b.png", ""], ["c.png", "dog"])
    columns = table(tmp_path / "columns.csv", ["path", "cat", "dog"], ["a.png", 1, 1], ["b.png", 0, 0], ["c.png", 0, 1])
    one = TrainingSet.from_listing(list_images(cells), SQUASH)
    other = TrainingSet.from_listing(list_images(columns), SQUASH, label_columns=("cat", "dog"))
    for data in (one, other):
        assert data.is_multi_label
        assert data.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
        assert data.per_class().tolist() == [1, 2]
    with pytest.raises(InputError, match=r"a.png: expected 0 or 1 in the column 'cow', got None"):
        TrainingSet.from_listing(list_images(columns), SQUASH, label_columns=("cow",))


def test_an_image_without_a_label_is_named(tmp_path) -> None:
    picture(tmp_path / "loose.png")
    picture(tmp_path / "cat" / "a.png")
    with pytest.raises(InputError, match=r"loose.png: expected a label for every image"):
        TrainingSet.from_listing(list_images(tmp_path), SQUASH)


def broken_photos(folder):
    """Two images of each of two classes, and three files that are none: truncated, empty, and text."""
    for name in ("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png"):
        picture(folder / name)
    whole = picture(folder / "cat" / "c.png", (90, 70)).read_bytes()
    (folder / "cat" / "c.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "empty.png").write_bytes(b"")
    (folder / "dog" / "text.png").write_bytes(b"no picture")
    return list_images(folder)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_unreadable_files_are_left_out_and_named_all_at_once_before_the_first_step(tmp_path, cache) -> None:
    listing = broken_photos(tmp_path)
    said = r"3 of 7 images cannot be read and are left out: cat/c\.png \(.*\); dog/empty\.png \(.*\); dog/text\.png \("
    with pytest.warns(DistcamWarning, match=said):
        data = TrainingSet.from_listing(listing, SQUASH, cache=cache)
    assert [item.path for item in data.skipped] == ["cat/c.png", "dog/empty.png", "dog/text.png"]
    assert data.names(range(4)) == ["cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert next(TrainingBatches(data, shuffled(4, batch_size=4)).epoch(0)).images.shape[0] == 4
    with pytest.raises(InputError, match=said):
        TrainingSet.from_listing(listing, SQUASH, cache=cache, strict=True)


def test_where_no_image_can_be_read_there_is_nothing_to_train_on(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").touch()
    with pytest.raises(InputError, match=r"none of 1 image can be read: cat/a\.png"):
        TrainingSet.from_listing(list_images(tmp_path), SQUASH)


def test_a_file_that_breaks_after_the_first_look_is_named(tmp_path) -> None:
    picture(tmp_path / "cat" / "a.png")
    data = TrainingSet.from_listing(list_images(tmp_path), SQUASH, cache="none")
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"cat/a\.png"):
        next(TrainingBatches(data, shuffled(1, batch_size=1)).epoch(0))


def test_an_outline_that_cannot_be_used_is_left_out_and_named(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "cat" / name, (32, 32))
    boxes = {
        tmp_path / "cat" / "a.png": [Outline("cat", Box(0, 0, 8, 8))],
        tmp_path / "cat" / "b.png": [Outline("cat", Box(0, 0, 99, 99))],
    }
    options = {"outlines": boxes, "regions": RegionSettings("box", share=1.0)}
    with pytest.warns(DistcamWarning, match=r"1 outline cannot be used and is left out: .*b\.png: the box"):
        data = TrainingSet.from_listing(list_images(tmp_path), SQUASH, **options)
    assert data.regions.image.tolist() == [0]
    with pytest.raises(InputError, match="1 outline cannot be used"):
        TrainingSet.from_listing(list_images(tmp_path), SQUASH, strict=True, **options)


# --- regions ----------------------------------------------------------------------------------------------------------


def test_a_box_goes_through_the_transform_by_hand(tmp_path) -> None:
    file = picture(tmp_path / "wide.png", (40, 20))
    box = Outline(box=Box(10, 5, 30, 20))
    squashed = raster_of(box, file, Transform((10, 20), fit="squash"), kind="box")
    assert (squashed.nonzero().amin(0).tolist(), squashed.nonzero().amax(0).tolist()) == ([2, 5], [9, 14])
    assert squashed.sum() == 8 * 10  # rows 2.5 to 10: row 2's middle lies on the edge, which belongs to the box
    cropped = raster_of(box, file, Transform(20, fit="crop", resize=20), kind="box")  # the middle 20 columns
    assert (cropped.nonzero().amin(0).tolist(), cropped.nonzero().amax(0).tolist()) == ([5, 0], [19, 19])
    padded = raster_of(box, file, Transform(40, fit="pad"), kind="box")
    assert (padded.nonzero().amin(0).tolist(), padded.nonzero().amax(0).tolist()) == ([15, 10], [29, 29])


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_mask_of_a_rectangle_is_the_box(tmp_path, fit) -> None:
    box = Box(12, 4, 28, 16)
    file = picture(tmp_path / "a.png", (40, 20))
    mask = picture(tmp_path / "m.png", (40, 20), box, mode="L")
    annotation = Outline(box=box, mask=mask)
    by_mask, by_box = (raster_of(annotation, file, Transform(32, fit=fit), kind=kind) for kind in ("mask", "box"))
    assert (by_mask != by_box).float().mean() < 0.07


def test_a_tiny_box_marks_one_pixel_and_one_outside_the_crop_none(tmp_path) -> None:
    file = picture(tmp_path / "a.png", (400, 200))
    tiny = Outline(box=Box(100, 100, 102, 102))
    assert raster_of(tiny, file, Transform(10, fit="squash"), kind="box").sum() == 1
    assert raster_of(Outline(box=Box(0, 0, 50, 200)), file, Transform(10, fit="crop"), kind="box") is None


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Outline(box=Box(10, 5, 45, 20)), r"a.png: the box \(10, 5, 45, 20\) leaves the image, .* 40 x 20"),
        (Outline(box=Box(10, 5, 10, 20)), "left < right"),
        (Outline(box=Box(10, 5, float("nan"), 20)), "left < right"),
    ],
)
def test_impossible_boxes_are_refused(tmp_path, annotation, message) -> None:
    with pytest.raises(InputError, match=message):
        raster_of(annotation, picture(tmp_path / "a.png"), SQUASH, kind="box")


def test_a_box_may_exceed_its_image_by_one_pixel(tmp_path) -> None:
    whole = raster_of(Outline(box=Box(0, 0, 41, 20)), picture(tmp_path / "a.png"), SQUASH, kind="box")
    assert whole.all()


def test_impossible_masks_are_refused(tmp_path) -> None:
    file = picture(tmp_path / "a.png")
    other, empty = picture(tmp_path / "s.png", (20, 20), mode="L"), picture(tmp_path / "e.png", mode="L")
    with pytest.raises(InputError, match=r"s.png: expected the mask in its image's size, 40 x 20, got 20 x 20"):
        raster_of(Outline(mask=other), file, SQUASH, kind="mask")
    with pytest.raises(InputError, match=r"e.png: the mask is all 0, so it marks no object of a.png"):
        raster_of(Outline(mask=empty), file, SQUASH, kind="mask")
    with pytest.raises(InputError, match="nowhere 3"):
        raster_of(Outline(mask=empty, value=3), file, SQUASH, kind="mask")
    with pytest.raises(ImageError, match=r"nothing\.png: not a readable mask"):
        raster_of(Outline(mask=tmp_path / "nothing.png"), file, SQUASH, kind="mask")


def test_masks_and_boxes_come_from_columns_and_tables(tmp_path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "m" / "a.png", box=(0, 0, 9, 9), mode="L")
    header = ["path", "label", "mask", "x1", "y1", "x2", "y2"]
    with pytest.warns(DistcamWarning, match="NOT cut out"):
        listing = list_images(table(tmp_path / "t.csv", header, ["a.png", "cat", "m/a.png", 0, 0, 9, 9]))
    found = outlines_of(listing)
    assert found == {tmp_path / "a.png": [Outline(box=Box(0, 0, 9, 9), mask=tmp_path / "m" / "a.png")]}
    boxes = table(
        tmp_path / "b.csv", header[:2] + header[3:], ["a.png", "cat", 1, 2, 3, 4], ["a.png", "dog", 5, 5, 6, 6]
    )
    assert [each.label for each in boxes_from(boxes, listing)[tmp_path / "a.png"]] == ["cat", "dog"]
    with pytest.warns(DistcamWarning, match="NOT cut out"):
        listing = list_images(table(tmp_path / "t.csv", header, ["a.png", "cat", "", 0, "zero", 9, 9]))
    with pytest.raises(InputError, match=r"a.png: expected four numbers as a box, got 0, zero, 9, 9"):
        outlines_of(listing)
    with pytest.raises(InputError, match="the table has x1, y1"):
        outlines_of(list_images(table(tmp_path / "t.csv", header[:5], ["a.png", "cat", "", 0, 0])))


def test_regions_of_other_classes_are_left_out_and_several_of_one_class_are_one(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, (32, 32))
    listing = list_images(table(tmp_path / "t.csv", ["path", "label"], ["a.png", "cat"], ["b.png", "dog"]))
    own = [
        Outline("cat", Box(0, 0, 8, 8)),
        Outline("dog", Box(8, 8, 16, 16)),
        Outline("cat", Box(24, 24, 32, 32)),
    ]
    data = TrainingSet.from_listing(
        listing, SQUASH, outlines={tmp_path / "a.png": own}, regions=RegionSettings("box", share=1.0)
    )
    assert data.regions.label.tolist() == [0]
    assert data.regions.raster.sum() == 128


def test_a_share_of_the_images_is_chosen_class_by_class_and_grows_by_addition(scenes) -> None:
    chosen = {}
    for share in (0.1, 0.2, 1.0):
        data = TrainingSet.from_scenes(scenes, "train", SQUASH, regions=RegionSettings("mask", share, seed=1))
        assert data.regions.label.bincount().tolist() == [round(10 * share)] * 4
        chosen[share] = set(data.regions.image.tolist())
    assert chosen[0.1] < chosen[0.2] < chosen[1.0]
    other = TrainingSet.from_scenes(scenes, "train", SQUASH, regions=RegionSettings("mask", 0.1, seed=2))
    assert set(other.regions.image.tolist()) != chosen[0.1]


def test_outlines_that_nobody_has_drawn_are_missed(photos) -> None:
    with pytest.raises(InputError, match="masks are asked for, but none of the 24 images has one"):
        TrainingSet.from_listing(list_images(photos), SQUASH, regions=RegionSettings("mask"))


def test_scenes_bring_labels_masks_and_boxes(scenes) -> None:
    for kind in ("mask", "box"):
        data = TrainingSet.from_scenes(scenes, "train", SQUASH, regions=RegionSettings(kind, 1.0), is_multi_label=True)
        records = scenes.of_split("train")
        assert data.class_names == scenes.labels
        for row, record in enumerate(records):
            assert {data.class_names[i] for i in data.labels[row].nonzero()[:, 0]} == {name for name, _ in record.boxes}
        regions = data.regions.of(torch.arange(len(data)))
        assert regions.is_box.all() == (kind == "box")
        assert len(regions.row) == sum(len({name for name, _ in record.boxes}) for record in records)
        first = records[0].boxes[0][1].scaled(0.5)
        rows, columns = regions.raster[0].nonzero().T
        assert abs(int(columns.min()) - first.left) <= 2
        assert abs(int(rows.max()) + 1 - first.bottom) <= 2


def test_the_regions_of_a_batch_follow_its_order() -> None:
    raster = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 2, 2)
    table = RegionTable(torch.tensor([1, 1, 4, 7]), torch.tensor([0, 1, 2, 3]), torch.tensor([True] * 4), raster)
    batch = table.of(torch.tensor([7, 0, 1, 1]))
    assert batch.row.tolist() == [0, 2, 2, 3, 3]
    assert batch.label.tolist() == [3, 0, 1, 0, 1]
    assert batch.raster[:, 0, 0].tolist() == [3, 0, 1, 0, 1]
    assert len(table.of(torch.tensor([0, 2])).row) == 0


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(scenes):
    return TrainingSet.from_scenes(scenes, "train", SQUASH, regions=RegionSettings("mask", 0.5))


def same(one, other) -> bool:
    def tensors(batch):
        return batch.images, batch.labels, batch.index, batch.regions.raster, batch.regions.row

    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def batches_of(data, **options):
    sampler = make_sampler(SamplerSettings("pk", batch_size=8, per_class=2), data.labels)
    settings = AugmentSettings(crop=(0.5, 1.0), erase=0.5, brightness=0.2, mixup=0.4)
    return TrainingBatches(data, sampler, augment=settings, **options)


def test_batches_depend_on_seed_epoch_and_step_only(data) -> None:
    expected = list(batches_of(data).epoch(2))
    assert len(expected) == batches_of(data).steps_per_epoch
    for workers, skip in ((1, 0), (3, 0), (2, 3)):
        batches = batches_of(data, workers=workers)
        list(batches.epoch(0))
        again = list(batches.epoch(2, skip=skip))
        assert len(again) == len(expected) - skip
        assert all(same(*pair) for pair in zip(expected[skip:], again, strict=True))
    assert not same(expected[0], next(batches_of(data, seed=1).epoch(2)))


def test_batches_hold_what_the_encoder_wants(data) -> None:
    batch = next(TrainingBatches(data, shuffled(len(data), batch_size=8)).epoch(0))
    assert batch.images.dtype == torch.float32
    torch.testing.assert_close(batch.images, SQUASH.normalise(data.pixels(batch.index)))
    assert torch.equal(batch.labels, data.labels[batch.index])
    assert batch.regions.raster.shape[1:] == (32, 32)
    assert batch.mix is None


def test_what_is_left_to_the_device_is_what_would_have_been_done_at_once(data) -> None:
    at_once, late = batches_of(data), batches_of(data)
    late.finish_on(torch.device("cpu"))
    for expected, batch in zip(at_once.epoch(1), late.epoch(1), strict=True):
        assert batch.images.dtype == torch.uint8
        finished = batch_on_device(batch, torch.device("cpu"))
        assert finished.finish is None
        assert torch.equal(finished.images, expected.images)
        assert torch.equal(finished.regions.raster, expected.regions.raster)
        assert (finished.mix is None) == (expected.mix is None)


def test_two_processes_see_what_one_would(data) -> None:
    settings = AugmentSettings(crop=(0.5, 1.0))
    alone = TrainingBatches(data, shuffled(40, batch_size=8), augment=settings)
    pair = [
        TrainingBatches(data, shuffled(40, batch_size=8), augment=settings, rank=rank, world_size=2) for rank in (0, 1)
    ]
    for whole, *parts in zip(alone.epoch(1), *(each.epoch(1) for each in pair), strict=True):
        assert [len(part) for part in parts] == [4, 4]
        torch.testing.assert_close(whole.images, torch.cat([part.images for part in parts]))


def test_threads_end_with_the_iterator(data) -> None:
    before = threading.active_count()
    source = batches_of(data, workers=2).epoch(0)
    next(source)
    assert threading.active_count() > before
    source.close()
    assert threading.active_count() == before


def test_batches_are_prepared_while_the_training_works(data) -> None:
    source = TrainingBatches(data, shuffled(40, batch_size=8)).epoch(0)
    next(source)
    time.sleep(0.2)
    started = time.perf_counter()
    next(source)
    assert time.perf_counter() - started < 0.01
    source.close()


def test_global_generators_are_left_alone(data) -> None:
    before = torch.random.get_rng_state()
    list(batches_of(data).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)
