"""The registry of terms: every kind builds, weights are the methods' own, and unknown names point to the nearest."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distcam.training.losses.registry as terms
from distcam.encoders import Encoder
from distcam.encoders.heads import BNNeck, Linear
from distcam.errors import InputError
from distcam.images import Transform
from distcam.training.engine.step import Batch, Step, Term, TrainingProgress
from distcam.training.losses.classifier import ClassifierTerm, save_classifier
from distcam.training.losses.registry import TERMS, TermContext, build_objective

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
LATE = ("cam_loss", "negative_cam", "gain", "metric_gain")
TAUGHT = ("ccm", "kd", "attention_transfer")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> TermContext:
    folder = tmp_path_factory.mktemp("teacher")
    encoder = Encoder.load("conv4", weights="random", transform=Transform(48), seed=2)
    encoder.save(folder / "encoder.safetensors")
    classifier = ClassifierTerm(64, 3)
    save_classifier(folder / "classifier.safetensors", classifier, "abc", fingerprint=encoder.fingerprint)
    return TermContext(Encoder.load("conv4", weights="random", transform=Transform(48)), tuple("abc"), folder=folder)


def spec(kind: str) -> dict[str, Any]:
    late = {"start": 0} if kind in LATE else {}
    return {"kind": kind} | late | ({"teacher": "encoder.safetensors"} if kind in TAUGHT else {})


def step_of(encoder: Encoder, labels: Tensor = LABELS) -> Step:
    images = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return Step(encoder.train(), Batch(images, labels, torch.arange(6)), TrainingProgress(0, 1, 0))


@pytest.mark.parametrize("kind", sorted(TERMS))
def test_every_kind_takes_a_step_beside_a_classifier(kind: str, context: TermContext) -> None:
    first = [] if kind == "cross_entropy" else [{"kind": "cross_entropy"}]
    objective = build_objective([*first, spec(kind)], context)
    context.encoder.zero_grad()
    losses = objective(step_of(context.encoder))
    losses.total.backward()
    assert losses.total.isfinite()
    assert set(losses.terms) == {"cross_entropy", kind}
    assert all(isinstance(value, Tensor) for value in objective.state_dict().values())
    gradients = [p.grad for p in context.encoder.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


def test_weights_left_out_are_the_methods_own(context: TermContext) -> None:
    kinds = ["cross_entropy", "cam_loss", "center", "ccm", "kd", "attention_transfer", "gain"]
    objective = build_objective([spec(kind) for kind in kinds], context)
    assert list(objective.weights.values()) == [1.0, 3.0, 5e-4, 1.0, 0.5, 10.0, 1.0]
    assert build_objective([{"kind": "cross_entropy", "weight": 2}], context).weights == {"cross_entropy": 2.0}


def test_two_terms_of_a_kind_have_names(context: TermContext) -> None:
    both = [{"kind": "triplet"}, {"kind": "triplet", "name": "before the head", "on": "pooled"}]
    assert list(build_objective(both, context).weights) == ["triplet", "before the head"]
    with pytest.raises(InputError, match="two losses are called 'triplet'"):
        build_objective([{"kind": "triplet"}, {"kind": "triplet"}], context)


def test_what_a_term_starts_from_depends_on_seed_and_name_alone(context: TermContext) -> None:
    before = torch.get_rng_state()
    alone = build_objective([{"kind": "cross_entropy"}], context, seed=1).classifier
    after_others = build_objective([spec("proxy_anchor"), spec("center"), spec("cross_entropy")], context, seed=1)
    again = build_objective([{"kind": "cross_entropy"}], context, seed=2).classifier
    weights = after_others.terms["cross_entropy"].class_weights()
    assert torch.equal(alone.class_weights(), weights)
    assert not torch.equal(alone.class_weights(), again.class_weights())
    assert torch.equal(torch.get_rng_state(), before)


def test_terms_of_the_embedding_and_before_the_head_have_the_right_width() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(48), head=Linear(64, 8))
    here = TermContext(encoder, tuple("abc"))
    specs = [spec("cross_entropy"), spec("center"), spec("metric_gain"), {"kind": "arcface", "on": "pooled"}]
    objective = build_objective(specs, here)
    assert objective.terms["cross_entropy"].weight.shape == (3, 8)
    assert objective.terms["center"].centers.shape == (3, 64)
    assert objective.terms["metric_gain"].prototypes.shape == (3, 8)
    assert objective.terms["arcface"].loss.W.shape == (64, 3)
    assert objective(step_of(encoder)).total.isfinite()


def test_the_strong_baseline_of_re_identification() -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(48), head=BNNeck(64))
    specs = [
        {"kind": "cross_entropy", "bias": False, "label_smoothing": 0.1},
        {"kind": "batch_hard_triplet", "on": "pooled"},
        {"kind": "center"},
    ]
    objective = build_objective(specs, TermContext(encoder, tuple("abc")))
    losses = objective(step_of(encoder))
    losses.total.backward()
    sum_by_hand = losses.terms["cross_entropy"] + losses.terms["batch_hard_triplet"] + 5e-4 * losses.terms["center"]
    assert float(losses.total.detach()) == pytest.approx(sum_by_hand, rel=1e-5)
    assert next(encoder.head.parameters()).grad is not None


def test_several_labels_per_image(context: TermContext) -> None:
    several = TermContext(context.encoder, context.class_names, multi_label=True)
    kinds = ("cross_entropy", "cam_loss", "negative_cam", "gain", "metric_gain")
    objective = build_objective([spec(kind) for kind in kinds], several)
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]])
    assert objective(step_of(several.encoder, labels)).total.isfinite()


def test_terms_with_the_same_teacher_share_it(context: TermContext) -> None:
    objective = build_objective([spec("cross_entropy"), *(spec(kind) for kind in TAUGHT)], context)
    assert len({id(objective.terms[kind].teacher) for kind in TAUGHT}) == 1


def test_a_registry_from_elsewhere_adds_its_own(context: TermContext) -> None:
    class Constant(Term):
        def forward(self, step: Step) -> Tensor:
            return step.encoding.pooled.sum() * 0 + 5

    def build(options: Mapping[str, Any], given: TermContext) -> Term:
        assert set(given.terms) == {"cross_entropy"}
        assert options == {"colour": "red"}
        return Constant()

    more = {**TERMS, "constant": build}
    specs = [{"kind": "cross_entropy"}, {"kind": "constant", "colour": "red", "weight": 0.5}]
    objective = build_objective(specs, context, terms=more)
    assert objective(step_of(context.encoder)).terms["constant"] == 5
    assert "constant" not in TERMS


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"kind": "cam_los"}, "unknown kind of loss 'cam_los', nearest is 'cam_loss'"),
        ({"weight": 1.0}, "unknown kind of loss None"),
        ({"kind": "cam_loss", "strat": 3}, "unknown option of cam_loss 'strat', nearest is 'start'"),
        ({"kind": "gain", "sigm": 0.5}, "unknown option of gain 'sigm', nearest is 'sigma'"),
        ({"kind": "cross_entropy", "multi_label": True}, "unknown option of cross_entropy 'multi_label'"),
        ({"kind": "arcface", "num_classes": 3}, "unknown option of arcface 'num_classes'"),
        ({"kind": "kd"}, 'kd needs a teacher: teacher = "RUN/encoder.safetensors"'),
        ({"kind": "kd", "techer": "x"}, "unknown option of kd 'techer', nearest is 'teacher'"),
        ({"kind": "triplet", "weight": -1}, "weight of triplet as a number of at least 0, got -1"),
        ({"kind": "triplet", "weight": "3"}, "got '3'"),
        ({"kind": "triplet", "name": "a.b"}, "holds a full stop"),
        ({"kind": "center", "rate": "fast", "on": "pool"}, "unknown space 'pool', nearest is 'pooled'"),
    ],
)
def test_a_recipe_that_is_wrong_is_told_what_is_right(given: dict[str, Any], match: str, context: TermContext) -> None:
    with pytest.raises(InputError, match=match):
        build_objective([given], context)


def test_an_objective_without_losses_is_refused(context: TermContext) -> None:
    with pytest.raises(InputError, match="at least one term"):
        build_objective([], context)


def test_the_example_of_an_objective_holds() -> None:
    result = doctest.testmod(terms, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_a_missing_teacher_is_an_error_of_ours(context: TermContext, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        build_objective([{"kind": "kd", "teacher": str(tmp_path / "none.safetensors")}], context)
