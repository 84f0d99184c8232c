"""GAIN: the pieces by hand, the whole against a slow and literal reading, and what a step must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.encoders.heads import BNNeck, Linear
from distcam.errors import InputError
from distcam.explain import dist_cam
from distcam.images import Transform
from distcam.training.engine.step import Batch, Mix, Objective, Regions, Step, Targets, TrainingProgress, true_classes
from distcam.training.losses.attention import gradient_weights, gradients_off, scaled, statistics_frozen
from distcam.training.losses.classifier import ClassifierTerm
from distcam.training.losses.gain import (
    Gain,
    MetricGain,
    attention_map,
    box_loss,
    contrast_saliency,
    hidden,
    mask_loss,
    soft_mask,
)

LABELS = torch.tensor([0, 2, 1, 2])
NOW = TrainingProgress(0, 1, 0)


def encoder(head: nn.Module | None = None, **options: str) -> Encoder:
    return Encoder.load("conv4", weights="random", transform=Transform(48), head=head, seed=1, **options).train()


def batch(labels: Tensor = LABELS, *, regions: Regions | None = None, mix: Mix | None = None) -> Batch:
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    return Batch(images, labels, torch.arange(4), regions, mix)


def step_of(enc: Encoder, classifier: ClassifierTerm | None, given: Batch) -> Step:
    step = Step(enc, given, NOW)
    step.classifier = classifier
    return step


def classifier_for(enc: Encoder) -> ClassifierTerm:
    """Mostly positive weights, so that no attention map is cut off as a whole."""
    classifier = ClassifierTerm(enc.embedding_dim, 3)
    with torch.no_grad():
        classifier.weight.copy_(
            0.1 + 0.3 * torch.randn(3, enc.embedding_dim, generator=torch.Generator().manual_seed(5))
        )
    return classifier


# --- pieces ---------------------------------------------------------------------------------------


def test_scaling_and_its_flat_maps() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]], requires_grad=True)
    result = scaled(maps)
    torch.testing.assert_close(result, torch.tensor([[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]))
    result.sum().backward()
    assert maps.grad[1].abs().sum() == 0
    assert maps.grad.isfinite().all()


def test_the_soft_mask_by_hand() -> None:
    mask = soft_mask(torch.tensor([[[0.0, 1.0]]]), (1, 4), sigma=0.25, omega=4.0)  # enlarged: 0, 1/4, 3/4, 1
    expected = [1 / (1 + math.exp(-4 * (a - 0.25))) for a in (0, 0.25, 0.75, 1)]
    torch.testing.assert_close(mask, torch.tensor([[expected]]))


def test_what_is_hidden_has_the_mean_colour() -> None:
    images = torch.tensor([[[[2.0, 4.0]], [[1.0, 3.0]], [[-1.0, 5.0]]]])
    result = hidden(images, torch.tensor([[[1.0, 0.25]]]))
    torch.testing.assert_close(result, torch.tensor([[[[0.0, 3.0]], [[0.0, 2.25]], [[0.0, 3.75]]]]))


def test_attention_keeps_what_speaks_for_the_class() -> None:
    features = torch.tensor([[[[1.0, 5.0]], [[4.0, 1.0]]]])
    assert attention_map(features, torch.tensor([[1.0, -1.0]])).tolist() == [[[0.0, 4.0]]]


def test_mask_and_box_losses_by_hand() -> None:
    attention = torch.tensor([[[2.0, 4.0], [3.0, 2.0]]])  # scaled 0, 1, .5, 0
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(mask_loss(attention, mask), torch.tensor([(1 + 0 + 0.25 + 0) / 4]))
    saliency = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    torch.testing.assert_close(box_loss(attention, mask, saliency), torch.tensor([(0.25 + 0.25 + 0.25 + 0) / 4]))


def test_saliency_is_contrast_with_the_outside_of_the_box() -> None:
    images, boxes = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
    boxes[:, :, :2] = 1
    images[:, 0, :2, :2] = 3.0  # the object fills half of the box
    images[:, 1, 2:, :2] = 1.5
    saliency = contrast_saliency(images, boxes, (2, 2))
    torch.testing.assert_close(saliency, torch.tensor([[[1.0, 0.0], [0.5, 0.0]]]))


def test_saliency_of_a_flat_image_and_of_a_box_around_everything_is_finite() -> None:
    flat = contrast_saliency(torch.ones(1, 3, 4, 4), torch.ones(1, 4, 4), (2, 2))
    assert flat.tolist() == [[[0, 0], [0, 0]]]
    halves = torch.zeros(1, 3, 4, 4)
    halves[..., 2:] = 1
    assert contrast_saliency(halves, torch.ones(1, 4, 4), (2, 2)).tolist() == [[[1, 1], [1, 1]]]


def test_regions_of_one_class_in_an_image_become_one() -> None:
    raster = torch.zeros(4, 2, 2)
    for i in range(4):
        raster[i, i // 2, i % 2] = 1
    regions = Regions(
        torch.tensor([1, 0, 1, 1]), torch.tensor([2, 2, 2, 2]), torch.tensor([False, False, False, True]), raster
    )
    result = regions.merged()
    assert result.row.tolist() == [1, 0, 1]
    assert result.is_box.tolist() == [False, False, True]
    assert result.raster.tolist() == [[[1, 0], [1, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 1]]]


def test_the_classes_of_a_batch_and_their_shares() -> None:
    plain = true_classes(batch())
    assert plain.row is None
    assert plain.label.tolist() == LABELS.tolist()
    mixed = true_classes(batch(mix=Mix(torch.tensor([1, 0, 3, 2]), 0.75)))
    assert mixed.row.tolist() == [0, 1, 2, 3] * 2
    assert mixed.label.tolist() == [0, 2, 1, 2, 2, 0, 2, 1]
    assert mixed.share.tolist() == [0.75] * 4 + [0.25] * 4
    several = true_classes(batch(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0, 0], [0, 0, 1], [1, 0, 0]])))
    assert several.row.tolist() == [0, 0, 2, 3]
    assert several.label.tolist() == [0, 1, 2, 0]
    assert several.share.tolist() == [0.5, 0.5, 1, 1]


# --- channel weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["gap", "gem"])
@pytest.mark.parametrize("head", [None, Linear(64, 8), BNNeck(64)], ids=["none", "linear", "neck"])
def test_channel_weights_are_the_mean_gradient_of_the_whole_network(pooling: str, head: nn.Module | None) -> None:
    enc = encoder(head, pooling=pooling).eval()
    classifier = ClassifierTerm(enc.embedding_dim, 3, head="cosine")
    step = step_of(enc, classifier, batch())
    feature_map = step.encoding.feature_map
    score = classifier.logits(step.encoding.embedding).gather(1, LABELS[:, None]).sum()
    (slow,) = torch.autograd.grad(score, feature_map, retain_graph=True)
    fast = gradient_weights(enc, feature_map, classifier, true_classes(step.batch))
    torch.testing.assert_close(fast, slow.mean((-2, -1)), rtol=1e-4, atol=1e-7)
    assert not fast.requires_grad


def test_second_order_weights_are_part_of_the_graph() -> None:
    enc = encoder().eval()
    classifier = ClassifierTerm(enc.embedding_dim, 3, head="cosine")
    step = step_of(enc, classifier, batch())
    first, second = (
        gradient_weights(enc, step.encoding.feature_map, classifier, true_classes(step.batch), second_order=second)
        for second in (False, True)
    )
    torch.testing.assert_close(first, second.detach())
    gradients = torch.autograd.grad(second.square().sum(), [classifier.weight, step.encoding.feature_map])
    assert all(g.abs().sum() > 0 for g in gradients)


# --- the term -------------------------------------------------------------------------------------


def literal_self(enc: Encoder, classifier: ClassifierTerm, images: Tensor, labels: list[list[int]], *, score) -> Tensor:
    """Eq. 1-5 for one image and one class after another, by gradients through the whole network."""
    enc.eval()
    total = torch.zeros(())
    for image, classes in zip(images, labels, strict=True):
        for label in classes:
            encoding = enc(image[None])
            logit = classifier.logits(encoding.embedding)[0, label]
            (gradient,) = torch.autograd.grad(logit, encoding.feature_map, retain_graph=True)
            w = gradient[0].mean((1, 2))
            attention = sum(w[k] * encoding.feature_map[0, k] for k in range(len(w))).clamp(min=0)
            large = functional.interpolate(attention[None, None], image.shape[-2:], mode="bilinear")[0, 0]
            large = (large - large.min()) / (large.max() - large.min() + 1e-8)
            mask = 1 / (1 + (-10 * (large - 0.5)).exp())
            masked = enc((image - mask * image)[None])
            total = total + score(classifier.logits(masked.embedding))[0, label] / len(classes)
    return total / len(images)


def test_self_guidance_is_its_literal_reading_in_value_and_gradient() -> None:
    enc = encoder().eval()
    classifier = classifier_for(enc)
    parameters = [*enc.parameters(), classifier.weight]
    step = step_of(enc, classifier, batch())
    value = Gain()(step)
    assert (Gain().attention(step, true_classes(step.batch)).amax((1, 2)) > 0).all()
    expected = literal_self(enc, classifier, batch().images, [[int(y)] for y in LABELS], score=lambda s: s.softmax(1))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    got, wanted = (torch.autograd.grad(v, parameters, allow_unused=True) for v in (value, expected))
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_several_classes_have_a_masked_image_each_and_sigmoid_scores() -> None:
    enc = encoder().eval()
    classifier = ClassifierTerm(enc.embedding_dim, 3, multi_label=True)
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]])
    value = Gain()(step_of(enc, classifier, batch(labels)))
    classes = [[0, 1], [], [2], [0, 1, 2]]
    expected = literal_self(enc, classifier, batch().images, classes, score=torch.sigmoid)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_images_without_any_class_and_region_give_a_zero() -> None:
    enc = encoder()
    step = step_of(enc, ClassifierTerm(64, 3, multi_label=True), batch(torch.zeros(4, 3)))
    value = Gain()(step)
    value.backward()
    assert value == 0


def regions_of(*specs: tuple[int, int, bool]) -> Regions:
    raster = torch.zeros(len(specs), 48, 48)
    raster[:, 8:30, 4:20] = 1
    row, label, is_box = zip(*specs, strict=True) if specs else ((), (), ())
    return Regions(
        torch.tensor(row, dtype=torch.long), torch.tensor(label, dtype=torch.long), torch.tensor(is_box).bool(), raster
    )


def test_only_images_with_regions_contribute_to_the_losses_of_regions() -> None:
    enc = encoder().eval()
    classifier = classifier_for(enc)
    regions = regions_of((1, 2, False), (3, 2, True))
    step = step_of(enc, classifier, batch(regions=regions))
    value = Gain(mining=0.0, mask=10.0, box=7.0)(step)
    features = step.encoding.feature_map
    cells = functional.interpolate(regions.raster[:, None], features.shape[-2:], mode="area")[:, 0]
    maps = attention_map(
        features[[1, 3]],
        gradient_weights(enc, features, classifier, Targets(torch.tensor([1, 3]), torch.tensor([2, 2]), torch.ones(2))),
    )
    a = scaled(maps)
    mask = ((a[0] - cells[0]) ** 2).mean()
    s = contrast_saliency(step.batch.images[3:], regions.raster[1:], tuple(features.shape[-2:]))[0]
    box = (((1 - cells[1]) * a[1]) ** 2 + (cells[1] * (a[1] - s)) ** 2).mean()
    torch.testing.assert_close(value, (10 * mask + 7 * box) / 4)
    assert step.log["attention_masks"] == pytest.approx(float(mask.detach()) / 4)
    assert step.log["attention_boxes"] == pytest.approx(float(box.detach()) / 4)
    assert "attention_mining" not in step.log
    (gradient,) = torch.autograd.grad(value, features)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("is_box", [False, True])
@torch.no_grad()
def test_losses_of_regions_can_be_sums_over_positions_and_means_over_the_images_classes(is_box: bool) -> None:
    enc, labels = encoder().eval(), torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    classifier = ClassifierTerm(enc.embedding_dim, 3, multi_label=True)

    def value(*specs: tuple[int, int], **options: str) -> float:
        regions = regions_of(*((row, label, is_box) for row, label in specs))
        step = step_of(enc, classifier, batch(labels, regions=regions))
        return float(Gain(mining=0.0, mask=1.0, box=1.0, **options)(step))

    two, one = value((0, 0), (0, 1)), value((1, 1))
    assert min(two, one) > 0
    height, width = enc(batch().images).feature_map.shape[-2:]
    together = value((0, 0), (0, 1), (1, 1), classes="mean", positions="sum")
    assert together == pytest.approx(height * width * (two / 2 + one), rel=1e-4)  # [GAIN] Eq. 7 and 9, in full


def test_saliency_that_the_data_bring_takes_the_place_of_the_colours_contrast() -> None:
    given = regions_of((0, 0, True), (1, 1, True))
    levels = torch.linspace(0, 1, 48).expand(48, 48)
    raster = given.raster.clone()
    raster[0] = raster[0] * (1 + levels)  # the other box has none
    salient = Regions(given.row, given.label, given.is_box, raster)
    enc = encoder()
    term, classifier = Gain(mining=0.0, box=1.0), classifier_for(enc)
    step = step_of(enc, classifier, batch(regions=salient))
    value = term(step)
    attention = term.attention(step, Targets(given.row, given.label, torch.ones(2)))
    size = tuple(attention.shape[-2:])
    prior = contrast_saliency(step.batch.images[given.row], given.raster, size)
    prior[0] = functional.interpolate((given.raster[0] * levels)[None, None], size, mode="area")[0, 0]
    torch.testing.assert_close(value, box_loss(attention, given.raster, prior).sum() / len(step.batch))


def test_regions_that_are_empty_change_nothing() -> None:
    enc = encoder().eval()
    classifier = classifier_for(enc)
    plain, empty = (Gain()(step_of(enc, classifier, batch(regions=r))) for r in (None, regions_of()))
    torch.testing.assert_close(plain, empty)


@pytest.mark.parametrize("kind", ["gain", "second order", "metric"])
def test_a_step_leaves_gradients_statistics_modes_and_randomness_alone(kind: str) -> None:
    enc = encoder(BNNeck(64))
    classifier = classifier_for(enc)
    enc.train()
    step = step_of(enc, classifier, batch(regions=regions_of((0, 0, False), (1, 2, True))))
    _ = step.encoding
    parameters = [*enc.parameters(), *classifier.parameters()]
    for p in parameters:
        p.grad = torch.full_like(p, 7.0)
    buffers = {name: b.clone() for name, b in enc.named_buffers()}
    needs, random = [p.requires_grad for p in parameters], torch.get_rng_state()
    term = MetricGain(64, 3) if kind == "metric" else Gain(second_order=kind != "gain", freeze_am="all")
    term(step)
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in parameters)
    assert all(torch.equal(b, buffers[name]) for name, b in enc.named_buffers())
    assert [p.requires_grad for p in parameters] == needs
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in enc.modules())


def test_accumulated_gradients_are_the_sum_of_those_of_the_parts() -> None:
    enc = encoder().eval()
    classifier, whole = classifier_for(enc), batch()

    def gradient_of(parts: list[slice]) -> list[Tensor]:
        enc.zero_grad()
        for part in parts:
            given = Batch(whole.images[part], LABELS[part], torch.arange(4)[part])
            (Gain()(step_of(enc, classifier, given)) * len(given) / 4).backward()
        return [p.grad.clone() for p in enc.parameters() if p.grad is not None]

    for one, other in zip(gradient_of([slice(0, 4)]), gradient_of([slice(0, 2), slice(2, 4)]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_under_bf16_autocast_the_loss_stays_float32_and_near() -> None:
    enc = encoder().eval()
    classifier = classifier_for(enc)
    exact = Gain()(step_of(enc, classifier, batch()))
    step = Step(enc, batch(), NOW, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    step.classifier = classifier
    value = Gain()(step)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("freeze", "classifier_learns"), [("no", True), ("classifier", False), ("all", False)])
def test_what_the_masked_pass_trains_can_be_chosen(freeze, classifier_learns: bool) -> None:
    enc = encoder().eval()
    classifier = classifier_for(enc)
    value = Gain(freeze_am=freeze)(step_of(enc, classifier, batch()))
    value.backward()
    assert (classifier.weight.grad is not None) == classifier_learns
    assert next(enc.backbone.parameters()).grad.abs().sum() > 0  # through the mask at least


def test_the_evidence_of_log_odds_is_the_class_against_its_rivals() -> None:
    """By the derivative: w_c less the mean of the others' weights, weighted by their shares of the rest."""
    enc = encoder().eval()
    classifier, targets = classifier_for(enc), true_classes(batch())
    encoding = enc(batch().images)
    found = gradient_weights(enc, encoding.feature_map, classifier, targets, score="log_odds")
    logits = classifier.logits(encoding.embedding)
    for row, label in enumerate(LABELS.tolist()):
        others = [other for other in range(3) if other != label]
        rivals = logits[row, others].softmax(0) @ classifier.weight[others]
        torch.testing.assert_close(found[row], (classifier.weight[label] - rivals) / 9, rtol=1e-4, atol=1e-6)
    odds = logits.softmax(1).gather(1, LABELS[:, None]).logit().sum()
    (by_torch,) = torch.autograd.grad(odds, encoding.feature_map)
    torch.testing.assert_close(found, by_torch.mean((-2, -1)), rtol=1e-3, atol=1e-6)


