"""Neighbours and class means as an estimator of scikit-learn, on images or on embeddings, without a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..encoders import Encoder, Inference
from ..errors import InputError
from ..index import FaissSearch, PrototypeStore, SearchSpec
from ..metrics import Metric
from ..metrics.prediction import By, Votes
from .classification import ClassSpace, check_choices


class DistcamClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Classes by labelled neighbours and class means, with calibrated probabilities.

    X is an array of embeddings (n, d); or with an `encoder` images: paths, Pillow images, or an array of them
    (n, rows, columns, 3), uint8. Fitting encodes and keeps the vectors, and calibrates on each image without itself.

    Args:
        encoder: an `Encoder`, or the name or checkpoint of one.
        weights: for the name of an architecture, see `Encoder.load`.
        k: neighbours that vote.
        by: "knn", "prototypes" or "both".
        weighting: of votes: "uniform", or "distance".
        metric: of the vectors.
        device: of the encoder.

    Attributes:
        classes_: the labels, sorted.
        calibration_: of the probabilities, with its error.

    Raises:
        InputError: images without an encoder, or an unknown choice.
        ImageError: an image that cannot be used.
    """

    def __init__(
        self,
        encoder: Encoder | str | None = None,
        *,
        weights: str | None = None,
        k: int = 5,
        by: By = "both",
        weighting: Votes = "distance",
        metric: Metric = "cosine",
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self.weights = weights
        self.k = k
        self.by = by
        self.weighting = weighting
        self.metric = metric
        self.device = device

    def fit(self, X: Any, y: Any) -> Self:
        """Encode labelled images, or take their embeddings, and calibrate."""
        check_choices(self.k, self.by, self.weighting)
        if self.encoder is not None:
            loaded = self.encoder
            if not isinstance(loaded, Encoder):
                loaded = Encoder.load(loaded, weights=self.weights)
            self.inference_ = Inference(loaded, device=self.device)
        vectors, targets = self._vectors(X, y)
        check_classification_targets(targets)
        self.classes_, codes = np.unique(targets, return_inverse=True)
        self.vectors_, self.codes_ = vectors, codes.astype(np.int64)
        self.space_ = self._space()
        self.calibration_ = self.space_.calibrated(self.k, by=self.by, weighting=self.weighting)
        return self

    def _space(self) -> ClassSpace:
        """The search among the vectors, and the class means, whose names keep the order of the classes."""
        vectors, dim = self.vectors_, self.vectors_.shape[1]
        spec, ids = SearchSpec(dim, self.metric), np.arange(len(vectors), dtype=np.uint64)
        search = FaissSearch.build(spec, [(ids, vectors)], count=len(ids), factory="flat", device="cpu")
        store = PrototypeStore(pooled_dim=dim, embedding_dim=dim, metric=self.metric)
        store.add([f"{code:09d}" for code in self.codes_], vectors, vectors)
        return ClassSpace(search.search, ids, self.codes_, lambda of: vectors[of], store)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the search, which is made anew."""
        return {name: value for name, value in super().__getstate__().items() if name != "space_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "vectors_" in state:
            self.space_ = self._space()

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, c) in the order of `classes_`."""
        check_is_fitted(self)
        vectors, _ = self._vectors(X)
        evidence = self.space_.evidence(vectors, self.space_.search(vectors, self.k), self.k)
        return self.calibration_.probabilities(evidence)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each, (n,)."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _vectors(self, given: Any, targets: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Embeddings (n, d) of what is given, and the checked targets."""
        if self.encoder is None:
            if isinstance(given, Sequence) and isinstance(next(iter(given), None), str | PathLike | Image.Image):
                raise InputError("images need an encoder: DistcamClassifier(encoder, weights=…), or give embeddings")
            if targets is None:
                return validate_data(self, given, reset=False, dtype=np.float32), None
            checked: tuple[NDArray[np.float32], Any] = validate_data(self, given, targets, dtype=np.float32)
            return checked
        images = [Image.fromarray(each) if isinstance(each, np.ndarray) else each for each in given]
        if targets is not None and len(targets) != len(images):
            raise InputError(f"expected a class for each of {len(images)} images, got {len(targets)}")
        found = []
        for batch in self.inference_.stream(images, maps=False):
            if batch.failures:
                raise batch.failures[0].error
            found += [] if batch.encoding is None else [batch.encoding.embedding.cpu().numpy()]
        if not found:
            raise InputError("expected at least one image, got none")
        return np.concatenate(found), targets
