"""A gallery asked about its own data: planted faults are found, and what half fits is said."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.errors import FingerprintMismatchError, InputError
from distcam.index import Gallery, import_gallery
from distcam.index.inspection.classes import distances_to_classes, made_wrong, share_right
from distcam.index.inspection.neighbours import Neighbours
from distcam.metrics.distances import SearchSpec, comparable, distances_to
from distcam.remarks import DistcamWarning

CLASSES, EACH, DIM = 8, 40, 24
WRONG, ODD = (3, 50, 101, 207), (7, 160)  # rows under another label, rows far from everything


def write_gallery(folder: Path, metric: str = "cosine", *, seed: int = 0) -> Gallery:
    """Clusters of vectors, one for each class, with wrong labels and odd vectors planted; there are no image files."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    vectors = 4 * random.normal(size=(CLASSES, DIM))[labels] + random.normal(size=(CLASSES * EACH, DIM))
    vectors[list(ODD)] = 4 * random.normal(size=(len(ODD), DIM))
    vectors[11] = vectors[10] + 1e-4  # as good as the same
    labels[list(WRONG)] = (labels[list(WRONG)] + 3) % CLASSES
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    rows = "".join(f"{row}.jpg,c{label}\n" for row, label in enumerate(labels))
    (folder / "rows.csv").write_text("path,label\n" + rows)
    return import_gallery(folder / "rows.csv", folder / "g", embeddings=folder / "vectors.npy", metric=metric)


@pytest.fixture(scope="module")
def vectors_only(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return write_gallery(tmp_path_factory.mktemp("inspected"))


@pytest.fixture(scope="module")
def copied(photos: Path, small_encoder, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """The scenes, with an equal file, a small JPEG, and a crop."""
    folder = tmp_path_factory.mktemp("copied") / "set"
    shutil.copytree(photos, folder)
    first, second, third = (sorted(place.iterdir())[0] for place in sorted(folder.iterdir())[:3])
    shutil.copyfile(first, first.with_name("equal.jpg"))
    with Image.open(second) as image:
        image.resize((40, 40)).save(second.with_name("small.jpg"), quality=60)
    with Image.open(third) as image:
        image.crop((8, 8, 56, 56)).save(third.with_name("crop.png"))
    return Gallery.build(folder, small_encoder, out=folder.parent / "g", precision="fp32", store_maps=True)


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_neighbours_are_those_of_a_plain_loop_without_the_image_itself(tmp_path: Path, metric: str) -> None:
    gallery = write_gallery(tmp_path, metric)
    found = Neighbours.of(gallery, k=6)
    spec = SearchSpec(DIM, "cosine" if metric == "dot" else metric)
    vectors = comparable(spec, gallery.embeddings(gallery.ids))
    for row in (0, 10, 319):
        distances = distances_to(spec, vectors[row], vectors)
        distances[row] = np.inf
        assert found.places[row].tolist() == np.argsort(distances, kind="stable")[:6].tolist()
        assert found.distances[row] == pytest.approx(np.sort(distances)[:6], abs=1e-6)
    own = gallery.snapshot.column("label").codes
    fifth = distances_to_classes(gallery.snapshot, own, places=np.array([20]), codes=own[[90]])
    assert fifth[0] == pytest.approx(np.sort(distances_to(spec, vectors[20], vectors[own == own[90]]))[4], rel=1e-4)


def test_wrong_labels_and_outliers_that_were_planted_are_found(vectors_only: Gallery) -> None:
    asked = vectors_only.inspect(look=False)
    wrong = asked.mislabels()
    assert {int(item.images[0].path[:-4]) for item in wrong} - set(ODD) == set(WRONG)
    labels = {item.images[0].path: item.suggestion for item in wrong}
    assert labels["3.jpg"] == "c0"
    assert all(item.images[1].label == item.suggestion for item in wrong)
    odd = {int(item.images[0].path[:-4]) for item in asked.outliers()}
    assert set(ODD) <= odd
    assert not odd & set(WRONG)  # their neighbours say what they are


def test_gone_images_are_said_and_vectors_decide(vectors_only: Gallery) -> None:
    with pytest.warns(DistcamWarning, match="images are gone or too few"):
        found = vectors_only.duplicates()
    assert [[record.path for record in item.images] for item in found] == [["10.jpg", "11.jpg"]]


def test_hard_negatives_and_confusions_are_of_two_classes(vectors_only: Gallery) -> None:
    asked = vectors_only.inspect(look=False)
    pairs = asked.hard_negatives(most=5)
    assert 0 < len(pairs) <= 5
    assert all(item.images[0].label != item.images[1].label for item in pairs)
    assert [item.distance for item in pairs] == sorted(item.distance for item in pairs)
    assert not {f"{row}.jpg" for row in WRONG} & {record.path for item in pairs for record in item.images}
    assert all(item.images[0].label != item.images[1].label for item in asked.confusions(most=3))


def test_labels_made_wrong_differ_from_the_given_and_calibrate_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, -1], np.int32)
    places, wrong = made_wrong(labels)
    assert (labels[places] != wrong).all()
    assert set(places.tolist()) <= {0, 1, 2, 3}
    # Below 10 everything is right: 101 up to 0, then 20 and 5 in the halves of 0 to 10, so a quarter every 5 further.
    usual = np.concatenate([np.zeros(101), np.full(20, 2.0), np.full(5, 7.0)])
    scores = np.concatenate([usual, [20.0, 15.0]])
    share = share_right(scores, np.full(10, 10.0), np.array([126, 127]))
    factor = 5.5 / 20.5
    above = 5 * factor / (1 - factor)
    assert share.tolist() == pytest.approx([above * factor**2, above * factor / 2])
    assert share_right(scores, np.empty(0), np.array([126])).tolist() == [1.0]


