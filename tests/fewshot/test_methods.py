"""Few-shot classifiers: by hand, against a loop over episodes, and against scikit-learn and easyfsl."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch.nn.functional import cosine_similarity, normalize

from distcam.errors import InputError, ShapeError
from distcam.fewshot import BDCSPN, Centre, L2Normalise, NearestNeighbour, PowerTransform, Prototypes, simple_shot


def episode_tensors(b=4, n=3, k=2, m=10, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    support = torch.randn(b, n, k, d, generator=generator, dtype=torch.float64)
    return support, torch.randn(b, m, d, generator=generator, dtype=torch.float64)


def test_prototypes_by_hand() -> None:
    support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 4.0]]]])  # means (1, 0) and (0, 4)
    query = torch.tensor([[[1.0, 1.0], [0.0, 3.0]]])
    # −‖q − p‖² are −1, −10 and −10, −1; the logits are larger by ‖q‖² = 2 and 9
    assert Prototypes().logits(support, query).tolist() == [[[1.0, -8.0], [-1.0, 8.0]]]
    cosine = Prototypes("cosine").logits(support, query)
    torch.testing.assert_close(cosine, torch.tensor([[[0.5**0.5, 0.5**0.5], [0.0, 1.0]]]))


def test_one_near_image_wins_for_the_nearest_neighbour_but_not_for_the_mean() -> None:
    support = torch.tensor([[[[0.0], [10.0]], [[2.0], [2.0]]]])
    query = torch.tensor([[[0.5]]])
    assert NearestNeighbour().logits(support, query).argmax(-1).item() == 0
    assert Prototypes().logits(support, query).argmax(-1).item() == 1


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_batched_logits_equal_a_loop(metric) -> None:
    support, query = episode_tensors()
    prototypes = Prototypes(metric).logits(support, query)
    nearest = NearestNeighbour(metric).logits(support, query)
    for e in range(len(support)):
        for q, x in enumerate(query[e]):
            for way in range(support.shape[1]):
                images = support[e, way]

                def close(reference, x=x):
                    if metric == "cosine":
                        return cosine_similarity(x, reference, dim=0)
                    return x.square().sum() - (x - reference).square().sum()

                torch.testing.assert_close(prototypes[e, q, way], close(images.mean(0)))
                torch.testing.assert_close(nearest[e, q, way], max(close(image) for image in images))


def test_predictions_equal_scikit_learn() -> None:
    support, query = episode_tensors(b=20, n=4, k=3, m=30)
    labels = np.repeat(np.arange(4), 3)
    for classifier, oracle in (
        (Prototypes(), NearestCentroid()),
        (NearestNeighbour(), KNeighborsClassifier(1)),
        (NearestNeighbour("cosine"), KNeighborsClassifier(1, metric="cosine")),
    ):
        predicted = classifier.logits(support, query).argmax(-1)
        for e in range(20):
            fitted = oracle.fit(support[e].flatten(0, 1).numpy(), labels)
            assert fitted.predict(query[e].numpy()).tolist() == predicted[e].tolist()


def test_prototypes_and_nearest_neighbour_agree_in_one_shot() -> None:
    support, query = episode_tensors(k=1)
    for metric in ("l2", "cosine"):
        torch.testing.assert_close(
            Prototypes(metric).logits(support, query), NearestNeighbour(metric).logits(support, query)
        )


def test_features_far_from_the_origin_keep_their_order_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    answers = []
    for features in (bank, (bank + 1000).float()):
        prepared = Prototypes().prepare(features)
        answers.append(Prototypes().logits(prepared[:5].view(1, 5, 1, 16), prepared[None, 5:]).argmax(-1))
    assert (answers[0] == answers[1]).float().mean() > 0.99


def test_simple_shot_is_the_nearest_mean_after_its_transformation() -> None:
    support, query = episode_tensors(k=1)
    bank = torch.cat([support.flatten(0, 2), query.flatten(0, 1)])
    mean = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    expected = {"UN": bank, "L2N": normalize(bank, dim=-1), "CL2N": normalize(bank - mean, dim=-1)}
    for variant, features in expected.items():
        classifier = simple_shot(variant, mean=mean if variant == "CL2N" else None)
        prepared = classifier.prepare(bank)
        torch.testing.assert_close(torch.cdist(prepared, prepared), torch.cdist(features, features))
        assert classifier.name == f"simpleshot-{variant}"
        assert not classifier.is_transductive


def test_the_power_transform_by_hand() -> None:
    got = PowerTransform(0.5, 0.0)(torch.tensor([[9.0, 16.0, -5.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.8, 0.0]]))


def test_transforms_leave_a_zero_vector_finite() -> None:
    zero = torch.zeros(1, 3)
    for transform in (L2Normalise(), PowerTransform(), PowerTransform(offset=0.0), Centre(torch.zeros(3))):
        assert torch.isfinite(transform(zero)).all()
    support, query = torch.zeros(1, 2, 1, 3), torch.zeros(1, 4, 3)
    for classifier in (Prototypes("cosine"), NearestNeighbour("cosine"), BDCSPN()):
        assert torch.isfinite(classifier.logits(support, query)).all()


def bdcspn_loop(support, query, *, z, epsilon):
    """The paper's steps for one episode, one vector at a time."""
    support = [[x / x.norm() for x in way] for way in support]
    query = [x / x.norm() for x in query]
    shift = torch.stack([x for way in support for x in way]).mean(0) - torch.stack(query).mean(0)
    query = [x + shift for x in query]
    basic = [torch.stack(way).mean(0) for way in support]
    cosines = [[cosine_similarity(x, p, dim=0) for p in basic] for x in query]
    rectified = []
    for way, images in enumerate(support):
        own = [i for i, c in enumerate(cosines) if int(torch.stack(c).argmax()) == way]
        own.sort(key=lambda i: -float(torch.stack(cosines[i]).softmax(0)[way]))
        members = images + [query[i] for i in own[:z]]
        weights = torch.stack([(epsilon * cosine_similarity(x, basic[way], dim=0)).exp() for x in members])
        rectified.append((torch.stack(members) * (weights / weights.sum())[:, None]).sum(0))
    return torch.stack([torch.stack([cosine_similarity(x, p, dim=0) for p in rectified]) for x in query])


