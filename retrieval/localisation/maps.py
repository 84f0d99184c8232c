"""The maps of a localisation table: Dist-CAM's weightings, CAM, gradient methods, and floors that know nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...encoders import Encoder, Encoding
from ...encoders.heads import IdentityHead
from ...encoders.layers import closest
from ...errors import InputError, MissingExtraError
from ...explain import METHODS, Similarity, channel_weights, dist_cam, explain_image, fold, ratio_maps
from ...explain.layer_runs import undisturbed
from ...explain.weightings import MEANS, WEIGHTINGS, Weighting
from ...metrics import Metric
from .classifiers import LinearClassifier, linear_probe
from .references import ReferenceKind, References

Kind = Literal["weighting", "shares", "classifier", "probe", "gradient", "torchcam", "floor"]

DEFAULT_METHODS = (
    "cam",
    "cam_probe",
    "root_ratio",
    "dist@tau=0",
    "dist@tau=0.1",
    "dist",
    "dist*s",
    "dist*excess",
    "log_ratio",
    "dot",
    "dot_centered",
    "gradcam_cos",
    "gradcam++",
    "layercam",
    "hirescam",
)
FLOORS = ("caam", "random", "centre", "full")  # in every table, asked for or not
SHARES = "q*s"  # SFAM, arXiv:2506.01636: a channel weighs what it adds to the similarity
_CLASSIFIERS: dict[str, Kind] = {"cam": "classifier", "cam_probe": "probe", SHARES: "shares"}
_TORCHCAM = "torchcam:"  # a class of `torchcam.methods`, asked for the similarity
_CLOSED = {"cam", "caam", "distcam"}  # methods of `explain_image` that have a row of their own


@dataclass(frozen=True)
class MapMethod:
    """A row of the table: its name, what kind of map it is, and the options of that kind."""

    name: str
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)


def parse_methods(names: Sequence[str]) -> tuple[MapMethod, ...]:
    """The methods of these names, each once, and the floors after them.

    A weighting may carry its softness, as in "dist@tau=0.1"; "dist@tau=0" is the paper's formula to the letter. What
    `root_ratio` takes off stands behind it likewise, see `Surroundings`: "root_ratio@mean=max"; left out it is chosen.

    >>> [method.name for method in parse_methods(["dist@tau=0", "hirescam"])]
    ['dist@tau=0', 'hirescam', 'caam', 'random', 'centre', 'full']
    """
    gradient: dict[str, Kind] = {method: "gradient" for method in METHODS if method not in _CLOSED}
    kinds: dict[str, Kind] = {**_CLASSIFIERS, **dict.fromkeys(FLOORS, "floor"), **gradient}
    methods = []
    for name in dict.fromkeys([*names, *FLOORS]):
        base, _, option = name.partition("@")
        if base == "root_ratio" and option.removeprefix("mean=") in MEANS:
            methods.append(MapMethod(name, "weighting", {"mean": option.removeprefix("mean=")}))
        elif base in WEIGHTINGS:
            key, _, value = option.partition("=")
            if option and (key != "tau" or not re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", value)):
                raise InputError(f"method {name!r}: expected `@tau=NUMBER` with a number of 0 or more")
            methods.append(MapMethod(name, "weighting", {"tau": float(value)} if option else {}))
        elif name in kinds:
            methods.append(MapMethod(name, kinds[name]))
        elif name.startswith(_TORCHCAM):
            methods.append(MapMethod(name, "torchcam", {"extractor": _extractor(name.removeprefix(_TORCHCAM))}))
        else:
            nearest = closest(base, [*WEIGHTINGS, *kinds])
            raise InputError(f"no method {name!r}, nearest: {nearest}; a weighting may end in @tau=NUMBER")
    return tuple(methods)


@dataclass(frozen=True, eq=False)
class MapMaker:
    """Everything that turns images and questions into maps."""

    encoder: Encoder
    methods: tuple[MapMethod, ...]
    references: References
    reference: ReferenceKind
    classifiers: Mapping[Kind, LinearClassifier]
    generator: torch.Generator

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        names: Sequence[str] | None,
        references: References,
        classifier: LinearClassifier | None,
        generator: torch.Generator,
        *,
        reference: ReferenceKind = "prototypes",
        strict: bool = False,
    ) -> MapMaker:
        """Of the methods named, or `DEFAULT_METHODS`; "cam" needs the network's own classifier."""
        if names is None:
            names = [name for name in DEFAULT_METHODS if name != "cam" or classifier is not None]
        methods, classifiers = parse_methods(names), dict[Kind, LinearClassifier]()
        kinds = {method.kind for method in methods}
        if "classifier" in kinds and classifier is None:
            raise InputError(
                "`cam` needs the network's own classifier behind average pooling, and these weights have none for this "
                "layer; use `cam_probe`, which is learnt on the references"
            )
        if "classifier" in kinds and classifier is not None:
            classifiers["classifier"] = classifier.for_references(references, strict=strict)
        if "probe" in kinds:
            classifiers["probe"] = linear_probe(references)
        return cls(encoder, methods, references, reference, classifiers, generator)

    def maps(self, encoding: Encoding, pixels: Tensor, references: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Raw maps (b, m, rows, columns) by method, in the order of `methods`."""
        pooled = fold(encoding.feature_map, pooling=self.encoder.pooling, head=IdentityHead()).map
        response = fold(encoding.feature_map, pooling=self.encoder.pooling, head=self.encoder.head).map
        made = {}
        for method in self.methods:
            if method.kind == "weighting":
                made[method.name] = self._weighted(method, response, references)
            elif method.kind == "floor":
                made[method.name] = self._floor(response, method.name, classes.shape[1], pixels)
            elif method.kind == "shares":
                query = response.mean((-2, -1))
                weights = channel_weights(query, references, metric=self.references.metric, weighting="dot")
                made[method.name] = torch.einsum("bmk,bk,bkhw->bmhw", weights, query, response)
            elif method.kind == "gradient":
                weight = next(self.encoder.parameters())
                images = self.encoder.transform.normalise(pixels.to(weight.device))
                target = Similarity(references.to(weight.device), metric=self.references.metric)
                found = explain_image(self.encoder, images, target=target, method=method.name)
                made[method.name] = found.maps.to(references.device)
            elif method.kind == "torchcam":
                made[method.name] = self._torchcams(pixels, references, **method.options)
            else:
                weights = self.classifiers[method.kind].weight[classes]
                made[method.name] = torch.einsum("bmk,bkhw->bmhw", weights, pooled)
        return made

    def _torchcams(self, pixels: Tensor, references: Tensor, *, extractor: Any) -> Tensor:
        device, made = next(self.encoder.parameters()).device, []
        images = self.encoder.transform.normalise(pixels.to(device))
        with undisturbed(self.encoder), torch.enable_grad():
            for image, own in zip(images, references.to(device), strict=True):
                network = _Similarities(self.encoder, own[None], self.references.metric)
                for question in range(len(own)):
                    with extractor(network, target_layer="encoder.backbone") as maps:
                        scores = network(image[None].requires_grad_())
                        made.append(maps(question, scores, normalized=False)[0][0].detach())
        return torch.stack(made).reshape(*references.shape[:2], *made[0].shape).to(references.device)

    def _weighted(self, method: MapMethod, response: Tensor, references: Tensor) -> Tensor:
        weighting, around = cast(Weighting, method.name.partition("@")[0]), self.references.surroundings
        metric = self.references.metric
        if weighting == "root_ratio":
            is_class = self.reference == "prototypes"
            return ratio_maps(response, references, around, metric=metric, is_class=is_class, **method.options).maps
        return dist_cam(response, references, metric=metric, weighting=weighting, mean=around.mean, **method.options)

    def _floor(self, response: Tensor, name: str, questions: int, pixels: Tensor) -> Tensor:
        b, _, height, width = response.shape
        if name == "caam":
            return dist_cam(response, response.mean((-2, -1))[:, None], weighting="caam").expand(-1, questions, -1, -1)
        if name == "random":  # another one for each question: it depends on nothing
            return torch.rand(b, questions, height, width, generator=self.generator).to(response.device)
        size = (pixels.shape[-2], pixels.shape[-1])
        flat = torch.ones(size)
        if name == "centre":  # a pyramid, 1 in the middle: at threshold t its box is centred and has 1 - t of the sides
            rows, columns = (1 - (2 * (torch.arange(n) + 0.5) / n - 1).abs() for n in size)
            flat = torch.minimum(rows[:, None], columns)
        return flat.to(response.device).expand(b, questions, *size)


def _extractor(name: str) -> Any:
    """A class of torchcam by name."""
    try:
        from torchcam import methods
    except ImportError as error:
        raise MissingExtraError("maps of torchcam need the package torchcam: pip install 'distcam[bench]'") from error
    found = getattr(methods, name, None)
    if not isinstance(found, type):
        known = [kind for kind in vars(methods) if kind.endswith("CAM")]
        raise InputError(f"torchcam has no {name!r}, nearest: {closest(name, known)}")
    return found


class _Similarities(nn.Module):
    """An encoder whose output are similarities to references, as a network that torchcam can ask for a class."""

    def __init__(self, encoder: Encoder, references: Tensor, metric: Metric) -> None:
        super().__init__()
        self.encoder = encoder
        self.target = Similarity(references, metric=metric)

    def forward(self, images: Tensor) -> Tensor:
        encoding = self.encoder(images)
        return self.target.fix(encoding)(encoding, torch.arange(len(images)))
