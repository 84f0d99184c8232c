"""Copies of an index on GPUs: where they go, what they are made of, and that they change no answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from search_answers import EXACT, assert_same, blobs, build, ids_of, true_hits

from distcam.errors import InputError
from distcam.index.faiss import gpu as faiss_gpu
from distcam.index.faiss.candidates import ErrorBound
from distcam.index.faiss.factory import new_index
from distcam.index.faiss.gpu import GpuIndex, Placement, check_device, gpus_of, plan_copy, rounds_products, shards_of
from distcam.index.faiss.index_store import Distortion
from distcam.metrics.distances import METRICS, Metric, SearchSpec

GIB = 1 << 30
needs_faiss_gpu = pytest.mark.skipif(not faiss.get_num_gpus(), reason="FAISS sees no GPU; docs/install.md")


def test_asking_for_a_gpu_where_there_is_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(InputError, match="FAISS sees no GPU; use auto or cpu"):
        build(blobs(10, 4), device="cuda")
    assert build(blobs(10, 4), device="auto").device == "cpu"


@pytest.mark.parametrize("factory", [*EXACT, "IVF16,Flat"])
def test_what_a_gpu_proposes_goes_through_the_same_exact_layer(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the index stands in for the GPU; like one, it takes no filters and at most 2048 neighbours."""
    asked: list[int] = []

    class Copy:
        is_half = False

        def __init__(self, index: object) -> None:
            self.index = faiss.clone_index(index)

        def search(self, queries: np.ndarray, n: int) -> object:
            assert n <= 2048
            asked.append(n)
            return self.index.search(queries, n)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss_gpu, "copy_to_gpus", lambda index, **_: Copy(index))
    vectors = blobs(3000, 12)
    on_gpu, on_cpu = build(vectors, "l2", factory, device="cuda"), build(vectors, "l2", factory)
    for allowed in (None, np.arange(0, 2900, dtype=np.uint64), np.arange(0, 3000, 40, dtype=np.uint64)):
        assert_same(on_gpu.search(vectors[:6], 10, allowed=allowed), on_cpu.search(vectors[:6], 10, allowed=allowed))
    assert asked
    assert_same(on_gpu.search(vectors[:1], 2900), on_cpu.search(vectors[:1], 2900))
    on_gpu.upsert(ids_of(5000), vectors[7:8])
    assert on_gpu.search(vectors[7:8], 2)[0].ids.tolist() == [7, 5000]