@pytest.mark.parametrize(("z", "epsilon", "k"), [(8, 10.0, 1), (2, 10.0, 3), (0, 10.0, 1), (100, 1.0, 2)])
def test_bdcspn_equals_the_paper_s_steps_one_vector_at_a_time(z, epsilon, k) -> None:
    support, query = episode_tensors(k=k, m=12)
    classifier = BDCSPN(n_confident=z, epsilon=epsilon)
    got = classifier.logits(classifier.prepare(support), classifier.prepare(query))
    for e in range(len(support)):
        torch.testing.assert_close(got[e], bdcspn_loop(support[e], query[e], z=z, epsilon=epsilon))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.permutations(range(10)))
def test_the_order_of_the_queries_does_not_matter(seed, order) -> None:
    support, query = episode_tensors(seed=seed)
    for classifier in (Prototypes(), NearestNeighbour("cosine"), BDCSPN(n_confident=3)):
        torch.testing.assert_close(
            classifier.logits(support, query[:, order]), classifier.logits(support, query)[:, order]
        )


def test_only_a_transductive_answer_depends_on_the_other_queries() -> None:
    support, query = (normalize(x, dim=-1) for x in episode_tensors())
    for classifier in (Prototypes(), Prototypes("cosine"), NearestNeighbour(), BDCSPN()):
        alone = classifier.logits(support, query[:, :1])
        together = classifier.logits(support, query)[:, :1]
        assert torch.allclose(alone, together) != classifier.is_transductive


def test_centring_by_test_images_is_declared_transductive() -> None:
    mean = torch.ones(6)
    assert simple_shot("CL2N", mean=Centre(mean, source="test")).is_transductive
    described = simple_shot("CL2N", mean=Centre(mean, source="test")).describe()
    assert described["setting"] == "transductive"
    assert described["transforms"][0]["source"] == "test"
    assert simple_shot("CL2N", mean=mean).describe()["setting"] == "inductive"
    assert BDCSPN().describe() == {
        "name": "bd-cspn",
        "n_confident": 8,
        "epsilon": 10.0,
        "transforms": [],
        "setting": "transductive",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prototypes("manhattan"), "metric must be 'l2' or 'cosine', got 'manhattan'"),
        (lambda: simple_shot("CL2N"), "CL2N needs `mean`"),
        (lambda: simple_shot("L2N", mean=torch.ones(3)), "UN and L2N take none"),
        (lambda: simple_shot("L3N"), "must be UN, L2N or CL2N"),
        (lambda: Centre(torch.tensor([1.0, torch.nan])), "one finite vector"),
        (lambda: PowerTransform(0.0), "exponent"),
        (lambda: BDCSPN(n_confident=-1), "n_confident ≥ 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_shapes_that_do_not_fit_are_named() -> None:
    support, query = episode_tensors()
    with pytest.raises(ShapeError, match=r"\(4, 3, 2, 6\) and \(4, 10, 5\)"):
        Prototypes().logits(support, query[..., :5])
    with pytest.raises(ShapeError, match="the mean has 3 dimensions, the features 6"):
        Centre(torch.ones(3))(query)


def test_predictions_equal_easyfsl_where_it_is_installed() -> None:
    methods = pytest.importorskip("easyfsl.methods")
    support, query = episode_tensors(b=30, n=5, k=1, m=75, d=32)
    mean = torch.full((32,), 0.1, dtype=torch.float64)
    labels = torch.arange(5)
    for ours, theirs in (
        (Prototypes(), methods.PrototypicalNetworks()),
        (simple_shot("CL2N", mean=mean), methods.SimpleShot(feature_centering=mean, feature_normalization=2.0)),
    ):
        bank = ours.prepare(torch.cat([support.flatten(0, 2), query.flatten(0, 1)]))
        predicted = ours.logits(bank[:150].view(30, 5, 1, 32), bank[150:].view(30, 75, 32)).argmax(-1)
        for e in range(30):
            theirs.process_support_set(support[e].flatten(0, 1), labels)
            assert torch.equal(theirs(query[e]).argmax(-1), predicted[e])
