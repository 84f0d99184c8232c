"""How the retrieval benchmarks' archives unpack, and how their lists are read."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..images.labelling import box_columns, remark_on_placeholders, remark_on_twins, require_labels, uncut_boxes
from ..images.listing import ImageRecord, quiet_listing
from ..images.overlooked import overlooked_column
from ..images.splits import flags_of, split_column, split_name, split_of_row

__all__ = ["LAYOUTS", "DatasetRecord", "Layout", "Role", "Tree", "read_folders", "read_table"]

Role = Literal["query", "gallery", "both"]
_ROLES: dict[str, Role] = {"query": "query", "gallery": "gallery"}


class DatasetRecord(NamedTuple):
    """One image of a dataset.

    Attributes:
        path: relative to the dataset's root, with forward slashes; absolute where a table leads out of it.
        label: its class.
        split: `"train"`, `"test"`, …; `"all"` where the source knows no splits.
        role: whether it is searched for, searched in, or both.
    """

    path: str
    label: str
    split: str
    role: Role = "both"


@dataclass(frozen=True)
class Layout:
    """A benchmark's archive.

    Attributes:
        title: the benchmark's name.
        folder: the folder that the archive unpacks into; the user may point at it or at its parent.
        markers: sets of files; any one complete set tells the layout.
        counts: part (a split or role) → (split, images, classes), as published.
        read: the records that the lists under a root name.
        images: what a copy must hold besides the lists, for the error where no image is there.
    """

    title: str
    folder: str
    markers: tuple[tuple[str, ...], ...]
    counts: Mapping[str, tuple[str, int, int]]
    read: Callable[[Path], tuple[DatasetRecord, ...]]
    images: str

    def find(self, path: Path) -> Path | None:
        """The archive's root, at a path or in its usual sub-folder."""
        for root in (path, path / self.folder):
            if any(all((root / file).exists() for file in files) for files in self.markers):
                return root
        return None

    def expected(self) -> str:
        """The files that would have been recognised."""
        return ", or ".join(" and ".join(files) for files in self.markers)


class Tree(NamedTuple):
    """What a folder or table holds; `problems` says what of it is left out or ignored."""

    root: Path
    records: tuple[DatasetRecord, ...]
    problems: tuple[str, ...] = ()


# --- lists of the benchmarks ------------------------------------------------------------------------------------------


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _rows(file: Path, *columns: str, skip: int = 0) -> Iterator[list[str]]:
    """The fields of every line after the first `skip`; as many as there are columns, the last may hold blanks."""
    for number, line in list(_lines(file))[skip:]:
        fields = line.strip().split(maxsplit=len(columns) - 1)
        if len(fields) != len(columns):
            raise InputError(f"{file} line {number}: expected {' '.join(columns)}; got {line.strip()[:80]!r}")
        yield fields


