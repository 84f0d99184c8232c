"""Metric losses: pytorch-metric-learning behind names, miners that match a slow loop, memories that resume."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.encoders.heads import Linear
from distcam.errors import InputError
from distcam.training.engine.step import Batch, HasClassWeights, Mix, Objective, Step, TrainingProgress
from distcam.training.losses.metric import LOSSES, MINERS, MetricTerm, ProxyTerm, metric_term

NOW = TrainingProgress(epoch=0, epochs=1, step=0)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])


def vectors(n: int = 8, dim: int = 5, *, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


class Given(nn.Module):
    """A backbone whose feature map is a parameter, so that gradients can be read off."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.values[:, :, None, None].expand(-1, -1, 2, 2)[: len(images)]


def step_of(values: Tensor, labels: Tensor = LABELS, *, mix: Mix | None = None, head: nn.Module | None = None) -> Step:
    encoder = Encoder(Given(values), head=head)
    batch = Batch(torch.zeros(len(labels), 3, 2, 2), labels, torch.arange(len(labels)), mix=mix)
    return Step(encoder, batch, NOW)


def gradient(step: Step) -> Tensor:
    values = step.encoder.backbone.values
    assert isinstance(values, Tensor)
    assert values.grad is not None
    return values.grad


def batch_hard_by_loops(x: Tensor, labels: Tensor, *, margin: float, soft: bool) -> Tensor:
    """The textbook: for each anchor the farthest of its class and the nearest of any other."""
    total = []
    for a in range(len(x)):
        positive = max((x[a] - x[j]).norm() for j in range(len(x)) if labels[j] == labels[a] and j != a)
        negative = min((x[a] - x[j]).norm() for j in range(len(x)) if labels[j] != labels[a])
        value = positive - negative + margin
        total.append((1 + value.exp()).log() if soft else value.clamp(min=0))
    return torch.stack(total).mean()


@pytest.mark.parametrize("soft", [False, True])
def test_the_batch_hard_triplet_is_that_of_a_loop_over_anchors(soft: bool) -> None:
    x, margin = vectors(), 0.0 if soft else 0.3
    term = metric_term("batch_hard_triplet", dim=5, n_classes=3, options={"margin": margin, "smooth_loss": soft})
    expected = batch_hard_by_loops(x, LABELS, margin=margin, soft=soft)
    torch.testing.assert_close(term(step_of(x)), expected)


def test_a_triplet_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # anchor 0: 3 - 4 + 2 = 1; anchor 1: 3 - 5 + 2 = 0
    labels = torch.tensor([0, 0, 1])
    options = {"distance": "l2", "margin": 2.0, "reducer": "mean"}
    term = metric_term("triplet", dim=2, n_classes=2, options=options)
    torch.testing.assert_close(term(step_of(x, labels)), torch.tensor(0.5))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_and_reaches_encoder_and_class_vectors(name: str) -> None:
    torch.manual_seed(0)
    term, step = metric_term(name, dim=5, n_classes=3), step_of(vectors())
    value = term(step)
    value.backward()
    assert value.ndim == 0
    assert value.isfinite()
    assert gradient(step).isfinite().all()
    assert gradient(step).abs().sum() > 0
    for parameter in term.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert ("accuracy" in step.log) == LOSSES[name].has_classes == isinstance(term, HasClassWeights)


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if not entry.has_classes])
def test_a_batch_without_a_single_pair_is_a_zero_that_can_be_differentiated(name: str) -> None:
    step = step_of(vectors(1), torch.tensor([2]))
    value = metric_term(name, dim=5, n_classes=3)(step)
    value.backward()
    assert value == 0
    assert gradient(step).abs().sum() == 0


@pytest.mark.parametrize("miner", MINERS)
def test_every_miner_serves_the_triplet_loss(miner: str) -> None:
    term = metric_term("triplet", dim=5, n_classes=3, options={"miner": miner})
    assert term(step_of(vectors())).isfinite()


