"""One self-contained HTML file about few-shot results: who is confused with whom, on which supports, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders import Encoder, Inference
from ..explain import fold
from ..explain.drawing.page import Thumbnails, numbers, write_html
from ..images import Box
from .classifiers import Classifier
from .evaluation import SupportSensitivity, support_quality
from .explanation import answers_of
from .results import EpisodeResult, ResultFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..datasets import Split

N_PAIRS, N_EXAMPLES, MOST_CLASSES, MOST_SUPPORTS = 15, 12, 40, 5
THUMBNAIL = 192  # longest side in pixels of an image in the report


def worst_failures(result: EpisodeResult, n: int = N_EXAMPLES) -> list[tuple[int, int]]:
    """Episode and query of the n wrong answers with the largest margins against them, every query image once."""
    wrong = np.argwhere(result.prediction != result.episodes.target)
    order = np.argsort(result.margin[tuple(wrong.T)], kind="stable")
    found: dict[int, tuple[int, int]] = {}
    for episode, query in wrong[order].tolist():
        found.setdefault(int(result.episodes.query[episode, query]), (episode, query))
    return list(found.values())[:n]


class Explainer:
    """The source of a report's images and maps: the images, the encoder that made the features, the classifiers.

    Without an encoder, and for results whose name is not among the classifiers, there are images without maps. With
    `features` by item only the wrongly answered queries are encoded again.
    """

    def __init__(
        self,
        split: Split,
        encoder: Encoder | None = None,
        classifiers: dict[str, Classifier] | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        features: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._split, self._classifiers, self._features = split, classifiers or {}, features
        self._row = {name: row for row, name in enumerate(split.names.tolist())}
        self._inference = None if encoder is None else Inference(encoder, device=device, precision=precision)

    def image(self, name: str) -> Image:
        """The image of an item."""
        return self._split.images[self._row[name]]

    def view(self, image: Image) -> Box:
        """The part of an image that the network sees, in its pixels."""
        return Box(0, 0, *image.size) if self._inference is None else self._inference.transform.view(*image.size)

    def explain(self, result: EpisodeResult, failure: tuple[int, int]) -> dict[str, Any] | None:
        """The maps of one wrong answer; None where there is no encoder or no exact map."""
        classifier = self._classifiers.get(str(result.classifier["name"]))
        if self._inference is None or classifier is None:
            return None
        episodes, (e, m) = result.episodes, failure
        # Only a transductive answer hangs on the other queries of the episode.
        items = episodes.query[e] if result.is_transductive else episodes.query[e, m : m + 1]
        row = m if result.is_transductive else 0
        support, query = (self._vectors(episodes.names[each.ravel()].tolist()) for each in (episodes.support[e], items))
        own = self._maps([str(episodes.names[episodes.query[e, m]])])
        query[row] = own[0].mean((-2, -1))
        answers = answers_of(classifier, support.view(episodes.n_way, episodes.n_shot, -1), query)
        if answers is None:
            return None
        answers = answers[row]
        true, won = int(episodes.target[e, m]), int(result.prediction[e, m])
        decision = answers.decision(own, torch.tensor([won]), torch.tensor([true]))
        heat, logits = answers.maps(own)[0], answers.logits()[0]
        difference = float(logits[won] - logits[true])
        return {
            "shape": list(own.shape[-2:]),
            "won": numbers(heat[won]),
            "true": numbers(heat[true]),
            "decision": numbers(decision.map[0]),
            "constant": float(decision.constant[0]),
            "difference": difference,
            "error": abs(float(decision.map[0].sum() + decision.constant[0]) - difference),
        }

    def _maps(self, names: Sequence[str]) -> Tensor:
        """Response maps, float64: the mean of a map is the embedding."""
        assert self._inference is not None
        encoder = self._inference.encoder
        encoding = self._inference.encode_images([self.image(name) for name in names])
        with torch.no_grad():
            response = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head)
        return response.map.to("cpu", torch.float64)

    def _vectors(self, names: Sequence[str]) -> Tensor:
        """Embeddings, float64, stored or made now."""
        if self._features is None:
            return self._maps(names).mean((-2, -1))
        return torch.from_numpy(np.stack([self._features[name] for name in names])).double()


def write_report(
    path: str | PathLike[str],
    results: ResultFile,
    *,
    explainer: Explainer | None = None,
    sensitivity: Mapping[str, Sequence[SupportSensitivity]] | None = None,
    title: str = "Few-shot results",
    notes: Sequence[str] = (),
    n_failures: int = N_EXAMPLES,
) -> Path:
    """Write results as one HTML file that needs nothing else: no network, no server, no further file.

    Without an explainer the worst failures of each method are listed by name. `sensitivity` holds redrawn supports by
    method, from `support_sensitivity`.
    """
    images = None if explainer is None else Thumbnails(explainer.view, side=THUMBNAIL)
    data = {
        "methods": [
            _method_data(result, explainer, images, n_failures, (sensitivity or {}).get(result.classifier["name"], ()))
            for result in results
        ],
        "n_classes": len(results.episodes.class_names),
        "images": images or {},
    }
    episodes = results.episodes
    queries = f"{episodes.n_query} queries per class" + ("" if episodes.is_balanced else " on average, unbalanced")
    known = {name: results.source.get(name) for name in ("data", "part")} | {"encoder": results.results[0].encoder}
    described = [
        *notes,
        f"{episodes.n_way}-way {episodes.n_shot}-shot, {queries}, {episodes.n_episodes:,} episodes of "
        f"{len(episodes.class_names)} classes and {len(episodes.names):,} images",
        f"manifest {episodes.content_hash}",
        ", ".join(f"{name} {value}" for name, value in known.items() if value),
    ]
    return write_html(path, "report.html", package=__package__, title=title, notes=described, data=data)


def _method_data(
    result: EpisodeResult,
    explainer: Explainer | None,
    images: Thumbnails | None,
    n_failures: int,
    sensitivity: Sequence[SupportSensitivity],
) -> dict[str, Any]:
    found = result.intervals()
    classes = sorted(result.per_class_accuracy().items(), key=lambda pair: (np.nan_to_num(pair[1], nan=2.0), pair[0]))
    quality = support_quality(result)
    ends = quality if len(quality) <= 16 else [*quality[:8], *quality[-8:]]
    names = result.episodes.class_names.tolist()
    hardest = sorted([name for name, _ in classes][:MOST_CLASSES], key=names.index)
    rows = [names.index(name) for name in hardest]
    share = result.confusion()[np.ix_(rows, rows)]
    return {
        "name": str(result.classifier["name"]),
        "setting": result.classifier["setting"],
        "encoder": result.encoder,
        "accuracy": result.mean_accuracy,
        "intervals": [asdict(each) for each in found],
        "has_jackknife": found.class_jackknife is not None,
        "classes": [[name, None if np.isnan(share) else share] for name, share in classes],
        "pairs": [list(pair) for pair in result.hardest_pairs(N_PAIRS)],
        "confusion": {
            "names": hardest,
            "share": [[None if np.isnan(v) else round(v, 4) for v in row] for row in share.tolist()],
            "met": result.meetings()[np.ix_(rows, rows)].tolist(),
        },
        "supports": [list(each) for each in ends],
        "n_supports": len(quality),
        "sensitivity": [each.to_dict() for each in sensitivity],
        "failures": [_failure_data(result, f, explainer, images) for f in worst_failures(result, n_failures)],
        "n_wrong": int((result.prediction != result.episodes.target).sum()),
        "n_asked": int(result.prediction.size),
    }


def _failure_data(
    result: EpisodeResult, failure: tuple[int, int], explainer: Explainer | None, images: Thumbnails | None
) -> dict[str, Any]:
    episodes, (e, m) = result.episodes, failure
    true, won = int(episodes.target[e, m]), int(result.prediction[e, m])

    def supports(way: int) -> list[str]:
        return [str(name) for name in episodes.names[episodes.support[e, way]][:MOST_SUPPORTS]]

    query = str(episodes.names[episodes.query[e, m]])
    shown = {"query": query, "support_true": supports(true), "support_won": supports(won)}
    if explainer is not None and images is not None:
        for name in (query, *shown["support_true"], *shown["support_won"]):
            if name not in images:
                images.add(name, explainer.image(name))
    return {
        **shown,
        "episode": e,
        "true": str(episodes.class_names[episodes.ways[e, true]]),
        "won": str(episodes.class_names[episodes.ways[e, won]]),
        "margin": float(result.margin[e, m]),
        "maps": None if explainer is None else explainer.explain(result, failure),
    }
