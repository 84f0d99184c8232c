"""The estimator: scikit-learn's own checks, and the same answers on images as on their embeddings."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from distcam.errors import ImageError, InputError
from distcam.images import read_image
from distcam.retrieval import DistcamClassifier

# Embeddings of random whole numbers hold a row of zeros, which has no direction.
NO_DIRECTION = {"check_estimators_dtypes": "the cosine of a vector of zeros is refused by name"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("metric", "fails"), [("cosine", NO_DIRECTION), ("l2", {})])
def test_the_checks_of_scikit_learn_pass(metric, fails) -> None:
    """Skipped by scikit-learn itself: array API input, which asks for a setting of scipy's."""
    estimator = DistcamClassifier(metric=metric)
    found = check_estimator(estimator, on_fail=None, on_skip=None, expected_failed_checks=fails)
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert not failed
    assert {each["check_name"] for each in found if each["status"] == "xfail"} <= set(fails)


def test_images_are_their_embeddings(photos, small_encoder, small_gallery, tmp_path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    labels = [file.parent.name for file in files]
    by_image = DistcamClassifier(small_encoder).fit(files, labels)
    vectors = small_gallery.embeddings(small_gallery.ids)
    by_vector = DistcamClassifier().fit(vectors, labels)
    np.testing.assert_allclose(by_image.predict_proba(files[:5]), by_vector.predict_proba(vectors[:5]), atol=1e-4)
    arrays = np.stack([np.asarray(read_image(file)) for file in files[:5]])
    assert (by_image.predict(arrays) == by_image.predict(files[:5])).all()
    assert (pickle.loads(pickle.dumps(by_image)).predict(files[:5]) == by_image.predict(files[:5])).all()
    assert clone(by_image).get_params()["k"] == 5
    (tmp_path / "bad.jpg").write_bytes(b"no")
    with pytest.raises(ImageError):
        by_image.predict([tmp_path / "bad.jpg"])


def test_images_without_an_encoder_are_refused(photos) -> None:
    with pytest.raises(InputError, match="images need an encoder"):
        DistcamClassifier().fit([str(next(photos.rglob("*.jpg")))], ["cat"])