def test_of_several_classes_the_log_odds_are_the_logits() -> None:
    enc, labels = encoder().eval(), functional.one_hot(LABELS, 3).float()
    classifier = classifier_for(enc)
    one, other = (
        Gain(evidence=evidence)(step_of(enc, classifier, batch(labels))) for evidence in ("logit", "log_odds")
    )
    assert torch.equal(one, other)


def test_a_frozen_masked_pass_trains_through_the_mask_only() -> None:
    enc = encoder().eval()
    classifier, targets = classifier_for(enc), true_classes(batch())
    parameters = list(enc.backbone.parameters())
    whole, through_mask = (
        torch.autograd.grad(Gain(freeze_am=freeze)(step_of(enc, classifier, batch())), parameters)
        for freeze in ("no", "all")
    )
    step, term = step_of(enc, classifier, batch()), Gain()
    mask = soft_mask(term.attention(step, targets), (48, 48)).detach()
    score = term.recognition(step, step.encode(hidden(step.batch.images, mask)), targets).mean()
    direct = torch.autograd.grad(score, parameters)
    for one, two, both in zip(through_mask, direct, whole, strict=True):
        torch.testing.assert_close(one + two, both, rtol=1e-3, atol=1e-6)


def test_mining_lowers_what_lies_outside_the_attention() -> None:
    enc = encoder()
    classifier = classifier_for(enc)
    optimiser = torch.optim.SGD([*enc.parameters(), *classifier.parameters()], lr=0.5)
    values = []
    for _ in range(8):
        optimiser.zero_grad()
        value = Gain()(step_of(enc, classifier, batch()))
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="unknown score 'softmx', nearest is 'softmax'"):
        Gain(score="softmx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="omega > 0"):
        Gain(omega=0)
    with pytest.raises(InputError, match="unknown evidence 'odds', nearest is 'log_odds'"):
        Gain(evidence="odds")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown freeze_am 'clasifier'"):
        Gain(freeze_am="clasifier")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="momentum of at least 0 and below 1"):
        MetricGain(4, 2, momentum=1.0)
    with pytest.raises(InputError, match="GAIN needs class weights"):
        Objective({"gain": Gain()})(Step(encoder(), batch(), NOW))


