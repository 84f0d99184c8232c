"""Answers of a gallery: each image judged without itself, rejection, what cannot be used, and the map of the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distcam import DistcamWarning, Gallery, Retriever
from distcam.errors import InputError
from distcam.images import read_image
from distcam.images.given import remote
from distcam.index.rejection import class_scores
from distcam.retrieval.classification import ClassSpace


@pytest.fixture(scope="module")
def retriever(small_gallery, small_encoder):
    return Retriever(small_gallery, small_encoder, precision="fp32")


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.jpg"))


def test_the_nearest_neighbour_of_a_gallery_image_is_itself_and_decides(retriever, files) -> None:
    found = retriever.classify(files, k=1, by="knn")
    assert [each.label for each in found] == [file.parent.name for file in files]
    assert {each.decided_by for each in found} == {"rank:1"}
    explanation = found[3].explain()
    assert explanation.references[0].match.file == files[3]
    assert explanation.query_maps.shape[0] == 1


def test_prototypes_answer_as_the_ranking_of_prototypes_does(retriever, files) -> None:
    found = retriever.classify(files[:4], by="prototypes")
    asked = retriever.query(files[:4], k=1)
    assert [each.label for each in found] == [matches.prototype[0] for matches in asked]
    assert found[0].decided_by == f"label:{found[0].label}"
    assert found[0].explain().references[0].label == found[0].label
    assert sum(found[0].probabilities) == pytest.approx(1)


def test_calibration_judges_each_image_without_itself(small_gallery) -> None:
    space, codes = ClassSpace.of(small_gallery), small_gallery.snapshot.column("label").codes
    vectors = small_gallery.ranking_vectors(small_gallery.ids).astype(float)
    right = 0
    for row in range(len(vectors)):
        others = np.arange(len(vectors)) != row
        means = np.array([vectors[others & (codes == code)].mean(0) for code in range(4)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        right += (means @ vectors[row]).argmax() == codes[row]
    found = space.calibrated(5, by="prototypes", weighting="distance")
    assert found.accuracy == pytest.approx(right / len(vectors))
    assert (found.n, found.source) == (24, "24 of the 24 labelled images, each without itself")


def test_an_unusable_image_has_its_place_its_reason_and_no_class(retriever, files, tmp_path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.warns(DistcamWarning, match=r"1 of 3 images cannot be used.*bad\.jpg"):
        found = retriever.classify([files[0], bad, files[1]])
    assert [each.label is None for each in found] == [False, True, False]
    assert found[1].problem
    assert found[1].to_dict()["confidence"] is None
    with pytest.raises(InputError, match="no answer to explain"):
        found[1].explain()
    with pytest.raises(InputError, match="1 of 2 images cannot be used"):
        retriever.classify([bad, files[0]], strict=True)


def test_whatever_query_takes_has_its_answer_and_so_has_what_holds_images(retriever, files, monkeypatch) -> None:
    content = {f"https://example.org/{n}.jpg": file.read_bytes() for n, file in enumerate(files[:1])}
    fetched = []
    monkeypatch.setattr(remote, "fetch", lambda url: fetched.append(url) or content[url])
    image = read_image(files[0])
    array, vector = np.array(image), retriever.gallery.embeddings([0])[0]
    (expected,) = retriever.classify(files[:1])
    for asked in (*content, image, array, torch.from_numpy(array).permute(2, 0, 1), vector, vector.tolist(), [vector]):
        (found,) = retriever.classify(asked)
        assert (found.label, found.matches[0].id) == (expected.label, 0)
        assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)
    several = retriever.classify([vector, *content, array, files[1]])
    assert [each.matches[0].id for each in several] == [0, 0, 0, 1]
    assert [each.name for each in several] == ["vector 1", *content, "query 3", str(files[1])]
    assert several[1].explain().to_arrays()
    assert len(fetched) == 2  # once for each answer, however often it is explained
    with pytest.raises(InputError, match="bare vector"):
        several[0].explain()
    for folder in (files[0].parent, str(files[0].parent / "*.jpg"), {"path": files[:6]}):
        assert [each.name for each in retriever.classify(folder)] == list(map(str, files[:6]))
    boxes = {"path": files[:1] * 2, "x1": [0, 8], "y1": [0, 0], "x2": [64, 40], "y2": [64, 64]}
    whole, part = retriever.classify(boxes)
    assert whole.matches[0].distance == pytest.approx(0, abs=1e-6)
    assert part.name == f"{files[0]}#xywh=8,0,32,64"
    with pytest.raises(InputError, match="got int"):
        retriever.classify([files[0], 5])


def test_a_gallery_answers_by_itself_and_keeps_its_calibration(small_gallery, files, small_encoder) -> None:
    gallery = Gallery.open(small_gallery.folder)
    found = gallery.classify(files[:3], k=3, weighting="uniform")
    expected = Retriever(gallery).classify(files[:3], k=3, weighting="uniform")
    assert [each.to_dict() for each in found] == [each.to_dict() for each in expected]
    again = gallery.classify(files[3:4], k=3, weighting="uniform")
    assert again[0].calibration is found[0].calibration
    (other,) = gallery.classify(files[:1], small_encoder, k=1, by="knn")
    assert other.decided_by == "rank:1"


def test_what_lies_beyond_the_gallerys_threshold_is_rejected(
    files, photos, small_encoder, tmp_path, monkeypatch
) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    retriever = Retriever(gallery, small_encoder, precision="fp32")
    with pytest.raises(InputError, match="index calibrate"):
        retriever.classify(files[:1], reject=True)
    gallery.calibrate(false_alarm_rate=0.5)
    limit = gallery.manifest.rejection.class_threshold
    found = retriever.classify([files[0], files[0].read_bytes()], reject=True)
    assert [each.label for each in found] == [found[0].best] * 2  # itself, at distance 0
    from PIL import Image

    (far,) = retriever.classify([Image.new("RGB", (64, 64))], reject=True)
    distances = gallery.prototypes.distances(far.matches.query.encoding.embedding.numpy())
    assert far.is_known is bool(class_scores(distances)[0] <= limit)
    assert (far.label is not None) is far.is_known is far.to_dict()["is_known"]
    assert far.best is not None
    older = replace(gallery.manifest, rejection=replace(gallery.manifest.rejection, class_threshold=None))
    monkeypatch.setattr(type(gallery), "manifest", older)  # of a version that had none: the distance decides
    (far,) = retriever.classify([Image.new("RGB", (64, 64))], reject=True)
    assert far.is_known is (far.matches[0].distance <= older.rejection.threshold)
    monkeypatch.undo()
    gallery.remove(where=f"label in {','.join(gallery.labels[1:])}")  # one class is left: no second one to divide by
    with pytest.warns(DistcamWarning):
        (left,) = retriever.classify(files[:1], reject=True)
    assert left.is_known is (left.matches[0].distance <= gallery.manifest.rejection.threshold)


def test_galleries_that_cannot_name_a_class_say_so(files, photos, small_encoder, tmp_path) -> None:
    bare = Gallery.build(files[:3], small_encoder, out=tmp_path / "bare", labels="none", precision="fp32")
    with pytest.raises(InputError, match=r"has no labels \(3 images\)"):
        Retriever(bare, small_encoder).classify(files[:1])
    bare.remove(paths=files[:3])
    with pytest.raises(InputError, match="is empty"):
        Retriever(bare, small_encoder).classify(files[:1])
    one = Gallery.build(files[0].parent, small_encoder, out=tmp_path / "one", labels="none", precision="fp32")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{file},cat\n" for file in files[:2]))
    one.add(files[:2], small_encoder, labels=table)
    with pytest.warns(DistcamWarning) as said:
        found = Retriever(one, small_encoder).classify(files[:1], k=99)
    words = " ".join(str(each.message) for each in said)
    assert "images have no label" in words
    assert "has one class, 'cat'" in words
    assert "k = 99, and there are" in words
    assert "not calibrated" in words
    assert (found[0].label, found[0].confidence) == ("cat", 1)
    assert {match.label for match in found[0].matches} == {"cat"}


@pytest.mark.parametrize(("options", "says"), [({"k": 0}, "at least 1"), ({"by": "svm"}, "by must be knn")])
def test_what_is_no_way_to_classify_is_refused(retriever, files, options, says) -> None:
    with pytest.raises(InputError, match=says):
        retriever.classify(files[:1], **options)
    with pytest.raises(InputError, match="no images"):
        retriever.classify([])
