"""Listings of what users hold in memory: each kind gives the images and labels that the same files would."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distcam.errors import InputError
from distcam.images import list_images, read_image
from distcam.images.boxes.cutting import list_items
from distcam.images.items import holds_kept_images
from distcam.remarks import DistcamWarning

PATHS = [f"photos/{kind}/{number}.png" for kind in ("cat", "dog") for number in (1, 2)]
LABELS = ["cat", "cat", "dog", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, pixels in zip(PATHS, PIXELS, strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(source: Any, **options: Any) -> list[tuple[str, str | None]]:
    return [(record.path, record.label) for record in list_images(source, **options)]


def frame_of(library: str) -> Any:
    columns = {"path": PATHS, "label": LABELS, "year": [2019, None, 2021, 2022]}
    if library == "pyarrow":
        return pytest.importorskip("pyarrow").table(columns)
    return pytest.importorskip(library).DataFrame(columns)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_data_frame_is_read_as_the_table_that_it_is(library: str) -> None:
    listing = list_images(frame_of(library))
    assert [(record.path, record.label) for record in listing] == list(zip(PATHS, LABELS, strict=True))
    assert [record.columns["year"] for record in listing] == ["2019", "", "2021", "2022"]
    assert [*pickle.loads(pickle.dumps(listing))] == [*listing]


def test_a_frame_that_only_offers_its_columns_to_arrow_is_read_too() -> None:
    table = frame_of("pyarrow")

    class Frame:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return table.__arrow_c_stream__(requested_schema)

    assert listed(Frame()) == list(zip(PATHS, LABELS, strict=True))


def test_paths_that_are_the_index_of_a_frame_and_missing_cells_are_understood() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"label": ["cat", None, pandas.NA, float("nan")]}, index=pandas.Index(PATHS, name="path"))
    with pytest.warns(DistcamWarning, match=r"3 of 4 images in the DataFrame have no label, such as photos/cat/2\.png"):
        assert [label for _, label in listed(frame)] == ["cat", None, None, None]


PAIRS: dict[str, Callable[[], Any]] = {
    "paths and labels": lambda: (PATHS, LABELS),
    "a mapping": lambda: {"path": PATHS, "label": LABELS},
    "pairs": lambda: list(zip(PATHS, LABELS, strict=True)),
    "records": lambda: [{"path": path, "label": label} for path, label in zip(PATHS, LABELS, strict=True)],
    "arrays of names": lambda: (np.array(PATHS), np.array(LABELS)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_paths_with_labels_are_a_listing(kind: str) -> None:
    assert listed(PAIRS[kind]()) == list(zip(PATHS, LABELS, strict=True))


def test_labels_may_be_given_beside_the_images() -> None:
    assert listed(PATHS, labels=LABELS) == list(zip(PATHS, LABELS, strict=True))
    with pytest.raises(InputError, match="expected a label for each image; got 4 images and 2 labels"):
        list_images(PATHS, labels=["cat", "dog"])


IMAGES: dict[str, Callable[[], Any]] = {
    "Pillow images": lambda: [Image.open(path) for path in PATHS],
    "one array": lambda: PIXELS,
    "arrays": lambda: list(PIXELS),
    "a tensor": lambda: torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "bytes": lambda: [Path(path).read_bytes() for path in PATHS],
    "a generator": lambda: (Image.open(path) for path in PATHS),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_no_files_are_written_once_and_read_back_as_they_were(kind: str, here: Path) -> None:
    listing = list_images(IMAGES[kind](), keep=here / "kept")
    assert [record.columns["source"] for record in listing] == ["0", "1", "2", "3"]
    for record, pixels in zip(listing, PIXELS, strict=True):
        np.testing.assert_array_equal(np.asarray(read_image(listing.file(record))), pixels)
    assert listing.root == here / "kept"
    before = sorted(file.stat().st_mtime_ns for file in (here / "kept").iterdir())
    assert [*list_images(IMAGES[kind](), keep=here / "kept")] == [*listing]
    assert sorted(file.stat().st_mtime_ns for file in (here / "kept").iterdir()) == before
    assert holds_kept_images(here / "kept")


def test_bytes_of_files_stay_as_they_are(here: Path) -> None:
    Image.fromarray(PIXELS[0]).save("a.jpg")
    listing = list_images([Path("a.jpg").read_bytes()], keep="kept")
    (record,) = listing
    assert listing.file(record).suffix == ".jpg"
    assert listing.file(record).read_bytes() == Path("a.jpg").read_bytes()


def test_an_image_that_comes_twice_is_two_images() -> None:
    assert len({path for path, _ in listed((PIXELS[[0, 0, 1]], [7, 7.0, 8]), keep="kept")}) == 3


def test_floats_are_intensities_and_that_is_said() -> None:
    with pytest.warns(DistcamWarning, match=r"4 images are arrays of floats: taken as intensities in \[0, 1\]"):
        listing = list_images(PIXELS / 255.0, keep="kept")
    np.testing.assert_array_equal(np.asarray(read_image(listing.file(next(iter(listing))))), PIXELS[0])
    with pytest.raises(InputError, match="arrays of floats"):
        list_images(PIXELS / 255.0, keep="kept", strict=True)


def test_one_image_that_cannot_be_had_is_listed_and_passed_over() -> None:
    listing = list_images([PIXELS[0], PIXELS[1].astype(int), PIXELS[2]], keep="kept")
    assert len(listing) == 2
    assert listing.problems == (
        "the sequence, item 1: expected bytes (uint8) or floats in [0, 1]; got int64 (16, 24, 3)",
    )
    with pytest.raises(InputError, match="the sequence, item 1: expected bytes"):
        list_images([PIXELS[0], PIXELS[1].astype(int)], keep="kept", strict=True)


def test_images_that_are_no_files_need_a_folder() -> None:
    with pytest.raises(InputError, match=r"images that are no files: Gallery\.build .* need keep=FOLDER"):
        list_images(PIXELS)


def test_a_folder_of_torchvision_is_read_by_its_files() -> None:
    folders = pytest.importorskip("torchvision.datasets")
    data = folders.ImageFolder("photos", loader=lambda path: pytest.fail(f"{path} was decoded"))
    assert listed(data) == list(zip(PATHS, LABELS, strict=True))
    assert listed(torch.utils.data.Subset(torch.utils.data.Subset(data, [1, 2, 3]), [2, 0])) == [
        (PATHS[3], "dog"),
        (PATHS[1], "cat"),
    ]
    data.transform = lambda image: image
    with pytest.warns(DistcamWarning, match="the data set's own transform is not used"):
        list_images(data)


def test_items_of_a_data_set_of_torch_are_images_with_labels() -> None:
    class Data(torch.utils.data.Dataset[Any]):
        classes = ("cat", "dog")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, place: int) -> Any:  # never raises IndexError, as many do not
            return Image.fromarray(PIXELS[place % 4]), torch.tensor(place // 2)

    assert [label for _, label in listed(Data(), keep="kept")] == LABELS
    with pytest.raises(InputError, match=r"a DataLoader gives batches .* loader\.dataset"):
        list_images(torch.utils.data.DataLoader(Data()))


@pytest.fixture
def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = datasets.Dataset.from_dict({"image": [{"path": None, "bytes": Path(p).read_bytes()} for p in PATHS],
                                           "label": [0, 0, 1, -1]})  # fmt: skip
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        return data.cast(datasets.Features(features))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_data_set_of_hugging_face_gives_bytes_and_names_of_classes(hugging_face: Any) -> None:
    with pytest.warns(DistcamWarning, match="1 of 4 images in the data set have no label"):
        listing = list_images(hugging_face, keep="kept")
    assert [record.label for record in listing] == ["cat", "cat", "dog", None]
    assert listing.file(next(iter(listing))).read_bytes() == Path(PATHS[0]).read_bytes()
    with pytest.raises(InputError, match="expected one split of a data set; got 'train', 'test'"):
        list_images({"train": hugging_face, "test": hugging_face})


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_parquet_file_of_hugging_face_says_the_names_of_its_classes(hugging_face: Any) -> None:
    hugging_face.to_parquet("data.parquet")
    with pytest.warns(DistcamWarning, match="1 of 4 images in data.parquet have no label"):
        assert [label for _, label in listed("data.parquet", keep="kept")] == ["cat", "cat", "dog", None]


def test_a_parquet_file_of_paths_is_a_table(here: Path) -> None:
    pytest.importorskip("pyarrow.parquet").write_table(frame_of("pyarrow"), "data.parquet")
    assert listed(here / "data.parquet") == list(zip(PATHS, LABELS, strict=True))
    Path("data.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"data\.parquet: cannot be read as Parquet"):
        list_images("data.parquet")


def test_boxes_in_the_columns_of_a_frame_are_cut_out_as_those_of_a_csv() -> None:
    frame = {"path": [PATHS[0]] * 2, "x1": [0, 4], "y1": [0, 2], "x2": [12, 24], "y2": [10, 16]}
    assert [record.box for record in list_items(frame)] == [(0, 0, 12, 10), (4, 2, 24, 16)]
    with pytest.warns(DistcamWarning, match="1 of 2 rows of the mapping cannot be used .*: .* is in row 0 already"):
        list_images({"path": [PATHS[0]] * 2, "label": ["cat", "dog"]})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "expected a folder, image, .* a DataFrame or mapping of columns.*; got int"),
        (None, "; got NoneType"),
        ({"path": "a.png"}, "; got dict"),
        ([1, 2], r"the sequence, item 0: expected an image as a path, URL, .*; got int"),
        ([], "no image in the sequence: it is empty"),
        ({"path": PATHS, "label": LABELS[:3]}, "expected columns of one length; got path 4, label 3"),
        ({"filename": PATHS}, "the mapping: expected a column 'path' or 'image'; got 'filename'; rename 'filename'"),
        (np.zeros((4, 4, 7), np.uint8), r"expected an image \(rows, columns, 3\); got uint8 \(4, 4, 7\)"),
        (torch.zeros(2, 9, 9, 3), r"expected an image \(3, rows, columns\); got .*; turn it by \.permute\(2, 0, 1\)"),
        (np.full((9, 9, 3), 7.0), r"float values outside \[0, 1\] \(7 to 7\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::distcam.DistcamWarning")
def test_what_is_none_of_these_is_named_with_what_is_expected(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_images(source, keep="kept")


def test_labels_in_a_sequence_need_images_in_one() -> None:
    with pytest.raises(InputError, match="expected labels in a sequence beside a sequence of images; got str"):
        list_images("photos", labels=["cat", "dog"])
