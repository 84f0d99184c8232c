"""Looking at a layer: the right numbers, and the network exactly as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from distcam.errors import InputError, ShapeError
from distcam.explain import METHODS, ClassScore, capture, explain_image


def images(n: int = 2, *, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Everything that side effects could show in: batch norm, dropout, in-place activations, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Dropout(0.5), nn.ReLU(inplace=True))
        self.shared = nn.ReLU()
        self.unused = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(5, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.second(self.shared(self.first(x))))
        return self.head(
            functional.dropout(x, 0.3, training=True).mean((-2, -1)) if self.training else x.mean((-2, -1))
        )


def plain_gradients(model: nn.Module, layer: nn.Module, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Activations and gradients the usual way, with a hook and the whole graph."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out) or out.clone())
    scores = model(x)[:, index].sum()
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(scores, kept[0])[0]


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("layer", ["first", "first.0", "first.1", "first.2", "second.0", "second"])
def test_gradients_are_those_of_the_whole_graph(layer: str) -> None:
    net = Net().eval()
    with capture(net, layer) as run:
        output = run(images())
        gradients = run.gradients(output)
        activations = run.activations
    assert gradients.shape == (2, 3, *activations.shape[1:])
    for index in range(3):
        expected = plain_gradients(net, net.get_submodule(layer), images(), index)
        torch.testing.assert_close((activations, gradients[:, index]), expected)


def test_only_what_lies_behind_the_layer_is_recorded() -> None:
    with capture(Net(), "second") as run:
        output = run(images())
        nodes, waiting = set(), [output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in nodes:
                nodes.add(node)
                waiting.extend(before for before, _ in node.next_functions)
    assert not any("Conv" in type(node).__name__ for node in nodes)


def test_more_scores_than_are_differentiated_together() -> None:
    net = Net().eval()
    with capture(net, "second") as run:
        output = run(images())
        many = run.gradients(output.repeat(1, 25))
        torch.testing.assert_close(many, run.gradients(output).repeat(1, 25, 1, 1, 1))


def test_operations_that_cannot_be_differentiated_in_batches_take_their_turn() -> None:
    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return torch.zeros(gradient.shape).copy_(gradient) * 2  # writes a batch into what is none

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Stubborn.apply(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Own(), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    with capture(net, "0") as run:
        output = run(images())
        together = run.gradients(output)
        for index in range(3):
            torch.testing.assert_close(together[:, index], run.gradients(output[:, index, None])[:, 0])


def test_the_parts_of_a_fused_transformer_layer_are_seen() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 3, stride=3)
            self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.embed(x).flatten(2).mT).mean(1)

    net = Tokens().eval()
    with capture(net, "block.norm1") as run:
        gradients = run.gradients(run(images())[:, :2])
    assert gradients.shape == (2, 2, 8, 4, 4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tokens_become_a_grid_without_the_class_token() -> None:
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3).eval()
    nn.init.normal_(vit.heads.head.weight)
    name = "encoder.layers.encoder_layer_1.ln_1"
    with capture(vit, name) as run:
        output = run(images(size=32))
        activations, gradients = run.activations, run.gradients(output[:, 1:2])
    tokens, slopes = plain_gradients(vit, vit.get_submodule(name), images(size=32), 1)
    assert tokens.shape == (2, 17, 8)
    torch.testing.assert_close(activations[:, :, 1, 2], tokens[:, 1 + 4 + 2])
    torch.testing.assert_close(gradients[:, 0, :, 3, 0], slopes[:, 1 + 12])


def test_maps_with_channels_last_are_turned_round() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.movedim(1, 3)

    net = nn.Sequential(nn.Conv2d(3, 5, 1), Last(), nn.Flatten(), nn.Linear(12 * 12 * 5, 2))
    with capture(net, "1") as run:
        output = run(images())
        last = run.activations, run.gradients(output)
    with capture(net, "0") as run:
        run(images())
        torch.testing.assert_close(last[0], run.activations)
    assert last[1].shape == (2, 2, 5, 12, 12)


# -------------------------------------------------------------------------------------------------------- side effects


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(method: str, fails: bool) -> None:
    net = Net()
    net.train()
    net.first[1].eval()  # a mode of its own
    net.second[0].weight.grad = torch.full_like(net.second[0].weight, 7.0)
    calls: list[str] = []
    net.second.register_forward_hook(lambda *_: calls.append("mine"))
    x = images().requires_grad_()
    before = {
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "modes": [m.training for m in net.modules()],
        "requires": [p.requires_grad for p in net.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        "generator": torch.get_rng_state(),
    }

    target = ClassScore(99) if fails else ClassScore(1)
    if fails:
        with pytest.raises(InputError):
            explain_image(net, x, target=target, method=method, layer="second")
    else:
        explain_image(net, x, target=target, method=method, layer="second")

    assert calls  # the owner's hook ran
    assert [m.training for m in net.modules()] == before["modes"]
    assert [p.requires_grad for p in net.parameters()] == before["requires"]
    assert [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()
    ] == before["hooks"]
    assert torch.equal(torch.get_rng_state(), before["generator"])
    assert torch.is_grad_enabled()
    assert all(torch.equal(v, before["state"][k]) for k, v in net.state_dict().items())
    assert (net.second[0].weight.grad == 7).all()
    assert all(p.grad is None for p in net.parameters() if p is not net.second[0].weight)
    assert x.grad is None


def test_random_numbers_that_the_network_draws_are_given_back() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    net = nn.Sequential(nn.Conv2d(3, 2, 1), Noisy(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state = torch.get_rng_state()
    explain_image(net, images(), target=ClassScore(), layer="0")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter_and_comes_back(mode) -> None:
    net = Net().eval()
    expected = explain_image(net, images(), target=ClassScore(1), layer="second").maps
    with mode():
        x = images()
        enabled = torch.is_grad_enabled()
        found = explain_image(net, x, target=ClassScore(1), layer="second").maps
        assert torch.is_grad_enabled() == enabled
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


# ------------------------------------------------------------------------------------------------------------ messages


def test_a_layer_that_does_not_exist_names_the_nearest_three() -> None:
    with pytest.raises(InputError, match="no layer 'secnod'; nearest: 'second', "), capture(Net(), "secnod"):
        pass


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("shared", "'shared' ran 2 times in one forward pass, expected once"),
        ("unused", "'unused' ran 0 times"),
        ("head", "expected \\(b, k, h, w\\) or \\(b, n, k\\); name an earlier layer"),
    ],
)
def test_layers_that_give_no_map_say_why(layer: str, message: str) -> None:
    with pytest.raises((InputError, ShapeError), match=message), capture(Net(), layer) as run:
        run(images())


def test_a_score_that_does_not_depend_on_the_layer_is_refused() -> None:
    net = Net()
    with capture(net, "second") as run:
        output = run(images())
        with pytest.raises(InputError, match="does not depend on the layer"):
            run.gradients(output.detach())
        with pytest.raises(InputError, match="does not depend on the layer"):
            run.gradients(output.detach().requires_grad_() * 2)


def test_values_that_are_not_finite_are_refused() -> None:
    with capture(Net(), "second") as run, pytest.raises(InputError, match="NaN or infinite values in the images"):
        run(images() / 0)
    net = Net()
    nn.init.constant_(net.second[0].weight, torch.inf)
    with pytest.raises(InputError, match="output of layer 'second'"):
        explain_image(net, images(), target=ClassScore(0), layer="second")
    with pytest.raises(InputError, match="in the maps"):
        explain_image(net, images(), target=ClassScore(0), method="fullgrad")


def test_activations_are_asked_for_after_a_run() -> None:
    with capture(Net(), "second") as run, pytest.raises(InputError, match="run the images first"):
        _ = run.activations
