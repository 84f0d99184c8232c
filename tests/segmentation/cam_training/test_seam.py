"""SEAM: two views, what they are compared by, and who learns from it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.segmentation.cam_training.class_maps import class_maps, scaled_maps
from distcam.segmentation.cam_training.map_term import Seam, SeamSettings
from distcam.segmentation.cam_training.training import SEGMENTATION_TERMS
from distcam.training import Batch, Step, TrainingProgress
from distcam.training.losses.registry import TermContext, build_objective


@pytest.fixture
def encoder() -> Encoder:
    return Encoder.load(
        "conv4", weights="random", options={"width": 8, "last_pool": False}, transform=Transform(64), seed=1
    )


def make_step(encoder: Encoder, *, epoch: int = 0) -> Step:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return Step(encoder, Batch(images, labels, torch.arange(3)), TrainingProgress(epoch=epoch, epochs=5, step=0))


def make_term(encoder: Encoder, **options: object) -> Seam:
    torch.manual_seed(0)
    term = Seam(encoder, 2, SeamSettings(scale=0.5, **options))
    torch.nn.init.normal_(term.weight)
    return term


def test_er_is_the_difference_of_the_reduced_map_and_the_reduced_image_s_map(encoder: Encoder) -> None:
    step, term = make_step(encoder), make_term(encoder)
    term(step)
    images, labels = step.batch.images, step.batch.labels
    small = functional.interpolate(images, (32, 32), mode="bilinear")
    one, two = (scaled_maps(class_maps(encoder(x).feature_map, term.weight), labels) for x in (images, small))
    expected = (functional.avg_pool2d(one, 2) - two).abs().mean()
    assert step.log["er"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_value_is_the_sum_of_its_parts_and_ecr_alone_trains_the_refinement_only(encoder: Encoder) -> None:
    step, term = make_step(encoder), make_term(encoder)
    value = term(step)
    assert value.item() == pytest.approx(float(step.log["cls"] + step.log["er"] + step.log["ecr"]), rel=1e-5)
    value.backward()
    with_all = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    make_term(encoder, ecr=False)(make_step(encoder)).backward()
    for gradient, parameter in zip(with_all, encoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert all(p.grad is not None for p in term.refinement.parameters())


def test_with_prcm_the_refinement_has_both_parts(encoder: Encoder) -> None:
    assert make_term(encoder).refinement.prcm is None
    assert make_term(encoder, prcm=True).refinement.prcm is not None


def test_batch_norms_can_be_kept_to_the_whole_images(encoder: Encoder) -> None:
    seen = {}
    for way in ("separate", "original"):
        network = Encoder.load(
            "conv4", weights="random", options={"width": 8, "last_pool": False}, transform=Transform(64), seed=1
        ).train()
        make_term(network, batch_norm=way)(make_step(network))
        seen[way] = torch.cat([b.flatten() for n, b in network.named_buffers() if n.endswith("running_mean")])
    encoder.train()
    encoder(make_step(encoder).batch.images)
    plain = torch.cat([b.flatten() for n, b in encoder.named_buffers() if n.endswith("running_mean")])
    torch.testing.assert_close(seen["original"], plain)
    assert not torch.allclose(seen["separate"], plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prcm": True, "prcm_softmax": "pixel"},
        {"one_hot": False, "detach_plain": False},
        {"min_pooling": 1.0},
        {"start": 3},
    ],
)
def test_every_switch_trains_from_a_recipe(encoder: Encoder, options: dict[str, object]) -> None:
    context = TermContext(encoder.train(), ["a", "b"], multi_label=True)
    objective = build_objective([{"kind": "seam", **options}], context, terms=SEGMENTATION_TERMS)
    step = make_step(encoder)
    losses = objective(step)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert ("er" in step.log) == ("start" not in options)


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": 1.0}, "0 < scale < 1"), ({"batch_norm": "joint"}, "'separate', 'original'")]
)
def test_settings_that_do_not_fit_are_refused(encoder: Encoder, options: dict[str, object], message: str) -> None:
    context = TermContext(encoder, ["a", "b"], multi_label=True)
    with pytest.raises(InputError, match=message):
        build_objective([{"kind": "seam", **options}], context, terms=SEGMENTATION_TERMS)
