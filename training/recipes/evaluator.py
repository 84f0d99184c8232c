"""Measures of an encoder in training: predictions, neighbours, and the place of its maps, split by split.

Metrics are called `SPLIT.METRIC`. Each measure of a map stands beside what a map that knows nothing would reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import field_validator
from torch import Tensor
from torch.nn.functional import normalize

from ...encoders import Encoder, Encoding
from ...encoders.layers import evaluating
from ...errors import InputError
from ...explain import dist_cam, fold, is_constant, rectify, upsample
from ...metrics.distances import SearchSpec, cluster, normalised_mutual_information
from ...metrics.localisation import energy_shares
from ...metrics.ranking import Pairing, RankMeasures, measure_rankings
from ..data.training_set import TrainingSet
from ..engine.step import HasClassWeights, is_right
from .tables import Count, Table, check_name

MAPS = ("caam", "cam", "gradcam", "dist_cam")
_RECALLS = {f"recall_at_{k}": k for k in (1, 2, 4, 8, 10, 100, 1000)}
_NEIGHBOURS = ("map_at_r", "r_precision", "nmi")
_PREDICTIONS = ("accuracy", "accuracy_top_5", "presence_accuracy")
METRICS = (
    *_PREDICTIONS,
    *_RECALLS,
    *_NEIGHBOURS,
    *(f"energy_{name}" for name in MAPS),
    *(f"peak_{name}" for name in MAPS),
)


class EvaluationSettings(Table):
    """Metrics of a finished run; while it lasts, only the one that `run.monitor` names."""

    # from `METRICS`. `accuracy`: of the classifier, see `is_right`; `accuracy_top_5`: the class is among its five
    # likeliest, of more. `presence_accuracy`: of images that show several classes, how often a logit above 0 is right
    # about a class being there, mean over the classes; and `presence_accuracy.CLASS` of each. `recall_at_k`: the
    # nearest k other images of the split hold one of the class. `map_at_r`, `r_precision`: over the images that have
    # another of their class. `nmi`: of k-means clusters, as many as classes. `energy_MAP`: share of the map on the
    # object's outline, beside `energy_chance`, the share of its area; `peak_MAP`: share of the images whose highest
    # pixel lies there. Maps: `caam`, the sum of the channels; `cam` of the own class; `gradcam`, its positive part;
    # `dist_cam` against the own class's prototype.
    metrics: tuple[str, ...] = ("accuracy", "recall_at_1")
    splits: tuple[str, ...] = ()  # which splits; all but "train" if empty
    distance: Literal["cosine", "l2"] = "cosine"  # between embeddings, for neighbours and prototypes
    batch_size: Count = 256  # images per forward pass

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            check_name("metric", name, METRICS)
        if not metrics:
            raise InputError("expected one metric or more")
        return metrics


class Evaluator:
    """Measures an encoder on some splits; `evaluator(encoder)` is what the loop wants of `evaluate`.

    Without a classifier metrics of predictions and maps are left out. `only` names metrics such as "test.accuracy".
    """

    def __init__(
        self,
        sets: Mapping[str, TrainingSet],
        settings: EvaluationSettings | None = None,
        *,
        classifier: HasClassWeights | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self._sets, self._settings = sets, settings or EvaluationSettings()
        self._classifier = classifier
        wanted = self._settings.splits or tuple(name for name in sets if name != "train")
        for name in wanted:
            check_name("split", name, sets)
        applicable = {split: [m for m in self._settings.metrics if self._applies(m, split)] for split in wanted}
        for metric in self._settings.metrics:
            if applicable and not any(metric in own for own in applicable.values()):
                if metric == "accuracy" and self._settings.metrics == EvaluationSettings().metrics:
                    others = all(sets[split].class_names != sets["train"].class_names for split in wanted)
                    if others and classifier is not None:
                        continue  # of unseen classes there is none, and nobody has asked for it
                raise InputError(f"the metric {metric!r} applies to none of the splits {', '.join(wanted)}: {_NEEDS}")
        self._wanted = applicable if only is None else self._named(only)

    def _named(self, only: Sequence[str]) -> dict[str, list[str]]:
        chosen: dict[str, list[str]] = {}
        for name in only:
            split, _, metric = name.partition(".")
            check_name("split", split, self._sets)
            check_name("metric", metric, METRICS)
            if not self._applies(metric, split):
                raise InputError(f"{name} cannot be measured: {_NEEDS}")
            chosen.setdefault(split, []).append(metric)
        return chosen

    def _applies(self, metric: str, split: str) -> bool:
        data, train = self._sets[split], self._sets["train"]
        knows_classes = self._classifier is not None and data.class_names == train.class_names
        if metric == "accuracy_top_5":
            return knows_classes and not data.is_multi_label and len(data.class_names) > 5
        if metric in _PREDICTIONS:
            return knows_classes and (metric == "accuracy" or data.is_multi_label)
        if metric in _RECALLS or metric in _NEIGHBOURS:
            return not data.is_multi_label
        outlined = data.regions is not None and len(data.regions.image) > 0
        if metric.endswith("cam") and not metric.endswith(("dist_cam", "caam")):
            return outlined and knows_classes
        return outlined and not (metric.endswith("dist_cam") and data.is_multi_label)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Every metric by its name; the encoder's modes are afterwards as they were."""
        results: dict[str, float] = {}
        with evaluating(encoder), torch.no_grad():
            for split, metrics in self._wanted.items():
                values = _Measured(self, encoder, split).values(metrics)
                results |= {f"{split}.{name}": value for name, value in values.items()}
        return results


