"""Queries by what a caller holds: each kind of image, and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distcam import Encoder, Gallery, Retriever
from distcam.errors import ImageError, InputError
from distcam.images import read_image
from distcam.images.given import remote
from distcam.remarks import DistcamWarning
from distcam.retrieval import RetrievalProtocol, evaluate_dataset


@pytest.fixture(scope="module")
def retriever(small_gallery: Gallery, small_encoder: Encoder) -> Retriever:
    return Retriever(small_gallery, small_encoder, precision="fp32")


@pytest.fixture(scope="module")
def pixels(photos: Path) -> Any:
    return np.array(read_image(min(photos.rglob("*.jpg"))))


def test_arrays_tensors_and_vectors_find_the_image_that_they_are(retriever: Retriever, pixels: Any) -> None:
    vector = retriever.gallery.embeddings([0])[0]
    for asked in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), vector, torch.from_numpy(vector), vector.tolist()):
        matches = retriever.query(asked, k=2)
        assert (matches[0].id, matches[0].distance) == (0, pytest.approx(0, abs=1e-6))
    with pytest.warns(DistcamWarning, match=r"1 query images are arrays of floats: taken as intensities"):
        assert retriever.query(pixels / 255, k=1)[0].id == 0


def test_several_are_a_list_in_their_order(retriever: Retriever, pixels: Any) -> None:
    vectors = retriever.gallery.embeddings([5, 7])
    results = retriever.query([vectors[0], pixels, vectors[1]], k=1)
    assert [matches[0].id for matches in results] == [5, 0, 7]
    assert [matches.query.name for matches in results] == ["vector 1", "query 2", "vector 3"]
    assert len(retriever.query(np.stack([pixels, pixels]), k=1)) == 2


def test_a_url_is_fetched_and_explained_as_a_file_is(
    retriever: Retriever, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = min(photos.rglob("*.jpg"))
    monkeypatch.setattr(remote, "fetch", lambda url: file.read_bytes())
    matches = retriever.query("https://example.org/a.jpg", k=2)
    assert (matches.query.name, matches[0].id) == ("https://example.org/a.jpg", 0)
    assert matches.explain().to_arrays()
    monkeypatch.undo()
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_args, **_options: [(2, 1, 6, "", ("10.0.0.7", 80))])
    with pytest.raises(ImageError, match="an address of a private network"):
        retriever.query("http://example.org/a.jpg")


def test_a_vector_is_not_explained_and_has_no_parts(retriever: Retriever) -> None:
    vector = retriever.gallery.embeddings([0])[0]
    with pytest.raises(InputError, match="a bare vector has neither pooled features nor a feature map"):
        retriever.query(vector).explain()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (5, "expected a query as a path, URL, .*, or a vector of 64 numbers; got int"),
        ({"path": "a.png"}, "; got dict"),
        (np.zeros(7), "expected a vector of 64 numbers, as this gallery's embeddings; got 7"),
        (np.zeros((3, 64)), r"may be 3 vectors or one image in grey; expected list\(array\) for vectors"),
        ([], "no query images were given"),
    ],
)
def test_what_is_neither_image_nor_vector_is_refused(retriever: Retriever, asked: Any, message: str) -> None:
    assert retriever.gallery.spec.embedding_dim == 64
    with pytest.raises(InputError, match=message):
        retriever.query(asked)


def test_an_encoder_is_evaluated_on_what_is_in_memory_as_on_its_files(small_encoder: Encoder, photos: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))[:8]
    labels = [str(number // 2) for number in range(8)]
    arrays = [np.asarray(read_image(file)) for file in files]
    protocol = RetrievalProtocol(recall_at=(1,), clusters=False, resamples=2)
    of_arrays, of_files = (
        evaluate_dataset((images, labels), small_encoder, protocol=protocol) for images in (arrays, files)
    )
    assert of_arrays.counts == of_files.counts
    assert of_arrays["mAP"] == pytest.approx(of_files["mAP"], abs=1e-5)
    with pytest.raises(InputError, match="expected a column 'label'; got 'path'"):
        evaluate_dataset({"path": files}, small_encoder, protocol=protocol)
