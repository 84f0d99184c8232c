"""Answers measured: accuracy, calibration error and rejection on photographs, beside scikit-learn's neighbours.

    python benchmarks ranking/classification --data FOLDER [--cache FOLDER --seeds 5 --only rejection --json OUT.json]

FOLDER holds `imagenette/` (gallery of ImageNet's training images, queries of its validation images), `caltech101/` (a
folder for each class) and `weights/mobilenet_v2*.pth`. Every image is encoded once; of Caltech-101 so many images of
each class are drawn as labelled ones, by seed, and the others are asked about. For rejection half of the classes are
labelled, and the images of the other half should have no answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from distcam import Encoder
from distcam.fewshot.methods import classifier_of
from distcam.fewshot.prediction import Support
from distcam.index import PrototypeStore, encode_to_file, read_encodings
from distcam.index.rejection import NearestOfBothKinds, Probes, choose_threshold, class_scores, class_threshold
from distcam.metrics.prediction import expected_calibration_error
from distcam.retrieval import DistcamClassifier

Arrays = tuple[np.ndarray, np.ndarray]


def encoded(source: Path, cache: Path, weights: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw vectors, labels and paths."""
    file = cache / f"{source.stem if source.suffix == '' else source.parent.name}.h5"
    if not file.exists():
        encode_to_file(source, Encoder.load("mobilenet_v2", weights=str(weights)), file)
    found = read_encodings(file)
    return found.embeddings, np.array(found.labels), np.array([record.path for record in found.records])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judged(shares: np.ndarray, classes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    codes = np.searchsorted(classes, truth)
    return {
        "accuracy": float((shares.argmax(1) == codes).mean()),
        "calibration error": expected_calibration_error(shares, codes),
    }


def answers(known: Arrays, asked: Arrays) -> Iterator[tuple[str, dict[str, float]]]:
    """Each way to answer, with its own statement of its calibration error."""
    for by in ("knn", "prototypes", "both"):
        for k in (1, 5, 20) if by == "knn" else (5,):
            model = DistcamClassifier(by=by, k=k).fit(*known)
            result = judged(model.predict_proba(asked[0]), model.classes_, asked[1])
            yield f"{by}, k = {k}" if by == "knn" else by, {**result, "stated error": model.calibration_.error}
    model = KNeighborsClassifier(5, weights="distance").fit(unit(known[0]), known[1])
    yield "scikit-learn, k = 5", judged(model.predict_proba(unit(asked[0])), model.classes_, asked[1])


def by_support(known: Arrays, asked: Arrays) -> Iterator[tuple[str, dict[str, float]]]:
    """The classifiers of `fewshot predict`."""
    classes = np.unique(known[1])
    ways = tuple(torch.from_numpy(known[0][known[1] == name]).double() for name in classes)
    for method in ("proto", "proto-cosine", "simpleshot-l2n", "nn-cosine", "bdcspn"):
        support = Support(classifier_of(method), ways)
        found = support.calibration()
        shares = found.probabilities(support.evidence(torch.from_numpy(asked[0]).double()))
        yield f"fewshot {method}", {**judged(shares, classes, asked[1]), "stated error": found.error}


def rejected(known: Arrays, asked: Arrays, target: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Error rates on new images of thresholds that the labelled images chose: on distances, and on class scores."""
    own, others = unit(known[0]), unit(asked[0])
    distance = 1 - own @ own.T
    np.fill_diagonal(distance, np.inf)
    is_own = known[1][:, None] == known[1]
    nearest = NearestOfBothKinds(np.where(is_own, distance, np.inf).min(1), np.where(is_own, np.inf, distance).min(1))
    found = choose_threshold(nearest, target=target, source="the labelled images", generation=1)
    model = DistcamClassifier().fit(*known)
    store = PrototypeStore(pooled_dim=own.shape[1], embedding_dim=own.shape[1], metric="cosine")
    store.add(known[1].tolist(), known[0], known[0])
    names, codes = np.unique(known[1], return_inverse=True)
    probes = Probes(own, codes, np.arange(len(codes), dtype=np.uint64))
    limit = class_threshold(store, probes, names.tolist(), target=target)
    scores = {
        "nearest image": ((1 - others @ own.T).min(1), found.threshold),
        "class means": (class_scores(store.distances(asked[0])), limit),
    }
    is_known = np.isin(asked[1], known[1])
    right = model.predict(asked[0]) == asked[1]
    for name, (values, threshold) in scores.items():
        passes = values <= threshold
        yield (
            f"{target:.0%} by the {name}",
            {
                "unknown accepted": float(passes[~is_known].mean()),
                "known rejected": float((~passes)[is_known].mean()),
                "known answered rightly": float((passes & right)[is_known].mean()),
                "right among the answered known": float(right[is_known & passes].mean()),
            },
        )


def told_apart(known: Arrays, asked: Arrays, rate: float = 0.05) -> Iterator[tuple[str, dict[str, float]]]:
    """How well scores tell images of known classes from others, whatever the threshold."""
    store = PrototypeStore(pooled_dim=known[0].shape[1], embedding_dim=known[0].shape[1], metric="cosine")
    store.add(known[1].tolist(), known[0], known[0])
    own, means = unit(known[0]), store.distances(asked[0])
    distance = 1 - unit(asked[0]) @ own.T
    classes = np.sort([distance[:, known[1] == name].min(1) for name in np.unique(known[1])], axis=0)
    nearest, dense = np.sort(distance, axis=1), np.sort(1 - own @ own.T, axis=1)[:, 5]
    first, second = np.sort(means, axis=1)[:, :2].T
    scores = {
        "nearest image": nearest[:, 0],
        "mean of the five nearest": nearest[:, :5].mean(1),
        "nearest over the second class": classes[0] / classes[1],
        "nearest over its own fifth": nearest[:, 0] / dense[distance.argmin(1)],
        "nearest class mean": first,
        "class mean over the second": first / second,
        "class mean, squared, over it": class_scores(means),
        "class mean over their mean": first / means.mean(1),
        "energy of class means": -logsumexp(-means / 0.1, axis=1),
    }
    is_known = np.isin(asked[1], known[1])
    for name, values in scores.items():
        limit = np.quantile(values[~is_known], rate)
        yield (
            name,
            {
                "known rejected": float((values[is_known] > limit).mean()),
                "area under the curve": float(roc_auc_score(~is_known, values)),
            },
        )


def drawn(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """True for the labelled images."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for name in np.unique(labels):
        chosen[rng.permutation(np.flatnonzero(labels == name))[:shots]] = True
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("answers", "rejection"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    weights = next((given.data / "weights").glob("mobilenet_v2*.pth"))
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}

    def add(title: str, name: str, result: dict[str, float]) -> None:
        rows.setdefault(title, {}).setdefault(name, []).append(result)

    photographs, ten, paths = encoded(given.data / "imagenette" / "images.csv", given.cache, weights)
    is_gallery = np.char.startswith(paths, "gallery")
    parts: Any = ((photographs[is_gallery], ten[is_gallery]), (photographs[~is_gallery], ten[~is_gallery]))
    for name, result in answers(*parts) if given.only != "rejection" else ():
        add("imagenette", name, result)
    vectors, labels, _ = encoded(given.data / "caltech101", given.cache, weights)
    for seed in range(given.seeds):
        for shots in (5, 10) if given.only != "rejection" else ():
            is_known = drawn(labels, shots, seed)
            parts = ((vectors[is_known], labels[is_known]), (vectors[~is_known], labels[~is_known]))
            for name, result in answers(*parts):
                add(f"caltech101, {shots} of each class", name, result)
            for name, result in by_support(*parts) if shots == 5 else ():
                add(f"caltech101, {shots} of each class", name, result)
        if given.only == "answers":
            continue
        half = np.random.default_rng(seed).permutation(np.unique(labels))[:50]
        is_known = drawn(labels, 10, seed) & np.isin(labels, half)
        parts = ((vectors[is_known], labels[is_known]), (vectors[~is_known], labels[~is_known]))
        for target in (0.01, 0.05, 0.1):
            for name, result in rejected(*parts, target):
                add("rejection, 50 of 101 classes known", name, result)
        for name, result in told_apart(*parts):
            add("50 of 101 classes known, 5 % of the unknown accepted", name, result)
        is_known = is_gallery & np.isin(ten, np.random.default_rng(seed).permutation(np.unique(ten))[:5])
        parts = ((photographs[is_known], ten[is_known]), (photographs[~is_gallery], ten[~is_gallery]))
        for name, result in rejected(*parts, 0.05):
            add("rejection, 5 of ImageNet's 10 classes known", name, result)
        for name, result in told_apart(*parts):
            add("5 of ImageNet's 10 classes known, 5 % of the unknown accepted", name, result)
    print(describe_machine())
    for title, methods in rows.items():
        print(f"\n{title}")
        for name, results in methods.items():
            cells = []
            for key in results[0]:
                values = [result[key] for result in results]
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                cells.append(f"{key} {np.mean(values):.3f}{spread}")
            print(f"  {name:30} {', '.join(cells)}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
