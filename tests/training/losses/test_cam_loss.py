"""CAM-loss: by hand, against a slow loop, and who learns from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distcam.encoders import Encoder
from distcam.encoders.heads import BNNeck, Linear
from distcam.errors import InputError
from distcam.explain.methods.cam import grad_cam_plus_plus
from distcam.images import Transform
from distcam.training.engine.step import Batch, Mix, Objective, Step, Term, TrainingProgress
from distcam.training.losses.attention import scaled
from distcam.training.losses.cam_loss import CamLoss, NegativeCam, cam_differences, negative_cam
from distcam.training.losses.classifier import ClassifierTerm
from distcam.training.losses.metric import metric_term

LABELS = torch.tensor([0, 2, 1, 2])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cam_loss(features: Tensor, weights: Tensor, labels: Tensor, *, detach_weights: bool = True, **options) -> Tensor:
    return cam_differences(features, (weights.detach() if detach_weights else weights)[labels], **options).mean()


def by_loops(features: Tensor, weights: Tensor, labels: Tensor, *, norm: str = "l1") -> Tensor:
    """Eq. 1-4 position by position."""
    total = torch.zeros((), dtype=features.dtype)
    n, k, h, w = features.shape
    for b in range(n):
        cam = [
            [sum(weights[labels[b], c] * features[b, c, i, j] for c in range(k)) for j in range(w)] for i in range(h)
        ]
        caam = [[sum(features[b, c, i, j] for c in range(k)) for j in range(w)] for i in range(h)]
        flat = [torch.stack([torch.stack(row) for row in one]) for one in (caam, cam)]
        one, other = ((m - m.min()) / (m.max() - m.min() + 1e-8) for m in flat)
        difference = (one - other).abs() if norm == "l1" else (one - other) ** 2
        total = total + difference.sum() / (h * w)
    return total / n


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_it_is_the_loop_over_positions(norm) -> None:
    features, weights = drawn(4, 5, 3, 2).relu(), drawn(3, 5, seed=1)
    got = cam_loss(features, weights, LABELS, norm=norm)
    torch.testing.assert_close(got, by_loops(features, weights, LABELS, norm=norm))


def test_two_channels_by_hand() -> None:
    features = torch.tensor([[[[4.0, 0.0, 1.0]], [[0.0, 2.0, 1.0]]]])  # CAAM (4, 2, 2) -> (1, 0, 0)
    weights = torch.tensor([[1.0, 3.0]])  # CAM (4, 6, 4) -> (0, 1, 0)
    torch.testing.assert_close(cam_loss(features, weights, torch.tensor([0])), torch.tensor(2 / 3))


def test_equal_weights_cost_nothing() -> None:
    features = drawn(4, 5, 3, 3).relu()
    assert cam_loss(features, torch.full((3, 5), 0.7, dtype=torch.float64), LABELS) < 1e-7


def test_the_class_weights_get_no_gradient_unless_asked() -> None:
    features, weights = drawn(4, 5, 3, 3).relu().requires_grad_(), drawn(3, 5, seed=1).requires_grad_()
    cam_loss(features, weights, LABELS).backward()
    assert weights.grad is None
    assert features.grad.abs().sum() > 0
    cam_loss(features, weights, LABELS, detach_weights=False).backward()
    assert weights.grad.abs().sum() > 0


@pytest.mark.parametrize("detach_target", [False, True])
def test_the_gradient_is_that_of_finite_differences(detach_target: bool) -> None:
    features, weights = drawn(2, 4, 3, 3).abs(), drawn(3, 4, seed=1)
    if detach_target:  # with the class's map fixed, the loss as a function of the features
        cam = torch.einsum("bkhw,bk->bhw", features, weights[LABELS[:2]])

        def value(x: Tensor) -> Tensor:
            caam = x.sum(1)
            scale = [
                (m - m.amin((1, 2), True)) / (m.amax((1, 2), True) - m.amin((1, 2), True) + 1e-8) for m in (caam, cam)
            ]
            return (scale[0] - scale[1]).abs().mean()
    else:

        def value(x: Tensor) -> Tensor:
            return cam_loss(x, weights, LABELS[:2])

    leaf = features.clone().requires_grad_()
    cam_loss(leaf, weights, LABELS[:2], detach_target=detach_target).backward()
    step = 1e-6
    for index in [(0, 0, 0, 0), (0, 3, 1, 2), (1, 1, 2, 2), (1, 2, 0, 1)]:
        moved = [features.clone() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        slope = (value(moved[0]) - value(moved[1])) / (2 * step)
        torch.testing.assert_close(leaf.grad[index], slope, rtol=1e-4, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5), seed=st.integers(0, 100))
def test_neither_the_length_of_a_weight_nor_the_scale_of_the_features_matters(scale, shift, seed) -> None:
    features, weights = drawn(4, 5, 3, 3, seed=seed).relu(), drawn(3, 5, seed=seed + 1)
    expected = cam_loss(features, weights, LABELS)
    torch.testing.assert_close(cam_loss(features, scale * weights, LABELS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cam_loss(scale * features, weights, LABELS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cam_loss(features + shift, weights, LABELS), expected, rtol=1e-4, atol=1e-5)
    assert 0 <= expected <= 1


def test_flat_maps_cost_and_teach_nothing() -> None:
    features = torch.ones(1, 2, 3, 3, requires_grad=True)
    value = cam_loss(features, torch.zeros(1, 2), torch.tensor([0]))
    value.backward()
    assert value == 0
    assert features.grad.abs().sum() == 0


# --- the term -------------------------------------------------------------------------------------


def encoder(head: nn.Module | None = None, *, pooling: str = "gap") -> Encoder:
    return Encoder.load("conv4", weights="random", transform=Transform(32), head=head, pooling=pooling, seed=1).train()


def batch(labels: Tensor = LABELS, *, mix: Mix | None = None) -> Batch:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return Batch(images, labels, torch.arange(4), mix=mix)


def value_of(term: Term, classifier: Term, enc: Encoder, given_batch: Batch) -> tuple[Tensor, Step]:
    step = Step(enc, given_batch, TrainingProgress(0, 1, 0))
    step.classifier = classifier  # type: ignore[assignment]
    return term(step), step


def used_neck(dim: int) -> BNNeck:
    neck = BNNeck(dim)
    neck.norm.running_mean.uniform_(0, 1)
    neck.norm.running_var.uniform_(0.5, 2)
    return neck


@pytest.mark.parametrize("kind", ["linear", "cosine", "proxy_anchor", "arcface"])
def test_a_classifier_of_any_kind_gives_the_same_value_as_its_weights(kind: str) -> None:
    enc = encoder()
    dim = enc.embedding_dim
    classifier = (
        ClassifierTerm(dim, 3, head=kind) if kind in ("linear", "cosine") else metric_term(kind, dim=dim, n_classes=3)
    )
    value, step = value_of(CamLoss(start=0), classifier, enc, batch())
    expected = cam_loss(step.encoding.feature_map, classifier.class_weights(), LABELS)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("make", [lambda: used_neck(64), lambda: Linear(64, 8)], ids=["neck", "linear"])
def test_weights_are_carried_back_through_the_head_which_is_not_trained_by_it(make) -> None:
    head = make()
    enc = encoder(head)
    classifier = ClassifierTerm(enc.embedding_dim, 3)
    enc.train()
    value, step = value_of(CamLoss(start=0), classifier, enc, batch())
    value.backward()
    assert all(p.grad is None for p in enc.head.parameters())
    assert next(enc.backbone.parameters()).grad is not None
    # The slow way: the logit of every position, whose map differs from CAM by a constant.
    features = step.encoding.feature_map.detach()
    enc.eval()
    at_positions = features.permute(0, 2, 3, 1).reshape(-1, 64)
    logits = classifier.logits(enc.head(at_positions)).reshape(4, *features.shape[-2:], 3)
    cam = torch.stack([logits[i, ..., LABELS[i]] for i in range(4)])
    both = [features.sum(1), cam]
    one, other = ((m - m.amin((1, 2), True)) / (m.amax((1, 2), True) - m.amin((1, 2), True)) for m in both)
    torch.testing.assert_close(value.detach(), (one - other).abs().mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [None, Linear(64, 8)], ids=["none", "linear"])
def test_grad_cam_takes_cams_place_and_is_the_same_where_both_exist(head) -> None:
    enc = encoder(head)
    classifier = ClassifierTerm(enc.embedding_dim, 3)
    enc.train()
    cam, _ = value_of(CamLoss(start=0, method="cam"), classifier, enc, batch())
    gradcam, _ = value_of(CamLoss(start=0, method="gradcam"), classifier, enc, batch())
    torch.testing.assert_close(cam, gradcam)


@pytest.mark.parametrize("pooling", ["gap", "gem"])
def test_grad_cam_plus_plus_is_that_of_explain(pooling) -> None:
    enc = encoder(Linear(64, 8), pooling=pooling)
    classifier = ClassifierTerm(8, 3)
    value, step = value_of(CamLoss(start=0, method="gradcam++"), classifier, enc, batch())
    maps = step.encoding.feature_map.detach().requires_grad_()
    logits = classifier.logits(enc.embed(enc.pooling(maps)))
    (slopes,) = torch.autograd.grad(logits[torch.arange(4), LABELS].sum(), maps)
    found = grad_cam_plus_plus(maps.detach(), slopes, relu=False)
    both = [scaled(each) for each in (maps.detach().sum(1), found)]
    torch.testing.assert_close(value.detach(), (both[0] - both[1]).abs().mean())
    value.backward()
    assert all(p.grad is None for p in classifier.parameters())


def test_behind_a_head_that_is_not_affine_grad_cam_is_used() -> None:
    enc = encoder(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8)))
    classifier = ClassifierTerm(8, 3)
    value, _ = value_of(CamLoss(start=0), classifier, enc, batch())
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None for p in [*classifier.parameters(), *enc.head.parameters()])
    with pytest.raises(InputError, match="Sequential is not affine, so it has no CAM; use method='gradcam'"):
        value_of(CamLoss(start=0, method="cam"), classifier, enc, batch())


def test_gem_and_the_embeddings_own_channels_work_too() -> None:
    for enc, term in [
        (encoder(pooling="gem"), CamLoss(start=0)),
        (encoder(used_neck(64)), CamLoss(start=0, space="embedding")),
    ]:
        enc.train()
        value, _ = value_of(term, ClassifierTerm(64, 3), enc, batch())
        value.backward()
        assert 0 < value < 1


def test_mixed_and_several_labels_are_weighted_sums() -> None:
    enc, classifier, term = encoder().eval(), ClassifierTerm(64, 3), CamLoss(start=0)
    partner = torch.tensor([1, 0, 3, 2])
    single = [value_of(term, classifier, enc, batch(labels))[0] for labels in (LABELS, LABELS[partner])]
    mixed, _ = value_of(term, classifier, enc, batch(mix=Mix(partner, 0.7)))
    torch.testing.assert_close(mixed, 0.7 * single[0] + 0.3 * single[1])
    several = nn.functional.one_hot(LABELS, 3).float()
    torch.testing.assert_close(value_of(term, classifier, enc, batch(several))[0], single[0])
    several[0] = torch.tensor([1.0, 1.0, 0.0])
    several[1] = 0  # nothing is shown: adds nothing
    features = Step(enc, batch(), TrainingProgress(0, 1, 0)).encoding.feature_map

    def own(i: int, c: int) -> Tensor:
        return cam_loss(features[i : i + 1], classifier.weight, torch.tensor([c]))

    expected = ((own(0, 0) + own(0, 1)) / 2 + own(2, 1) + own(3, 2)) / 4
    torch.testing.assert_close(value_of(term, classifier, enc, batch(several))[0], expected)


def test_it_starts_at_its_epoch() -> None:
    term = CamLoss(start=2)
    assert [term.weight_at(TrainingProgress(e, 4, 0), 3.0) for e in range(4)] == [0, 0, 3, 3]


def test_an_adaptive_start_stays_started_also_after_resuming() -> None:
    term = CamLoss()
    accuracies = [None, 0.2, 0.49, 0.5, 0.1]
    assert [term.weight_at(TrainingProgress(e, 9, 0, a), 3.0) for e, a in enumerate(accuracies)] == [0, 0, 0, 3, 3]
    again = CamLoss()
    again.load_state_dict(term.state_dict())
    assert again.weight_at(TrainingProgress(5, 9, 0, 0.1), 3.0) == 3
    with pytest.raises(InputError, match="epoch, from 0, or 'adaptive', got 'later'"):
        CamLoss(start="later")  # type: ignore[arg-type]


def test_without_a_classifier_it_says_what_to_add() -> None:
    with pytest.raises(InputError, match="CAM-loss needs class weights"):
        Objective({"cam": CamLoss(start=0)})(Step(encoder(), batch(), TrainingProgress(0, 1, 0)))


def test_gradients_that_were_there_stay_and_buffers_do_not_move_twice() -> None:
    enc = encoder(used_neck(64))
    classifier = ClassifierTerm(64, 3)
    enc.train()
    step = Step(enc, batch(), TrainingProgress(0, 1, 0))
    step.classifier = classifier
    _ = step.encoding
    for p in [*enc.parameters(), *classifier.parameters()]:
        p.grad = torch.full_like(p, 7.0)
    buffers = {name: b.clone() for name, b in enc.named_buffers()}
    random = torch.get_rng_state()
    for method in ("cam", "gradcam"):
        CamLoss(start=0, method=method)(step)  # type: ignore[arg-type]
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in [*enc.parameters(), *classifier.parameters()])
    assert all(torch.equal(b, buffers[name]) for name, b in enc.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in enc.modules())


# --- NegativeCAM ----------------------------------------------------------------------------------


def test_negative_maps_by_hand() -> None:
    features = torch.tensor([[[[0.0, 2.0]], [[1.0, 3.0]], [[5.0, 5.0]]]])
    shown = torch.tensor([[True, False, False]])
    weights = torch.eye(3)
    zero = negative_cam(features, weights, shown, towards="zero")  # maps (1, 3) and (5, 5): (5 + 25) / 2
    torch.testing.assert_close(zero, torch.tensor(15.0))
    only = negative_cam(features, weights, shown, towards="zero", n_negatives=1)  # the likelier class, (5, 5)
    torch.testing.assert_close(only, torch.tensor(25.0))
    p = torch.tensor([1.0, 3.0]).softmax(0)
    divergence = (0.5 * (0.5 / p).log()).sum()  # and 0 for the flat map
    torch.testing.assert_close(negative_cam(features, weights, shown), divergence / 2)


def test_an_image_that_shows_every_class_has_no_negative_map() -> None:
    value = negative_cam(torch.rand(2, 3, 2, 2), torch.eye(3), torch.ones(2, 3, dtype=torch.bool))
    assert value == 0


def test_the_negative_term_trains_the_classifier_unless_told_otherwise() -> None:
    for detach in (False, True):
        enc, classifier = encoder(), ClassifierTerm(64, 3)
        value, _ = value_of(NegativeCam(detach_weights=detach), classifier, enc, batch())
        value.backward()
        assert (classifier.weight.grad is None) == detach
        assert next(enc.backbone.parameters()).grad is not None


def test_the_small_examples_come_out_as_by_hand() -> None:
    features = torch.tensor([[[[4.0, 0.0, 1.0]], [[0.0, 2.0, 1.0]]]])  # CAAM' = (1, 0, 0), CAM' = (0, 1, 0.5)
    assert cam_differences(features, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(2.5 / 3)
    features, shown = torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]]]]), torch.tensor([[True, False]])
    assert negative_cam(features, torch.eye(2), shown, towards="zero").item() == 2.0  # map (0, 2) of the second class