def to_tf32(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to ten bits behind the first, as tensor cores read it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot", "l1"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_products_of_ten_bits_are_found_out_by_a_trial(metric: Metric, scale: float) -> None:
    vectors = scale * blobs(3000, 256)
    index = new_index(SearchSpec(256, metric), "Flat")
    index.add(vectors if metric != "cosine" else vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    class Rough:
        """A copy whose products are TF32's, and whose sums are floats, as cuBLAS has them."""

        def search(self, queries: np.ndarray, k: int, *, params: object = None) -> tuple[np.ndarray, np.ndarray]:
            stored = index.reconstruct_n(0, index.ntotal)
            products = to_tf32(queries) @ to_tf32(stored).T
            if metric == "l2":
                squares = np.add.outer((queries**2).sum(1), (stored**2).sum(1)) - 2 * products
                rows = squares.argmin(1)[:, None]
                return np.take_along_axis(squares, rows, 1), rows
            rows = products.argmax(1)[:, None]
            return np.take_along_axis(products, rows, 1), rows

    assert not rounds_products(index, index)
    assert rounds_products(Rough(), index) == (metric != "l1")


@needs_faiss_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", EXACT)
def test_the_gpu_gives_the_cpus_answer_bit_for_bit(factory: str, metric: Metric) -> None:
    vectors = blobs(20_000, 64)
    vectors[5000:5100] = vectors[0]
    if metric == "l1" and factory != "flat":
        pytest.skip("FAISS has no L1 on half-precision vectors")
    on_gpu, on_cpu = build(vectors, metric, factory, device="cuda"), build(vectors, metric, factory)
    for queries in (vectors[:1], vectors[:200]):
        for allowed in (None, np.arange(0, 20_000, 2, dtype=np.uint64), np.arange(0, 20_000, 500, dtype=np.uint64)):
            assert_same(on_gpu.search(queries, 10, allowed=allowed), on_cpu.search(queries, 10, allowed=allowed))


@needs_faiss_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["IVF64,SQfp16", "IVF64,SQ8", "IVF64,Flat", "IVF64,PQ16", "OPQ16,IVF64,PQ16"])
@pytest.mark.parametrize("metric", METRICS)
def test_approximate_kinds_find_as_much_on_the_gpu(factory: str, metric: Metric) -> None:
    vectors = blobs(20_000, 64)
    on_gpu, on_cpu = build(vectors, metric, factory, device="cuda"), build(vectors, metric, factory)
    queries = vectors[:200]
    true = [true_hits(metric, query, vectors, 10) for query in queries]
    shares = []
    for search in (on_gpu, on_cpu):
        found = search.search(queries, 10)
        shares.append(np.mean([len(np.intersect1d(a.ids, b.ids)) / 10 for a, b in zip(found, true, strict=True)]))
    assert shares[0] > shares[1] - 0.02
    assert on_gpu.device == "cuda"


@needs_faiss_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda:0", "cuda:all"])
def test_every_name_of_a_gpu_gives_the_cpus_answer_from_many_threads(device: str) -> None:
    vectors = blobs(20_000, 32)
    on_gpu, on_cpu = build(vectors, "cosine", "SQfp16", device=device), build(vectors, "cosine", "SQfp16")
    expected = on_cpu.search(vectors[:20], 10)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: on_gpu.search(vectors[:20], 10), range(8)):
            assert_same(found, expected)


@needs_faiss_gpu
@pytest.mark.gpu
def test_a_copy_takes_about_what_was_planned() -> None:
    import torch

    vectors = np.random.default_rng(0).standard_normal((300_000, 128), dtype=np.float32)
    before = torch.cuda.mem_get_info(0)[0]
    search = build(vectors, "l2", "SQfp16", device="cuda")
    search.search(vectors[:1], 10)
    assert before - torch.cuda.mem_get_info(0)[0] < 300_000 * 128 * 2 + (1 << 30)  # FAISS alone takes 1.5 GB of scratch


# --- Where a copy goes, without a GPU --------------------------------------------------------------------------------


def flat(count: int, factory: str = "Flat", dim: int = 64) -> object:
    index = new_index(SearchSpec(dim, "l2"), factory)
    if not index.is_trained:
        index.train(blobs(2000, dim))
    index.add(np.zeros((count, dim), np.float32))
    return index


@pytest.mark.parametrize(
    ("device", "free", "plan"),
    [
        ("cpu", [GIB, GIB], None),
        ("auto", [GIB, GIB], Placement((0,), False, False)),
        ("auto", [0, GIB], Placement((1,), False, False)),
        ("auto", [0, 0], None),
        ("cuda", [0, GIB], None),
        ("cuda:1", [0, GIB], Placement((1,), False, False)),
        ("cuda:all", [GIB, GIB], Placement((0, 1), False, False)),
    ],
)
def test_a_copy_goes_where_there_is_room(
    device: str, free: list[int], plan: Placement | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: len(free))
    assert plan_copy(flat(1000), device=device, free=lambda number: free[number], radius=1.0) == plan


