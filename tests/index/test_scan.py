"""Search without an index: the answers are an index's, digit for digit, also where single precision cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_answers import assert_same, blobs, true_hits

from distcam.errors import InputError
from distcam.index import scan as scanning
from distcam.index.scan import Scan
from distcam.index.search import Hits, search_exactly
from distcam.metrics.distances import METRICS, Metric, SearchSpec


def scanned(vectors: np.ndarray, queries: np.ndarray, k: int, metric: Metric) -> list[Hits]:
    ids = np.arange(len(vectors), dtype=np.uint64)
    engine = Scan(SearchSpec(vectors.shape[1], metric), ids, lambda some: vectors[some.astype(np.int64)])
    return search_exactly(engine.spec, queries, k, engine=engine)


@given(st.sampled_from(METRICS), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-12, 1.0, 1e3, 1e18, 1e30]))
@settings(max_examples=40, deadline=None)
def test_a_scan_finds_the_true_neighbours(metric: Metric, k: int, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.float32(size) * rng.integers(-3, 4, (300, 4)).astype(np.float32) + np.float32(size)  # many copies
    vectors[(vectors == 0).all(axis=1)] = size
    queries = vectors[:3] + np.float32(0.1 * size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "_BLOCK_BYTES", 4 * 4 * 64)
        found = scanned(vectors, queries, k, metric)
    assert_same(found, [true_hits(metric, query, vectors, k) for query in queries])


@pytest.mark.parametrize("metric", METRICS)
def test_a_scan_of_more_neighbours_than_there_are_names_all(metric: Metric) -> None:
    vectors = blobs(7, 5)
    assert_same(scanned(vectors, vectors[:2], 9, metric), [true_hits(metric, row, vectors, 9) for row in vectors[:2]])


def test_a_scan_of_nothing_finds_nothing() -> None:
    assert [len(hits.ids) for hits in scanned(blobs(0, 3), blobs(2, 3), 4, "l2")] == [0, 0]


@pytest.mark.parametrize(("number", "words"), [(np.nan, "NaN or infinity"), (0.0, "all zeros")])
def test_a_scan_refuses_what_no_index_takes(number: float, words: str) -> None:
    vectors = blobs(50, 4)
    vectors[31] = number
    with pytest.raises(InputError, match=words):
        scanned(vectors, vectors[:1], 3, "cosine")