_NEEDS = (
    "predictions and class maps need a classifier and its classes (the top five six or more, presence images that show "
    "several), neighbours one label per image, energies and peaks outlines of the objects"
)


class _Measured:
    """One split under one encoder; what several metrics need is computed once."""

    def __init__(self, evaluator: Evaluator, encoder: Encoder, split: str) -> None:
        self._encoder = encoder
        self._settings, self._classifier = evaluator._settings, evaluator._classifier
        self._data, self._train = evaluator._sets[split], evaluator._sets["train"]

    def values(self, metrics: Sequence[str]) -> dict[str, float]:
        results: dict[str, float] = {}
        maps = [name for name in MAPS if f"energy_{name}" in metrics or f"peak_{name}" in metrics]
        if maps:
            results |= self._energies(maps)
        for name in metrics:
            if name == "accuracy":
                results[name] = float(is_right(self._logits, self._data.labels).float().mean())
            elif name == "accuracy_top_5":
                own_logit = self._logits.gather(1, self._data.labels[:, None])  # a tie is lost, as in `is_right`
                results[name] = float(((self._logits >= own_logit).sum(1) <= 5).float().mean())
            elif name == "presence_accuracy":
                right = ((self._logits > 0) == (self._data.labels > 0)).float().mean(0)
                own = zip(self._data.class_names, right.tolist(), strict=True)
                results |= {name: float(right.mean()), **{f"{name}.{label}": value for label, value in own}}
            elif name in _RECALLS:
                results[name] = recall(self._ranked, _RECALLS[name])
            elif name == "nmi":
                vectors, labels = self._embeddings, self._data.labels.numpy()
                vectors = normalize(vectors) if self._settings.distance == "cosine" else vectors
                clusters = cluster(vectors.numpy(), len(np.unique(labels)), seed=0)
                results[name] = normalised_mutual_information(labels, clusters)
            elif name in _NEIGHBOURS:
                values = getattr(self._ranked, name)[self._ranked.n_relevant > 0]
                results[name] = float(values.mean()) if values.size else 0.0
        asked = (*metrics, *(["energy_chance"] if maps else []))
        return {key: results[key] for name in asked for key in results if key == name or key.startswith(f"{name}.")}

    @cached_property
    def _embeddings(self) -> Float[Tensor, "n d"]:
        return self._embedded(self._data)

    @cached_property
    def _logits(self) -> Float[Tensor, "n c"]:
        assert self._classifier is not None
        device = self._classifier.class_weights().device
        return self._classifier.logits(self._embeddings.to(device)).cpu()

    def _embedded(self, data: TrainingSet) -> Float[Tensor, "n d"]:
        everything = torch.arange(len(data))
        return torch.cat([encoding.embedding.cpu() for _, encoding in self._encoded(data, everything)])

    def _encoded(self, data: TrainingSet, index: Int[Tensor, " m"]) -> Iterator[tuple[Tensor, Encoding]]:
        """The encodings of some images, batch by batch, float32 on the encoder's device."""
        device = next((p.device for p in self._encoder.parameters()), torch.device("cpu"))
        for part in torch.split(index, self._settings.batch_size):
            yield part, self._encoder(self._encoder.transform.normalise(data.pixels(part).to(device)))

    @cached_property
    def _ranked(self) -> RankMeasures:
        return rank_among_others(self._embeddings, self._data.labels, self._settings.distance)

    def _energies(self, maps: Sequence[str]) -> dict[str, float]:
        """Energy and peak of each map on the outlines, averaged over the outlined objects."""
        regions = self._data.regions
        assert regions is not None
        energy, peak = (dict.fromkeys(maps, 0.0) for _ in range(2))
        chance = 0.0
        for part, encoding in self._encoded(self._data, torch.unique(regions.image)):
            own = regions.of(part)
            raster = own.raster.to(encoding.feature_map.device)
            for name in maps:
                shares, hits = energy_in_raster(self._heat(name, encoding, own.row, own.label), raster)
                energy[name] += float(shares.sum())
                peak[name] += float(hits.sum())
            chance += float(raster.mean((1, 2)).sum())
        count = len(regions.image)
        result = {f"energy_{name}": energy[name] / count for name in maps}
        result |= {f"peak_{name}": peak[name] / count for name in maps}
        return result | {"energy_chance": chance / count}

    def _heat(self, name: str, encoding: Encoding, row: Tensor, label: Tensor) -> Float[Tensor, "r h w"]:
        """One map per outline, from the rows and classes of a batch's outlines."""
        features = encoding.feature_map
        row = row.to(features.device)
        if name == "caam":
            return features.sum(1)[row]
        response = fold(features, pooling=self._encoder.pooling, head=self._encoder.head).map
        if name == "dist_cam":
            prototypes = self._prototypes[label, None].to(features.device)
            return dist_cam(response[row], prototypes, metric=self._settings.distance)[:, 0]
        assert self._classifier is not None
        response = features if getattr(self._classifier, "on", "embedding") == "pooled" else response
        weights = self._classifier.class_weights()
        heat = torch.einsum("rd,rdhw->rhw", weights[label.to(weights.device)].to(response), response[row])
        return rectify(heat) if name == "gradcam" else heat

    @cached_property
    def _prototypes(self) -> Float[Tensor, "c d"]:
        """Mean embedding of every class's training images; of the split's own if training has other classes."""
        same = self._data.class_names == self._train.class_names
        source, vectors = (self._train, self._embedded(self._train)) if same else (self._data, self._embeddings)
        count = source.per_class()[:, None].clamp(min=1)
        sums = torch.zeros(len(source.class_names), vectors.shape[1])
        return sums.index_add_(0, source.labels, vectors) / count


