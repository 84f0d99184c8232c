"""Data sets with masks as they are downloaded: PASCAL VOC with SBD's masks, CamVid, Cityscapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..images import ImageRecord, Listing
from ..images.boxes.annotations import read_file
from ..images.image_sources import RecordSource
from ..images.joining import FactsByName, Join
from ..images.masks import MaskFolder
from ..images.tables import lines_of
from .masked_images import Entry, Found, read_names

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
)
CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # in files `…_labelIds.png`
_SUFFIXES = (".jpg", ".png", ".jpeg")


def in_voc(root: Path, split: str, class_names: Sequence[str] | None) -> Found:
    """Images of a folder in the layout of PASCAL VOC.

    `JPEGImages/NAME.jpg`, `SegmentationClass/NAME.png` (palette images) or SBD's `SegmentationClassAug/NAME.png`
    (an image without either has no mask), `Annotations/NAME.xml` with the classes that an image shows (where there is
    none, its mask says it), and `ImageSets/Segmentation/SPLIT.txt` with a name per line, such as `trainaug`. Of a
    development kit the year's folder counts (`VOCdevkit/VOC2012`). A file `classes.txt` names the classes, as
    `read_names` reads it; without it they are VOC's twenty.
    """
    if (root / "VOCdevkit").is_dir():
        root = root / "VOCdevkit"
    years = sorted(root.glob("VOC[0-9]*"))
    root = years[-1] if years and not (root / "JPEGImages").is_dir() else root
    lists = root / "ImageSets" / "Segmentation"
    chosen = lists / f"{split}.txt"
    if not chosen.is_file():
        there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise InputError(f"{root}: no list of the split {split!r} in ImageSets/Segmentation; there are {there}")
    if class_names is None:
        own = root / "classes.txt"
        class_names = read_names(own) if own.is_file() else VOC_CLASSES
    names = [name for _, name in lines_of(chosen)]
    if not names:
        raise InputError(f"{chosen} lists no image")
    folder = root / "JPEGImages"
    files = {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    }
    by_name = FactsByName(files)
    folders = [MaskFolder(root / name) for name in ("SegmentationClass", "SegmentationClassAug")]
    found, masked = Join(), Join()
    entries = []
    for name in names:
        key = by_name.key(name)
        found.add(name, key)
        if key is not None:
            mask = next((file for each in folders if (file := each.file(f"{name}.jpg")).is_file()), None)
            masked.add(name, None if mask is None else name)
            entries.append(Entry(name, files[key], mask, _shown_in(root / "Annotations" / f"{name}.xml", class_names)))
    found.fit(files).unused = 0  # images of other splits lie there too
    found.tell(what="a file", images=f"names in {chosen.name}", lines=f"files in {folder}")
    if any(entry.mask for entry in entries):  # a list of images without any mask is one to infer
        masked.fit([]).tell(what="a mask", images="images", lines="")
    return entries, tuple(class_names)


def _shown_in(file: Path, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The classes of an image by its XML file; None without one."""
    if not file.is_file():
        return None
    labels = {each.label for each in read_file(file).boxes if each.label is not None}
    if unknown := sorted(labels.difference(class_names)):
        raise InputError(
            f"{file}: the object {unknown[0]!r} is none of the {len(class_names)} classes; name them in classes.txt"
        )
    return tuple(sorted(map(class_names.index, labels)))


def voc_labels(root: Path, train: str = "train") -> Listing:
    """VOC's images with the classes they show: the list `train` is for training, `val` is the test."""
    found = []
    for split, listed in (("train", train), ("test", "val")):
        entries, names = in_voc(root, listed, None)
        for entry in entries:
            if entry.shown is None:
                raise InputError(f"{entry.image}: expected its classes in Annotations/{entry.name}.xml")
            columns = {"labels": ";".join(names[c] for c in entry.shown), "split": split}
            found.append(ImageRecord(entry.image.relative_to(root).as_posix(), None, columns))
    return Listing.of(RecordSource(root, ("labels", "split"), tuple(found)))


def in_cityscapes(root: Path, split: str) -> tuple[Found, bool]:
    """Images of Cityscapes with its 19 classes, and whether their masks hold training ids.

    `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`, and `gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`, or
    `…_labelTrainIds.png` where those are not there.
    """
    images = root / "leftImg8bit" / split
    tail = "_leftImg8bit"
    files = sorted(file for file in images.rglob(f"*{tail}.*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        there = ", ".join(sorted(path.name for path in images.parent.glob("*") if path.is_dir())) or "none"
        raise InputError(f"{root}: no image in leftImg8bit/{split}/CITY; there are the splits {there}")
    truth = root / "gtFine" / split
    has_ids = next(truth.rglob("*_gtFine_labelIds.png"), None) is not None
    ending = "_gtFine_labelIds.png" if has_ids else "_gtFine_labelTrainIds.png"
    masked, entries = Join(), []
    for file in files:
        name = file.relative_to(images).as_posix().rpartition(tail)[0]
        mask = truth / f"{name}{ending}"
        masked.add(name, name if mask.is_file() else None)
        entries.append(Entry(name, file, mask if mask.is_file() else None))
    if any(entry.mask for entry in entries):
        masked.fit([]).tell(what="a mask", images="images", lines="")
    return (entries, CITYSCAPES_CLASSES), not has_ids
