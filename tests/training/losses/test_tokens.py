"""Attention losses on the maps of tokens: against a literal reading of the equations, one image at a time."""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.encoders.readouts import read_out
from distcam.errors import InputError
from distcam.images import Transform
from distcam.remarks import DistcamWarning
from distcam.training.engine.step import Batch, Step, TrainingProgress, true_classes
from distcam.training.losses.attention import above_rounding
from distcam.training.losses.cam_loss import CamLoss, NegativeCam
from distcam.training.losses.classifier import ClassifierTerm
from distcam.training.losses.gain import Gain, MetricGain

pytest.importorskip("timm", reason="needs the extra timm")
LABELS = torch.tensor([0, 2, 1])
NOW = TrainingProgress(1, 2, 0)


@cache
def loaded(readout: str, size: int) -> Encoder:
    return Encoder.load("timm:test_vit", weights="random", transform=Transform(size), readout=readout, seed=2)


def encoder_of(readout: str, size: int = 48) -> Encoder:
    return deepcopy(loaded(readout, size)).train()


def step_of(encoder: Encoder, *, head: bool = True) -> Step:
    size, generator = encoder.transform.height, torch.Generator().manual_seed(6)
    images = torch.randn(3, 3, size, size, generator=generator)
    step = Step(encoder, Batch(images, LABELS, torch.arange(3)), NOW)
    if head:
        step.classifier = ClassifierTerm(encoder.embedding_dim, 3)
        with torch.no_grad():
            step.classifier.bias.copy_(torch.randn(3, generator=generator))
            step.classifier.weight.copy_(torch.randn(3, encoder.embedding_dim, generator=generator))
    return step


def scaled(a: torch.Tensor) -> torch.Tensor:
    return (a - a.min()) / (a.max() - a.min() + 1e-8)


def places_of(encoder: Encoder, image: torch.Tensor) -> torch.Tensor:
    """What comes from places: for a mean of tokens the tokens, for a class token what is not alike at all of them."""
    encoding = encoder(image[None])
    constant = 0 if encoding.constant is None else encoding.constant[0, :, None, None]
    return encoding.feature_map[0] - constant


@pytest.mark.parametrize("readout", ["class", "mean", "class+mean"])
def test_gain_is_its_equations_on_tokens(readout: str) -> None:
    encoder = encoder_of(readout)
    step = step_of(encoder)
    value = Gain(sigma=0.4, omega=8.0)(step)
    weights, expected = step.classifier.class_weights(), []
    for image, label in zip(step.batch.images, LABELS.tolist(), strict=True):
        places = places_of(encoder, image)
        n_places = places[0].numel()
        w = weights[label] / n_places  # Eq. 1: the logit is w · mean(f) + b
        attention = (w[:, None, None] * places).sum(0).clamp(min=0)  # Eq. 2
        assert attention.max() > attention.min()
        large = functional.interpolate(attention[None, None], image.shape[1:], mode="bilinear", align_corners=False)
        mask = 1 / (1 + torch.exp(-8.0 * (scaled(large[0, 0]) - 0.4)))  # Eq. 4
        masked = image - mask * image  # Eq. 3
        logits = encoder(masked[None]).embedding @ weights.T + step.classifier.bias
        expected.append(logits[0].softmax(0)[label])  # Eq. 5
    torch.testing.assert_close(value, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["class", "mean"])
def test_the_gradient_of_gain_goes_through_the_maps_of_tokens(readout: str) -> None:
    """Along its own direction the loss rises as fast as the gradient is long.

    The step is short: of a central difference the error is of second order, 6 % of this gradient at 1e-2.
    """
    encoder = encoder_of(readout)
    weight = encoder.backbone.source.blocks[2].attn.qkv.weight
    step = step_of(encoder)
    (gradient,) = torch.autograd.grad(Gain()(step), weight)
    direction, values = gradient / gradient.norm(), []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-3 * direction
            again = Step(encoder, step.batch, NOW)
            again.classifier = step.classifier
            with torch.enable_grad():
                values.append(float(Gain()(again).detach()))
            weight -= sign * 1e-3 * direction
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(gradient.norm()), rel=0.01)