def test_the_contexts_restore_what_was_mixed_before() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), nn.Dropout())
    net[0].weight.requires_grad_(False)
    with statistics_frozen(net), gradients_off(net):
        assert [part.training for part in net] == [False, False, True]
        assert not any(p.requires_grad for p in net.parameters())
    assert [part.training for part in net] == [True, False, True]
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]


# --- metric GAIN ----------------------------------------------------------------------------------


def test_prototypes_are_running_means_of_unit_vectors() -> None:
    enc = encoder().eval()
    term = MetricGain(64, 4, momentum=0.75)
    step = step_of(enc, None, batch())
    term(step)
    unit = functional.normalize(step.encoding.embedding).detach()
    expected = torch.stack([unit[0], unit[2], (unit[1] + unit[3]) / 2, torch.zeros(64)])
    torch.testing.assert_close(term.prototypes, expected)
    assert term.is_known.tolist() == [True, True, True, False]
    term(step_of(enc, None, batch(torch.tensor([0, 0, 0, 0]))))
    torch.testing.assert_close(term.prototypes[0], 0.75 * unit[0] + 0.25 * unit.mean(0))
    torch.testing.assert_close(term.prototypes[1:], expected[1:])
    again = MetricGain(64, 4)
    again.load_state_dict(term.state_dict())
    assert torch.equal(again.prototypes, term.prototypes)
    before = term.eval().prototypes.clone()
    term(step_of(enc, None, batch()))
    assert torch.equal(term.prototypes, before)


