"""One manifest on other libraries: as a batch sampler, and through easyfsl's own methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from distcam.errors import InputError
from distcam.fewshot import (
    BDCSPN,
    Centre,
    EpisodeManifest,
    L2Normalise,
    Prototypes,
    evaluate,
    sample_episodes,
    simple_shot,
)


@pytest.fixture(scope="module")
def bank():
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(8) * 3 + 2, 20)  # not 0…7
    centres = torch.randn(8, 16, generator=generator).repeat_interleave(20, 0)
    return (centres + 1.5 * torch.randn(160, 16, generator=generator)).relu(), labels


def test_a_manifest_is_the_batch_sampler_of_a_torch_loader(bank) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_shot=2, n_query=3, n_episodes=7)
    loader = DataLoader(TensorDataset(features, torch.from_numpy(labels)), batch_sampler=episodes.batch_sampler())
    batches = list(loader)
    assert len(batches) == len(loader) == 7
    for e, (vectors, classes) in enumerate(batches):
        by_class = classes.view(5, 5)  # K = 2 support images, then Q = 3 queries of each class
        assert (by_class == by_class[:, :1]).all()
        torch.testing.assert_close(vectors.view(5, 5, 16)[:, :2], features[episodes.support[e]])
        torch.testing.assert_close(vectors.view(5, 5, 16)[:, 2:], features[episodes.queries_by_class[e]])


def test_unbalanced_queries_have_no_class_by_class_order(bank) -> None:
    episodes = sample_episodes(bank[1][bank[1] < 15], n_way=2, n_query=3, n_episodes=30, dirichlet=2)
    assert not episodes.is_balanced
    with pytest.raises(InputError, match="different numbers of queries"):
        episodes.batch_sampler()


def test_replay_finds_items_by_name_and_names_those_that_are_missing(bank) -> None:
    features, labels = bank
    names = np.array([f"img{i}.jpg" for i in range(160)])
    episodes = sample_episodes(labels, names=names, n_query=3, n_episodes=20)
    shuffled = np.random.default_rng(0).permutation(160)
    again = evaluate(features[torch.from_numpy(shuffled)], episodes, names=names[shuffled])
    np.testing.assert_array_equal(again.prediction, evaluate(features, episodes).prediction)
    with pytest.raises(
        InputError, match=r"2 of the manifest's 160 items are not in the listing, the first is 'img0.jpg'"
    ):
        evaluate(features[2:], episodes, names=names[2:])


def easyfsl_predictions(method, features, episodes: EpisodeManifest, n: int) -> np.ndarray:
    labels = torch.arange(episodes.n_way).repeat_interleave(episodes.n_shot)
    predicted = []
    with torch.no_grad():
        for support, query in zip(episodes.support[:n], episodes.query[:n], strict=True):
            method.process_support_set(features[support.ravel()], labels)
            predicted.append(method(features[query]).argmax(1))
    return torch.stack(predicted).numpy()


@pytest.mark.parametrize("n_shot", [1, 5])
def test_easyfsl_answers_the_same_manifest_alike(bank, n_shot) -> None:
    methods = pytest.importorskip("easyfsl.methods")
    features, labels = bank
    features = features.double()
    episodes = sample_episodes(labels, n_shot=n_shot, n_query=10, n_episodes=40)
    mean = features.mean(0)
    for ours, theirs in (
        (Prototypes("l2"), methods.PrototypicalNetworks()),
        (Prototypes("cosine", transforms=(L2Normalise(),)), methods.SimpleShot(feature_normalization=2.0)),
        (
            Prototypes("cosine", transforms=(Centre(mean), L2Normalise())),
            methods.SimpleShot(feature_centering=mean, feature_normalization=2.0),
        ),
    ):
        expected = easyfsl_predictions(theirs, features, episodes, 40)
        np.testing.assert_array_equal(evaluate(features, episodes, ours).prediction, expected)


def test_easyfsls_simpleshot_is_the_papers_with_one_shot_only(bank) -> None:
    """It compares by cosine; the paper by Euclidean distance, to means of unit vectors that are no unit vectors."""
    methods = pytest.importorskip("easyfsl.methods")
    features, labels = bank
    features, mean = features.double(), features.double().mean(0)
    theirs = methods.SimpleShot(feature_centering=mean, feature_normalization=2.0)
    share = {}
    for n_shot in (1, 5):
        episodes = sample_episodes(labels, n_shot=n_shot, n_query=10, n_episodes=40)
        ours = evaluate(features, episodes, simple_shot("CL2N", mean=mean)).prediction
        share[n_shot] = (ours == easyfsl_predictions(theirs, features, episodes, 40)).mean()
    assert share[1] == 1 > share[5] > 0.9


def test_easyfsls_bdcspn_is_another_method_and_this_is_how(bank) -> None:
    """Temperature 1 instead of 10, all queries instead of the best 8, and the decision on unshifted queries."""
    methods = pytest.importorskip("easyfsl.methods")
    features, labels = bank
    features = normalize(features.double(), dim=-1)
    episodes = sample_episodes(labels, n_query=10, n_episodes=40)
    theirs = easyfsl_predictions(methods.BDCSPN(), features, episodes, 40)
    assert (evaluate(features, episodes, BDCSPN()).prediction != theirs).any()

    agree = []
    for e in range(40):
        support, query = features[episodes.support[e]][None], features[episodes.query[e]][None]
        prototypes, _ = BDCSPN(n_confident=50, epsilon=1.0).rectify(support, query)
        predicted = (normalize(query[0], dim=-1) @ normalize(prototypes[0], dim=-1).T).argmax(-1)
        agree.append((predicted.numpy() == theirs[e]).mean())
    assert np.mean(agree) > 0.99  # what is left: their weights are a softmax of dot products, not of cosines
