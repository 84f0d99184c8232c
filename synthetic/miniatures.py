"""Miniature copies of public data sets in the layouts of their archives, to try a recipe out without the data.

An image shows an ellipse in the colour of its class on noise; names and lists are such as the readers expect.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..datasets.cifar import CIFAR
from ..datasets.few_shot_benchmarks import N_MINI, STEMS
from ..datasets.mask_benchmarks import CITYSCAPES_IDS, VOC_CLASSES
from ..images.geometry import Box
from .painter import check_name
from .walkers import write_walkers

_SIZE = (36, 30)  # width and height
_SYNSETS = (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)


def write_miniature(name: str, folder: Path) -> None:
    """One of `MINIATURES` below a folder, as its archive unpacks there; InputError for another name."""
    check_name("miniature", name, list(MINIATURES))
    MINIATURES[name](folder)


def _painted(shown: Sequence[int], seed: int = 0) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """An image with an ellipse for each class, side by side, and 1 + its place in `shown` for each pixel of one."""
    generator = np.random.default_rng([seed, *shown])
    width, height = _SIZE
    pixels = generator.integers(60, 160, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    places = np.zeros((height, width), np.uint8)
    for place, number in enumerate(shown):
        across = (place + generator.uniform(0.4, 0.6)) * width / len(shown)
        down = generator.uniform(0.4, 0.6) * height
        inside = ((columns - across) * len(shown) / width) ** 2 + ((rows - down) / height) ** 2 < 0.1
        places[inside] = place + 1
        pixels[inside] = np.array([97, 57, 31]) * (number + 1) % 256
    return Image.fromarray(pixels.astype(np.uint8)), places


def _drawn(root: Path, pattern: str, numbers: Iterable[int], count: int = 4) -> list[tuple[str, int]]:
    """Paths of images of one class each, and the number of the class; `pattern` names them by class n and count i."""
    images = [(pattern.format(n=number, i=i), number) for number in numbers for i in range(1, count + 1)]
    for seed, (path, number) in enumerate(images):
        _painted([number], seed)[0].save(_made(root / path))
    return images


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _lines(file: Path, lines: Iterable[str]) -> None:
    _made(file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _cub(folder: Path) -> None:
    root, numbers = folder / "CUB_200_2011", range(1, 201)
    images = _drawn(root / "images", "{n:03d}.Bird_{n}/Bird_{n}_{i}.jpg", numbers)
    _lines(root / "images.txt", (f"{i} {path}" for i, (path, _) in enumerate(images, 1)))
    _lines(root / "image_class_labels.txt", (f"{i} {number}" for i, (_, number) in enumerate(images, 1)))
    _lines(root / "classes.txt", (f"{number} {number:03d}.Bird_{number}" for number in numbers))
    _lines(root / "train_test_split.txt", (f"{i} {i % 2}" for i in range(1, len(images) + 1)))


def _cars(folder: Path) -> None:
    """The Kaggle copy: a folder has - for the / of a class's name, and both halves show all classes."""
    root = folder / "stanford_cars"
    _lines(root / "names.csv", (f"Car C/V {number}" for number in range(1, 197)))
    for half in ("train", "test"):
        images = _drawn(root / "car_data" / "car_data" / half, "Car C-V {n}/{n:03d}{i}.jpg", range(95, 103), 2)
        _lines(root / f"anno_{half}.csv", (f"{path.partition('/')[2]},1,1,36,30,{n}" for path, n in images))


def _sop(folder: Path) -> None:
    root = folder / "Stanford_Online_Products"
    for part, numbers in (("train", range(1, 5)), ("test", range(5, 9))):
        images = _drawn(root, "chair_final/{n}_{i}.JPG", numbers)
        rows = (f"{i} {number} 1 {path}" for i, (path, number) in enumerate(images, 1))
        _lines(root / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *rows])


def _inshop(folder: Path) -> None:
    root = folder / "In-shop Clothes Retrieval Benchmark"
    images = _drawn(root / "Img", "img/WOMEN/Dresses/id_{n:08d}/0{i}_1_front.jpg", range(1, 9))
    status = ["train"] * 16 + ["query", "gallery"] * 8
    rows = [f"{path} id_{number:08d} {own}" for (path, number), own in zip(images, status, strict=True)]
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    _lines(root / "Eval" / "list_eval_partition.txt", [*head, *rows])


def _dogs(folder: Path) -> None:
    from scipy.io import savemat

    root = folder / "stanford_dogs"
    for part in ("train", "test"):
        images = _drawn(root / "Images", f"n{{n:08d}}-dog/n{{n:08d}}_{part}{{i}}.jpg", range(1, 9))
        files = np.array([path for path, _ in images], object)
        savemat(root / f"{part}_list.mat", {"file_list": files.reshape(-1, 1)})


