"""FAISS search: exactness where it is hard, refusals, filters, and bytes that cannot be trusted."""

from __future__ import annotations

import io
import mmap
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_answers import EXACT, assert_same, blobs, build, ids_of, true_hits

from distcam.errors import CorruptGalleryError, InputError, ShapeError
from distcam.index.faiss import index_store as faiss_bytes
from distcam.index.faiss.factory import SearchSettings, choose_factory
from distcam.index.faiss.search import FaissSearch
from distcam.index.search import UNKNOWN_FLOOR, Proposal, search_exactly
from distcam.metrics.distances import METRICS, Metric, SearchSpec, comparable, distances_to, rough_distances

# --- Distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [0, 1 - 4 / 5, 1]), ("l2", [2, 18**0.5, 10**0.5]), ("l1", [2, 6, 4]), ("dot", [-3, -4, 0])],
)
def test_distances_by_hand(metric: Metric, expected: list[float]) -> None:
    vectors = np.array([[3, 0], [4, 3], [0, 3]], np.float32)
    (hits,) = build(vectors, metric).search(np.array([[1, 0]], np.float32), 3)
    order = np.lexsort((range(3), expected))
    assert hits.ids.tolist() == order.tolist()
    np.testing.assert_allclose(hits.distances, np.array(expected)[order], rtol=1e-7, atol=1e-15)


