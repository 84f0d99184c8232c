"""Exports to stores and tables hold every image with its vector, and answer as the gallery does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from distcam import DistcamWarning, Gallery
from distcam.errors import GalleryExistsError, InputError, MissingExtraError
from distcam.images import list_images
from distcam.index.interop.stores import export_rows

NEEDS = {"lancedb": "lancedb", "qdrant": "qdrant_client", "datasets": "datasets", "fiftyone": "fiftyone"}


def test_a_csv_of_labels_gives_the_images_their_labels_again(small_gallery, photos, tmp_path) -> None:
    told = export_rows(small_gallery, tmp_path / "labels.csv", to="csv")
    assert told["images"] == 24
    listing = list_images(photos, labels=tmp_path / "labels.csv")
    expected = {record.path: record.label for record in small_gallery.records(small_gallery.ids)}
    assert {record.path: record.label for record in listing} == expected


def test_lancedb_finds_what_the_gallery_finds(small_gallery, tmp_path) -> None:
    lancedb = pytest.importorskip("lancedb")
    export_rows(small_gallery, tmp_path / "store", to="lancedb")
    table = lancedb.connect(tmp_path / "store").open_table("images")
    vector = small_gallery.embeddings([5])[0]
    found = table.search(vector).distance_type("cosine").limit(4).to_list()
    (hits,) = small_gallery.search(vector[None], 4)
    assert [row["id"] for row in found] == hits.ids.tolist()
    assert found[0]["label"] == small_gallery.records([5])[0].label


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_qdrant_ranks_by_the_metric_of_the_gallery(photos, small_encoder, tmp_path, metric) -> None:
    client = pytest.importorskip("qdrant_client")
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "scenes.gallery", precision="fp32", metric=metric)
    export_rows(gallery, tmp_path / "store", to="qdrant")
    store = client.QdrantClient(path=str(tmp_path / "store"))
    vector = gallery.embeddings([5])[0]
    points = store.query_points("scenes", query=vector.tolist(), limit=4).points
    store.close()
    (hits,) = gallery.search(vector[None], 4)
    assert [point.id for point in points] == hits.ids.tolist()
    assert points[0].payload["path"] == gallery.records(hits.ids[:1])[0].path


def test_a_hugging_face_data_set_has_images_and_vectors_and_names_images_that_are_gone(
    small_gallery, tmp_path, monkeypatch
) -> None:
    datasets = pytest.importorskip("datasets")
    export_rows(small_gallery, tmp_path / "set", to="datasets")
    found = datasets.load_from_disk(str(tmp_path / "set"))
    assert found[3]["image"].size == (64, 64)
    np.testing.assert_array_equal(np.array(found["vector"], np.float32), small_gallery.embeddings(small_gallery.ids))
    monkeypatch.setattr(small_gallery, "root", tmp_path)
    with pytest.warns(DistcamWarning, match="24 images not found, such as"):
        export_rows(small_gallery, tmp_path / "again", to="datasets")


def test_fiftyone_reads_a_sample_for_each_file_with_its_boxes_as_detections(
    photos, small_encoder, tmp_path, request
) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    table = tmp_path / "boxes.csv"
    files = sorted(photos.rglob("*.jpg"))[:3]
    boxes = ((8, 8, 40, 40), (16, 0, 64, 32))
    rows = [f"{file},{file.parent.name},{','.join(map(str, box))}" for file in files[:2] for box in boxes]
    table.write_text("\n".join(["path,label,x1,y1,x2,y2", *rows]))
    gallery = Gallery.build(table, small_encoder, out=tmp_path / "boxes.gallery", precision="fp32")
    export_rows(gallery, tmp_path / "set", to="fiftyone")
    samples = [
        fiftyone.Sample.from_dict(each) for each in json.loads((tmp_path / "set/samples.json").read_text())["samples"]
    ]
    assert [sample.filepath for sample in samples] == [str(file) for file in files[:2]]
    found = samples[1]["detections"].detections
    assert [each.bounding_box for each in found] == [[0.125, 0.125, 0.5, 0.5], [0.25, 0, 0.75, 0.5]]
    assert [each["gallery_id"] for each in found] == [2, 3]
    np.testing.assert_array_equal(found[1]["embedding"], gallery.embeddings([3])[0])
    export_rows(request.getfixturevalue("small_gallery"), tmp_path / "whole", to="fiftyone")
    first = fiftyone.Sample.from_dict(json.loads((tmp_path / "whole/samples.json").read_text())["samples"][0])
    assert first["ground_truth"].label == files[0].parent.name
    assert first["embedding"].shape == (gallery.spec.embedding_dim,)


@pytest.mark.parametrize("to", NEEDS)
def test_a_library_that_is_absent_is_named_with_its_extra_and_nothing_is_left(
    small_gallery, tmp_path, to, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDS[to], None)
    with pytest.raises(MissingExtraError, match=rf"distcam\[{to}\]"):
        export_rows(small_gallery, tmp_path / "store", to=to)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_and_an_unknown_tool_is_refused(small_gallery, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for to in ("csv", "lancedb"):
        with pytest.raises(GalleryExistsError, match="is there already"):
            export_rows(small_gallery, tmp_path / "there", to=to)
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(InputError, match="choose one of csv, lancedb"):
        export_rows(small_gallery, tmp_path / "new", to="excel")
