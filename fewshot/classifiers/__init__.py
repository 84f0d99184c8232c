"""Few-shot classifiers, and their names on the command line, in results and in reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from torch import Tensor

from ...errors import InputError
from .base import Centre, Classifier, FeatureTransform, L2Normalise, PowerTransform
from .methods import BDCSPN, FineTuned, NearestNeighbour, Prototypes, baseline, baseline_plus_plus, simple_shot

__all__ = [
    "BDCSPN",
    "METHODS",
    "Centre",
    "Classifier",
    "FeatureTransform",
    "FineTuned",
    "L2Normalise",
    "NearestNeighbour",
    "PowerTransform",
    "Prototypes",
    "baseline",
    "baseline_plus_plus",
    "classifier_of",
    "needs_base_mean",
    "simple_shot",
]

METHODS: dict[str, Callable[[Tensor | Centre | None], Classifier]] = {
    "proto": lambda _: Prototypes("l2", name="proto"),
    "proto-cosine": lambda _: Prototypes("cosine", name="proto-cosine"),
    "proto-power": lambda _: Prototypes("l2", transforms=(PowerTransform(),), name="proto-power"),
    "nn": lambda _: NearestNeighbour("l2", name="nn"),
    "nn-cosine": lambda _: NearestNeighbour("cosine", name="nn-cosine"),
    "simpleshot-un": lambda _: replace(simple_shot("UN"), name="simpleshot-un"),
    "simpleshot-l2n": lambda _: replace(simple_shot("L2N"), name="simpleshot-l2n"),
    "simpleshot-cl2n": lambda mean: replace(simple_shot("CL2N", mean=mean), name="simpleshot-cl2n"),
    "baseline": lambda _: baseline(),
    "baseline++": lambda _: baseline_plus_plus(),
    "bdcspn": lambda _: BDCSPN(name="bdcspn"),
}


def needs_base_mean(method: str) -> bool:
    """True if the method centres by the mean feature of the base classes."""
    return method == "simpleshot-cl2n"


def classifier_of(method: str, *, mean: Tensor | Centre | None = None) -> Classifier:
    """The classifier of that name, a key of `METHODS`; `mean` is for those that centre by the base classes' mean.

    Raises:
        InputError: an unknown name, or a mean is needed and not given.

    >>> classifier_of("proto-cosine").describe()["setting"]
    'inductive'
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise InputError(f"no few-shot method {method!r}; {hint}")
    if needs_base_mean(method) and mean is None:
        raise InputError(f"{method} needs the mean feature of the base classes, and this data has no base part")
    return METHODS[method](mean)