def test_metric_gain_is_its_equations_on_a_class_token() -> None:
    encoder = encoder_of("class")
    step, term = step_of(encoder), MetricGain(64, 3)
    term.prototypes.copy_(functional.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(3))))
    term.is_known.fill_(True)
    found = term.attention(step, true_classes(step.batch))
    for image, label, attention in zip(step.batch.images, LABELS.tolist(), found, strict=True):
        embedding, places = encoder(image[None]).embedding[0], places_of(encoder, image)
        distance = (functional.normalize(term.prototypes[label], dim=0) - functional.normalize(embedding, dim=0)).abs()
        w = 1 / (distance + distance.median())  # [Dist-CAM] Eq. 4-5
        w = w / w.sum() * torch.sign(term.prototypes[label])
        torch.testing.assert_close(attention, (w[:, None, None] * places).sum(0).clamp(min=0), rtol=1e-3, atol=1e-5)


def with_norms(encoder: Encoder) -> Encoder:
    """With weights in its last norm that differ, as learnt ones do."""
    with torch.no_grad():
        weight = encoder.backbone.source.norm.weight
        weight.copy_(1 + 0.5 * torch.randn(len(weight), generator=torch.Generator().manual_seed(7)))
    return encoder


@pytest.mark.parametrize("readout", ["class", "mean", "class+mean"])
def test_cam_loss_is_its_equations_on_tokens(readout: str) -> None:
    encoder = with_norms(encoder_of(readout))
    step = step_of(encoder)
    weights, expected = step.classifier.class_weights(), []
    for image, label in zip(step.batch.images, LABELS.tolist(), strict=True):
        feature_map = encoder(image[None]).feature_map[0]
        caam, cam = feature_map.sum(0), (weights[label][:, None, None] * feature_map).sum(0)  # Eq. 1-3
        expected.append((scaled(caam) - scaled(cam)).abs().mean())  # Eq. 4
    torch.testing.assert_close(CamLoss(start=0)(step), torch.stack(expected).mean(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("readout", ["class", "mean"])
def test_rounding_behind_a_norm_of_equal_weights_is_no_map(readout: str) -> None:
    """Entries of such a norm sum to the same at every place: what tells their sums apart depends on the batch."""
    step, term = step_of(encoder_of(readout)), CamLoss(start=0)
    with pytest.warns(DistcamWarning, match="class-agnostic maps of its first batch are flat"):
        value = term(step)
    value.backward()
    assert value == 0
    assert all(p.grad is None or not p.grad.any() for p in step.encoder.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert term(step_of(step.encoder)) == 0  # said once
        assert CamLoss(start=0)(step_of(with_norms(step.encoder))) > 0


@pytest.mark.parametrize("channels", [16, 768, 2048])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_rounding_is_told_from_a_small_difference(channels: int, offset: float) -> None:
    tokens = torch.randn(4, channels, 7, 7, generator=torch.Generator().manual_seed(channels))
    centred = offset + functional.layer_norm(tokens.movedim(1, -1), (channels,)).movedim(-1, 1)
    assert above_rounding(centred.sum(1), centred).eq(0).all()
    centred[:, 0, 3, 3] += 1e-4 * centred.abs().sum(1).max()
    told = above_rounding(centred.sum(1), centred)
    assert told.flatten(1).argmax(1).tolist() == [24] * 4


@pytest.mark.parametrize("term", [CamLoss(start=0), NegativeCam(), Gain(), MetricGain(64, 3)])
def test_a_map_of_one_place_is_refused(term) -> None:
    encoder = encoder_of("class", size=16)
    with pytest.raises(InputError, match=r"trains where a map is high, but that of timm:test_vit has one place only"):
        term(step_of(encoder))


class Packed(nn.Module):
    """A transformer's block of torch's own attention, read by its class token, as open_clip's are."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.attn, self.norm = nn.MultiheadAttention(8, 2, dropout, batch_first=True), nn.LayerNorm(8)

    def forward(self, images):
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.patch(images).flatten(2).mT], 1)
        return self.norm((tokens + self.attn(tokens, tokens, tokens, need_weights=False)[0])[:, 0])


def test_maps_of_torchs_attention_are_the_same_while_it_trains() -> None:
    network, images = read_out(Packed()), torch.randn(2, 3, 32, 32)
    while_tested = network.eval()(images)
    assert while_tested.shape[-2:] == (4, 4)
    torch.testing.assert_close(network.train()(images), while_tested)


def test_dropout_in_torchs_attention_is_refused_and_costs_later_maps_nothing() -> None:
    encoder = Encoder.load(read_out(Packed(dropout=0.1)), transform=Transform(32)).train()
    with pytest.raises(InputError, match=r"one place only: dropout of its nn.MultiheadAttention .* set it to 0"):
        Gain()(step_of(encoder))
    assert encoder.eval()(torch.randn(2, 3, 32, 32)).feature_map.shape[-2:] == (4, 4)