def test_pooled_vectors_lie_before_the_head() -> None:
    x, head = vectors(), Linear(5, 2)
    options = {"distance": "l2"}
    on_embedding = metric_term("triplet", dim=2, n_classes=3, options=options)(step_of(x, head=head))
    on_pooled = metric_term("triplet", dim=5, n_classes=3, options=options | {"on": "pooled"})(step_of(x, head=head))
    plain = metric_term("triplet", dim=5, n_classes=3, options=options)
    torch.testing.assert_close(on_pooled, plain(step_of(x)))
    torch.testing.assert_close(on_embedding, plain(step_of(head(x).detach())))


def test_proxies_before_the_head_are_no_class_weights_of_the_embedding() -> None:
    assert isinstance(metric_term("arcface", dim=5, n_classes=3), HasClassWeights)
    assert not isinstance(metric_term("arcface", dim=5, n_classes=3, options={"on": "pooled"}), HasClassWeights)


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca", "arcface", "cosface", "normalized_softmax"])
def test_the_largest_logit_belongs_to_the_class_vector_with_the_largest_cosine(name: str) -> None:
    term = metric_term(name, dim=5, n_classes=3)
    assert isinstance(term, ProxyTerm)
    x = vectors(30)
    cosine = functional.normalize(x) @ functional.normalize(term.class_weights()).mT
    assert term.class_weights().shape == (3, 5)
    assert torch.equal(term.logits(x).argmax(1), cosine.argmax(1))