def test_what_does_not_fit_whole_is_shared_out_or_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    scratch, need = 256 << 20, 40_000 * (64 * 4 + 4)

    def plan(factory: str, share: float, *, radius: float = 1.0, device: str = "auto") -> Placement | None:
        index = flat(40_000, factory)
        return plan_copy(index, device=device, free=lambda _: int(scratch + 1.1 * share * need), radius=radius)

    assert plan("Flat", 1.01) == Placement((0,), False, False)
    assert plan("Flat", 0.6) == Placement((0, 1), True, False)
    assert plan("Flat", 0.51, device="cuda:1") == Placement((1,), False, True)  # in half precision
    assert plan("Flat", 0.3) == Placement((0, 1), True, True)
    assert plan("Flat", 0.51, device="cuda:1", radius=1e6) is None  # numbers that half precision cannot hold
    assert plan("Flat", 0.2) is None
    assert plan("SQfp16", 0.3) == Placement((0, 1), True, False)
    assert plan("IVF16,SQ8", 0.16) == Placement((0, 1), True, False)
    assert plan("HNSW8", 9) is None


def test_lists_beyond_what_a_gpu_can_look_into_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    index = flat(100, "IVF16,Flat")
    assert plan_copy(index, device="auto", free=lambda _: GIB, radius=1.0) is not None
    index.nprobe = 4096  # type: ignore[attr-defined]
    assert plan_copy(index, device="auto", free=lambda _: GIB, radius=1.0) is None


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    assert [gpus_of(name) for name in ("cpu", "cuda", "cuda:2", "cuda:all")] == [(), (0,), (2,), (0, 1, 2)]
    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:1,2", "mps"):
        with pytest.raises(InputError, match="expected device auto, cpu, cuda, cuda:N or cuda:all"):
            check_device(wrong)
    with pytest.raises(InputError, match="cuda:3 was asked for, but FAISS sees 3, cuda:0 to cuda:2"):
        check_device("cuda:3")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_shards_of_half_precision_vectors_answer_as_the_whole(metric: Metric) -> None:
    search = build(blobs(1003, 16), metric, "SQfp16")
    whole = search.store.index
    shards = shards_of(whole, 3, lambda part, number: part)
    queries = blobs(20, 16, seed=3)
    for one, other in zip(whole.search(queries, 7), shards.search(queries, 7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_flat_vectors_halved_on_a_gpu_lose_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-precision copy of a flat index stands in for the GPU; the bounds have to know what that rounds away."""

    def halved(index: object, **_: object) -> GpuIndex:
        half = faiss.index_factory(index.d, "SQfp16", index.metric_type)
        half.add(index.reconstruct_n(0, index.ntotal))
        return GpuIndex(half, is_half=True)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss_gpu, "copy_to_gpus", halved)
    vectors = (10 + 0.01 * np.random.default_rng(0).standard_normal((3000, 32))).astype(np.float32)
    for metric in ("l2", "cosine", "dot"):
        found = build(vectors, metric, device="cuda").search(vectors[:20], 10)
        assert_same(found, [true_hits(metric, query, vectors, 10) for query in vectors[:20]])


def test_the_bound_on_halving_holds_for_small_and_large_numbers() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-9, 1e-5, 1.0, 1e4):
        vectors = (scale * rng.standard_normal((200, 24))).astype(np.float32)
        errors = Distortion(radius=float(np.linalg.norm(vectors.astype(float), axis=1).max())).halved(24)
        moved = np.linalg.norm(vectors.astype(np.float16).astype(float) - vectors.astype(float), axis=1)
        assert moved.max() <= errors.distortion
        assert ErrorBound(SearchSpec(24, "l2"), errors, vectors).floor(1.0) < 1.0


def test_one_copy_serves_one_thread_at_a_time() -> None:
    busy = threading.Lock()

    class Single:
        def search(self, queries: np.ndarray, n: int, params: object = None) -> object:
            assert busy.acquire(blocking=False), "two threads at once"
            try:
                return np.zeros((len(queries), n), np.float32), np.zeros((len(queries), n), np.int64)
            finally:
                busy.release()

    copy = GpuIndex(Single())
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: copy.search(np.zeros((4, 2), np.float32), 3), range(200)))) == 200
