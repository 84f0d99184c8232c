"""Evaluation of cached features: episodes by hand, a plain loop, comparison in pairs, and what is refused."""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest
import torch

from distcam.errors import InputError, ShapeError
from distcam.fewshot import (
    BDCSPN,
    EpisodeManifest,
    EpisodeResult,
    NearestNeighbour,
    Prototypes,
    ResultFile,
    compare,
    evaluate,
    sample_episodes,
)
from distcam.fewshot import evaluation as module


@pytest.fixture(scope="module")
def bank():
    """Six overlapping classes with labels that are not 0…5."""
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat([3, 14, 15, 92, 65, 35], 12)
    centres = torch.randn(6, 8, generator=generator)
    return centres.repeat_interleave(12, 0) + 1.2 * torch.randn(72, 8, generator=generator), labels


def by_hand() -> EpisodeResult:
    """Items on a line: class a at 0, 1, 2; b at 10, 11, 2.5; c at 20, 21."""
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [2.5], [20.0], [21.0]], dtype=np.float32)
    episodes = EpisodeManifest(
        np.array([f"x{i}" for i in range(8)]),
        np.array(list("aaabbbcc")),
        np.array([[[0], [3]], [[6], [0]], [[1], [4]]]),
        np.array([[1, 5], [7, 2], [2, 5]]),
    )
    return evaluate(features, episodes)


def test_three_episodes_by_hand() -> None:
    result = by_hand()
    # Episode 0: x1 → a (right), x5 at 2.5 → a (wrong). Episode 1: both right. Episode 2: x2 → a, x5 → a (wrong).
    assert result.prediction.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert result.accuracy.tolist() == [0.5, 1.0, 0.5]
    # Margins are differences of squared distances: x1: 9² − 1² = 80; x5: 2.5² − 7.5² = −50; …
    np.testing.assert_allclose(result.margin, [[80, -50], [441 - 1, 324 - 4], [81 - 1, 2.25 - 72.25]], rtol=1e-5)


def test_answers_are_a_frame_and_a_table_of_a_notebook() -> None:
    pytest.importorskip("pandas")
    result = by_hand()
    table = result.to_pandas()
    assert table.groupby("episode")["is_right"].mean().tolist() == result.accuracy.tolist()
    assert (table["is_right"] == (table["label"] == table["prediction"])).all()
    both = ResultFile((result,))
    assert both.to_pandas().equals(table)
    assert f"{100 * result.mean_accuracy:.2f}" in both._repr_html_()
    assert max(map(len, map(repr, (result, both, result.episodes)))) < 200


def test_per_class_accuracy_and_confusion_by_hand() -> None:
    result = by_hand()
    assert result.per_class_accuracy() == {"a": 1.0, "b": 0.0, "c": 1.0}
    # Asked while the other class was there: a with b twice (x1, x2), a with c once, b with a twice, c with a once.
    assert result.meetings().tolist() == [[3, 2, 1], [2, 2, 0], [1, 0, 1]]
    nan = float("nan")
    np.testing.assert_array_equal(result.confusion(), [[1.0, 0.0, 0.0], [1.0, 0.0, nan], [0.0, nan, 1.0]])
    assert result.hardest_pairs(1) == [("b", "a", 1.0)]
    assert len(result.hardest_pairs(100)) == 4  # b and c never met


@pytest.mark.parametrize("dirichlet", [None, 2])
@pytest.mark.parametrize("classifier", [Prototypes(), NearestNeighbour("cosine"), BDCSPN()], ids=lambda c: c.name)
def test_all_episodes_at_once_equal_one_at_a_time(bank, classifier, dirichlet, monkeypatch) -> None:
    features, labels = bank
    shots = {"n_shot": 2, "n_query": 2} if dirichlet else {"n_shot": 3, "n_query": 4}
    episodes = sample_episodes(labels, n_way=4, n_episodes=37, dirichlet=dirichlet, **shots)
    monkeypatch.setitem(module._BYTES_AT_A_TIME, "cpu", 5 * 28 * 8 * 8)  # several chunks, the last one shorter
    result = evaluate(features.double(), episodes, classifier)
    prepared = classifier.prepare(features.double())
    for e in range(37):
        support, query = prepared[episodes.support[e]], prepared[episodes.query[e]]
        logits = classifier.logits(support[None], query[None])[0]
        assert result.prediction[e].tolist() == logits.argmax(1).tolist()
        right = 0
        for q, item in enumerate(episodes.query[e]):
            true = [labels[i] for i in episodes.support[e, :, 0]].index(labels[item])
            right += result.prediction[e, q] == true
            others = max(logits[q, way] for way in range(4) if way != true)
            assert result.margin[e, q] == pytest.approx(float(logits[q, true] - others), abs=1e-6)
        assert result.accuracy[e] == right / 4 / shots["n_query"]