@given(st.integers(1, 70), st.sampled_from(METRICS), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_distance_does_not_depend_on_the_other_rows(d: int, metric: Metric, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, query = rng.standard_normal((37, d), dtype=np.float32), rng.standard_normal(d, dtype=np.float32)
    spec = SearchSpec(d, metric)
    unit = comparable(spec, vectors)
    np.testing.assert_array_equal(unit[5:6], comparable(spec, vectors[5:6]))
    together = distances_to(spec, query, unit)
    alone = [distances_to(spec, query, unit[i : i + 1])[0] for i in range(37)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("metric", METRICS)
def test_rough_distances_are_the_true_ones_but_for_rounding(metric: Metric) -> None:
    spec = SearchSpec(12, metric)
    queries, vectors = (comparable(spec, blobs(count, 12)) for count in (5, 37))
    true = np.stack([distances_to(spec, query, vectors) for query in queries])
    np.testing.assert_allclose(rough_distances(spec, queries, vectors), true, rtol=1e-9, atol=1e-6)


def test_cosine_of_parallel_vectors_is_zero_and_of_opposite_ones_two() -> None:
    vectors = np.array([[1, 2, 3], [10, 20, 30], [-1, -2, -3], [1e-30, 2e-30, 3e-30]], np.float32)
    (hits,) = build(vectors, "cosine").search(vectors[:1] * 7, 4)
    np.testing.assert_allclose(hits.distances, [0, 0, 0, 2], atol=1e-12)
    assert hits.distances[-1] <= 2


# --- Exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_queries", [1, 3, 40])
def test_exact_kinds_give_the_true_order_under_every_filter(metric: Metric, n_queries: int) -> None:
    vectors = blobs(3000, 24)
    queries = vectors[:n_queries] + np.float32(0.1)
    rng = np.random.default_rng(1)
    for factory in EXACT if metric != "l1" else ("flat",):
        search = build(vectors, metric, factory)
        assert search.is_exact
        for share in (1.0, 0.9, 0.3, 0.05, 0.002):
            allowed = rng.permutation(3000)[: int(3000 * share)].astype(np.uint64)
            found = search.search(queries, 10, allowed=None if share == 1 else allowed)
            assert_same(found, [true_hits(metric, query, vectors, 10, np.sort(allowed)) for query in queries])


@pytest.mark.parametrize("factory", EXACT)
@pytest.mark.parametrize("n_queries", [1, 30])
def test_of_many_copies_the_smallest_ids_are_returned(factory: str, n_queries: int) -> None:
    vectors = blobs(2500, 16)
    vectors[1000:2000] = vectors[3]  # more copies than any first fetch
    search = build(vectors, "cosine", factory)
    for hits in search.search(np.repeat(vectors[3:4], n_queries, axis=0), 7):
        assert hits.ids.tolist() == [3, 1000, 1001, 1002, 1003, 1004, 1005]
        assert len(set(hits.distances)) == 1


def test_ids_decide_ties_even_when_they_were_added_out_of_order() -> None:
    keys = np.random.default_rng(0).permutation(3000).astype(np.uint64)
    search = FaissSearch.build(
        SearchSpec(4, "l2"), [(keys, np.ones((3000, 4), np.float32))], count=3000, factory="flat", device="cpu"
    )
    (hits,) = search.search(np.ones((1, 4), np.float32), 5)
    assert hits.ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_neighbours_closer_than_float32_can_tell_are_ordered_in_float64(metric: Metric, n_queries: int) -> None:
    rng = np.random.default_rng(0)
    for offset in (1, 10, 100, 1000):  # ‖x‖² + ‖y‖² − 2x·y is ever more rounding
        vectors = (offset + 0.01 * rng.standard_normal((2000, 32))).astype(np.float32)
        queries = vectors[:n_queries]
        expected = [true_hits(metric, query, vectors, 10) for query in queries]
        for factory in EXACT:  # half precision holds 1000 to the nearest half
            assert_same(build(vectors, metric, factory).search(queries, 10), expected)


@pytest.mark.parametrize("n_queries", [1, 40])
@pytest.mark.parametrize("rivals", [15, 60])  # the vector is among the first candidates, or not
def test_a_neighbour_that_half_precision_moves_away_is_not_lost(rivals: int, n_queries: int) -> None:
    vectors = np.zeros((2000, 4), np.float32)
    vectors[:, 0] = 3  # far away
    vectors[7, 0] = 1 + 2**-11 + 2**-16  # 1.0005 from the origin, stored as 1 + 2^-10, which is 1.0010 away
    vectors[100 : 100 + rivals, :2] = [[1, 0.0347 + step / 2**15] for step in range(rivals)]  # 1.0006 to 1.0007 away
    queries = np.zeros((n_queries, 4), np.float32)
    expected = true_hits("l2", queries[0], vectors, 10)
    assert expected.ids[0] == 7
    assert_same(build(vectors, "l2", "SQfp16").search(queries, 10), [expected] * n_queries)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e25, 1e-22, 1e-30])
def test_numbers_whose_squares_leave_float32_are_searched_exactly(metric: Metric, scale: float) -> None:
    vectors = blobs(1500, 8) * np.float32(scale)
    found = build(vectors, metric).search(vectors[:5], 10)
    assert_same(found, [true_hits(metric, query, vectors, 10) for query in vectors[:5]])


def test_near_vectors_that_overflow_are_not_lost_behind_far_ones_that_do_not() -> None:
    vectors = blobs(1500, 8)
    vectors[:1000] = 5.3e18 + 1e14 * vectors[:1000]  # squared length within float32, the sum of two beyond
    vectors[1000:] = np.linspace(5e17, 2.5e18, 500)[:, None]
    found = build(vectors, "l2").search(vectors[:40], 5)
    assert_same(found, [true_hits("l2", query, vectors, 5) for query in vectors[:40]])


def test_a_filter_that_forbids_exactly_the_nearest_is_answered_from_the_rest() -> None:
    vectors = blobs(4000, 16)
    everything = true_hits("l2", vectors[0], vectors, 4000).ids
    allowed = np.sort(everything[1500:])
    (hits,) = build(vectors).search(vectors[:1], 5, allowed=allowed)
    assert hits.ids.tolist() == everything[1500:1505].tolist()


class Repeating:
    """An engine that offers every id twice, and nothing beyond the first four, without knowing what it left out."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.reach = vectors, 1000

    def propose(self, queries: np.ndarray, k: int, n: int) -> Iterator[Proposal]:
        rows = np.array([3, 1, 2, 0, 1, 3, 0, 2])
        yield from (Proposal(rows.astype(np.uint64), self.vectors[rows], UNKNOWN_FLOOR) for _ in queries)

    def everything(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.vectors), 7):
            batch = np.arange(start, min(start + 7, len(self.vectors)))[::-1]
            yield batch.astype(np.uint64), self.vectors[batch]


def test_repeats_are_dropped_and_too_few_candidates_lead_to_reading_everything() -> None:
    vectors = blobs(60, 4)
    spec, query = SearchSpec(4, "l2"), np.zeros((2, 4), np.float32)
    for hits in search_exactly(spec, query, 4, engine=Repeating(vectors)):
        assert sorted(hits.ids.tolist()) == [0, 1, 2, 3]
    assert_same(search_exactly(spec, query, 5, engine=Repeating(vectors)), [true_hits("l2", query[0], vectors, 5)] * 2)


# --- Edges -----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_vectors_beside_an_approximate_index_are_searched_as_if_they_were_in_it(data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(METRICS))
    vectors = blobs(420, 6, seed=data.draw(st.integers(0, 9)))
    search = build(vectors[:300], metric, "IVF4,Flat")
    search.use(SearchSettings(4, 1.0, 1))  # all lists: what is missed is missed by the tail
    alive, end = set(range(300)), 300
    for _ in range(data.draw(st.integers(1, 5))):
        count = data.draw(st.integers(0, 24))
        search.upsert(np.arange(end, end + count, dtype=np.uint64), vectors[end : end + count])
        alive |= set(range(end, end + count))
        end += count
        gone = data.draw(st.sets(st.integers(0, end - 1), max_size=12))
        search.delete(np.array(sorted(gone), np.uint64))
        alive -= gone
    if data.draw(st.booleans()):
        search = FaissSearch.deserialise(
            search.serialise(), spec=search.spec, source=lambda ids: vectors[ids.astype(int)]
        )
    else:
        assert search.store.tail.ntotal == end - 300
    share = data.draw(st.sampled_from([1, 2, 7]))
    allowed = np.array([key for key in sorted(alive) if key % share == 0], np.uint64)
    queries = vectors[data.draw(st.sampled_from([[0], [419], list(range(290, 330))]))]
    expected = [true_hits(metric, query, vectors, 6, allowed) for query in queries]
    assert_same(search.search(queries, 6, allowed=None if share == 1 else allowed), expected)
    assert search.verify() == []


def test_an_empty_index_gives_empty_hits_and_k_may_exceed_the_count() -> None:
    search = build(np.empty((0, 3), np.float32))
    assert [len(hits.ids) for hits in search.search(np.ones((2, 3), np.float32), 5)] == [0, 0]
    search.upsert(ids_of(2**64 - 1, 5), np.eye(3, dtype=np.float32)[:2])
    (hits,) = search.search(np.array([[1, 0, 0]], np.float32), 100)
    assert hits.ids.tolist() == [2**64 - 1, 5]
    assert search.search(np.empty((0, 3), np.float32), 1) == []


def test_allowed_ids_may_be_none_at_all_repeated_or_unknown() -> None:
    search = build(blobs(50, 4))
    query = blobs(1, 4)
    assert len(search.search(query, 3, allowed=ids_of())[0].ids) == 0
    assert sorted(search.search(query, 3, allowed=ids_of(7, 7, 9, 1000))[0].ids.tolist()) == [7, 9]


def test_replacing_and_deleting_show_in_the_next_search() -> None:
    search = build(np.eye(3, dtype=np.float32), "cosine")
    search.upsert(ids_of(0), np.array([[0, 0, 9]], np.float32))
    (hits,) = search.search(np.array([[0, 0, 1]], np.float32), 3)
    assert hits.ids.tolist() == [0, 2, 1]
    assert search.get(ids_of(0)).tolist() == [[0, 0, 9]]
    search.delete(ids_of(0, 77))
    assert search.search(np.array([[0, 0, 1]], np.float32), 3)[0].ids.tolist() == [2, 1]
    assert search.count() == 2
    with pytest.raises(InputError, match=r"1 of 2 are not, such as 0"):
        search.get(ids_of(2, 0))


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (np.ones(3), ShapeError, r"expected queries of shape \(n, 3\), got \(3,\)"),
        (np.ones((1, 4)), ShapeError, r"expected queries of shape \(n, 3\), got \(1, 4\)"),
        ([["a"]], ShapeError, "something else than numbers"),
        (np.array([[1, 1, 1], [0, np.nan, 0]]), InputError, "NaN or infinity in row 1"),
        (np.array([[1e300, 0, 0]]), InputError, "NaN or infinity in row 0"),
        (np.array([[1, 0, 0], [0, 0, 0]]), InputError, "row 1 of the queries is all zeros"),
    ],
)
def test_vectors_are_refused_before_faiss_sees_them(vectors: object, error: type[Exception], message: str) -> None:
    search = build(np.eye(3, dtype=np.float32), "cosine")
    with pytest.raises(error, match=message):
        search.search(vectors, 1)
    assert search.count() == 3


def test_wrong_arguments_are_refused_with_the_remedy() -> None:
    search = build(np.eye(3, dtype=np.float32))
    one = np.ones((1, 3), np.float32)
    with pytest.raises(InputError, match="k of at least 1, a whole number, got 0"):
        search.search(one, 0)
    with pytest.raises(ShapeError, match="expected 1 ids"):
        search.upsert(ids_of(1, 2), one)
    with pytest.raises(InputError, match=r"ids from 0 to 2\^64"):
        search.delete(np.array([-1]))
    with pytest.raises(InputError, match="each id once"):
        search.upsert(ids_of(9, 9), np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match="metric out of cosine, l2, l1, dot"):
        SearchSpec(3, "manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="half precision holds numbers up to 65504"):
        build(np.full((1, 3), 1e6, np.float32), "l2", "SQfp16")


# --- Kinds of index --------------------------------------------------------------------------------------------------


def test_auto_is_exact_until_a_million_and_lists_grow_with_the_root() -> None:
    spec = SearchSpec(512, "cosine")
    assert [choose_factory(spec, n) for n in (0, 200_000, 200_001)] == ["Flat", "Flat", "SQfp16"]
    assert choose_factory(spec, 10_000_000) == "IVF16384,SQfp16"
    assert choose_factory(SearchSpec(512, "l1"), 900_000) == "Flat"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["IVF16,SQfp16", "HNSW16", "PCA16,IVF16,Flat"])
def test_an_approximate_index_says_how_much_it_finds(factory: str, metric: Metric) -> None:
    vectors = blobs(2000, 24)
    search = build(vectors, metric, factory)
    described = search.description
    assert not described["exact"]
    assert described["recall_at_10"] > 0.9
    assert described["recall_queries"] == 200
    assert ("nprobe" if "IVF" in factory else "ef_search") in described
    queries = blobs(40, 24, seed=0)
    found = search.search(queries, 10)
    true = [true_hits(metric, query, vectors, 10) for query in queries]
    assert np.mean([len(np.intersect1d(a.ids, b.ids)) / 10 for a, b in zip(found, true, strict=True)]) > 0.9
    assert search.is_worth_saving
    search.delete(found[0].ids)  # masked, also where FAISS itself cannot remove
    assert not np.isin(search.search(queries[:1], 10)[0].ids, found[0].ids).any()


def test_an_approximate_index_never_returns_fewer_than_there_are() -> None:
    search = build(blobs(6000, 8), "l2", "IVF64,Flat")
    odd = np.arange(1, 6000, 2, dtype=np.uint64)
    assert [len(hits.ids) for hits in search.search(blobs(2, 8, seed=5), 2500)] == [2500, 2500]
    assert len(search.search(blobs(1, 8, seed=5), 2900, allowed=odd)[0].ids) == 2900


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IDMap,Flat", "leave out IDMap"),
        ("Flat,RFlat", "leave out IDMap and Refine"),
        ("nonsense", "cannot make index 'nonsense' for 8 dimensions"),
        ("NSG16", "cannot be filled or filtered"),
        ("IVF500,Flat", "500 lists needs at least as many vectors, got 300"),
        ("IVF4,PQ3", "PQ3 cuts vectors into 3 equal parts, which does not divide 8 dimensions; use 2 or 4"),
        ("PQ16", "PQ16 cuts vectors into 16 equal parts, which does not divide 8 dimensions; use 8"),
        ("OPQ3,IVF4,PQ2", "OPQ3 cuts vectors into 3 equal parts"),
        ("OPQ2_6,IVF4,PQ4", "PQ4 cuts vectors into 4 equal parts, which does not divide 6 dimensions; use 3 or 6"),
        ("PCA6,IVF4,PQ4", "which does not divide 6 dimensions"),
        ("IVF4,PQ4x10", "10 bits learns 1024 codes from at least as many vectors, got 300"),
    ],
)
def test_unusable_factories_are_refused(factory: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(blobs(300, 8), "l2", factory)


def test_building_twice_gives_the_same_index() -> None:
    first, second = (build(blobs(2000, 8), "cosine", "IVF16,SQfp16").serialise() for _ in range(2))
    assert first == second


def test_search_leaves_faiss_settings_as_they_were_also_from_many_threads() -> None:
    vectors = blobs(2000, 16)
    search = build(vectors)
    before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.cvar.distance_compute_blas_threshold = 99_999  # what a user may have set
    expected = {n: search.search(vectors[:n], 10) for n in (1, 2, 50)}
    with ThreadPoolExecutor(4) as pool:
        for n, found in pool.map(lambda n: (n, search.search(vectors[:n], 10)), [1, 50, 2] * 20):
            assert_same(found, expected[n])
    after = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.cvar.distance_compute_blas_threshold = before[0]
    assert after == (99_999, before[1])


def test_importing_the_protocol_loads_neither_faiss_nor_torch() -> None:
    script = "import sys, distcam.index.search; print({'faiss', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- Bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["flat", "SQfp16", "IVF8,SQfp16", "HNSW16", "IVF8,PQ4x4"])
def test_an_index_comes_back_from_bytes_as_it_was(factory: str) -> None:
    vectors = blobs(700, 8)
    search = build(vectors, "cosine", factory)
    search.delete(ids_of(3, 4))
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    back = FaissSearch.deserialise(
        search.serialise(), spec=search.spec, source=lambda ids: vectors[ids.astype(int)], device="cpu"
    )
    assert limits == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())
    assert_same(back.search(vectors[:9], 12), search.search(vectors[:9], 12))
    assert back.description == search.description
    assert back.count() == 698
    assert back.verify() == []
    assert back.serialise() == search.serialise()


def no_source(ids: np.ndarray) -> np.ndarray:
    raise AssertionError("reading the bytes does not read vectors")


@pytest.mark.parametrize("factory", ["flat", "IVF8,SQfp16", "HNSW8"])
def test_damaged_bytes_are_a_corrupt_gallery_or_still_an_index(factory: str) -> None:
    data = build(blobs(120, 4), "l2", factory).serialise()
    rng = np.random.default_rng(0)
    for end in [0, 5, 17, 30, *rng.integers(0, len(data), 25)]:
        with pytest.raises(CorruptGalleryError, match="rebuilt"):
            FaissSearch.deserialise(data[:end], spec=SearchSpec(4, "l2"), source=no_source, device="cpu")
    for place in rng.integers(0, min(len(data), 1600), 80):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            back = FaissSearch.deserialise(bytes(damaged), spec=SearchSpec(4, "l2"), source=no_source, device="cpu")
        except CorruptGalleryError:
            continue
        assert back.count() <= 120


def test_bytes_for_another_spec_or_from_elsewhere_are_refused() -> None:
    search = build(blobs(50, 4), "l2")
    with pytest.raises(CorruptGalleryError, match="is for 4 dimensions and l2, expected 4 and cosine"):
        FaissSearch.deserialise(search.serialise(), spec=SearchSpec(4, "cosine"), source=no_source)
    foreign = faiss.serialize_index(faiss.IndexFlatL2(4)).tobytes()
    with pytest.raises(CorruptGalleryError, match="none of distcam's"):
        FaissSearch.deserialise(foreign, spec=SearchSpec(4, "l2"), source=no_source)


def test_verify_names_vectors_that_are_not_the_sources() -> None:
    vectors = blobs(100, 4)
    for factory in EXACT:
        search = build(vectors, "cosine", factory, source=lambda ids: vectors[ids.astype(int)])
        assert search.verify() == []
        kept, vectors[42] = vectors[42].copy(), -vectors[42]
        (problem,) = search.verify()
        assert "1 indexed vectors differ from the stored ones, the first with id 42" in problem
        vectors[42] = kept


@pytest.mark.parametrize("factory", ["flat", "SQfp16", "IVF8,SQfp16", "IVF8,PQ4x4", "HNSW16", "PCA4,IVF8,Flat"])
def test_an_index_mapped_from_a_file_is_not_copied_until_something_is_added(factory: str, tmp_path: Path) -> None:
    vectors = blobs(1000, 8)

    def source(ids: np.ndarray) -> np.ndarray:
        return vectors[ids.astype(int)]

    search = build(vectors[:700], "l2", factory)
    search.save(tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == search.serialise()
    with (tmp_path / "index").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    back = FaissSearch.deserialise(mapped, spec=search.spec, source=source, device="cpu")
    assert back.is_mapped
    assert_same(back.search(vectors[:9], 12), search.search(vectors[:9], 12))
    back.delete(ids_of(3, 4))
    assert back.is_mapped
    back.upsert(ids_of(700), vectors[700:701])
    assert back.is_mapped == (factory not in EXACT)  # few are searched beside an approximate index
    new = np.arange(701, 1000, dtype=np.uint64)
    back.upsert(new, vectors[701:])  # FAISS itself would end the process here
    search.delete(ids_of(3, 4))
    search.upsert(ids_of(700), vectors[700:701])
    search.upsert(new, vectors[701:])
    assert not back.is_mapped
    del mapped
    if "HNSW" not in factory:  # a graph draws the levels of its vertices anew
        assert_same(back.search(vectors[690:720], 12), search.search(vectors[690:720], 12))
        assert back.serialise() == search.serialise()
    assert back.count() == 998


def test_a_disk_that_fills_up_while_an_index_is_saved_is_an_os_error(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() > 3000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    search = build(blobs(2000, 8), "l2", "IVF8,SQfp16")
    with pytest.raises(OSError, match="No space left"):
        faiss_bytes.write(search.store, Full(), factory=search.factory)
