"""Pictures with masks: the layouts they come in, how masks are numbered, and what is wrong with them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from distcam.datasets.mask_benchmarks import VOC_CLASSES
from distcam.datasets.masked_images import read_names
from distcam.errors import ImageError, InputError
from distcam.images import Transform
from distcam.remarks import DistcamWarning
from distcam.segmentation.data import MaskedImages, MaskIds, boxes_around, label_map
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes

SIZE = (12, 8)  # width, height


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    return write_scenes(folder, classes=blueprints(3), splits={"train": 4}, size=64, two_object_share=0.5, masks=True)


def picture(file, size=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(file)
    return file


def mask(file, values=None, mode="P"):
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((SIZE[1], SIZE[0]), np.uint8) if values is None else np.asarray(values, np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([*range(256)] * 3)  # a short one would make Pillow write fewer bits
    image.save(file)
    return file


def marked(*numbers):
    values = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    values[0, : len(numbers)] = numbers
    return values


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for name, values in {"a": marked(1, 255), "b": marked(15, 20, 15)}.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        mask(root / "SegmentationClass" / f"{name}.png", values)
    picture(root / "JPEGImages" / "c.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "weak.txt").write_text("c\n")
    return root


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_a_voc_folder_is_read_in_the_order_of_its_list(voc) -> None:
    data = MaskedImages.from_voc(voc)
    assert (len(data), data.names, data.class_names) == (2, ("b", "a"), VOC_CLASSES)
    assert (data.labels(0), data.labels(1)) == ((14, 19), (0,))
    assert data.mask(1)[0, :3].tolist() == [1, 255, 0]
    assert (data.image(0).mode, data.image(0).size) == ("RGB", SIZE)
    assert data.mask_names[:2] == ("background", "aeroplane")
    assert repr(data) == "MaskedImages(2 images, 2 with masks, 20 classes)"


def test_a_development_kit_is_found_from_above(voc) -> None:
    kit = voc.parent / "VOCdevkit"
    kit.mkdir()
    voc.rename(kit / "VOC2012")
    assert MaskedImages.from_voc(kit.parent).names == MaskedImages.from_voc(kit).names == ("b", "a")


def test_a_picture_may_come_without_a_mask_but_then_without_classes(voc) -> None:
    data = MaskedImages.from_voc(voc, "weak")
    assert data.mask(0) is None
    assert not data.is_labelled(0)
    with pytest.raises(InputError, match=r"c.jpg: nothing says which classes the image shows; give a mask, or a tab"):
        data.labels(0)
    with pytest.raises(InputError, match="nothing says which classes"):
        data.training_set(Transform(32, fit="squash"))


def test_vocs_larger_list_takes_sbds_masks_and_the_classes_of_the_annotations(voc) -> None:
    picture(voc / "JPEGImages" / "d.jpg")
    mask(voc / "SegmentationClassAug" / "c.png", marked(3))
    mask(voc / "SegmentationClassAug" / "a.png", marked(9))  # VOC's own goes first
    (voc / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox>"
    for name, label in (("a", "cat"), ("d", "head")):
        text = f"<annotation><object><name>{label}</name>{box}</object></annotation>"
        (voc / "Annotations" / f"{name}.xml").write_text(text)
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("a\nb\nc\n")
    (lists / "odd.txt").write_text("d\n")
    data = MaskedImages.from_voc(voc, "trainaug")
    assert [data.labels(i) for i in range(3)] == [(7,), (14, 19), (2,)]  # of XML, and of masks without any
    assert [data.mask(i)[0, 0] for i in range(3)] == [1, 15, 3]
    with pytest.raises(InputError, match=r"d\.xml: the object 'head' is none of the 20 classes; name them"):
        MaskedImages.from_voc(voc, "odd")


def cityscapes(root, ending, numbers):
    picture(root / "leftImg8bit" / "val" / "ulm" / "ulm_000000_000019_leftImg8bit.png")
    mask(root / "gtFine" / "val" / "ulm" / f"ulm_000000_000019_gtFine_{ending}.png", marked(*numbers))


@pytest.mark.parametrize(
    ("ending", "numbers"), [("labelIds", (7, 8, 33, 0, 6, 29)), ("labelTrainIds", (0, 1, 18, 255, 255, 255))]
)
def test_cityscapes_roads_are_no_background_whatever_its_files_number(tmp_path, ending, numbers) -> None:
    cityscapes(tmp_path, ending, numbers)
    data = MaskedImages.from_cityscapes(tmp_path, "val")
    assert data.names == ("ulm/ulm_000000_000019",)
    assert not data.has_background
    assert data.mask(0)[0, :6].tolist() == [1, 2, 19, 255, 255, 255]
    shown = [data.class_names[c] for c in data.labels(0)]
    assert shown[:2] + shown[-1:] == ["road", "sidewalk", "bicycle"]
    with pytest.raises(InputError, match="no image in leftImg8bit/train/CITY; there are the splits val"):
        MaskedImages.from_cityscapes(tmp_path, "train")


def test_a_number_that_cityscapes_does_not_have_is_named(tmp_path) -> None:
    cityscapes(tmp_path, "labelIds", (7, 34))
    with pytest.raises(InputError, match="class number 34, which stands for nothing; expected 7 to 33"):
        MaskedImages.from_cityscapes(tmp_path, "val").labels(0)


def test_missing_lists_and_pictures_are_named(voc) -> None:
    with pytest.raises(InputError, match="no list of the split 'val' in ImageSets/Segmentation; there are train, weak"):
        MaskedImages.from_voc(voc, "val")
    (voc / "JPEGImages" / "a.jpg").unlink()
    with pytest.warns(DistcamWarning, match=r"1 of 2 names in train.txt have a file \(a has none\)$"):
        assert MaskedImages.from_voc(voc).names == ("b",)
    (voc / "JPEGImages" / "b.jpg").rename(voc / "JPEGImages" / "B.jpg")
    with pytest.raises(
        InputError, match=r"0 of 2 names in train.txt have a file .*; B and b differ in upper and lower"
    ):
        MaskedImages.from_voc(voc)


def test_camvid_has_no_background_and_its_eleven_is_void(tmp_path) -> None:
    picture(tmp_path / "val" / "x.jpg")
    mask(tmp_path / "val_masks" / "x.png", marked(11, 10, 0), mode="L")
    data = MaskedImages.from_camvid(tmp_path, "val")
    assert data.mask(0)[0, :4].tolist() == [255, 11, 1, 1]
    assert (data.labels(0), data.has_background) == ((0, 10), False)
    with pytest.raises(InputError, match="expected the folders test and test_masks or testannot"):
        MaskedImages.from_camvid(tmp_path, "test")


def test_the_real_camvid_says_the_same_in_its_masks_and_in_its_table(real_data) -> None:
    folder = MaskedImages.from_camvid(real_data / "camvid", "val")
    table = MaskedImages.from_table(real_data / "camvid" / "images.csv", split="val", ids=MaskIds(first=0, void=11))
    assert table.class_names == folder.class_names
    assert [table.labels(i) for i in range(3)] == [folder.labels(i) for i in range(3)]
    assert np.array_equal(table.mask(0), folder.mask(0))


def test_folders_of_pictures_and_masks_go_by_name(tmp_path) -> None:
    picture(tmp_path / "photos" / "pets" / "x.png")
    picture(tmp_path / "photos" / "y.jpg")
    mask(tmp_path / "masks" / "pets" / "x.png", marked(2))
    names = tmp_path / "names.txt"
    names.write_text("background\ncat\ndog\n")
    with pytest.warns(DistcamWarning, match=r"1 of 2 images have a mask \(y.jpg has none\)"):
        data = MaskedImages.from_folder(tmp_path / "photos", tmp_path / "masks", names)
    assert (data.names, data.class_names) == (("pets/x", "y"), ("cat", "dog"))
    assert (data.labels(0), data.has_mask(1)) == ((1,), False)
    table = tmp_path / "labels.csv"
    table.write_text("path,labels\ny.jpg,dog;cat\n")
    with pytest.warns(DistcamWarning, match=r"1 of 2 images have labels \(pets/x.png has none\)"):
        labelled = MaskedImages.from_folder(tmp_path / "photos", None, ["cat", "dog"], labels=table)
    assert labelled.labels(1) == (0, 1)
    with pytest.raises(InputError, match=r"0 of 2 images have a mask .*; x.png and pets/x.png count from different"):
        MaskedImages.from_folder(tmp_path / "photos", tmp_path / "photos" / "pets", names)


def test_a_table_has_names_or_columns_and_perhaps_splits(tmp_path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.jpg")
    mask(tmp_path / "m.png", marked(1))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["path", "mask", "split", "cat", "dog"], ["a.jpg", "m.png", "train", 0, 1], ["b.jpg", "", "test", 1, 1]]
        )
    data = MaskedImages.from_table(tmp_path / "t.csv")
    assert (data.class_names, data.labels(0), data.labels(1)) == (("cat", "dog"), (1,), (0, 1))
    assert MaskedImages.from_table(tmp_path / "t.csv", split="test").names == ("b",)
    with pytest.raises(InputError, match="no row has 'val' in the column split"):
        MaskedImages.from_table(tmp_path / "t.csv", split="val")
    (tmp_path / "u.csv").write_text("path,labels\na.jpg,cat; dog\nb.jpg,\n")
    listed = MaskedImages.from_table(tmp_path / "u.csv", ["cat", "dog"])
    assert listed.labels(0) == (0, 1)
    with pytest.raises(InputError, match=r"b.jpg: nothing says which classes"):
        listed.labels(1)
    with pytest.raises(InputError, match=r"u.csv: a.jpg: the label 'dog' is none of the 1 classes cat"):
        MaskedImages.from_table(tmp_path / "u.csv", ["cat"])
    with pytest.raises(InputError, match="nothing says which classes there are"):
        MaskedImages.from_table(tmp_path / "u.csv")


def test_scenes_show_the_classes_of_all_their_objects(scenes) -> None:
    data = MaskedImages.from_scenes(scenes)
    assert len(data) == 12
    assert max(len(data.labels(i)) for i in range(12)) == 2
    for i in range(12):
        assert tuple(np.unique(data.mask(i))[1:] - 1) == data.labels(i)


# --- bad masks --------------------------------------------------------------------------------------------------------


def test_an_unknown_number_is_named_with_its_file(voc) -> None:
    mask(voc / "SegmentationClass" / "a.png", marked(1, 21))
    with pytest.raises(
        InputError,
        match=r"a.png: the mask holds the class number 21, which stands for nothing; expected 0 to 0 for the "
        r"background, 1 to 20 for the 20 classes, and 255 for void",
    ):
        MaskedImages.from_voc(voc).labels(1)


def test_a_mask_of_another_size_is_named(voc) -> None:
    mask(voc / "SegmentationClass" / "a.png", np.zeros((5, 5)))
    with pytest.raises(InputError, match=r"a.jpg: has 12x8 pixels, its mask .*a.png 5x5"):
        MaskedImages.from_voc(voc).mask(1)


def test_a_mask_of_colours_or_of_rubbish_is_no_mask(voc) -> None:
    Image.new("RGB", SIZE).save(voc / "SegmentationClass" / "a.png")
    (voc / "SegmentationClass" / "b.png").write_bytes(b"rubbish")
    data = MaskedImages.from_voc(voc)
    with pytest.raises(ImageError, match=r"a.png: expected a mask of class numbers \(palette or 8-bit grey\), got RGB"):
        data.mask(1)
    with pytest.raises(ImageError, match=r"b.png: not a readable mask"):
        data.mask(0)


def test_names_of_classes_must_differ_and_be_there(voc, tmp_path) -> None:
    with pytest.raises(InputError, match="different names, got 'cat' twice"):
        MaskedImages.from_voc(voc, class_names=["cat", "dog", "cat"])
    (tmp_path / "none.txt").write_text("background\n\n")
    with pytest.raises(InputError, match="one per line; it is empty"):
        read_names(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "missing.txt")


def test_a_mark_of_the_encoding_is_no_part_of_the_first_class(tmp_path) -> None:
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n", encoding="utf-8-sig")
    assert read_names(tmp_path / "classes.txt") == ("cat", "dog")


# --- parts of the data ------------------------------------------------------------------------------------------------


def test_weak_supervision_sees_no_mask(scenes) -> None:
    data = MaskedImages.from_scenes(scenes)
    weak = data.without_masks()
    assert all(weak.mask(i) is None and weak.labels(i) == data.labels(i) for i in range(len(data)))
    assert data.subset([3, 1]).names == (data.names[3], data.names[1])


def test_other_masks_take_the_place_of_the_own(scenes, tmp_path) -> None:
    data = MaskedImages.from_scenes(scenes).subset([0])
    values = np.zeros((64, 64), np.uint8)
    mask(tmp_path / f"{data.names[0]}.png", values + 3)
    other = data.with_masks(tmp_path)
    assert (other.mask(0) == 3).all()
    assert other.labels(0) == data.labels(0)
    with pytest.raises(InputError, match=r"train/.*/0001 has no mask; expected"):
        MaskedImages.from_scenes(scenes).with_masks(tmp_path)


def test_a_choice_of_masks_is_even_over_classes_and_nested(scenes) -> None:
    data = MaskedImages.from_scenes(scenes)
    three, six = data.choose(3, seed=1), data.choose(6, seed=1)
    assert set(three) < set(six)
    first = [data.labels(i)[0] for i in range(12)]
    assert len({first[i] for i in three}) == len(set(first))
    assert data.choose(0) == ()
    with pytest.raises(InputError, match="expected 0 to 12 images with masks, got 13"):
        data.choose(13)


def test_a_training_set_has_columns_and_the_regions_it_may_use(scenes) -> None:
    data = MaskedImages.from_scenes(scenes)
    transform = Transform(32, fit="squash")
    plain = data.training_set(transform)
    assert plain.is_multi_label
    assert plain.regions is None
    assert [tuple(row.nonzero()[:, 0].tolist()) for row in plain.labels] == [data.labels(i) for i in range(12)]
    guided = data.training_set(transform, masks_for=[5, 2])
    assert sorted(set(guided.regions.image.tolist())) == [2, 5]
    for i, c, raster in zip(guided.regions.image, guided.regions.label, guided.regions.raster, strict=True):
        assert torch.equal(raster, torch.from_numpy((label_map(data.mask(int(i)), transform) == int(c) + 1) * 1).byte())
    boxes = data.training_set(transform, masks_for=[2], kind="box")
    assert bool(boxes.regions.is_box.all())
    masks = guided.regions.of(torch.tensor([2])).raster
    assert (boxes.regions.raster >= masks.byte()).all()
    with pytest.raises(InputError, match="has no mask, but its mask was to be used"):
        data.without_masks().training_set(transform, masks_for=[0])


def test_a_class_that_nothing_shows_is_refused_where_training_begins(scenes) -> None:
    data = MaskedImages.from_scenes(scenes)
    alone = data.subset([i for i in range(12) if data.labels(i) == (0,)])
    with pytest.raises(InputError, match="expected training images of every class; none shows"):
        alone.training_set(Transform(32, fit="squash")).require_trainable()


# --- masks as the network's pixels ------------------------------------------------------------------------------------


def test_label_maps_take_the_pixel_under_each_centre() -> None:
    values = np.uint8([[1, 1, 2, 2], [1, 1, 2, 2]])
    assert label_map(values, Transform((1, 2), fit="squash")).tolist() == [[1, 2]]
    padded = label_map(values, Transform(4, fit="pad"))
    assert padded.tolist() == [[255] * 4, [1, 1, 2, 2], [1, 1, 2, 2], [255] * 4]
    cropped = label_map(values, Transform(2, fit="crop", resize=2))
    assert cropped.tolist() == [[1, 2], [1, 2]]


def test_boxes_fill_each_connected_part() -> None:
    parts = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]], bool)
    filled = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert boxes_around(parts).astype(int).tolist() == filled


def test_masks_and_boxes_in_one_set_with_what_stands_out_in_the_boxes(scenes, tmp_path) -> None:
    """GAIN^{b,p}; the saliency of a box is 1 + S in the batch, and S is the map's grey level."""
    data, transform = MaskedImages.from_scenes(scenes), Transform(32, fit="squash")
    for i in (1, 3):
        file = tmp_path / f"{data.names[i]}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", data.image(i).size, 102).save(file)
    both = data.training_set(transform, masks_for=[0], boxes_for=[1, 3], saliency=tmp_path).regions
    assert both is not None
    assert {(int(i), bool(b)) for i, b in zip(both.image, both.is_box, strict=True)} == {
        (0, False),
        (1, True),
        (3, True),
    }
    batch = both.of(torch.tensor([0, 1, 3]))
    plain = data.training_set(transform, masks_for=[1, 3], kind="box").regions
    assert torch.equal(batch.raster[batch.is_box] > 0, plain.raster > 0)
    assert set(batch.raster[~batch.is_box].unique().tolist()) == {0.0, 1.0}
    inside = batch.raster[batch.is_box]
    torch.testing.assert_close(inside[inside > 0], torch.full_like(inside[inside > 0], 1 + 101 / 254))
    with pytest.raises(ImageError, match="no such file"):
        data.training_set(transform, boxes_for=[2], saliency=tmp_path)
