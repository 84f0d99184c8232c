"""From a recipe's list of losses to an objective: every term by its kind, with its options.

Tasks bring terms of their own by passing a larger dictionary than `TERMS`; nothing is registered globally.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...encoders import Encoder
from ...encoders.weight_files import drawn_from
from ...errors import InputError
from ..engine.step import Objective, Term
from ..recipes.tables import check_name, check_options, keyword_options
from .cam_loss import CamLoss, NegativeCam
from .classifier import CenterTerm, ClassifierTerm
from .distillation import AttentionTransfer, Ccm, Distillation, Kd, Teacher
from .gain import Gain, MetricGain
from .metric import LOSSES, metric_term


@dataclass(frozen=True, eq=False)
class TermContext:
    """Everything that a term may need to know when it is built.

    Attributes:
        encoder: the one that is trained.
        class_names: in the order of the label indices.
        multi_label: labels are 0/1 columns, an image may show several classes.
        folder: what relative paths in a recipe start from.
        terms: the objective's terms so far, by name.
    """

    encoder: Encoder
    class_names: Sequence[str]
    multi_label: bool = False
    folder: Path = Path()
    terms: Mapping[str, Term] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def dim(self, on: str = "embedding") -> int:
        """Length of the vectors of a space, "embedding" or "pooled"."""
        return self.encoder.pooled_dim if on == "pooled" else self.encoder.embedding_dim


Builder = Callable[[Mapping[str, Any], TermContext], Term]


def build_objective(
    specs: Sequence[Mapping[str, Any]],
    context: TermContext,
    *,
    terms: Mapping[str, Builder] | None = None,
    seed: int = 0,
) -> Objective:
    """The weighted sum that a recipe's `[[loss]]` tables describe.

    Each table has `kind`, and may have `weight` (left out: the method's own, 3 for CAM-loss, else mostly 1) and `name`
    (left out: the kind); all other keys are options of the term. The weights a term starts from depend on `seed` and
    its name alone, so another term in the list does not change them; the global generator is left as it was.

    Raises:
        InputError: no table, an unknown kind or option (the nearest is named), or a name that is there twice.

    >>> from distcam.images import Transform
    >>> context = TermContext(Encoder.load("conv4", weights="random", transform=Transform(64)), ["cat", "dog"])
    >>> objective = build_objective([{"kind": "cross_entropy"}, {"kind": "triplet", "weight": 0.5}], context)
    >>> objective.weights
    {'cross_entropy': 1.0, 'triplet': 0.5}
    """
    registry = TERMS if terms is None else terms
    built: dict[str, Term] = {}
    weights: dict[str, float] = {}
    for spec in specs:
        options = dict(spec)
        kind = options.pop("kind", None)
        check_name("kind of loss", kind, registry)
        name, weight = str(options.pop("name", kind)), options.pop("weight", None)
        if name in built or "." in name:
            raise InputError(f"two losses are called {name!r}, or it holds a full stop; give each its own `name`")
        with drawn_from(zlib.crc32(f"{seed} {name}".encode())):
            built[name] = registry[str(kind)](options, replace(context, terms=dict(built)))
        weight = getattr(built[name], "default_weight", 1.0) if weight is None else weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"expected the weight of {name} as a number of at least 0, got {weight!r}")
        weights[name] = float(weight)
    device = next((p.device for p in context.encoder.parameters()), torch.device("cpu"))
    return Objective(built, weights).to(device)


def checked_term(kind: str, make: Callable[..., Term], options: Mapping[str, Any], **given: Any) -> Term:
    """The term, after every option has been found among the constructor's keywords."""
    check_options(kind, options, keyword_options(make) - given.keys())
    try:
        return make(**given, **options)
    except TypeError as error:
        raise InputError(f"{kind}: {dict(options)} cannot be used as options ({error})") from error


def _metric(kind: str, options: Mapping[str, Any], context: TermContext) -> Term:
    dim = context.dim(str(options.get("on", "embedding")))
    return metric_term(kind, dim=dim, n_classes=context.n_classes, options=options)


def made(kind: str, make: Callable[..., Term]) -> Builder:
    """Builder of a term from its options, and from the context where its constructor asks for what is known there."""
    names = inspect.signature(make).parameters

    def build(options: Mapping[str, Any], context: TermContext) -> Term:
        on = str(options.get("on", names["on"].default if "on" in names else "embedding"))
        known = {
            "dim": context.dim(on),
            "n_classes": context.n_classes,
            "multi_label": context.multi_label,
            "transform": context.encoder.transform,
        }
        return checked_term(kind, make, options, **{name: known[name] for name in known if name in names})

    return build


def _distillation(kind: str, make: Callable[..., Term], options: Mapping[str, Any], context: TermContext) -> Term:
    """A term with `teacher`, and `classifier` if it lies elsewhere than beside the teacher's checkpoint."""
    own = {key: value for key, value in options.items() if key not in ("teacher", "classifier")}
    check_options(kind, own, keyword_options(make) | {"teacher", "classifier"})
    if "teacher" not in options:
        raise InputError(f'{kind} needs a teacher: teacher = "RUN/encoder.safetensors"')
    path = context.folder / str(options["teacher"])
    classifier = context.folder / str(options["classifier"]) if "classifier" in options else None
    # the same teacher in an earlier term looks at a batch once
    teachers = [term.teacher for term in context.terms.values() if isinstance(term, Distillation)]
    known = next((t for t in teachers if t.path == path and classifier in (None, t.classifier_path)), None)
    teacher = known or Teacher(path, classifier, class_names=context.class_names, transform=context.encoder.transform)
    return checked_term(kind, partial(make, teacher), own)


TERMS: Mapping[str, Builder] = {
    "cross_entropy": made("cross_entropy", ClassifierTerm),
    "center": made("center", CenterTerm),
    **{kind: partial(_metric, kind) for kind in LOSSES},
    "cam_loss": made("cam_loss", CamLoss),
    "negative_cam": made("negative_cam", NegativeCam),
    "gain": made("gain", Gain),
    "metric_gain": made("metric_gain", MetricGain),
    "ccm": partial(_distillation, "ccm", Ccm),
    "attention_transfer": partial(_distillation, "attention_transfer", AttentionTransfer),
    "kd": partial(_distillation, "kd", Kd),
}