@pytest.mark.parametrize("weighting", ["dist", "dist*s", "dist*excess", "dot", "dot_centered"])
def test_its_attention_is_the_dist_cam_map_against_the_own_prototype(weighting) -> None:
    enc = encoder(Linear(64, 8)).eval()
    term = MetricGain(8, 3, weighting=weighting)
    step = step_of(enc, None, batch())
    value = term(step)
    own = term.attention(step, true_classes(step.batch))
    with torch.no_grad():
        features = step.encoding.feature_map
        response = torch.einsum("dk,bkhw->bdhw", enc.head.weight, features) + enc.head.bias[:, None, None]
        mean = functional.normalize(term.prototypes).mean(0) if "ex" in weighting or "cen" in weighting else None
        references = term.prototypes[LABELS][:, None]
        maps = dist_cam(response, references, weighting=weighting, mean=mean)[:, 0].clamp(min=0)
    torch.testing.assert_close(scaled(own), scaled(maps), rtol=1e-3, atol=1e-4)
    images = step.batch.images
    masked = enc(hidden(images, soft_mask(own, (48, 48)))).embedding
    expected = functional.cosine_similarity(masked, term.prototypes[LABELS]).clamp(min=0).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    value.backward()
    assert all(p.grad.isfinite().all() for p in enc.parameters() if p.grad is not None)


