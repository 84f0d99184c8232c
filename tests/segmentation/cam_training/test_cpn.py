"""CPN's losses by hand and against a slow loop, its gradients, and its switches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.remarks import DistcamWarning
from distcam.segmentation.cam_training.class_maps import (
    class_maps,
    hardest,
    min_pooling_loss,
    read_stages,
    scaled_maps,
    with_background,
)
from distcam.segmentation.cam_training.cpn import AUTHORS_CODE, Cpn, CpnSettings, cpcr_loss, tcp_loss
from distcam.segmentation.cam_training.map_term import MapTerm
from distcam.segmentation.cam_training.training import SEGMENTATION_TERMS
from distcam.training import Batch, Step, TrainingProgress
from distcam.training.engine.step import Mix
from distcam.training.losses.registry import TermContext, build_objective

CLASSES = 3


def make_encoder(**options: object) -> Encoder:
    return Encoder.load(
        "conv4", weights="random", options={"width": 8, "last_pool": False, **options}, transform=Transform(32), seed=1
    )


def make_batch(count: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, CLASSES)
    labels[torch.arange(count), torch.arange(count) % CLASSES] = 1
    labels[0, 2] = 1
    return Batch(torch.randn(count, 3, 32, 32, generator=generator), labels, torch.arange(count))


def make_step(encoder: Encoder, batch: Batch | None = None, *, epoch: int = 0) -> Step:
    return Step(encoder, batch or make_batch(), TrainingProgress(epoch=epoch, epochs=9, step=0))


def make_term(encoder: Encoder, **options: object) -> Cpn:
    torch.manual_seed(3)
    term = Cpn(encoder, CLASSES, CpnSettings(**options))
    torch.nn.init.normal_(term.weight)
    return term


# --- losses by hand ---------------------------------------------------------------------------------------------------


def test_tcp_by_hand() -> None:
    original = torch.tensor([[[[1.0, 0.5]]]])
    hidden, complement = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 0.8]]]])
    # λ = 0.25: sums 0.25 and 0.6; |0.25 - 1| = 0.75 and |0.6 - 0.5| = 0.1
    assert tcp_loss(original, (hidden, complement), share=torch.tensor([0.25])).item() == pytest.approx(
        (0.75 + 0.1) / 2
    )


def test_tcp_moves_the_whole_image_s_map_only_unless_the_pair_is_attached() -> None:
    maps = [torch.rand(1, 1, 2, 2, requires_grad=True) for _ in range(3)]
    tcp_loss(maps[0], (maps[1], maps[2]), share=torch.tensor([0.5])).backward()
    assert [m.grad is None for m in maps] == [False, True, True]
    tcp_loss(maps[0], (maps[1], maps[2]), share=torch.tensor([0.5]), detach_pair=False).backward()
    assert all(m.grad is not None for m in maps)


def slow_cpcr(original: Tensor, pair: list[Tensor], refined: list[Tensor], share: Tensor, hard: float | None) -> float:
    """Eq. 15, number by number; the hardest of each image."""
    total = 0.0
    for which in (0, 1):
        kept = []
        for n, image in enumerate(original):
            own = float(share[n]) if which == 0 else 1 - float(share[n])
            errors = []
            for index in range(image.numel()):
                left = float(image.flatten()[index]) - own * float(pair[which][n].flatten()[index])
                errors.append(abs(left - (1 - own) * float(refined[1 - which][n].flatten()[index])))
            errors.sort(reverse=True)
            count = len(errors) if hard is None else max(int(hard * len(errors)), 1)
            kept += errors[:count]
        total += sum(kept) / len(kept)
    return total


@pytest.mark.parametrize("hard", [None, 0.2, 0.01])
def test_cpcr_is_the_slow_loop(hard: float | None) -> None:
    maps = [torch.rand(2, 3, 2, 4) for _ in range(5)]
    share = torch.tensor([0.3, 0.6])
    settings = CpnSettings(ohem=hard is not None, hard_share=hard or 0.2)
    value = cpcr_loss(maps[0], (maps[1], maps[2]), (maps[3], maps[4]), share=share, settings=settings)
    assert value.item() == pytest.approx(slow_cpcr(maps[0], maps[1:3], maps[3:5], share, hard), rel=1e-5)


def test_cpcr_moves_the_refined_maps_alone_unless_the_minuend_is_attached() -> None:
    maps = [torch.rand(1, 2, 2, 2, requires_grad=True) for _ in range(5)]
    share = torch.tensor([0.4])
    cpcr_loss(maps[0], (maps[1], maps[2]), (maps[3], maps[4]), share=share, settings=CpnSettings()).backward()
    assert [m.grad is None for m in maps] == [True, True, True, False, False]
    cpcr_loss(
        maps[0], (maps[1], maps[2]), (maps[3], maps[4]), share=share, settings=CpnSettings(detach_minuend=False)
    ).backward()
    assert maps[0].grad is not None


def test_the_printed_equation_has_a_plain_map_in_its_first_term() -> None:
    maps = [torch.rand(1, 2, 2, 2) for _ in range(5)]
    share = torch.tensor([0.4])
    value = cpcr_loss(
        maps[0],
        (maps[1], maps[2]),
        (maps[3], maps[4]),
        share=share,
        settings=CpnSettings(ohem=False, as_printed_in_paper=True),
    )
    first = (maps[0] - 0.4 * maps[1] - 0.6 * maps[2]).abs().mean()
    second = (maps[0] - 0.6 * maps[2] - 0.4 * maps[3]).abs().mean()
    torch.testing.assert_close(value, first + second)


def test_one_hot_keeps_the_highest_class_of_what_is_left() -> None:
    original = torch.tensor([0.9, 0.4]).view(1, 2, 1, 1)
    nothing = torch.zeros(1, 2, 1, 1)
    own = CpnSettings(ohem=False, one_hot=True)
    value = cpcr_loss(original, (nothing, nothing), (nothing, nothing), share=torch.tensor([0.5]), settings=own)
    assert value.item() == pytest.approx(2 * 0.9 / 2)  # 0.4 is dropped, in both terms; mean over two classes


def test_the_hardest_are_chosen_image_by_image() -> None:
    errors = torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 5)
    assert hardest(errors, 0.2).item() == 5.0
    assert hardest(errors, None).item() == pytest.approx(1.8)


def test_min_pooling_is_the_mean_of_the_lowest_quarter() -> None:
    maps = torch.tensor([[[[0.1, 0.5, 0.9, 0.7]], [[0.3, 0.2, 0.1, 0.0]]]])
    assert min_pooling_loss(maps).item() == pytest.approx(0.3)


# --- the term ---------------------------------------------------------------------------------------------------------


def test_the_value_is_the_sum_of_its_parts() -> None:
    encoder = make_encoder().eval()
    term, step = make_term(encoder), make_step(encoder)
    value = term(step)
    assert value.item() == pytest.approx(float(step.log["cls"] + step.log["tcp"] + step.log["cpcr"]), rel=1e-5)
    doubled = make_term(encoder, tcp_weight=2.0, cpcr_weight=0.0)
    step = make_step(encoder)
    assert doubled(step).item() == pytest.approx(float(step.log["cls"] + 2 * step.log["tcp"]), rel=1e-5)


def test_the_classification_loss_is_the_mean_of_three_branches() -> None:
    encoder, batch = make_encoder().eval(), make_batch()
    term = make_term(encoder, tcp=False, cpcr=False)
    torch.manual_seed(5)
    value = term(make_step(encoder, batch))
    torch.manual_seed(5)
    pictures = [batch.images, *term.patches.draw(batch.images).images(batch.images)]
    losses = [functional.multilabel_soft_margin_loss(term.logits(encoder(p).pooled), batch.labels) for p in pictures]
    torch.testing.assert_close(value, torch.stack(losses).mean())


def test_tcp_and_cpcr_are_those_of_scaled_and_refined_maps() -> None:
    encoder, batch = make_encoder().eval(), make_batch()
    term = make_term(encoder)
    torch.manual_seed(5)
    step = make_step(encoder, batch)
    term(step)
    torch.manual_seed(5)
    pair = term.patches.draw(batch.images)
    plain, refined = [], []
    for pictures in (batch.images, *pair.images(batch.images)):
        with read_stages(encoder, term.stages) as read:
            maps = class_maps(encoder(pictures).feature_map, term.weight)
        features = term.refinement.features(read(), pictures, (4, 4))
        plain.append(scaled_maps(maps, batch.labels))
        refined.append(term.refinement.refine(maps, features, batch.labels))
    tcp = tcp_loss(plain[0], (plain[1], plain[2]), share=pair.share)
    own = [maps[:, 1:] for maps in refined]
    tcp = tcp + tcp_loss(own[0], (own[1], own[2]), share=pair.share)
    whole, *two = (with_background(maps) for maps in plain)
    cpcr = cpcr_loss(whole, tuple(two), tuple(refined[1:]), share=pair.share, settings=CpnSettings())
    assert step.log["tcp"] == pytest.approx(tcp.item(), rel=1e-4)
    assert step.log["cpcr"] == pytest.approx(cpcr.item(), rel=1e-4)


def gradients(loss: Tensor, *modules: torch.nn.Module) -> list[bool]:
    """Whether any parameter of each module has a gradient other than 0 after the backward pass."""
    for module in modules:
        module.zero_grad()
    loss.backward()
    return [any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in m.parameters()) for m in modules]


def losses_alone(term: Cpn, step: Step) -> Tensor:
    """L_tcp + L_cpcr, with the same graph as in the term."""
    labels, images = step.batch.labels.float(), step.batch.images
    pair = term.patches.draw(images)
    branches, features = term.branches(step, images, pair)
    maps = class_maps(branches, term.weight)
    return term.regularisation(step, maps, features, labels=labels, share=pair.share)


def test_the_network_learns_from_plain_maps_and_the_refinement_from_refined_ones() -> None:
    encoder = make_encoder().eval()
    only_tcp = make_term(encoder, cpcr=False)
    assert gradients(losses_alone(only_tcp, make_step(encoder)), encoder, only_tcp.refinement) == [True, True]
    without = make_term(encoder, cpcr=False, pcm=False, prcm=False)
    assert without.refinement is None
    assert gradients(losses_alone(without, make_step(encoder)), encoder) == [True]
    only_cpcr = make_term(encoder, tcp=False)
    assert gradients(losses_alone(only_cpcr, make_step(encoder)), encoder, only_cpcr.refinement) == [False, True]
    free = make_term(encoder, tcp=False, detach_minuend=False)
    assert gradients(losses_alone(free, make_step(encoder)), encoder, free.refinement) == [True, True]


def test_before_its_epoch_it_is_the_plain_cam() -> None:
    encoder = make_encoder().eval()
    term = make_term(encoder, start=2)
    early, late = make_step(encoder, epoch=1), make_step(encoder, epoch=2)
    value = term(early)
    torch.testing.assert_close(value, MapTerm.forward(term, make_step(encoder)))
    assert "tcp" not in early.log
    term(late)
    assert "tcp" in late.log


def running_means(encoder: Encoder) -> Tensor:
    return torch.cat([b.flatten() for name, b in encoder.named_buffers() if name.endswith("running_mean")])


def test_frozen_batch_norms_make_all_three_ways_the_same() -> None:
    encoder, values = make_encoder().eval(), []
    for way in ("joint", "separate", "original"):
        term = make_term(encoder, batch_norm=way)
        torch.manual_seed(5)
        values.append(term(make_step(encoder)).item())
    assert values[0] == values[1] == values[2]


def test_learning_batch_norms_see_what_they_are_told_to_see() -> None:
    seen = {}
    for way in ("joint", "separate", "original"):
        encoder = make_encoder().train()
        term = make_term(encoder, batch_norm=way)
        torch.manual_seed(5)
        term(make_step(encoder))
        seen[way] = running_means(encoder)
    plain = make_encoder().train()
    plain(make_batch().images)
    torch.testing.assert_close(seen["original"], running_means(plain))
    assert not torch.allclose(seen["joint"], seen["original"])
    assert not torch.allclose(seen["joint"], seen["separate"])


def test_modes_and_hooks_are_as_before() -> None:
    encoder = make_encoder().train()
    make_term(encoder, batch_norm="original")(make_step(encoder))
    assert all(module.training for module in encoder.modules())
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"official_compat": True},
        {"official_compat": True, "prcm_softmax": "class"},
        {"resolution": "image"},
        {"patches": "superpixels", "segments": 9, "replacement": True},
        {"sizes": [7, 32], "hidden": 0.3, "share": "patches"},
        {"tcp": False, "cpcr": False, "pcm": False, "prcm": False},
        {"ohem": False, "as_printed_in_paper": True, "detach_refined_pair": False},
    ],
)
def test_every_switch_trains_from_a_recipe(options: dict[str, object]) -> None:
    if options.get("patches") == "superpixels":
        pytest.importorskip("skimage", reason="superpixels need pip install 'distcam[segment]'")
    encoder = make_encoder().train()
    context = TermContext(encoder, ["a", "b", "c"], multi_label=True)
    objective = build_objective([{"kind": "cpn", **options}], context, terms=SEGMENTATION_TERMS)
    losses = objective(make_step(encoder))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    term = objective.classifier
    if options == {"official_compat": True}:
        assert {name: getattr(term.settings, name) for name in AUTHORS_CODE} == dict(AUTHORS_CODE)
        assert term.refinement.prcm.softmax == "pixel"


@pytest.mark.parametrize(
    ("kind", "old", "new", "value"),
    [
        ("cpn", {"free_refined_pair": True}, "detach_refined_pair", False),
        ("cpn", {"free_minuend": False}, "detach_minuend", True),
        ("cpn", {"printed_cpcr": True}, "as_printed_in_paper", True),
        ("seam", {"stop_plain": False}, "detach_plain", False),
    ],
)
def test_recipes_may_spell_an_option_as_earlier_versions_did(
    kind: str, old: dict[str, bool], new: str, value: bool
) -> None:
    encoder = make_encoder()
    context = TermContext(encoder, ["a", "b", "c"], multi_label=True)
    with pytest.warns(DistcamWarning, match=f"write {new} = {str(value).lower()}"):
        objective = build_objective([{"kind": kind, **old}], context, terms=SEGMENTATION_TERMS)
    assert getattr(objective.classifier.settings, new) is value
    with pytest.raises(InputError, match=r"leave \w+ out"):
        build_objective([{"kind": kind, **old, new: value}], context, terms=SEGMENTATION_TERMS)


def test_the_plain_cam_learns_from_pooled_maps_and_is_the_classifier() -> None:
    encoder, batch = make_encoder().eval(), make_batch()
    context = TermContext(encoder, ["a", "b", "c"], multi_label=True)
    objective = build_objective([{"kind": "multi_label"}], context, terms=SEGMENTATION_TERMS)
    step = make_step(encoder, batch)
    value = objective(step).total
    assert isinstance(objective.classifier, MapTerm)
    expected = functional.multilabel_soft_margin_loss(
        objective.classifier.logits(encoder(batch.images).pooled), batch.labels
    )
    torch.testing.assert_close(value, expected)
    assert 0 <= step.log["accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pcm": False, "prcm": False}, "cpcr compares plain with refined maps"),
        ({"hard_share": 0.0}, "0 < hard_share"),
        ({"batch_norm": "both"}, "'joint', 'separate', 'original'"),
        ({"stages": ["encoder.1"]}, "expected two stages"),
        ({"patches": "hexagons"}, "'grid', 'superpixels'"),
        ({"tpc": True}, "nearest is 'tcp'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    encoder = make_encoder()
    context = TermContext(encoder, ["a", "b", "c"], multi_label=True)
    with pytest.raises(InputError, match=message):
        build_objective([{"kind": "cpn", **options}], context, terms=SEGMENTATION_TERMS)


@pytest.mark.parametrize("kind", ["multi_label", "cpn", "seam"])
def test_a_head_a_single_label_and_blended_images_are_refused(kind: str) -> None:
    from distcam.encoders import Linear

    headed = Encoder.load("conv4", weights="random", options={"width": 8}, transform=Transform(32), head=Linear(32, 4))
    context = TermContext(headed, ["a", "b", "c"], multi_label=True)
    with pytest.raises(InputError, match="leave head out"):
        build_objective([{"kind": kind}], context, terms=SEGMENTATION_TERMS)
    encoder, batch = make_encoder(), make_batch()
    context = TermContext(encoder, ["a", "b", "c"], multi_label=True)
    objective = build_objective([{"kind": kind}], context, terms=SEGMENTATION_TERMS)
    with pytest.raises(InputError, match="0/1 column"):
        objective(make_step(encoder, Batch(batch.images, torch.zeros(4, dtype=torch.long), batch.index)))
    mixed = Batch(batch.images, batch.labels, batch.index, mix=Mix(torch.arange(4), 0.5))
    with pytest.raises(InputError, match="blended"):
        objective(make_step(encoder, mixed))
