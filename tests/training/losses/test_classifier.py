"""Classifier and center loss: values by hand, shares of mixed labels, a file that gives the same logits back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.errors import InputError, WeightsError
from distcam.training.engine.step import Batch, HasClassWeights, Mix, Step, TrainingProgress
from distcam.training.losses.classifier import CenterTerm, ClassifierTerm, load_classifier, save_classifier
from distcam.training.losses.metric import metric_term


class Given(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.values[:, :, None, None].expand(-1, -1, 2, 2)


def step_of(values: Tensor, labels: Tensor, *, mix: Mix | None = None) -> Step:
    batch = Batch(torch.zeros(len(labels), 3, 2, 2), labels, torch.arange(len(labels)), mix=mix)
    return Step(Encoder(Given(values)), batch, TrainingProgress(0, 1, 0))


def fixed(weight: list[list[float]], **options: object) -> ClassifierTerm:
    n_classes, dim = len(weight), len(weight[0])
    term = ClassifierTerm(dim, n_classes, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        term.weight.copy_(torch.tensor(weight))
        if term.bias is not None:
            term.bias.zero_()
    return term


X = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(4.0)]])


def test_cross_entropy_by_hand() -> None:
    step = step_of(X, torch.tensor([0, 0]))  # probabilities 3/4 and 1/5
    value = fixed([[1.0, 0.0], [0.0, 1.0]])(step)
    torch.testing.assert_close(value, torch.tensor((math.log(4 / 3) + math.log(5)) / 2))
    assert step.log["accuracy"] == 0.5


def test_a_cosine_head_knows_no_lengths() -> None:
    term = fixed([[1.0, 0.0], [0.0, 7.0]], head="cosine", scale=4.0)
    torch.testing.assert_close(term.logits(torch.tensor([[3.0, 4.0]])), torch.tensor([[4 * 0.6, 4 * 0.8]]))
    assert term.bias is None
    assert not term.log_scale.requires_grad
    assert fixed([[1.0, 0.0]], head="cosine", learn_scale=True).log_scale.requires_grad


def test_the_linear_head_starts_as_torchs_does() -> None:
    torch.manual_seed(3)
    term = ClassifierTerm(6, 4)
    torch.manual_seed(3)
    linear = nn.Linear(6, 4)
    assert torch.equal(term.weight, linear.weight)
    assert torch.equal(term.bias, linear.bias)
    assert ClassifierTerm(6, 4, bias=False).bias is None
    assert isinstance(term, HasClassWeights)


def test_label_smoothing_spreads_over_all_classes() -> None:
    value = fixed([[1.0, 0.0], [0.0, 1.0]], label_smoothing=0.2)(step_of(X[:1], torch.tensor([0])))
    torch.testing.assert_close(value, torch.tensor(0.9 * math.log(4 / 3) + 0.1 * math.log(4)))


def test_a_margin_lowers_the_own_classs_logit_in_the_loss_alone() -> None:
    """Liang et al. 2017: -log(e^(2 - m) / (e^(2 - m) + e^1 + e^0)) of the logits 2, 1, 0 with m = .5."""
    term = fixed([[2.0], [1.0], [0.0]], margin=0.5)
    step = step_of(torch.ones(1, 1), torch.tensor([0]))
    expected = -math.log(math.exp(1.5) / (math.exp(1.5) + math.exp(1) + 1))
    assert float(term(step).detach()) == pytest.approx(expected)
    assert term.logits(torch.ones(1, 1)).tolist() == [[2, 1, 0]]
    assert float(step.log["accuracy"]) == 1
    plain = fixed([[2.0], [1.0], [0.0]])(step)
    assert float(plain.detach()) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1)))
    for options, words in (
        ({"margin": -1.0}, "margin of at least 0"),
        ({"margin": 1.0, "multi_label": True}, "margin is for"),
    ):
        with pytest.raises(InputError, match=words):
            ClassifierTerm(2, 3, **options)


def test_mixed_labels_count_in_their_shares() -> None:
    labels, partner = torch.tensor([0, 1]), torch.tensor([1, 0])
    term = fixed([[1.0, 0.0], [0.0, 1.0]])
    step = step_of(X, labels, mix=Mix(partner, 0.8))
    soft = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    torch.testing.assert_close(term(step), functional.cross_entropy(X, soft))
    assert step.log["accuracy"] == pytest.approx(0.8)


def test_several_labels_by_hand() -> None:
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    step = step_of(X, labels)
    value = fixed([[1.0, 0.0], [0.0, 1.0]], multi_label=True)(step)
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2, sigmoid(log 4) = 4/5; mean over classes, then over images
    expected = ((-math.log(3 / 4) - math.log(1 / 2)) + (-math.log(1 / 2) - math.log(4 / 5))) / 4
    torch.testing.assert_close(value, torch.tensor(expected))
    assert step.log["accuracy"] == 1.0


def test_labels_of_the_other_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"expects class indices, got labels of shape \(2, 2\)"):
        fixed([[1.0, 0.0], [0.0, 1.0]])(step_of(X, torch.eye(2)))
    with pytest.raises(InputError, match="label_smoothing is for one class per image"):
        ClassifierTerm(2, 2, multi_label=True, label_smoothing=0.1)
    with pytest.raises(InputError, match="unknown classifier head 'cosin', nearest is 'cosine'"):
        ClassifierTerm(2, 2, head="cosin")  # type: ignore[arg-type]


def test_center_loss_and_the_steps_of_its_centers_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    labels = torch.tensor([0, 0, 1])
    term = CenterTerm(2, 3, rate=0.5)
    term.centers.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]]))
    step = step_of(x, labels)
    value = term(step)
    torch.testing.assert_close(value, torch.tensor((1.0 + 9.0 + 1.0) / 3))
    # c_0 - 0.5 · 2/3 · ((0-1) + (0-3)) = 4/3;  c_1: 1 - 0.5 · 2/3 · (1-2) = 4/3;  c_2 has no image
    torch.testing.assert_close(term.centers, torch.tensor([[4 / 3, 0.0], [0.0, 4 / 3], [9.0, 9.0]]))
    value.backward()
    values = step.encoder.backbone.values
    torch.testing.assert_close(values.grad, 2 / 3 * torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))


def test_the_centers_follow_the_gradient_of_the_unweighted_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    term = CenterTerm(4, 3, rate=0.25)
    centers = term.centers.clone().requires_grad_()
    (x - centers[labels]).square().sum(1).mean().backward()
    before = term.centers.clone()
    (5e-4 * term(step_of(x, labels))).backward()
    torch.testing.assert_close(before - term.centers, 0.25 * centers.grad)


def test_centers_rest_in_evaluation_mode_and_are_no_parameters() -> None:
    term = CenterTerm(2, 2).eval()
    before = term.centers.clone()
    term(step_of(X, torch.tensor([0, 1])))
    assert torch.equal(term.centers, before)
    assert not list(term.parameters())
    assert "centers" in term.state_dict()


@pytest.mark.parametrize("options", [{}, {"head": "cosine", "scale": 3.0}, {"bias": False}])
def test_a_saved_classifier_comes_back(tmp_path: Path, options: dict[str, object]) -> None:
    term = ClassifierTerm(5, 3, **options)  # type: ignore[arg-type]
    save_classifier(tmp_path / "classifier.safetensors", term, ["cat", "dog", "owl"], fingerprint="ab12")
    again, names, fingerprint = load_classifier(tmp_path / "classifier.safetensors")
    x = torch.randn(4, 5)
    assert torch.equal(again.logits(x), term.logits(x))
    assert (names, fingerprint) == (["cat", "dog", "owl"], "ab12")


@pytest.mark.parametrize("name", ["proxy_anchor", "arcface", "cosface", "normalized_softmax", "large_margin_softmax"])
def test_proxies_are_saved_as_a_plain_classifier_with_the_same_logits(tmp_path: Path, name: str) -> None:
    term = metric_term(name, dim=5, n_classes=3)
    assert isinstance(term, HasClassWeights)
    save_classifier(tmp_path / "c.safetensors", term, list("abc"), fingerprint="")
    x = torch.randn(4, 5)
    torch.testing.assert_close(load_classifier(tmp_path / "c.safetensors")[0].logits(x), term.logits(x))


@pytest.mark.parametrize(
    ("name", "distance"),
    [("proxy_nca", "unit_l2"), ("proxy_nca", "l2"), ("proxy_anchor", "dot"), ("sphereface", "cosine")],
)
def test_proxies_of_other_distances_are_saved_with_the_same_order(tmp_path: Path, name: str, distance: str) -> None:
    term = metric_term(name, dim=5, n_classes=4, options={"distance": distance})
    assert isinstance(term, HasClassWeights)
    save_classifier(tmp_path / "c.safetensors", term, list("abcd"), fingerprint="")
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    again = load_classifier(tmp_path / "c.safetensors")[0]
    assert torch.equal(again.logits(x).argsort(1), term.logits(x).argsort(1))


def test_what_is_no_classifier_says_so(tmp_path: Path) -> None:
    term = metric_term("soft_triple", dim=5, n_classes=3)
    assert isinstance(term, HasClassWeights)
    with pytest.raises(InputError, match="soft_triple cannot be kept as a classifier"):
        save_classifier(tmp_path / "c.safetensors", term, list("abc"), fingerprint="")
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_classifier(tmp_path / "c.safetensors")
    Encoder.load("conv4", weights="random").save(tmp_path / "e.safetensors")
    with pytest.raises(WeightsError, match="holds no classifier"):
        load_classifier(tmp_path / "e.safetensors")


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    save_classifier(tmp_path / "c.safetensors", ClassifierTerm(5, 3), list("abc"), fingerprint="")
    before = torch.get_rng_state()
    load_classifier(tmp_path / "c.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