def test_metric_gain_needs_no_classifier_and_works_with_any_head() -> None:
    for head in (None, BNNeck(64), nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8))):
        enc = encoder(head)
        dim = enc.embedding_dim
        enc.train()
        given = batch(regions=regions_of((0, 0, False), (2, 1, True)))
        losses = Objective({"metric_gain": MetricGain(dim, 3, second_order=True)})(Step(enc, given, NOW))
        losses.total.backward()
        assert losses.total.isfinite()
        assert next(enc.backbone.parameters()).grad.abs().sum() > 0


def test_a_class_never_seen_is_not_mined() -> None:
    term = MetricGain(64, 3).eval()
    assert term(step_of(encoder().eval(), None, batch())) == 0


def test_the_small_examples_come_out_as_by_hand() -> None:
    assert scaled(torch.tensor([[1.0, 3.0], [2.0, 5.0]])).tolist() == [[0.0, 0.5], [0.25, 1.0]]
    attended = attention_map(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]), torch.tensor([[1.0, -1.0]]))
    assert attended.tolist() == [[[0.0, 2.0]]]
    mask = soft_mask(torch.tensor([[[3.0, 5.0, 7.0]]]), (1, 3))
    assert torch.allclose(mask, torch.tensor([[[-5.0, 0.0, 5.0]]]).sigmoid())
    outline = torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])  # H = (.5, 1)
    assert mask_loss(torch.tensor([[[0.0, 2.0]]]), outline).tolist() == [0.125]
    attention, box = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert box_loss(attention, box, torch.tensor([[[0.5, 0.5]]])).tolist() == [0.625]  # (0.5² + 1²) / 2