def test_arrays_tensors_and_half_precision_give_the_same_answers(bank) -> None:
    features, labels = bank
    features = features.half().float()
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=20)
    reference = evaluate(features, episodes)
    read_only = features.numpy().copy()
    read_only.flags.writeable = False  # as a memory map is
    for same in (features.numpy(), features.half(), features.numpy().astype(np.float16), read_only):
        np.testing.assert_array_equal(evaluate(same, episodes).prediction, reference.prediction)


def test_rows_in_another_order_are_put_right_by_name(bank) -> None:
    features, labels = bank
    names = np.array([f"{i}.jpg" for i in range(72)])
    episodes = sample_episodes(labels, names=names, n_way=4, n_query=4, n_episodes=20)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(1))
    more = torch.cat([torch.full((1, 8), torch.nan), features[order]])  # a row that no episode needs may be anything
    result = evaluate(more, episodes, names=["extra.jpg", *names[order.numpy()]])
    np.testing.assert_array_equal(result.prediction, evaluate(features, episodes).prediction)


@pytest.mark.parametrize("n_shot", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize(
    "classifier", [Prototypes(), Prototypes("cosine"), NearestNeighbour(), NearestNeighbour("cosine"), BDCSPN()]
)
def test_constant_features_answer_nothing(bank, classifier, value, n_shot) -> None:
    episodes = sample_episodes(bank[1], n_way=4, n_shot=n_shot, n_query=4, n_episodes=20)
    for dtype in (torch.float32, torch.float64):
        result = evaluate(torch.full((72, 19), value, dtype=dtype), episodes, classifier)
        assert result.mean_accuracy == 0
        assert not result.margin.any()


@pytest.mark.parametrize(
    "classifier", [Prototypes(), Prototypes("cosine"), NearestNeighbour(), NearestNeighbour("cosine"), BDCSPN()]
)
def test_copies_in_two_classes_are_lost_whichever_class_comes_first(bank, classifier) -> None:
    features, labels = bank[0].clone(), bank[1]
    features[12:14] = features[:2]  # the support of the second class is that of the first
    support = np.array([[[0, 1], [12, 13], [24, 25]], [[0, 1], [12, 13], [36, 37]]])
    query = np.array([[*range(2, 6), *range(14, 18), *range(c + 2, c + 6)] for c in (24, 36)])
    names = np.array([f"{i:02}" for i in range(72)])
    found = []
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        result = evaluate(features, EpisodeManifest(names, labels, support[:, order], query), classifier)
        assert not (result.prediction == result.episodes.target)[:, :8].any()
        assert (result.margin[:, :8] <= 0).all()
        assert (result.margin == 0).any()
        found.append(result.per_class_accuracy())
    np.testing.assert_equal(found[1:], [found[0]] * 2)


def test_per_class_accuracy_is_the_diagonal_of_the_confusion(bank) -> None:
    features, labels = bank
    result = evaluate(features, sample_episodes(labels, n_way=4, n_query=4, n_episodes=100))
    assert list(result.per_class_accuracy().values()) == pytest.approx(np.diag(result.confusion()).tolist())
    winner = np.take_along_axis(result.episodes.ways, result.prediction.astype(np.int64), 1)
    true = result.episodes.class_of[result.episodes.query]
    for i in range(6):
        for j in range(6):
            asked = (true == i) & (result.episodes.ways == j).any(1)[:, None]
            assert result.meetings()[i, j] == asked.sum()
            assert result.confusion()[i, j] == pytest.approx((winner[asked] == j).mean())


def test_the_features_and_the_global_random_state_stay_as_they_were(bank) -> None:
    features, labels = bank
    copy, state = features.clone(), torch.get_rng_state()
    trained = features.clone().requires_grad_()
    evaluate(trained, sample_episodes(labels, n_way=4, n_query=4, n_episodes=5), BDCSPN())
    assert torch.equal(trained.detach(), copy)
    assert trained.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: f.index_fill(0, torch.tensor([5, 9]), torch.inf), InputError, r"2 of 72 .* the first is '05'"),
        (lambda f: f[:-1], ShapeError, "71 feature rows for 72 names"),
        (lambda f: f.long(), ShapeError, "floating-point rows"),
        (lambda f: f[:, :, None], ShapeError, r"\(72, 8, 1\)"),
        (lambda f: f * 1e30, InputError, "the logits are not finite"),
    ],
)
def test_features_that_cannot_be_judged_are_refused(bank, spoil, error, message) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=5)
    with pytest.raises(error, match=message):
        evaluate(spoil(features), episodes)


