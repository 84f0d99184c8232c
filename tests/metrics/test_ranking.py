"""One rule for equal distances in every measure: no order of rows, of classes or of blocks changes a value."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from distcam.metrics import METRICS, distances, ranking
from distcam.metrics.distances import Distinct
from distcam.metrics.ranking import rank_measures
from distcam.reid import Labels, evaluate_distances, evaluate_features
from distcam.reid import ReidProtocol as ReidProtocol
from distcam.retrieval import RetrievalProtocol, evaluate_embeddings

ORDERS = ("sorted", "interleaved", "shuffled")


def retrieval(queries: Any, query_labels: Any, gallery: Any, gallery_labels: Any, metric: str, **options: Any) -> Any:
    protocol = RetrievalProtocol(metric=metric, clusters=False, resamples=5)
    result = evaluate_embeddings(
        queries, query_labels, gallery=gallery, gallery_labels=gallery_labels, protocol=protocol, **options
    )
    return {name: score.value for name, score in result.scores.items()}, result.per_query._asdict()


def reid(queries: Any, query_labels: Any, gallery: Any, gallery_labels: Any, metric: str, **options: Any) -> Any:
    result = evaluate_features(
        queries,
        gallery,
        query=Labels(query_labels, np.zeros(len(queries), int)),
        gallery=Labels(gallery_labels, np.arange(len(gallery)) % 1 + 1),
        metric=metric,
        protocol=ReidProtocol(same_camera="keep", junk=(), distractors=()),
        single_gallery_shot=True,
        **options,
    )
    found = result.to_dict(per_query=True)
    per_query = {name: np.array(values, float) for name, values in found.pop("per_query").items()}
    return found, per_query


def same_bits(first: Any, second: Any) -> bool:
    """Equality of nested results, in which NaN equals NaN."""
    return repr(first) == repr(second)


def planted(seed: int, *, n: int = 60, dim: int = 24, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Random vectors of five classes with copies planted in other classes; labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(5, size=n)
    vectors = (random.standard_normal((5, dim))[labels] + 2 * random.standard_normal((n, dim))).astype(dtype)
    copies = random.permutation(n)
    vectors[copies[:20]] = vectors[copies[20:40]]
    vectors[copies[40:46]] = vectors[copies[0]]
    return vectors, labels


def coarse(vectors: Any) -> Any:
    """The numbers that bfloat16 holds, as float32."""
    return (np.ascontiguousarray(vectors, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    found = rank_measures([0, 0, 0, 2], [0.2, 0.3, 0.6, 0.1], [2, 3, 6, 1], n_queries=3)
    assert found.n_relevant.tolist() == [3, 0, 1]
    assert found.first_rank.tolist() == [2, 0, 1]
    assert found.r_precision[[0, 2]].tolist() == [2 / 3, 1]
    assert found.map_at_r[0] == pytest.approx((1 / 2 + 2 / 3) / 3)  # the one at rank 6 is beyond R = 3
    assert found.average_precision[0] == pytest.approx((1 / 2 + 2 / 3 + 3 / 6) / 3)
    assert found.inverse_penalty[0] == 3 / 6
    assert all(np.isnan(column[1]) for column in found[2:])


@pytest.mark.parametrize("right_first", [True, False])
def test_a_right_and_a_wrong_answer_at_one_distance_count_as_wrong_then_right_in_every_task(right_first: bool) -> None:
    labels = ["a", "b"] if right_first else ["b", "a"]
    gallery = [[0.1], [-0.1], [0.3]]
    values, per_query = retrieval([[0.0]], ["a"], gallery, [*labels, "a"], "l2")
    assert values["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert values["R@1"] == 0
    assert per_query["first_rank"].tolist() == [2]
    found, _ = reid(np.array([[0.0]]), ["a"], np.array(gallery), [*labels, "a"], "l2")
    table = evaluate_distances([[0.1, 0.1, 0.3]], query=Labels(["a"], [0]), gallery=Labels([*labels, "a"], [1] * 3))
    assert found["map_step"] == table.map_step == values["mAP"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
def test_a_collapsed_encoder_scores_the_share_of_right_answers_and_finds_none_first(
    order: str, metric: str, block_bytes: int
) -> None:
    labels = {
        "sorted": np.repeat(np.arange(10), 5),
        "interleaved": np.tile(np.arange(10), 5),
        "shuffled": np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5)),
    }[order]
    vectors = np.full((50, 19), 0.3, np.float32)
    protocol = RetrievalProtocol(metric=metric, clusters=False, resamples=2)  # type: ignore[arg-type]
    result = evaluate_embeddings(vectors, labels, protocol=protocol, block_bytes=block_bytes)
    assert result["mAP"] == pytest.approx(4 / 49, abs=1e-15)
    assert [result[name] for name in ("R@1", "R@8", "MAP@R", "R-precision")] == [0, 0, 0, 0]
    found, _ = reid(vectors, labels, vectors, labels, metric, block_bytes=block_bytes)
    assert found["map_step"] == pytest.approx(5 / 50, abs=1e-15)
    assert found["cmc"][0] == 0
    assert found["verification"]["equal_error_rate"] == pytest.approx(0.5)


# ---- no order changes a value ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["float32", "bfloat16", "float64", "float16"]),
    evaluate=st.sampled_from([retrieval, reid]),
    block_bytes=st.sampled_from([1, 700, 1 << 20]),
)
def test_no_order_of_the_gallery_the_queries_or_the_classes_changes_a_bit(
    seed: int, metric: str, kind: str, evaluate: Any, block_bytes: int
) -> None:
    vectors, labels = planted(seed)
    gallery, gallery_labels = planted(seed + 1)
    gallery[:20] = vectors[:20]
    if kind == "bfloat16":
        vectors, gallery = coarse(vectors), coarse(gallery)
    else:
        vectors, gallery = vectors.astype(kind), gallery.astype(kind)
    before, per_query = evaluate(vectors, labels, gallery, gallery_labels, metric, block_bytes=block_bytes)
    random = np.random.default_rng(seed)
    rows, columns, names = (random.permutation(n) for n in (len(vectors), len(gallery), 5))
    after, permuted = evaluate(
        vectors[rows], names[labels[rows]], gallery[columns], names[gallery_labels[columns]], metric,
        block_bytes=block_bytes,
    )  # fmt: skip
    shots = [found.pop("single_gallery_shot", [0.0]) for found in (after, before)]  # products over the identities
    np.testing.assert_allclose(*shots, rtol=0, atol=1e-12)
    assert same_bits(after, before)
    for name, values in per_query.items():
        assert np.array_equal(permuted[name], values[rows], equal_nan=True), name


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), metric=st.sampled_from(METRICS))
def test_the_order_changes_neither_the_standard_errors_nor_the_clusters(seed: int, metric: Any) -> None:
    vectors, labels = planted(seed)
    rows, names = np.random.default_rng(seed).permutation(len(vectors)), np.array(["fox", "ant", "cow", "eel", "dog"])
    protocol = RetrievalProtocol(metric=metric, resamples=20)
    before = evaluate_embeddings(vectors, labels, protocol=protocol).scores
    after = evaluate_embeddings(vectors[rows], names[labels[rows]], protocol=protocol).scores
    for name, score in before.items():
        assert after[name].value == pytest.approx(score.value, abs=1e-12)
        assert after[name].query_error == pytest.approx(score.query_error, abs=1e-12)
        assert after[name].class_error == pytest.approx(score.class_error, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_retrieval_and_re_identification_give_the_same_vectors_the_same_values(metric: str) -> None:
    vectors, labels = planted(3, dtype=np.float32)
    gallery, gallery_labels = planted(4, dtype=np.float32)
    gallery[:30] = vectors[:30]
    values, _ = retrieval(vectors, labels, gallery, gallery_labels, metric)
    found, _ = reid(vectors, labels, gallery, gallery_labels, metric)
    assert found["map_step"] == pytest.approx(values["mAP"], abs=1e-12)
    assert found["cmc"][0] == values["R@1"]
    assert found["cmc"][7] == pytest.approx(values["R@8"])


# ---- oracles ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    found=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40).filter(
        lambda pairs: any(right for _, right in pairs)
    )
)
def test_average_precision_equals_scikit_learns_with_ties_and_without(found: list[tuple[int, bool]]) -> None:
    distance, right = np.array([d for d, _ in found]), np.array([r for _, r in found])
    counts = [int((distance <= d).sum()) for d in distance[right]]
    measured = rank_measures(np.zeros(len(counts)), distance[right], counts, n_queries=1)
    assert measured.average_precision[0] == pytest.approx(average_precision_score(right, -distance), abs=1e-12)
    assert measured.map_at_r[0] <= measured.r_precision[0]
    assert measured.map_at_r[0] <= measured.average_precision[0]
    first = int(measured.first_rank[0])
    worst = sorted(zip(distance.tolist(), right.tolist(), strict=True))
    assert [is_right for _, is_right in worst].index(True) + 1 == first


def test_different_vectors_are_told_apart_and_zeros_of_both_signs_are_not() -> None:
    vectors = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1e-7]], np.float32)
    found = Distinct.of(vectors)
    assert len(found) == 3
    assert found.number[0] == found.number[1] == found.number[3]
    assert len({*found.number[[0, 2, 4]].tolist()}) == 3
    order = np.array([4, 2, 0, 3, 1])
    assert Distinct.of(vectors[order]).number.tolist() == found.number[order].tolist()


@pytest.mark.parametrize("module", [distances, ranking])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
