"""The maps of a localisation table: Dist-CAM's weightings, CAM, gradient methods, and floors that know nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ...encoders import Encoder, Encoding
from ...encoders.heads import Identity
from ...encoders.layers import closest
from ...errors import InputError
from ...explain import METHODS, WEIGHTINGS, Similarity, Weighting, dist_cam, explain_image, fold
from ...metrics.distances import Metric
from .references import LinearClassifier

__all__ = ["FLOORS", "MapMaker", "MapMethod", "parse_methods"]

Kind = Literal["weighting", "classifier", "probe", "gradient", "floor"]

FLOORS = ("caam", "random", "centre", "full")  # in every table, asked for or not
_CLASSIFIERS: dict[str, Kind] = {"cam": "classifier", "cam_probe": "probe"}
_CLOSED = {"cam", "caam", "distcam"}  # methods of `explain_image` that have a row of their own


@dataclass(frozen=True)
class MapMethod:
    """A row of the table: its name, what kind of map it is, and the options of that kind."""

    name: str
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def weighting(self) -> str:
        """The name without its options."""
        return self.name.partition("@")[0]


def parse_methods(names: Sequence[str]) -> tuple[MapMethod, ...]:
    """The methods of these names, each once, and the floors after them.

    A weighting may carry its softness, as in "dist@tau=0.1"; "dist@tau=0" is the paper's formula to the letter.

    Raises:
        InputError: a name that is not known; the message holds the nearest.

    >>> [method.name for method in parse_methods(["dist@tau=0", "hirescam"])]
    ['dist@tau=0', 'hirescam', 'caam', 'random', 'centre', 'full']
    """
    return tuple(_parse(name) for name in dict.fromkeys([*names, *FLOORS]))


def _parse(name: str) -> MapMethod:
    base, _, option = name.partition("@")
    if base in WEIGHTINGS:
        return MapMethod(name, "weighting", {"tau": _tau(name, option)} if option else {})
    if not option and base in FLOORS:
        return MapMethod(name, "floor")
    if not option and base in _CLASSIFIERS:
        return MapMethod(name, _CLASSIFIERS[base])
    if not option and base in METHODS and base not in _CLOSED:
        return MapMethod(name, "gradient")
    known = [*WEIGHTINGS, *_CLASSIFIERS, *FLOORS, *(method for method in METHODS if method not in _CLOSED)]
    raise InputError(f"no method {name!r}, nearest: {closest(base, known)}; a weighting may end in @tau=NUMBER")


def _tau(name: str, option: str) -> float:
    key, _, value = option.partition("=")
    try:
        tau = float(value)
    except ValueError:
        tau = math.nan
    if key != "tau" or not (math.isfinite(tau) and tau >= 0):
        raise InputError(f"method {name!r}: expected `@tau=NUMBER` with a number of 0 or more")
    return tau


@dataclass(frozen=True, eq=False)
class MapMaker:
    """Everything that turns images and questions into maps."""

    encoder: Encoder
    methods: tuple[MapMethod, ...]
    metric: Metric
    mean: Tensor
    classifiers: Mapping[Kind, LinearClassifier]
    generator: torch.Generator

    def maps(self, encoding: Encoding, pixels: Tensor, references: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Raw maps (b, m, rows, columns) by method, in the order of `methods`."""
        pooled = fold(encoding.feature_map, pooling=self.encoder.pooling, head=Identity()).map
        response = fold(encoding.feature_map, pooling=self.encoder.pooling, head=self.encoder.head).map
        made = {}
        for method in self.methods:
            if method.kind == "weighting":
                made[method.name] = self._weighted(response, references, method)
            elif method.kind == "floor":
                made[method.name] = self._floor(response, method.name, classes.shape[1])
            elif method.kind == "gradient":
                made[method.name] = self._gradient(pixels, references, method.name)
            else:
                made[method.name] = self._of_classifier(pooled, classes, method)
        return made

    def _weighted(self, response: Tensor, references: Tensor, method: MapMethod) -> Tensor:
        weighting = cast(Weighting, method.weighting)
        return dist_cam(response, references, metric=self.metric, weighting=weighting, mean=self.mean, **method.options)

    def _of_classifier(self, pooled: Tensor, classes: Tensor, method: MapMethod) -> Tensor:
        weights = self.classifiers[method.kind].weight[classes]
        return torch.einsum("bmk,bkhw->bmhw", weights, pooled)

    def _gradient(self, pixels: Tensor, references: Tensor, name: str) -> Tensor:
        weight = next(self.encoder.parameters())
        images = self.encoder.transform.normalise(pixels.to(weight.device))
        target = Similarity(references.to(weight.device), metric=self.metric)
        return explain_image(self.encoder, images, target=target, method=name).maps.to(references.device)

    def _floor(self, response: Tensor, name: str, questions: int) -> Tensor:
        b, _, rows, columns = response.shape
        if name == "caam":
            return dist_cam(response, response.mean((-2, -1))[:, None], weighting="caam").expand(-1, questions, -1, -1)
        if name == "random":  # another one for each question: it depends on nothing
            return torch.rand(b, questions, rows, columns, generator=self.generator).to(response.device)
        size = (self.encoder.transform.height, self.encoder.transform.width)
        flat = _pyramid(size) if name == "centre" else torch.ones(size)
        return flat.to(response.device).expand(b, questions, *size)


def _pyramid(size: tuple[int, int]) -> Tensor:
    """1 in the middle, falling to 0 at the edges: at threshold t its box is centred and has 1 - t of the sides."""
    rows, columns = (1 - (2 * (torch.arange(n) + 0.5) / n - 1).abs() for n in size)
    return torch.minimum(rows[:, None], columns)
