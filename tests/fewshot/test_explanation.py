"""Maps of few-shot answers: every pair at once equals one at a time, and decision maps add up to the logits."""

from __future__ import annotations

import pytest
import torch

from distcam.errors import InputError, ShapeError
from distcam.explain import dist_cam
from distcam.fewshot import BDCSPN, Prototypes, decision_map, episode_maps


@pytest.fixture
def episode():
    """Non-negative feature maps with some dead channels, as after a ReLU: 5 ways, 2 shots, 6 queries."""
    generator = torch.Generator().manual_seed(0)
    support = (torch.randn(5, 2, 16, generator=generator) + 0.3).relu()
    return (torch.randn(6, 16, 4, 3, generator=generator) - 0.3).relu(), support


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_all_pairs_at_once_equal_one_pair_at_a_time(episode, metric) -> None:
    query_maps, support = episode
    prototypes = Prototypes().prototypes(support[None])[0]
    maps = episode_maps(query_maps, prototypes, metric=metric)
    assert maps.shape == (6, 5, 4, 3)
    assert torch.isfinite(maps).all()
    for q in range(6):
        for way in range(5):
            alone = dist_cam(query_maps[q], prototypes[way : way + 1], metric=metric)[0]
            torch.testing.assert_close(maps[q, way], alone)


def test_several_episodes_equal_each_alone(episode) -> None:
    query_maps, support = episode
    maps = torch.stack([query_maps, query_maps.flip(0)])
    prototypes = torch.stack([support.mean(1), support.mean(1).flip(0)])
    together = episode_maps(maps, prototypes)
    for e in range(2):
        torch.testing.assert_close(together[e], episode_maps(maps[e], prototypes[e]))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_decision_map_adds_up_to_the_difference_of_the_logits(episode, metric) -> None:
    query_maps, support = (x.double() for x in episode)
    logits = Prototypes(metric).logits(support[None], query_maps.mean((-2, -1))[None])[0]
    prototypes = support.mean(1)
    shares, constant = decision_map(query_maps, prototypes[1], prototypes[3], metric=metric)
    torch.testing.assert_close(shares.sum((-2, -1)) + constant, logits[:, 1] - logits[:, 3])
    swapped = decision_map(query_maps, prototypes[3], prototypes[1], metric=metric)
    torch.testing.assert_close(swapped.map, -shares)


def test_rectified_prototypes_can_be_explained(episode) -> None:
    query_maps, support = episode
    classifier = BDCSPN()
    query = query_maps.mean((-2, -1))
    rectified, _ = classifier.rectify(classifier.prepare(support[None]), classifier.prepare(query[None]))
    assert torch.isfinite(episode_maps(query_maps, rectified[0], metric="cosine")).all()


def test_maps_and_prototypes_that_do_not_fit_are_refused(episode) -> None:
    query_maps, support = episode
    for prototypes in (support.mean(1)[:, :8], support, support.mean(1)[None]):
        with pytest.raises(ShapeError, match="same episodes and channels"):
            episode_maps(query_maps, prototypes)
    with pytest.raises(ShapeError):
        decision_map(query_maps, support[0, 0, :8], support[1, 0, :8])
    with pytest.raises(InputError, match="metric must be"):
        decision_map(query_maps, support[0, 0], support[1, 0], metric="dot")