def test_copies_are_found_by_bytes_and_by_a_look(copied: Gallery) -> None:
    found = copied.duplicates(rate=0.2)
    kinds = {item.kind: item for item in found}
    assert {Path(record.path).name for record in kinds["exact"].images} >= {"equal.jpg"}
    near = next(item for item in found if "small.jpg" in {Path(r.path).name for r in item.images})
    assert near.kind == "near"
    assert all((item.part is not None) == (item.kind == "crop") for item in found)
    assert {copied.records([number])[0].path.rpartition("/")[2] for number in found.ids} >= {"small.jpg"}


def test_a_test_set_that_shares_images_leaks(copied: Gallery, photos: Path, small_encoder, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    shutil.copytree(sorted(photos.iterdir())[0], folder / "new")
    other = Gallery.build(folder, small_encoder, out=tmp_path / "g", precision="fp32")
    found = copied.leaks(other)
    whole = [item for item in found if item.kind in ("exact", "near")]
    assert all(item.own[0] and not item.own[-1] for item in whole)
    shared = {r.path for item in whole for r, mine in zip(item.images, item.own, strict=True) if not mine}
    assert shared == {record.path for record in other.records(other.ids)}
    rows = list(found.rows())
    assert {row["role"] for row in rows} == {"here", "other"}


def test_a_gallery_of_another_encoder_cannot_be_compared(copied: Gallery, vectors_only: Gallery) -> None:
    with pytest.raises(FingerprintMismatchError, match="build one of them again"):
        copied.leaks(vectors_only)


def test_a_rate_outside_of_0_to_1_and_a_gallery_without_classes_are_refused(
    vectors_only: Gallery, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"must lie in \(0, 1\), got 5"):
        vectors_only.outliers(rate=5)
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    (tmp_path / "r.csv").write_text("path,label\n" + "".join(f"{row}.jpg,one\n" for row in range(30)))
    plain = import_gallery(tmp_path / "r.csv", tmp_path / "g", embeddings=tmp_path / "v.npy")
    with pytest.raises(InputError, match="fewer than two classes"):
        plain.mislabels()
    assert len(plain.outliers()) == 0


def test_the_command_answers_in_words_json_a_table_and_a_report(copied: Gallery, tmp_path: Path) -> None:
    table, page = tmp_path / "found.csv", tmp_path / "found.html"
    given = ["inspect", str(copied.folder), "duplicates", "--rate", "0.2"]
    done = CliRunner().invoke(app, [*given, "--csv", str(table), "--report", str(page), "--json"])
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)["answers"]
    assert {item["kind"] for item in answer["findings"]} >= {"exact", "near"}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows if row["finding"] == "1"][:2] == ["keep", "copy"]
    assert "duplicates: " in page.read_text(encoding="utf-8")
    said = CliRunner().invoke(app, ["inspect", str(copied.folder), "--no-look"])
    assert said.exit_code == 0, said.output
    assert all(f"{name}: " in said.stdout for name in ("duplicates", "outliers", "mislabels", "confusions"))
    wrong = CliRunner().invoke(app, ["inspect", str(copied.folder), "leaks"])
    assert "between two galleries" in str(wrong.exception)