def test_accuracy_counts_nearest_proxies() -> None:
    term = metric_term("proxy_anchor", dim=2, n_classes=2)
    with torch.no_grad():
        term.loss.proxies.copy_(torch.eye(2))
    step = step_of(torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
    term(step)
    assert step.log["accuracy"] == 0.75


def test_several_vectors_per_class_have_logits_but_no_weights() -> None:
    term = metric_term("soft_triple", dim=5, n_classes=3)
    assert isinstance(term, ProxyTerm)
    assert term.logits(vectors()).shape == (8, 3)
    with pytest.raises(InputError, match=r"soft_triple has several vectors per class.*Grad-CAM"):
        term.class_weights()


def test_contrastive_with_a_similarity_pulls_equals_together() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # cosines 1 within, 0 across: nothing to improve
    labels = torch.tensor([0, 0, 1])
    for distance in ("cosine", "dot"):
        assert metric_term("contrastive", dim=2, n_classes=2, options={"distance": distance})(step_of(x, labels)) == 0
    swapped = metric_term("contrastive", dim=2, n_classes=2, options={"distance": "cosine", "neg_margin": -0.5})
    torch.testing.assert_close(swapped(step_of(x, labels)), torch.tensor(0.5))


def test_mixed_images_count_with_both_labels_in_their_shares() -> None:
    x, partner = vectors(), torch.arange(8).flip(0)
    term = metric_term("proxy_anchor", dim=5, n_classes=3)
    own, other = term(step_of(x)), term(step_of(x, LABELS[partner]))
    mixed = term(step_of(x, mix=Mix(partner, 0.7)))
    torch.testing.assert_close(mixed, 0.7 * own + 0.3 * other)


def test_the_memory_compares_a_batch_with_earlier_ones() -> None:
    term = metric_term("contrastive", dim=2, n_classes=2, options={"distance": "l2", "memory": 4})
    term(step_of(torch.tensor([[0.0, 0.0]]), torch.tensor([0])))
    value = term(step_of(torch.tensor([[3.0, 0.0]]), torch.tensor([0])))  # its only partner lies in the memory
    torch.testing.assert_close(value, torch.tensor(3.0))


def test_a_memory_goes_on_where_its_state_dict_was_taken() -> None:
    def made() -> MetricTerm:
        return metric_term("supcon", dim=5, n_classes=3, options={"memory": 20})

    one, batches = made(), [vectors(seed=seed) for seed in range(6)]
    for x in batches[:3]:
        one(step_of(x))
    other = made()
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for x in batches[3:]:
        assert torch.equal(one(step_of(x)), other(step_of(x)))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    assert other.loss.has_been_filled
    assert all(isinstance(value, Tensor) for value in one.state_dict().values())


def test_what_cannot_be_used_is_an_error_that_says_what_can() -> None:
    def refused(name: str, match: str, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            metric_term(name, dim=5, n_classes=3, options=options)

    refused("tripplet", "unknown metric loss 'tripplet', nearest is 'triplet'")
    refused("triplet", "unknown option of triplet 'margn', nearest is 'margin'", margn=1)
    refused("triplet", "unknown miner 'batch_hrad', nearest is 'batch_hard'", miner="batch_hrad")
    refused("triplet", "option of miner triplet_margin 'margn'", miner={"kind": "triplet_margin", "margn": 1})
    refused("triplet", "unknown distance 'l3'", distance="l3")
    refused("triplet", "unknown reducer 'median'", reducer="median")
    refused("triplet", "unknown space 'head'", on="head")
    refused("arcface", "arcface cannot use a memory of earlier batches; .*supcon", memory=8)
    refused("arcface", "unknown option of arcface 'num_classes'", num_classes=3)
    refused("circle", "circle: pytorch-metric-learning refuses", distance="l2")
    term = metric_term("supcon", dim=5, n_classes=3, options={"memory": 4})
    with pytest.raises(InputError, match="holds 4 vectors, fewer than a batch of 8"):
        term(step_of(vectors()))
    with pytest.raises(InputError, match="supcon needs one class per image"):
        term(step_of(vectors(), functional.one_hot(LABELS).float()))
    with pytest.raises(InputError, match="a mixed image has no class"):
        term(step_of(vectors(), mix=Mix(torch.arange(8), 0.5)))


def test_an_objective_weighs_a_metric_term() -> None:
    step = step_of(vectors())
    objective = Objective({"a": metric_term("triplet", dim=5, n_classes=3)}, {"a": 2.0})
    losses = objective(step)
    torch.testing.assert_close(float(losses.total.detach()), 2 * losses.terms["a"])


WORKER = """
    import os, torch
    from torch import distributed
    from distcam.training.losses.metric import metric_term
    from distcam.training.losses.classifier import CenterTerm
    import sys; sys.path.insert(0, {tests!r})
    from test_metric import LABELS, gradient, step_of, vectors
    def whole_and_parts(make):
        torch.manual_seed(0)
        term, step = make(), step_of(vectors(), LABELS)
        value = term(step); value.backward()
        grads = [gradient(step)] + [p.grad for p in term.parameters()]
        return value.detach(), grads
    MAKERS = [
        lambda: metric_term("batch_hard_triplet", dim=5, n_classes=3),
        lambda: metric_term("proxy_anchor", dim=5, n_classes=3),
        lambda: metric_term("arcface", dim=5, n_classes=3),
    ]
    expected = [whole_and_parts(make) for make in MAKERS]
    whole = CenterTerm(5, 3); whole.centers.copy_(torch.zeros(3, 5)); whole(step_of(vectors()))
    distributed.init_process_group("gloo")
    mine = slice(4 * distributed.get_rank(), 4 * distributed.get_rank() + 4)
    for make, (value, grads) in zip(MAKERS, expected):
        torch.manual_seed(0)
        term, step = make(), step_of(vectors()[mine], LABELS[mine])
        got = term(step); got.backward()
        own = torch.zeros(8, 5); own[mine] = gradient(step)
        for one, all_of in zip([own] + [p.grad for p in term.parameters()], grads, strict=True):
            distributed.all_reduce(one)
            torch.testing.assert_close(one / 2, all_of, rtol=1e-4, atol=1e-5)
        if term.is_gathered:
            torch.testing.assert_close(got.detach(), value)
    part = CenterTerm(5, 3); part.centers.copy_(torch.zeros(3, 5)); part(step_of(vectors()[mine], LABELS[mine]))
    torch.testing.assert_close(part.centers, whole.centers)
    distributed.destroy_process_group()
    print("agreed", flush=True)
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_whole_batch() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = textwrap.dedent(WORKER.format(tests=os.path.dirname(__file__)))  # noqa: PTH120 - a plain string goes in
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert "agreed" in out, err[-2000:]