def energy_in_raster(
    maps: Float[Tensor, "r h w"], raster: Float[Tensor, "r rows columns"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Share of each map, scaled to [0, 1], inside its outline, and 1 where its highest pixel is.

    A constant map has the share of the area, and points nowhere.
    Source: Wang et al., Score-CAM, 2020 (energy-based pointing game); Zhang et al., 2016 (pointing game).
    """
    heat = upsample(maps, (raster.shape[-2], raster.shape[-1]))
    best = heat.flatten(1).argmax(1, keepdim=True)
    hits = raster.flatten(1).gather(1, best)[:, 0] * ~is_constant(heat)
    return energy_shares(heat, raster).to(heat), hits


def recall(ranked: RankMeasures, k: int) -> float:
    """Share of the images that have one of their class among the k nearest others; those without any are misses."""
    return float(((ranked.first_rank > 0) & (ranked.first_rank <= k)).mean())


def rank_among_others(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], distance: Literal["cosine", "l2"]
) -> RankMeasures:
    """Every image a query against all others; zero vectors, which have no direction, lie together."""
    vectors = embeddings.detach().cpu().double()
    if distance == "cosine":
        vectors = normalize(vectors)
    rows, classes = vectors.float().numpy(), labels.cpu().numpy()
    if not np.isfinite(rows).all():
        raise InputError("an embedding is NaN or infinite, so it has no neighbours; lower the learning rate")
    pairing = Pairing(classes, classes, np.arange(len(rows)))
    return measure_rankings(rows, rows, pairing, spec=SearchSpec(rows.shape[1], distance))
