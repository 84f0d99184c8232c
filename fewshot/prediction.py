"""Classes of new images by a few labelled ones: no gallery, no episodes, and confidence calibrated on the support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..metrics.prediction import Calibration, ClassEvidence, Codes
from ..remarks import remark
from .classifiers import Classifier
from .explanation import Answers, answers_of
from .methods import NearestNeighbour, Prototypes

MOST_FOLDS = 20


@dataclass(frozen=True, eq=False)
class Support:
    """A classifier with the labelled vectors (k, d) of each class; k may differ among them.

    Prototypes are means of all of a class's images, and the nearest neighbour is looked for among all. For other
    classifiers, which need equally many, the images of smaller classes are repeated in turn.
    """

    classifier: Classifier
    ways: tuple[Float[Tensor, "_ d"], ...]

    def __post_init__(self) -> None:
        if len(self.ways) < 2:
            raise InputError(f"expected support of at least two classes, got {len(self.ways)}")

    def say_repeats(self, *, strict: bool = False) -> None:
        """Remark on classes of different sizes where that matters to the classifier."""
        sizes = sorted(map(len, self.ways))
        if sizes[0] < sizes[-1] and not isinstance(self.classifier, Prototypes | NearestNeighbour):
            name = self.classifier.name
            remark(
                f"classes have {sizes[0]} to {sizes[-1]} images, and {name} takes equally many: those of smaller "
                "classes are repeated",
                strict=strict,
            )

    def logits(self, query: Float[Tensor, "m d"]) -> Float[Tensor, "m n"]:
        """One number per image and class, the largest wins.

        Raises:
            InputError: one image alone for a classifier that compares it with the others.
        """
        if self.classifier.is_transductive and len(query) < 2:
            raise InputError(
                f"{self.classifier.name} judges an image by the others that are asked with it, and one alone is as "
                "near to every class; ask about several, or take an inductive method such as proto"
            )
        prepared = self.classifier.prepare(torch.cat([*self.ways, query]))
        *ways, query = torch.split(prepared, [*map(len, self.ways), len(query)])
        is_mean = isinstance(self.classifier, Prototypes)
        support = torch.stack([way.mean(0, keepdim=True) for way in ways]) if is_mean else torch.stack(_level(ways))
        return self.classifier.logits(support[None], query[None])[0]

    def answers(self, query: Float[Tensor, "m d"]) -> Answers | None:
        """The answers that maps are made of; None where no map is exact."""
        return answers_of(
            self.classifier, self.ways if isinstance(self.classifier, Prototypes) else _level(self.ways), query
        )

    def nearest(self, query: Float[Tensor, " d"], way: int) -> int:
        """The place of a class's image that is nearest to another image, by the classifier's metric or by cosine."""
        if getattr(self.classifier, "metric", "cosine") == "l2":
            return int((self.ways[way] - query).square().sum(1).argmin())
        return int(torch.cosine_similarity(self.ways[way], query[None]).argmax())

    def evidence(self, query: Float[Tensor, "m d"]) -> ClassEvidence:
        """The logits as evidence for a calibration."""
        return _evidence(self.logits(query))

    def calibration(self) -> Calibration:
        """The calibration on the support: one image of every class that has more is asked, by the others; in turn."""
        logits, truth = [], []
        for fold in range(min(MOST_FOLDS, max(map(len, self.ways)))):
            asked = [number for number, way in enumerate(self.ways) if len(way) > max(1, fold)]
            if not asked or (self.classifier.is_transductive and len(asked) < 2):
                break
            rest = [
                way[torch.arange(len(way)) != fold] if number in asked else way for number, way in enumerate(self.ways)
            ]
            query = torch.stack([self.ways[number][fold] for number in asked])
            logits.append(Support(self.classifier, tuple(rest)).logits(query))
            truth += asked
        found = torch.cat(logits) if logits else torch.empty(0, len(self.ways))
        source = f"{len(truth)} support images, each by the others" if truth else "one image per class"
        codes: Codes = np.array(truth, np.int64)
        return Calibration.fit(_evidence(found), codes, by="prototypes", weighting="uniform", source=source)


def _evidence(logits: Tensor) -> ClassEvidence:
    none = np.empty((len(logits), 0))
    return ClassEvidence(none.astype(np.int64), none, -logits.double().cpu().numpy())


def _level(ways: Sequence[Tensor]) -> list[Tensor]:
    """Equally many vectors of every class."""
    most = max(map(len, ways))
    return [way[torch.arange(most) % len(way)] for way in ways]
