"""Insertion, deletion, and ROAD: by hand on a network that adds up pixels, and against slow loops."""

from __future__ import annotations

import doctest

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distcam.errors import InputError, ShapeError
from distcam.explain import ClassScore, Similarity, measure_faithfulness
from distcam.explain.checks import faithfulness
from distcam.explain.checks import imputation as imputing
from distcam.explain.checks.faithfulness import insertion_deletion, pixel_order, remove_and_debias
from distcam.explain.checks.imputation import blurred, impute_linearly


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class MeanOfPixels(nn.Module):
    """Scores: the mean over all pixels, and its double."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 2 * mean], 1)


class Vector(nn.Module):
    """The mean of each channel, as a vector to be searched."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_the_curves_by_hand() -> None:
    images = torch.tensor([[[[8.0, 4.0], [0.0, 4.0]]]])
    maps = torch.tensor(
        [[[[3.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [3.0, 2.0]]]]
    )  # one in the pixels' order, one reversed
    found = insertion_deletion(
        MeanOfPixels(), images, maps, target=ClassScore(torch.tensor([[0, 1]])), steps=2, fill=torch.zeros(1, 1, 2, 2)
    )
    assert found.fractions.tolist() == [0, 0.5, 1]
    assert found.insertion[0].tolist() == [[0, 3, 4], [0, 2, 8]]  # 8 + 4 of 16; reversed 0 + 4, and twice the score
    assert found.deletion[0].tolist() == [[4, 1, 0], [8, 6, 0]]
    assert found.insertion_area[0].tolist() == [(1.5 + 3.5) / 2, (1 + 5) / 2]
    assert found.deletion_area[0].tolist() == [(2.5 + 0.5) / 2, (7 + 3) / 2]
    assert found.difference[0].tolist() == [1.0, -2.0]
    assert found.insertion_rank is None


def test_a_slow_loop_gives_the_same_curves_whatever_the_batches() -> None:
    images, maps, vectors = random(3, 3, 6, 6), random(3, 2, 6, 6, seed=1), random(3, 2, 3, seed=2)
    found = [
        insertion_deletion(Vector(), images, maps, target=Similarity(vectors), steps=4, batch_size=size)
        for size in (1, 4, 99)
    ]
    fill = blurred(images)
    for b in range(3):
        for m in range(2):
            order = maps[b, m].flatten().argsort(descending=True)
            for step in range(5):
                kept = torch.zeros(36, dtype=torch.bool)
                kept[order[: 9 * step]] = True
                picture = torch.where(kept.reshape(6, 6), images[b], fill[b])
                cosine = nn.functional.cosine_similarity(picture.mean((1, 2)), vectors[b, m], dim=0)
                for one in found:
                    assert one.insertion[b, m, step].item() == pytest.approx(cosine.item(), abs=1e-6)


def test_the_rank_of_the_match_is_followed() -> None:
    images = torch.zeros(1, 2, 1, 2)
    images[0, :, 0] = torch.tensor([[1.0, 0.0], [0.0, 4.0]])  # left pixel: channel 0, right pixel: channel 1
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    maps = torch.tensor([[[[1.0, 0.0]]]])
    found = insertion_deletion(
        Vector(),
        images,
        maps,
        target=Similarity(gallery[1]),
        steps=2,
        fill=torch.zeros_like(images),
        gallery=gallery,
        matches=torch.tensor([[1]]),
    )
    assert found.insertion_rank is not None
    assert found.deletion_rank is not None
    # nothing: all equally far, and row 0 comes first; the left pixel alone: (1, 0) is nearest; both: (1, 4) is not
    assert found.insertion_rank.tolist() == [[[2, 1, 3]]]
    assert found.deletion_rank.tolist() == [[[3, 3, 2]]]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
def test_ranks_agree_with_the_similarity_itself(metric: str) -> None:
    images, gallery = random(2, 3, 4, 4), random(7, 3, seed=3)
    matches = torch.tensor([[4], [2]])
    found = insertion_deletion(
        Vector(),
        images,
        random(2, 1, 4, 4, seed=1),
        target=Similarity(gallery[matches], metric=metric),
        steps=1,
        gallery=gallery,
        matches=matches,
    )
    vectors = images.mean((2, 3))
    distance = {
        "cosine": -nn.functional.normalize(vectors, dim=1) @ nn.functional.normalize(gallery, dim=1).T,
        "dot": -vectors @ gallery.T,
        "l1": (vectors[:, None] - gallery).abs().sum(-1),
        "l2": (vectors[:, None] - gallery).square().sum(-1),
    }[metric]
    expected = 1 + (distance < distance.gather(1, matches)).sum(1)
    assert found.insertion_rank is not None
    assert found.insertion_rank[:, 0, -1].tolist() == expected.tolist()


def test_equal_values_are_ordered_at_random_and_the_same_each_time() -> None:
    flat = torch.ones(9, 9)
    order = pixel_order(flat)
    assert sorted(order.flatten().tolist()) == list(range(81))
    assert order.flatten().tolist() != list(range(81))
    assert torch.equal(order, pixel_order(flat))
    assert not torch.equal(order, pixel_order(flat, seed=1))
    half = torch.zeros(4, 4)
    half[2:] = 1
    assert set(pixel_order(half)[2:].flatten().tolist()) == set(range(8))


def test_blur_is_a_weighted_mean() -> None:
    torch.testing.assert_close(blurred(torch.full((1, 3, 16, 12), 2.5)), torch.full((1, 3, 16, 12), 2.5))
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1
    seen = blurred(point)[0, 0]
    assert seen.sum().item() == pytest.approx(1)
    assert (seen > 0).sum().item() == 121  # 11 × 11
    assert (seen[15, 20] / seen[15, 15]).item() == pytest.approx(np.exp(-0.5), rel=1e-5)  # one sigma away
    assert blurred(random(1, 1, 1, 3)).shape == (1, 1, 1, 3)


def test_imputation_solves_the_linear_system() -> None:
    images, removed = random(2, 3, 7, 6), random(2, 7, 6, seed=1) > 0.4
    found = impute_linearly(images, removed, tolerance=1e-9)
    for b in range(2):
        matrix, right = np.eye(42), images[b].flatten(1).double().numpy().copy()
        for y, x in np.argwhere(removed[b].numpy()):
            around = {}
            for v in range(max(y - 1, 0), min(y + 2, 7)):
                for u in range(max(x - 1, 0), min(x + 2, 6)):
                    if (v, u) != (y, x):
                        around[v * 6 + u] = 1 / 6 if v == y or u == x else 1 / 12
            for place, weight in around.items():
                matrix[y * 6 + x, place] = -weight / sum(around.values())
            right[:, y * 6 + x] = 0
        np.testing.assert_allclose(found[b].flatten(1), np.linalg.solve(matrix, right.T).T, atol=1e-5)


def test_imputation_leaves_what_is_kept_and_never_divides_by_nothing() -> None:
    images = random(2, 3, 5, 5)
    nothing = torch.zeros(2, 5, 5, dtype=torch.bool)
    assert torch.equal(impute_linearly(images, nothing, noise=1.0), images)
    assert torch.equal(impute_linearly(images, ~nothing), torch.zeros_like(images))
    one = impute_linearly(
        torch.full((1, 1, 5, 5), 4.0), torch.ones(1, 5, 5).bool().index_fill(1, torch.tensor([0]), False)
    )
    torch.testing.assert_close(one, torch.full((1, 1, 5, 5), 4.0), atol=1e-3, rtol=0)
    drawn = impute_linearly(images, ~nothing, noise=0.5, generator=torch.Generator().manual_seed(0))
    assert 0.3 < float(drawn.std()) < 0.7


def test_removing_the_pixels_that_matter_first_costs_more() -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2:6, 2:6] = 1
    maps = torch.stack([images[0, 0], -images[0, 0]])[None]
    found = remove_and_debias(
        MeanOfPixels(), images, maps, target=ClassScore(torch.tensor([[0, 0]])), fractions=(0.25, 0.5), noise=0.0
    )
    good, bad = found.combined[0].tolist()
    assert good > 0.05
    assert good == pytest.approx(-bad, abs=0.02)
    assert found.most_relevant_first[0, 0, 0] < 0.05  # the square is gone, and imputed from its black surroundings
    assert found.least_relevant_first[0, 0, 0] == pytest.approx(
        0.25, abs=0.08
    )  # black pixels beside white ones grow grey


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    images, maps = random(2, 3, 6, 6), random(2, 1, 3, 3)
    insertion_deletion(model, images, maps, target=ClassScore(0), steps=2)
    remove_and_debias(model, images, maps, target=ClassScore(0), fractions=(0.5,))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    images, maps, target = random(2, 3, 4, 4), random(2, 1, 4, 4), ClassScore(0)
    model = MeanOfPixels()
    with pytest.raises(InputError, match="steps=0"):
        insertion_deletion(model, images, maps, target=target, steps=0)
    with pytest.raises(ShapeError, match=r"2 images need maps \(b, m, rows, columns\)"):
        insertion_deletion(model, images, maps[:, 0], target=target)
    with pytest.raises(ShapeError, match=r"the target asks \(2, 1\) questions"):
        insertion_deletion(model, images, maps.expand(-1, 3, -1, -1), target=target)
    with pytest.raises(InputError, match="NaN or infinite values in the maps"):
        insertion_deletion(model, images, maps * torch.nan, target=target)
    with pytest.raises(InputError, match="rank curves need a Similarity"):
        insertion_deletion(model, images, maps, target=target, gallery=random(3, 2), matches=torch.zeros(2, 1).long())
    with pytest.raises(InputError, match="rows of a gallery of 3"):
        insertion_deletion(
            Vector(), images, maps, target=Similarity(random(3)), gallery=random(3, 3), matches=torch.tensor([[3], [0]])
        )
    with pytest.raises(InputError, match="batch_size=0"):
        insertion_deletion(model, images, maps, target=target, batch_size=0)
    for fractions in ((), (0.0,), (1.0,)):
        with pytest.raises(InputError, match="fractions="):
            remove_and_debias(model, images, maps, target=target, fractions=fractions)
    with pytest.raises(ShapeError, match="need a boolean mask"):
        impute_linearly(images, torch.zeros(2, 4, 5, dtype=torch.bool))


def test_every_method_is_measured_beside_the_class_agnostic_map_and_a_random_order() -> None:
    """The score is the first channel's mean: its own map is faithful, a constant map has the random order's numbers."""
    net, images = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), random(2, 3, 8, 8)
    given = {"own": images[:, :1], "flat": torch.ones(2, 1, 8, 8)}
    found = measure_faithfulness(net, images, given, target=ClassScore(0), layer="0", steps=4)
    assert list(found) == ["own", "flat", "caam", "random"]
    assert all(torch.equal(one, other) for one, other in zip(found["flat"], found["random"], strict=True))
    assert bool((found["own"].insertion_minus_deletion > found["caam"].insertion_minus_deletion).all())
    assert bool((found["caam"].insertion_minus_deletion > found["random"].insertion_minus_deletion).all())
    expected = insertion_deletion(net, images, given["own"], target=ClassScore(0), steps=4).difference
    assert torch.equal(found["own"].insertion_minus_deletion, expected)
    assert torch.equal(found["own"].road, remove_and_debias(net, images, given["own"], target=ClassScore(0)).combined)


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(faithfulness).failed == 0
    assert doctest.testmod(imputing).failed == 0
