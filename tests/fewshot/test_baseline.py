"""Baseline and Baseline++: side by side as alone, and as torch's own modules train them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from distcam.errors import InputError
from distcam.fewshot import FineTuned, baseline, baseline_plus_plus, evaluate, sample_episodes


def episodes(b: int, *, n: int = 3, k: int = 2, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Support (b, n, k, d) and query (b, 4, d) with a direction per class."""
    generator = torch.Generator().manual_seed(seed)
    centre = 2 * torch.eye(n, d)
    support = centre[:, None] + 0.3 * torch.randn(b, n, k, d, generator=generator)
    query = centre[torch.tensor([0, 1, 2, 0])] + 0.3 * torch.randn(b, 4, d, generator=generator)
    return support, query


def with_torch_modules(support: Tensor, query: Tensor, recipe: FineTuned) -> Tensor:
    """One episode by nn.Linear, weight_norm, and SGD on a plain loop."""
    n, k, d = support.shape
    generator = torch.Generator().manual_seed(recipe.seed)
    layer = nn.Linear(d, n, bias=recipe.head == "linear")
    with torch.no_grad():
        layer.weight.copy_((2 * torch.rand(n, d, generator=generator) - 1) / d**0.5)
        if recipe.head == "linear":
            layer.bias.zero_()
    if recipe.head == "cosine":
        nn.utils.parametrizations.weight_norm(layer)
    sgd = torch.optim.SGD(
        layer.parameters(), lr=recipe.learning_rate, momentum=0.9, dampening=0.9, weight_decay=recipe.weight_decay
    )

    def scores(vectors: Tensor) -> Tensor:
        return layer(recipe.scale * normalize(vectors, dim=-1) if recipe.head == "cosine" else vectors)

    labels = torch.arange(n).repeat_interleave(k)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(n * k, generator=generator).split(recipe.batch_size):
            sgd.zero_grad()
            cross_entropy(scores(support.flatten(0, 1)[rows]), labels[rows]).backward()
            sgd.step()
    return scores(query).detach()


@pytest.mark.parametrize("recipe", [baseline(epochs=7), baseline_plus_plus(epochs=7, scale=10.0)])
def test_a_batch_of_episodes_is_trained_as_torchs_modules_train_each_alone(recipe: FineTuned) -> None:
    support, query = episodes(5)
    together = recipe.logits(support, query)
    for row in range(5):
        torch.testing.assert_close(together[row], with_torch_modules(support[row], query[row], recipe))


@pytest.mark.parametrize("recipe", [baseline(), baseline_plus_plus()])
def test_it_learns_the_support_and_answers_the_queries(recipe: FineTuned) -> None:
    support, query = episodes(4)
    predicted = recipe.logits(support, query).argmax(-1)
    assert torch.equal(predicted, torch.tensor([0, 1, 2, 0]).expand(4, -1))


def test_the_cosine_head_does_not_notice_the_length_of_a_vector() -> None:
    support, query = episodes(2)
    recipe = baseline_plus_plus(epochs=5)
    torch.testing.assert_close(recipe.logits(5 * support, 3 * query), recipe.logits(support, query))


def test_answers_do_not_depend_on_the_batch_or_on_the_global_generator_and_leave_it_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 8, generator=generator)
    labels = [str(row // 10) for row in range(40)]
    recipe = baseline_plus_plus(epochs=3)
    manifest = sample_episodes(labels, n_way=3, n_shot=1, n_query=4, n_episodes=30)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = evaluate(features, manifest, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    alone = recipe.logits(features[manifest.support[7]][None], features[manifest.query[7]][None])
    np.testing.assert_array_equal(first.prediction[7], alone[0].argmax(-1).numpy())
    assert not first.is_transductive


def test_the_seed_is_part_of_the_description() -> None:
    described = baseline(seed=3).describe()
    assert described["name"] == "baseline"
    assert described["seed"] == 3
    assert described["setting"] == "inductive"


@pytest.mark.parametrize(
    "settings", [{"head": "mlp"}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"scale": -1.0}]
)
def test_settings_that_cannot_train_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"expected|must be"):
        FineTuned(**settings)