def _number(text: str, file: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{file}: expected a whole number, got {text[:80]!r}") from None


def _cub(root: Path) -> tuple[DatasetRecord, ...]:
    images, labels = root / "images.txt", root / "image_class_labels.txt"
    number_of = {image: _number(number, labels) for image, number in _rows(labels, "image", "class")}
    name_of = {
        _number(number, root / "classes.txt"): name for number, name in _rows(root / "classes.txt", "id", "name")
    }
    records = []
    for image, path in _rows(images, "image", "path"):
        number = number_of.get(image, -1)
        if number not in name_of:
            raise InputError(f"{images}: image {image} has no class in {labels.name}, or one that classes.txt lacks")
        records.append(DatasetRecord(f"images/{path}", name_of[number], "train" if number <= 100 else "test"))
    return tuple(records)


def _sop(root: Path) -> tuple[DatasetRecord, ...]:
    columns = ("image_id", "class_id", "super_class_id", "path")
    return tuple(
        DatasetRecord(path, number, split)
        for split in ("train", "test")
        for _, number, _, path in _rows(root / f"Ebay_{split}.txt", *columns, skip=1)
    )


def _inshop(root: Path) -> tuple[DatasetRecord, ...]:
    file = next(file for place in ("Eval", "Anno", ".") if (file := root / place / "list_eval_partition.txt").exists())
    inside = "Img/" if (root / "Img" / "img").is_dir() else ""
    records = []
    for path, item, status in _rows(file, "image_name", "item_id", "evaluation_status", skip=2):
        if status not in ("train", "query", "gallery"):
            raise InputError(f"{file}: expected train, query or gallery, got {status[:80]!r} for {path}")
        split, role = ("train", "both") if status == "train" else ("test", _ROLES[status])
        records.append(DatasetRecord(inside + path, item, split, role))  # type: ignore[arg-type]
    return tuple(records)


def _cars(root: Path) -> tuple[DatasetRecord, ...]:
    """Classes 1–98 and 99–196; the archive's own train and test folders are another split, of the images.

    Copies may hold the lists of several packings; the one whose images are there is read.
    """
    copies: dict[str, tuple[tuple[str, ...], Callable[[Path], list[tuple[str, int, str]]]]] = {
        "car_data": (("names.csv", "anno_train.csv", "anno_test.csv"), _cars_tables),
        "car_ims": (("cars_annos.mat",), _cars_whole),
        "cars_train": (("devkit/cars_train_annos.mat",), _cars_devkit),
    }
    listed = {folder: read for folder, (files, read) in copies.items() if all((root / file).exists() for file in files)}
    found = next((read for folder, read in listed.items() if (root / folder).is_dir()), next(iter(listed.values())))(
        root
    )
    ordered = sorted(found, key=lambda image: (image[1], image[0]))
    return tuple(DatasetRecord(path, name, "train" if number <= 98 else "test") for path, number, name in ordered)


def _cars_whole(root: Path) -> list[tuple[str, int, str]]:
    """The one archive `car_ims`, with the labels of all images in one file."""
    file = root / "cars_annos.mat"
    names = _mat(file, "class_names")
    return [_car(str(row["relative_im_path"]), int(row["class"]), names, file) for row in _mat(file, "annotations")]


def _cars_tables(root: Path) -> list[tuple[str, int, str]]:
    """The Kaggle copy: tables without a header (file, box, class), and a folder for each class."""
    names = [line.strip().strip('"') for _, line in _lines(root / "names.csv")]
    inside = "car_data/car_data" if (root / "car_data" / "car_data").is_dir() else "car_data"
    found = []
    for half in ("train", "test"):
        file = root / f"anno_{half}.csv"
        for row in csv.reader(line for _, line in _lines(file)):
            _, number, name = _car(row[0], _number(row[-1], file), names, file)
            found.append((f"{inside}/{half}/{name.replace('/', '-')}/{row[0]}", number, name))
    return found


def _cars_devkit(root: Path) -> list[tuple[str, int, str]]:
    """The archives `cars_train`, `cars_test` and `devkit`, with the labels of the test images beside or in the kit."""
    kit = root / "devkit"
    names = _mat(kit / "cars_meta.mat", "class_names")
    labels = "cars_test_annos_withlabels.mat"
    files = {"cars_train": kit / "cars_train_annos.mat", "cars_test": root / labels}
    if not files["cars_test"].exists():
        files["cars_test"] = kit / labels
    inside = {name: f"{name}/{name}" if (root / name / name).is_dir() else name for name in files}  # as Kaggle packs it
    return [
        _car(f"{inside[folder]}/{row['fname']}", int(row["class"]), names, file)
        for folder, file in files.items()
        for row in _mat(file, "annotations")
    ]


def _car(path: str, number: int, names: Sequence[str], file: Path) -> tuple[str, int, str]:
    """Path, class number and class name."""
    if not 1 <= number <= len(names):
        raise InputError(f"{file}: expected a class from 1 to {len(names)}, got {number} for {path}")
    return path, number, str(names[number - 1])


def _mat(file: Path, name: str) -> Any:
    """A variable of a MATLAB file, as an array of one axis."""
    from scipy.io import loadmat  # a third of a second, which most layouts can do without

    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=[name])[name])
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise InputError(f"{file}: expected a MATLAB file with {name!r}; {error}") from error


LAYOUTS: Mapping[str, Layout] = {
    "cub": Layout(
        "CUB-200-2011",
        "CUB_200_2011",
        (("images.txt", "image_class_labels.txt", "classes.txt"),),
        {"train": ("train", 5_864, 100), "test": ("test", 5_924, 100)},
        _cub,
        "images/ with a folder for each class",
    ),
    "cars": Layout(
        "Cars196",
        "stanford_cars",
        (
            ("names.csv", "anno_train.csv", "anno_test.csv"),
            ("cars_annos.mat",),
            ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
            ("devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat"),
        ),
        {"train": ("train", 8_054, 98), "test": ("test", 8_131, 98)},
        _cars,
        "car_ims/ with cars_annos.mat (the archive car_ims.tgz), or car_data/ with names.csv, anno_train.csv and "
        "anno_test.csv, or cars_train/ and cars_test/ with devkit/ and cars_test_annos_withlabels.mat; the images of "
        "cars_train/ and cars_test/ have other numbers than those of car_ims/, so cars_annos.mat does not label them",
    ),
    "sop": Layout(
        "Stanford Online Products",
        "Stanford_Online_Products",
        (("Ebay_train.txt", "Ebay_test.txt"),),
        {"train": ("train", 59_551, 11_318), "test": ("test", 60_502, 11_316)},
        _sop,
        "the folders of the archive, bicycle_final/ to toaster_final/",
    ),
    "inshop": Layout(
        "In-Shop Clothes Retrieval",
        "In-shop Clothes Retrieval Benchmark",
        tuple((f"{place}list_eval_partition.txt",) for place in ("Eval/", "Anno/", "")),
        {
            "train": ("train", 25_882, 3_997),
            "query": ("test", 14_218, 3_985),
            "gallery": ("test", 12_612, 3_985),
        },
        _inshop,
        "img/, or Img/img/, which the archive holds as img.zip",
    ),
}


