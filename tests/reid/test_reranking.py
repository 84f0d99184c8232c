"""k-reciprocal re-ranking: the sparse computation against a dense, literal one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import InputError
from distcam.reid import Labels, evaluate_distances, rerank_features
from distcam.reid.distances import DistinctVectors, FeatureDistances
from distcam.reid.reranking import nearest_neighbours


def dense_distances(query: Any, gallery: Any, *, k1: int, k2: int, share: float, metric: str = "cosine") -> Any:
    """The re-ranked distances written out with full tables and sets."""
    images = np.concatenate([query, gallery]).astype(float)
    if metric == "cosine":
        images /= np.linalg.norm(images, axis=1)[:, None]
    n, k1 = len(images), min(k1, len(images) - 1)
    squared = ((images[:, None] - images) ** 2).sum(axis=2)
    relative = squared / squared.max(axis=1)[:, None]
    order = np.argsort(np.where(np.eye(n) > 0, -1, squared), axis=1, kind="stable")

    def reciprocal(i: int, k: int) -> set[int]:
        return {int(j) for j in order[i, : k + 1] if i in order[j, : k + 1]}

    encoding = np.zeros((n, n))
    for i in range(n):
        core = reciprocal(i, k1)
        members = set(core)
        for candidate in core:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(core & theirs) > 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            encoding[i, j] = np.exp(-relative[i, j])
        encoding[i] /= encoding[i].sum()
    if k2 > 1:
        encoding = np.array([encoding[order[i, :k2]].mean(axis=0) for i in range(n)])
    q = len(query)
    smaller = np.minimum(encoding[:q, None], encoding[None, q:]).sum(axis=2)
    larger = np.maximum(encoding[:q, None], encoding[None, q:]).sum(axis=2)
    return (1 - share) * (1 - smaller / larger) + share * relative[:q, q:]


def random_features(seed: int, *, n_query: int = 12, n_gallery: int = 45, dtype: Any = np.float64) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(8, 6))
    both = centres[random.integers(0, 8, n_query + n_gallery)] + 0.6 * random.normal(size=(n_query + n_gallery, 6))
    return both[:n_query].astype(dtype), both[n_query:].astype(dtype)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(("k1", "k2"), [(4, 2), (5, 1), (7, 3), (20, 6), (1, 1), (60, 4)])
def test_the_sparse_computation_equals_the_dense_one(seed: int, metric: Any, k1: int, k2: int) -> None:
    query, gallery = random_features(seed)
    dense = dense_distances(query, gallery, k1=k1, k2=k2, share=0.3, metric=metric)
    for block_bytes in (1, 3000, 1 << 26):
        sparse = rerank_features(query, gallery, k1=k1, k2=k2, metric=metric, block_bytes=block_bytes)
        np.testing.assert_allclose(sparse.rows(0, len(query)), dense, atol=1e-12)


def test_single_precision_stays_within_a_millionth() -> None:
    query, gallery = random_features(3, dtype=np.float32)
    dense = dense_distances(query, gallery, k1=20, k2=6, share=0.3)
    sparse = rerank_features(query, gallery).rows(0, len(query))
    assert sparse.dtype == np.float32
    np.testing.assert_allclose(sparse, dense, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000), scale=st.sampled_from([0.25, 2.0, 1024.0]), metric=st.sampled_from(["cosine", "l2"])
)
def test_scaling_all_features_changes_nothing(seed: int, scale: float, metric: Any) -> None:
    query, gallery = random_features(seed)
    before = rerank_features(query, gallery, k1=6, k2=3, metric=metric).rows(0, 12)
    after = rerank_features(scale * query, scale * gallery, k1=6, k2=3, metric=metric).rows(0, 12)
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_the_original_share_runs_from_jaccard_alone_to_the_original_order() -> None:
    query, gallery = random_features(5)
    original = np.linalg.norm(query[:, None] - gallery, axis=2)
    same = rerank_features(query, gallery, original_share=1.0, metric="l2").rows(0, 12)
    np.testing.assert_array_equal(np.argsort(same, axis=1), np.argsort(original, axis=1))
    jaccard = rerank_features(query, gallery, k1=4, k2=2, original_share=0.0).rows(0, 12)
    assert jaccard.min() >= 0
    assert jaccard.max() == 1  # neighbourhoods that do not touch


def test_one_neighbourhood_is_at_distance_zero_and_another_at_one() -> None:
    apart = np.eye(3)
    reranked = rerank_features(apart, np.repeat(apart, 4, axis=0), k1=4, k2=2, original_share=0.0)
    np.testing.assert_allclose(reranked.rows(0, 3), 1 - np.repeat(np.eye(3), 4, axis=1), atol=1e-15)


def places(seed: int, *, n_query: int = 9, n_gallery: int = 50) -> tuple[Any, Any]:
    """Vectors on few places: copies and equal distances everywhere."""
    points = np.random.default_rng(seed).integers(-1, 2, (n_query + n_gallery, 3)) + np.array([0.0, 0.0, 1.5])
    return points[:n_query], points[n_query:]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(("k1", "k2"), [(4, 2), (20, 6)])
@pytest.mark.parametrize("random_places", [places, random_features])
def test_no_order_of_images_changes_a_distance(seed: int, metric: Any, k1: int, k2: int, random_places: Any) -> None:
    query, gallery = random_places(seed)
    options: dict[str, Any] = {"k1": k1, "k2": k2, "metric": metric, "block_bytes": 3000}
    rows = rerank_features(query, gallery, **options).rows(0, len(query))
    random = np.random.default_rng(seed)
    for _ in range(3):
        first, second = random.permutation(len(query)), random.permutation(len(gallery))
        permuted = rerank_features(query[first], gallery[second], **options).rows(0, len(query))
        np.testing.assert_array_equal(permuted, rows[first][:, second])


def test_copies_are_neighbours_together_or_not_at_all() -> None:
    query, gallery = random_features(6)
    gallery = np.concatenate([np.repeat(query[:3], 9, axis=0), gallery])
    reranked = rerank_features(query, gallery, k1=4, k2=2)
    rows = reranked.rows(0, 12)
    assert np.all((rows >= 0) & (rows <= 1))
    for i in range(3):
        np.testing.assert_array_equal(rows[:, 9 * i : 9 * i + 9], np.repeat(rows[:, [9 * i]], 9, axis=1))
        assert rows[i, 9 * i] == 0
        shared = reranked.shared_neighbours(i, 9 * i)
        assert set(shared.index) == {i, *range(12 + 9 * i, 21 + 9 * i)}
        np.testing.assert_allclose(shared.share, 0.1)
    assert not rerank_features(np.ones((3, 4)), np.ones((30, 4)), k1=4, k2=2).rows(0, 3).any()


def test_the_nearest_of_each_query_come_in_order() -> None:
    query, gallery = random_features(9)
    reranked = rerank_features(query, gallery, k1=6, k2=2)
    rows = reranked.rows(0, 12)
    for k in (1, 7, 45):
        index, distance = reranked.top(k)
        np.testing.assert_array_equal(index, np.argsort(rows, axis=1, kind="stable")[:, :k])
        np.testing.assert_allclose(distance, np.take_along_axis(rows, index, axis=1), atol=1e-12)
    with pytest.raises(InputError, match="from 1 to 45"):
        reranked.top(46)


@pytest.mark.parametrize("n_gallery", [1, 2, 3])
def test_tiny_galleries_work(n_gallery: int) -> None:
    query, gallery = random_features(8, n_query=2, n_gallery=n_gallery)
    dense = dense_distances(query, gallery, k1=20, k2=6, share=0.3)
    np.testing.assert_allclose(rerank_features(query, gallery).rows(0, 2), dense, atol=1e-12)


def test_shared_neighbours_add_up_to_the_distance() -> None:
    query, gallery = random_features(10)
    reranked = rerank_features(query, gallery, k1=6, k2=2, original_share=0.3)
    rows = reranked.rows(0, 12)
    for i in range(12):
        why = reranked.shared_neighbours(i, int(rows[i].argmin()))
        assert 0.7 * why.jaccard_distance + 0.3 * why.relative_distance == pytest.approx(rows[i].min())
        assert why.share.sum() == pytest.approx(1)
        assert np.all(np.diff(why.share) <= 0)
        assert np.all(why.index < 57)
    far = int(rows[0].argmax())
    assert reranked.shared_neighbours(0, far).index.size == 0


def test_a_reranking_can_be_evaluated_without_a_table() -> None:
    query, gallery = random_features(11, n_query=30, n_gallery=90)
    random = np.random.default_rng(0)
    labels = {
        "query": Labels(random.integers(0, 4, 30), random.integers(0, 2, 30)),
        "gallery": Labels(random.integers(0, 4, 90), random.integers(0, 2, 90)),
    }
    reranked = rerank_features(query, gallery, k1=6, k2=2)
    streamed = evaluate_distances(reranked, **labels, block_bytes=2000)
    whole = evaluate_distances(reranked.rows(0, 30), **labels)
    assert (streamed.map_step, streamed.minp) == (whole.map_step, whole.minp)
    np.testing.assert_allclose(streamed.per_query.match_distance, whole.per_query.match_distance, atol=1e-12)


def test_reranking_lifts_the_precision_of_clustered_features() -> None:
    random = np.random.default_rng(2)
    centres = random.normal(size=(20, 16))
    ids = [random.integers(0, 20, n) for n in (40, 300)]
    query, gallery = (centres[i] + 0.9 * random.normal(size=(len(i), 16)) for i in ids)
    labels = {"query": Labels(ids[0], [0] * 40), "gallery": Labels(ids[1], [1] * 300)}
    plain = rerank_features(query, gallery, original_share=1.0)
    better = rerank_features(query, gallery, k1=12, k2=4)
    assert evaluate_distances(better, **labels).map_step > evaluate_distances(plain, **labels).map_step + 0.05


def test_options_out_of_range_are_refused() -> None:
    query, gallery = random_features(0)
    with pytest.raises(InputError, match=r"got 0, 6, 0\.3"):
        rerank_features(query, gallery, k1=0)
    with pytest.raises(InputError, match=r"original_share in \[0, 1\]"):
        rerank_features(query, gallery, original_share=1.5)
    with pytest.raises(InputError, match="re-ranking knows the metrics"):
        rerank_features(query, gallery, metric="dot")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        rerank_features(query * np.nan, gallery)


@pytest.mark.parametrize("k", [1, 4, 30])
@pytest.mark.parametrize("block_bytes", [1, 4000, 1 << 20])
def test_torch_finds_the_same_neighbours_in_the_same_order(k: int, block_bytes: int) -> None:
    random = np.random.default_rng(0)
    points = random.integers(0, 3, (60, 3)).astype(np.float32)  # few places, so ties everywhere; exact in any order
    images = DistinctVectors(FeatureDistances(points[:10], points[10:], metric="l2"))
    assert len(images) < images.copies.sum() == 60
    k = min(k, len(images))
    index, farthest = nearest_neighbours(images, k, block_bytes=block_bytes)
    squared = ((images.vectors[:, None] - images.vectors) ** 2).sum(axis=2)
    by_hand = np.argsort(np.where(np.eye(len(images)) > 0, -1, squared), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, by_hand)
    np.testing.assert_array_equal(farthest, squared.max(axis=1))
    for by_torch, plain in zip(
        nearest_neighbours(images, k, block_bytes=block_bytes, device="cpu"), (index, farthest), strict=True
    ):
        np.testing.assert_array_equal(by_torch, plain)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_reranking_on_a_device_gives_the_same_distances(device: str, metric: Any) -> None:
    query, gallery = random_features(5)
    plain = rerank_features(query, gallery, k1=7, k2=3, metric=metric)
    there = rerank_features(query, gallery, k1=7, k2=3, metric=metric, device=device, block_bytes=2000)
    np.testing.assert_allclose(there.rows(0, 12), plain.rows(0, 12), atol=1e-12)


def test_a_device_that_is_not_there_is_named() -> None:
    query, gallery = random_features(6)
    with pytest.raises(InputError, match="no device 'gpu'"):
        rerank_features(query, gallery, device="gpu")