def _cifar(folder: Path, name: str) -> None:
    files = CIFAR[name]
    names = [f"class {number}".encode() for number in range(int(name.removeprefix("cifar")))]
    place, key = folder / files.folder, files.prefix.encode()
    for seed, file in enumerate(file for part in files.parts.values() for file in part):
        images = [np.asarray(_painted([number], seed)[0].resize((32, 32))) for number in range(len(names))]
        rows = np.stack(images).transpose(0, 3, 1, 2).reshape(len(images), -1)
        content = {b"data": rows, key + b"labels": list(range(len(names)))}
        _made(place / file).write_bytes(pickle.dumps(content, protocol=2))
    (place / files.names).write_bytes(pickle.dumps({key + b"label_names": names}, protocol=2))


def _mini(folder: Path) -> None:
    root, first = folder / "miniimagenet", 0
    for part, count in N_MINI.items():
        images = _drawn(root / "images", "n{n:08d}{i:08d}.jpg", range(first, first + count))
        _lines(root / f"{STEMS[part]}.csv", ["filename,label", *(f"{path},{path[:9]}" for path, _ in images)])
        first += count


def _tiered(folder: Path) -> None:
    for first, part in enumerate(STEMS.values()):
        _drawn(folder / "tieredimagenet" / part, "n{n}/{i}.jpg", range(8 * first, 8 * first + 6))


def _market(folder: Path) -> None:
    root = folder / "Market-1501-v15.09.15"
    write_walkers(root, identities=8, cameras=2, images_per_camera=2, size=(32, 16), masks=False)
    for table in root.glob("*.csv"):  # which tell drawn walkers from the benchmark
        table.unlink()


def _voc(folder: Path) -> None:
    root = folder / "VOC2012"
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainaug": []}
    for i in range(28):
        shown, split = [i % 20, (i + 3) % 20], "train" if i < 20 else "trainaug" if i < 22 else "val"
        name, (image, places) = f"2007_{i:06d}", _painted(shown, i)
        lists[split].append(name)
        image.save(_made(root / "JPEGImages" / f"{name}.jpg"))
        mask = np.array([0, *(number + 1 for number in shown)], np.uint8)[places]
        masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        Image.fromarray(mask).save(_made(root / masks / f"{name}.png"))
        boxes = {VOC_CLASSES[number]: Box.around(places == place) for place, number in enumerate(shown, 1)}
        _annotation(root / "Annotations" / f"{name}.xml", boxes)
    lists["trainaug"] += lists["train"]
    for split, names in lists.items():
        _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)


def _annotation(file: Path, boxes: Mapping[str, Box]) -> None:
    """A file of VOC and ILSVRC."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value:g}</{key}>" for key, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box in boxes.items()
    ]
    size = "<size><width>{}</width><height>{}</height></size>".format(*_SIZE)
    _lines(file, ["<annotation>", size, *objects, "</annotation>"])


def _cityscapes(folder: Path) -> None:
    root, ids = folder / "cityscapes", np.array(CITYSCAPES_IDS, np.uint8)
    for split, city, numbers in (("train", "aachen", range(18)), ("val", "frankfurt", range(294, 297))):
        for place, i in enumerate(numbers):
            image, places = _painted([place + 1], i)
            name = f"{split}/{city}/{city}_000000_{i:06d}"
            image.save(_made(root / "leftImg8bit" / f"{name}_leftImg8bit.png"))
            Image.fromarray(ids[places * (place + 1)]).save(_made(root / "gtFine" / f"{name}_gtFine_labelIds.png"))


def _ilsvrc(folder: Path) -> None:
    images, annotations = (folder / "ILSVRC" / name / "CLS-LOC" for name in ("Data", "Annotations"))
    _drawn(images / "train", "n{n:08d}/n{n:08d}_{i}.JPEG", _SYNSETS, 6)
    for i in range(12):
        name, number = f"ILSVRC2012_val_{i + 1:08d}", _SYNSETS[i % 6]
        image, places = _painted([number], 50 + i)
        image.save(_made(images / "val" / f"{name}.JPEG"))
        _annotation(annotations / "val" / f"{name}.xml", {f"n{number:08d}": Box.around(places == 1)})


def _biased_boat(folder: Path) -> None:
    root = folder / "biased_boat"
    rows = []
    for i in range(16):
        image, places = _painted([i % 2], i)
        image.save(_made(root / f"{i}.jpg"))
        Image.fromarray(places * 255).save(root / f"{i}.png")
        rows.append(f"{i}.jpg,{('boat', 'car')[i % 2]},{f'train,{i}.png' if i < 12 else 'test,'}")
    _lines(root / "images.csv", ["path,labels,split,mask", *rows])


MINIATURES: Mapping[str, Callable[[Path], None]] = {
    "cub": _cub,
    "cars": _cars,
    "sop": _sop,
    "inshop": _inshop,
    "dogs": _dogs,
    "cifar10": lambda folder: _cifar(folder, "cifar10"),
    "cifar100": lambda folder: _cifar(folder, "cifar100"),
    "miniimagenet": _mini,
    "tieredimagenet": _tiered,
    "market": _market,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ilsvrc": _ilsvrc,
    "biased_boat": _biased_boat,
}