# --- folders and tables -----------------------------------------------------------------------------------------------


def read_folders(folder: Path) -> Tree:
    """One folder per class; above them perhaps one per split, or `query` and `gallery`; see `find_split_folders`."""
    listing = quiet_listing(folder)
    found = list(listing)
    records = []
    for record in found:
        place = record.columns.get("split", "all")
        if record.label is not None and place:
            records.append(DatasetRecord(record.path, record.label, *_part(place)))
    if not records:
        raise InputError(f"{folder}: expected a sub-folder for each class; its {len(found)} images have no labels")
    taken = {record.path for record in records}
    outside = [record.path for record in found if record.path not in taken]
    problems = (
        [f"{len(outside)} images lie outside of class folders and are left out, such as {outside[0]}"]
        if outside
        else []
    )
    if (splits := listing._labels.splits) is not None and splits.doubt:
        problems.append(splits.doubt)
    return Tree(listing.root, _without_lone_roles(records), (*problems, *listing.problems))


def _part(split: str) -> tuple[str, Role]:
    """The split and the role of what a folder or cell of this name stands for: query and gallery are of the test."""
    known = split_name(split)
    return (split, "both") if known is None or known not in _ROLES else ("test", _ROLES[known])


def _without_lone_roles(records: Sequence[DatasetRecord]) -> tuple[DatasetRecord, ...]:
    """Where there is nothing but queries and a gallery, there are no splits to choose from."""
    if all(record.role != "both" for record in records):
        return tuple(record._replace(split="all") for record in records)
    return tuple(records)


def read_table(file: Path) -> Tree:
    """A CSV file with `path` and `label`, and perhaps `split`, `is_query` and `is_gallery`; see `split_of_row`."""
    found = list(listing := quiet_listing(file, labels="column"))
    require_labels(file, [record.path for record in found if record.label is None], count=len(found))
    column = split_column([record.columns for record in found], listing.column_names)
    records, boxed, boxes, spellings = [], 0, box_columns(listing.column_names), dict[str, str]()
    for record in found:
        assert record.label is not None, "required above"
        query, gallery = map(flags_of(record.columns, file).get, ("is_query", "is_gallery"))
        if not query and not gallery and (query, gallery) != (None, None):
            raise InputError(f"{file}: {record.path} is neither query nor gallery; leave its line out")
        split, role = _part(_spelt(record, column, file, spellings))
        if query or gallery:
            role = "both" if query and gallery else ("query" if query else "gallery")
        records.append(DatasetRecord(record.path, record.label, split, role))
        boxed += bool(boxes) and all(record.columns[name] for name in boxes)
    counts = Counter(record.label for record in records)
    remark_on_placeholders(counts, file.name)
    remark_on_twins(counts, file.name)
    problems = [uncut_boxes(boxed, boxes)] if boxed else []
    problems += _of_no_split(records, found, listing.column_names, is_divided=column is not None)
    named = {record.split for record in records}
    if column is None and len(named) == 1:  # flags alone, on every row or on none
        records = [record._replace(split="all") for record in records]
    return Tree(listing.root, tuple(records), tuple(problems))


def _of_no_split(
    records: Sequence[DatasetRecord], found: Sequence[ImageRecord], names: Sequence[str], *, is_divided: bool
) -> Iterator[str]:
    """What to say of images that the table's splits leave out, or of a table whose splits nobody asked for."""
    known = any(split_name(record.split) for record in records)
    if is_divided and known:
        if left := [record for record in records if not split_name(record.split)]:
            said = Counter("empty" if record.split == "all" else record.split for record in left)
            shown = ", ".join(f"{name} {count}" for name, count in said.most_common(5))
            yield f"{len(left):,} images are of no known split ({shown}), such as {left[0].path}"
    elif not is_divided and not known and (doubt := overlooked_column([each.columns for each in found], names)):
        yield f"all images are taken together, but {doubt}; name the column split"


def _spelt(record: ImageRecord, column: str | None, file: Path, spellings: dict[str, str]) -> str:
    """The split of a row as the table spells it first, but for its case; "all" where nothing says."""
    cell = record.columns.get(column, "").strip() if column is not None else ""
    if cell:
        known = split_name(cell)
        return cell if known is None else spellings.setdefault(known, cell.lower())
    return split_of_row(record.columns, column, where=file) or "all"