def test_save_then_load_is_the_identity(bank, tmp_path) -> None:
    features, labels = bank
    result = evaluate(features, sample_episodes(labels, n_way=4, n_query=4, n_episodes=30), BDCSPN(), encoder="net/1a")
    result.save(tmp_path / "result.h5")
    loaded = EpisodeResult.load(tmp_path / "result.h5")
    assert loaded.to_dict() == result.to_dict()
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    np.testing.assert_array_equal(loaded.margin, result.margin)
    assert compare(loaded, result).mean_difference == 0
    with h5py.File(tmp_path / "result.h5", "a") as file:
        del file["answers/0/margin"]
    with pytest.raises(InputError, match="is not a few-shot result"):
        EpisodeResult.load(tmp_path / "result.h5")


def test_a_comparison_is_of_pairs(bank) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=300)
    first, second = evaluate(features, episodes, Prototypes("cosine")), evaluate(features, episodes)
    comparison = compare(first, second)
    difference = first.accuracy - second.accuracy
    assert comparison.mean_difference == pytest.approx(first.mean_accuracy - second.mean_accuracy)
    assert comparison.intervals().usual.half_width == pytest.approx(1.96 * difference.std(ddof=1) / math.sqrt(300))
    assert comparison.intervals().usual.half_width < first.intervals().usual.half_width
    assert comparison.variance_ratio == pytest.approx((first.accuracy.var() + second.accuracy.var()) / difference.var())
    assert comparison.variance_ratio > 1
    swapped = compare(second, first)
    assert swapped.mean_difference == -comparison.mean_difference


def test_the_required_number_of_episodes_finds_the_difference_as_often_as_promised(bank) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=300)
    comparison = compare(evaluate(features, episodes, Prototypes("cosine")), evaluate(features, episodes))
    n = comparison.required_episodes(difference=0.02, power=0.8)
    deviation = comparison.difference.std(ddof=1)
    assert n == pytest.approx(((1.96 + 0.8416) * deviation / 0.02) ** 2, rel=0.01)
    draws = np.random.default_rng(0).normal(0.02, deviation / math.sqrt(n), size=10_000)
    assert (draws > 1.96 * deviation / math.sqrt(n)).mean() == pytest.approx(0.8, abs=0.02)


def test_results_of_different_episodes_cannot_be_compared(bank) -> None:
    features, labels = bank
    results = [evaluate(features, sample_episodes(labels, n_way=4, n_query=4, n_episodes=9, seed=s)) for s in (0, 1)]
    with pytest.raises(InputError, match=r"different episodes \(\w{12} and \w{12}\) and cannot be paired"):
        compare(*results)


def test_every_table_says_whether_it_is_transductive_and_which_question_an_interval_answers(bank) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=50)
    first, second = evaluate(features, episodes, BDCSPN(), encoder="net/1a"), evaluate(features, episodes)
    assert "bd-cspn (transductive), net/1a" in first.table()
    assert "prototypes-l2 (inductive)" in second.table()
    assert "4-way 1-shot, 4 queries per class, 50 episodes of 6 classes" in second.table()
    assert episodes.content_hash[:12] in second.table()
    assert second.table().count("?") == 2
    assert "one of them is transductive" in compare(first, second).table()
    assert "one of them is transductive" not in compare(first, first).table()
    whole = evaluate(features, sample_episodes(labels, n_way=6, n_query=4, n_episodes=5))
    assert "class jackknife: does not exist" in whole.table()


def test_a_result_refuses_arrays_that_are_not_of_its_manifest(bank) -> None:
    result = by_hand()
    with pytest.raises(ShapeError, match=r"shape \(3, 2\)"):
        EpisodeResult(result.episodes, result.classifier, result.prediction[:2], result.margin)
    with pytest.raises(InputError, match="ways in 0…1"):
        EpisodeResult(result.episodes, result.classifier, result.prediction + 2, result.margin)


@pytest.mark.gpu
def test_the_gpu_gives_the_cpu_s_answers(bank) -> None:
    features, labels = bank
    episodes = sample_episodes(labels, n_way=4, n_query=4, n_episodes=200)
    for classifier in (Prototypes(), NearestNeighbour("cosine"), BDCSPN()):
        on_gpu = evaluate(features.double().cuda(), episodes, classifier)
        np.testing.assert_array_equal(on_gpu.prediction, evaluate(features.double(), episodes, classifier).prediction)
