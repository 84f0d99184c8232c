"""Tuning: what is measured is true, the choice keeps its budgets, and any index gives exact distances in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from itertools import product
from pathlib import Path

import faiss
import numpy as np
import pytest
from commands import distcam
from hypothesis import given, settings
from hypothesis import strategies as st
from search_answers import assert_same, blobs, build, ids_of, true_hits

from distcam.errors import CorruptGalleryError, InputError
from distcam.index import Gallery
from distcam.index.faiss.candidates import GroundTruth, enough, ground_truth
from distcam.index.faiss.factory import SearchSettings, coarse_of, index_bytes, new_index
from distcam.index.faiss.search import FaissSearch
from distcam.index.faiss.tuning import (
    Budget,
    Trial,
    TuningReport,
    choose,
    default_candidates,
    readable,
    tune,
)
from distcam.index.search import Hits
from distcam.index.storage import cache as caches
from distcam.index.storage.manifest import Manifest, Tuning
from distcam.metrics.distances import METRICS, Metric, SearchSpec


def tuned(
    vectors: np.ndarray, metric: Metric, *candidates: str, recall: float = 0.9, **budgets: object
) -> tuple[TuningReport, FaissSearch]:
    memory, latency = budgets.get("memory", 1 << 30), budgets.get("latency_ms")
    return tune(
        SearchSpec(vectors.shape[1], metric),
        np.arange(len(vectors), dtype=np.uint64),
        lambda ids: vectors[ids.astype(np.int64)],
        budget=Budget(recall, memory, latency),  # type: ignore[arg-type]
        candidates=candidates,
        queries=60,
        device="cpu",
    )


# --- The truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_the_truth_read_block_by_block_is_that_of_brute_force(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distcam.index.scan._BLOCK_BYTES", 4 * 12 * 97)  # 97 vectors at a time
    vectors = blobs(1000, 12)
    vectors[500:520] = vectors[3]
    ids = np.arange(10, 1010, dtype=np.uint64)
    truth = ground_truth(
        SearchSpec(12, metric), ids, lambda some: vectors[some.astype(int) - 10], queries=50, k=15, seed=1
    )
    assert len(truth) == 50
    for own, query, distances in zip(truth.ids, truth.queries, truth.distances, strict=True):
        np.testing.assert_array_equal(query, vectors[int(own) - 10])
        others = np.setdiff1d(np.arange(1000), [int(own) - 10]).astype(np.uint64)
        np.testing.assert_array_equal(distances, true_hits(metric, query, vectors, 15, others).distances)


def test_recall_by_hand() -> None:
    truth = GroundTruth(ids_of(7, 9), np.zeros((2, 1), np.float32), np.array([[1.0, 2.0], [1.0, 1.0]]))
    first = Hits(ids_of(7, 1, 2), np.array([0.0, 1.0, 3.0]))  # itself, the nearest, and one too far
    second = Hits(ids_of(4, 5, 6), np.array([1.0, 1.0, 1.0]))  # copies stand for one another; two count
    assert truth.recall([first, second], 1) == 1
    assert truth.recall([first, second], 2) == 3 / 4
    assert truth.recall([first, second], 100) == 3 / 4  # there are two others


def test_enough_is_the_first_setting_that_is_good_enough() -> None:
    def settings(*recalls: float) -> list[SearchSettings]:
        return [SearchSettings(2**i, recall, 10) for i, recall in enumerate(recalls)]

    assert enough(settings(0.5, 0.96, 0.99), target=0.95).effort == 2
    assert enough(settings(0.5, 0.9, 0.91, 0.912), target=0.95).effort == 4  # half a per cent short of the best
    assert enough(settings(0.5, 0.8, 0.8, 0.801, 0.801, 0.99), target=0.95).effort == 2  # the end of the rise


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "metric"),
    [*product(["IVF32,PQ4"], METRICS), ("IVF32,SQ8", "l1"), ("SQ4", "l2"), ("OPQ4,IVF32,PQ4", "cosine")],
)
def test_coarse_codes_reach_the_recall_by_over_fetching(factory: str, metric: Metric) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 32), dtype=np.float32)  # without clusters
    report, search = tuned(vectors, metric, factory, recall=0.95)
    assert report.tuning.recall_at_10 >= 0.95
    if "PQ" in factory and metric != "l1":  # where L2 stands in, four times as many are fetched anyway
        assert report.tuning.overfetch > 1
    queries = vectors[:100] + np.float32(0.02)
    found = search.search(queries, 10)
    true = [true_hits(metric, query, vectors, 10) for query in queries]
    assert np.mean([len(np.intersect1d(a.ids, b.ids)) / 10 for a, b in zip(found, true, strict=True)]) > 0.9
    assert search.description["recall_at_10"] == round(report.tuning.recall_at_10, 4)


@given(
    st.sampled_from(METRICS),
    st.sampled_from(["IVF16,SQfp16", "IVF16,SQ8", "IVF16,PQ4x4", "OPQ2,IVF8,PQ2x4", "HNSW8", "SQ8"]),
    st.integers(0, 99),
    st.integers(1, 30),
)
@settings(max_examples=25, deadline=None)
def test_whatever_the_index_what_it_returns_is_exact(metric: Metric, factory: str, seed: int, k: int) -> None:
    """Filters, deletions, replacements and additions after tuning: distances, order and membership hold."""
    rng = np.random.default_rng(seed)
    stored = dict(enumerate(blobs(600, 8, seed)))
    spec = SearchSpec(8, metric)

    def read(ids: np.ndarray) -> np.ndarray:
        return np.stack([stored[int(key)] for key in ids])

    _, search = tune(
        spec,
        np.arange(600, dtype=np.uint64),
        read,
        budget=Budget(0.5, 1 << 30),
        candidates=[factory],
        queries=20,
        device="cpu",
    )
    gone = rng.permutation(600)[:100]
    new = {int(key): vector for key, vector in zip(range(1000, 1050), blobs(50, 8, seed + 1), strict=True)}
    new[int(np.setdiff1d(np.arange(600), gone)[0])] = np.ones(8, np.float32)  # replaced
    stored = {key: vector for key, vector in {**stored, **new}.items() if key not in gone}
    search.delete(gone.astype(np.uint64))
    search.upsert(np.array(list(new), np.uint64), np.stack(list(new.values())))
    keys = np.array(sorted(stored), np.uint64)
    everything, queries = read(keys), blobs(6, 8, seed + 2)
    assert search.count() == len(keys)
    for allowed in (None, keys[::2], keys[::40], np.concatenate([keys[:5], gone.astype(np.uint64)])):
        few = keys if allowed is None else np.intersect1d(keys, allowed)
        for query, hits in zip(queries, search.search(queries, k, allowed=allowed), strict=True):
            rows = np.flatnonzero(np.isin(keys, few)).astype(np.uint64)
            ranked = true_hits(metric, query, everything, len(keys), rows)
            of_id = dict(zip(keys[ranked.ids.astype(int)].tolist(), ranked.distances.tolist(), strict=True))
            assert len(hits.ids) == min(k, len(few))
            assert [of_id[key] for key in hits.ids.tolist()] == hits.distances.tolist()  # members, with true distances
            pairs = list(zip(hits.distances.tolist(), hits.ids.tolist(), strict=True))
            assert pairs == sorted(set(pairs))


def test_a_filter_finds_its_own_although_they_lie_in_other_lists() -> None:
    vectors = np.concatenate([blobs(8000, 16), 50 + blobs(5000, 16, seed=1)])
    _, search = tuned(vectors, "l2", "IVF64,SQfp16")
    allowed = np.arange(8000, 13000, dtype=np.uint64)  # none of them anywhere near the query
    for hits, query in zip(search.search(vectors[:5], 10, allowed=allowed), vectors[:5], strict=True):
        assert_same([hits], [true_hits("l2", query, vectors, 10, allowed)])


def test_a_filter_costs_little_recall() -> None:
    vectors = blobs(8_000, 12)
    _, search = tuned(vectors, "l2", "IVF64,SQfp16", recall=0.95)
    keys = np.random.default_rng(0).permutation(8_000).astype(np.uint64)

    def recall(share: float) -> float:
        allowed = np.sort(keys[: int(8_000 * share)])
        found = search.search(vectors[:100], 10, allowed=None if share == 1 else allowed)
        true = [true_hits("l2", query, vectors, 10, allowed) for query in vectors[:100]]
        return float(np.mean([len(np.intersect1d(a.ids, b.ids)) / 10 for a, b in zip(found, true, strict=True)]))

    for share in (0.95, 0.85, 0.6):
        assert recall(share) > recall(1) - 0.05


def test_indexes_that_share_their_lists_are_those_that_were_trained_alone() -> None:
    vectors = blobs(2000, 16)
    ids = np.arange(2000, dtype=np.uint64)
    first = build(vectors, "cosine", "IVF16,SQfp16", source=lambda some: vectors[some.astype(int)])
    for factory in ("IVF16,SQ8", "IVF16,PQ4"):
        options = {"factory": factory, "device": "cpu", "settings": SearchSettings(4, 1.0, 1)}
        spec = SearchSpec(16, "cosine")
        alone = FaissSearch.from_source(spec, ids, lambda some: vectors[some.astype(int)], **options)
        shared = FaissSearch.from_source(
            spec, ids, lambda some: vectors[some.astype(int)], coarse=coarse_of(first.store.index), **options
        )
        assert shared.serialise() == alone.serialise()


# --- The choice ------------------------------------------------------------------------------------------------------


def trial(factory: str, size: int, recall: float, latency: float) -> Trial:
    measured = Tuning(
        factory, None, 1, 1000, 1.0, recall, 1.0, latency, latency, latency, size / 1000, 1.0, 10, 0, 1, "cpu", "", ""
    )
    return Trial(factory, size, measured)


TRIALS = (trial("Flat", 9000, 1.0, 8.0), trial("half", 5000, 1.0, 4.0), trial("ivf", 5200, 0.98, 0.4))
MORE = (*TRIALS, trial("ivf8", 3000, 0.97, 0.43), trial("pq", 900, 0.9, 0.5))


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(0.97, 10_000), "ivf8"),  # a tenth slower than the quickest, and smaller
        (Budget(0.975, 10_000), "ivf"),
        (Budget(0.99, 10_000), "half"),
        (Budget(0.99, 10_000, 5.0), "half"),
        (Budget(0.9, 10_000, 5.0), "pq"),  # any is quick enough: the smallest
        (Budget(0.97, 1000), None),
        (Budget(0.99, 10_000, 1.0), None),
    ],
)
def test_the_cheapest_that_keeps_within_the_budgets_is_chosen(budget: Budget, chosen: str | None) -> None:
    found = choose(MORE, budget)
    assert (None if found is None else found.factory) == chosen


def test_candidates_fit_the_number_of_vectors() -> None:
    spec = SearchSpec(512, "cosine")
    assert default_candidates(spec, 500, 1 << 40) == ("Flat", "SQfp16")
    assert default_candidates(spec, 20_000, 1 << 40)[2:] == ("IVF512,SQfp16", "IVF512,SQ8", "IVF512,PQ64")
    assert default_candidates(spec, 10_000_000, 2 << 30)[-1] == "OPQ64,IVF16384,PQ64"
    assert default_candidates(SearchSpec(100, "l1"), 50_000, 1 << 40) == (
        "Flat",
        "IVF1024,SQfp16",
        "IVF1024,SQ8",
        "IVF1024,PQ10",
    )
    for dim in (1, 3, 7, 17, 100):
        for factory in default_candidates(SearchSpec(dim, "l2"), 20_000, 1):
            new_index(SearchSpec(dim, "l2"), factory)


@pytest.mark.parametrize(
    "factory",
    [
        *("HNSW0", "HNSW1", "HNSW99999999", "HNSW0_SQ8", "HNSW999999999999", "IVF0,Flat", "IVF100000000,Flat"),
        *("IVF4_HNSW0,Flat", "NSG0", "NSG1", "PCA0,Flat", "PCAR0,Flat", "RR0,Flat", "RR1000000,Flat", "OPQ4_0,Flat"),
        *("PQ8x0", "PQ8x24", "IMI2x30,Flat", "IMI0x4,Flat", "RQ8x30", "RQ0x4", "PRQ2x0x4"),
    ],
)
def test_numbers_that_faiss_dies_of_are_refused_before_it_sees_them(factory: str) -> None:
    with pytest.raises(InputError, match=r"FAISS factory .*: expected \d+ to \d+ "):
        new_index(SearchSpec(64, "cosine"), factory)


def test_a_graph_of_product_codes_spends_no_minutes_on_their_order() -> None:
    index = new_index(SearchSpec(16, "cosine"), "HNSW16_PQ4")
    assert not faiss.downcast_index(index.storage).do_polysemous_training


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "IVF16,SQ8", "IVF16,PQ4", "HNSW16", "IVF16,Flat"])
def test_the_size_is_known_before_an_index_is_built(factory: str) -> None:
    search = build(blobs(4000, 16), "cosine", factory)
    expected = index_bytes(new_index(SearchSpec(16, "cosine"), factory), 4000)
    assert expected == pytest.approx(faiss.serialize_index(search.store.index).nbytes, rel=0.08)


def test_what_is_too_large_is_not_built_and_the_reason_is_told() -> None:
    report, search = tuned(blobs(2000, 16), "l2", "Flat", "IVF16,SQ8", "IVF4096,Flat", memory=120_000)
    flat, small, impossible = report.trials
    assert (flat.tuning, flat.note) == (None, "memory")
    assert small.tuning is report.tuning
    assert small.note == ""
    assert impossible.note in ("memory", "recall") or "needs at least as many vectors" in impossible.note
    assert report.binding == ("memory",)
    assert search.factory == "IVF16,SQ8"
    assert "it is memory that binds" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["tuning"]["factory"] == "IVF16,SQ8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 1000}, "no index keeps within .*1000 bytes.*the smallest, IVF16,PQ2x4, takes .*KiB: allow more"),
        ({"latency_ms": 1e-6}, "no index keeps within .*the best found is .*allow more latency"),
        ({"recall": 1.5}, "expected a recall above 0 and up to 1, got 1.5"),
        ({"memory": 0}, "expected budgets above 0"),
    ],
)
def test_budgets_that_nothing_meets_are_an_error_with_the_best_found(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(blobs(600, 8), "l2", "Flat", "IVF16,PQ2x4", **options)  # type: ignore[arg-type]


def test_too_few_images_and_unknown_factories_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="at least 2 images and 1 query, got 1 and 60"):
        tuned(blobs(1, 8), "l2", "Flat")
    with pytest.raises(InputError, match="cannot make index 'nonsense'"):
        tuned(blobs(600, 8), "l2", "Flat", "nonsense")
    with pytest.raises(InputError, match=r"\(IVF500,Flat: an inverted file of 500 lists needs.*got 300"):
        tuned(blobs(300, 8), "l2", "IVF500,Flat")


def test_sizes_for_people() -> None:
    assert [readable(size) for size in (1, 1000, 2048, 3 << 29)] == ["1 byte", "1000 bytes", "2 KiB", "1.5 GiB"]


# --- Galleries -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(photos: Path, small_encoder, tmp_path: Path) -> Gallery:
    return Gallery.build(photos, small_encoder, out=tmp_path / "tuned.gallery", precision="fp32")


def tune_small(gallery: Gallery, **options: object) -> TuningReport:
    return gallery.tune(candidates=["IVF2,SQfp16"], recall=0.5, queries=10, seed=3, **options)  # type: ignore[arg-type]


def test_a_tuned_gallery_keeps_its_index_its_settings_and_what_was_measured(gallery: Gallery) -> None:
    queries = gallery.embeddings(gallery.ids[:5])
    before = gallery.search(queries, 24)
    report = tune_small(gallery)
    assert gallery.manifest.index == "IVF2,SQfp16"
    again = Gallery.open(gallery.folder)
    assert again.manifest.tuning == report.tuning == Manifest.load(gallery.folder).tuning
    assert again.info()["tuning"]["recall_at_10"] == report.tuning.recall_at_10
    assert again.info()["index_cached"]
    assert again.searcher.is_mapped
    assert again.searcher.description["nprobe"] == report.tuning.effort
    for hits, wanted in zip(again.search(queries, 24), before, strict=True):
        assert_same([hits], [wanted])
    assert again.verify().is_sound


def test_a_dry_run_changes_nothing(gallery: Gallery) -> None:
    files = sorted(path.name for path in gallery.folder.iterdir())
    manifest = gallery.manifest
    tune_small(gallery, dry_run=True)
    assert Manifest.load(gallery.folder) == manifest
    assert sorted(path.name for path in gallery.folder.iterdir()) == files


def test_images_that_come_and_go_after_tuning_are_found_and_not(
    gallery: Gallery, photos: Path, small_encoder, tmp_path: Path
) -> None:
    tune_small(gallery)
    gone = gallery.ids[:3]
    queries = gallery.embeddings(gallery.ids)
    gallery.remove(paths=[record.path for record in gallery.records(gone)])
    assert not np.isin(np.concatenate([hits.ids for hits in gallery.search(queries, 30)]), gone).any()
    copied = tmp_path / "more" / "new"
    copied.mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))[:3]):
        (copied / f"{number}.jpg").write_bytes(file.read_bytes())
    gallery.add(tmp_path / "more", small_encoder)
    assert gallery.manifest.index == "IVF2,SQfp16"
    again = Gallery.open(gallery.folder)
    assert again.searcher.is_mapped
    assert [int(hits.ids[0]) for hits in again.search(queries[:3], 1)] == [24, 25, 26]
    assert again.verify().is_sound


def test_an_index_that_is_lost_is_built_again_with_the_settings_that_were_tuned(gallery: Gallery) -> None:
    report = tune_small(gallery)
    entry = gallery.manifest.index_cache
    assert entry is not None
    stored = (gallery.folder / entry.file.name).read_bytes()
    (gallery.folder / entry.file.name).unlink()
    again = Gallery.open(gallery.folder)
    assert not again.searcher.is_mapped
    assert again.searcher.serialise() == stored  # the same seed, sample and settings
    assert SearchSettings.of(report.tuning) == again.searcher.store.settings


def test_another_reader_moves_on_to_the_tuned_index(gallery: Gallery) -> None:
    reader = Gallery.open(gallery.folder)
    assert reader.searcher.factory == "Flat"
    tune_small(gallery)
    reader.refresh()
    assert reader.searcher.factory == "IVF2,SQfp16"


def test_tuning_is_due_when_the_gallery_has_doubled_or_halved(gallery: Gallery) -> None:
    assert not gallery.is_tuning_due
    tuning = tune_small(gallery).tuning
    assert [tuning.is_due(images) for images in (24, 48, 49, 12, 11)] == [False, False, True, False, True]
    gallery.remove(paths=[record.path for record in gallery.records(gallery.ids[:13])])
    assert gallery.is_tuning_due
    assert gallery.info()["tuning"]["is_due"]


def test_a_gallery_from_before_there_was_tuning_opens(gallery: Gallery) -> None:
    path = gallery.folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["tuning"], content["checksum"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    path.write_text(json.dumps({**content, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}))
    assert Gallery.open(gallery.folder).manifest.tuning is None


@pytest.mark.parametrize("change", [{"overfetch": 0}, {"effort": 0}, {"images": -1}])
def test_a_manifest_with_an_impossible_tuning_is_damaged(gallery: Gallery, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive effort"):
        dataclasses.replace(tune_small(gallery, dry_run=True).tuning, **change)


@pytest.mark.parametrize("in_memory", [1 << 30, 100])
def test_an_index_is_used_from_a_copy_that_nobody_else_can_change(
    gallery: Gallery, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_IN_MEMORY", in_memory)
    tune_small(gallery)
    names = sorted(gallery.folder.iterdir())
    entry = gallery.manifest.index_cache
    assert entry is not None
    path = gallery.folder / entry.file.name
    query = gallery.embeddings(gallery.ids[:1])
    again = Gallery.open(gallery.folder)
    before = again.search(query, 3)[0].ids.tolist()
    assert sorted(gallery.folder.iterdir()) == names
    data = caches.load_index_bytes(gallery.snapshot)
    assert isinstance(data, bytes) == (in_memory > 100)
    kept = path.read_bytes()
    assert data is not None
    os.truncate(path, 10)
    assert data[:] == kept  # not SIGBUS
    assert again.search(query, 3)[0].ids.tolist() == before
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert caches.load_index_bytes(gallery.snapshot) is None
    path.unlink()
    (gallery.folder.parent / "elsewhere").write_bytes(kept)
    path.symlink_to(gallery.folder.parent / "elsewhere")
    assert caches.load_index_bytes(gallery.snapshot) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_in_place_of_the_index_is_passed_over(gallery: Gallery) -> None:
    tune_small(gallery)
    entry = gallery.manifest.index_cache
    assert entry is not None
    path = gallery.folder / entry.file.name
    path.unlink()
    os.mkfifo(path)
    assert caches.load_index_bytes(gallery.snapshot) is None


def test_a_gallery_that_was_built_anew_meanwhile_is_not_touched(
    gallery: Gallery, photos: Path, small_encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distcam.encoders import Encoder
    from distcam.images import Transform
    from distcam.index.faiss import tuning

    real = tuning.tune

    def slow(*arguments: object, **options: object) -> object:
        result = real(*arguments, **options)  # type: ignore[arg-type]
        other = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"), seed=1)
        Gallery.build(photos, other, out=gallery.folder, precision="fp32", overwrite=True)
        return result

    monkeypatch.setattr(tuning, "tune", slow)
    with pytest.raises(InputError, match="was built anew meanwhile, and is left as it is; try again"):
        tune_small(gallery)
    assert Gallery.open(gallery.folder).manifest.index == "auto"


# --- Command line ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_stores_the_choice(gallery: Gallery) -> None:
    arguments = ["index", "tune", str(gallery.folder), "--queries", "10", "--recall", "0.5", "--memory", "1G"]
    output = distcam(*arguments, "--candidates", "Flat", "--candidates", "IVF2,SQ8", "--latency-ms", "1000")
    assert "IVF2,SQ8" in output
    assert "24 images, 10 queries" in output
    assert Manifest.load(gallery.folder).index == "IVF2,SQ8"  # the smaller one
    shown = json.loads(distcam("index", "info", gallery.folder, "--json"))
    assert shown["tuning"]["factory"] == "IVF2,SQ8"


def test_json_and_dry_run(gallery: Gallery) -> None:
    report = json.loads(distcam("index", "tune", gallery.folder, "--dry-run", "--json", "--queries", "5"))
    assert report["stored"] is False
    assert [trial["factory"] for trial in report["trials"]] == ["Flat", "SQfp16"]
    assert Manifest.load(gallery.folder).tuning is None


@pytest.mark.parametrize(("text", "size"), [("4G", 4 << 30), ("500M", 500 << 20), ("1.5 GiB", 3 << 29), ("77", 77)])
def test_sizes_are_read(text: str, size: int) -> None:
    from distcam.cli.index.tune import read_size

    assert read_size(text) == size
    with pytest.raises(InputError, match="expected a size such as 4G"):
        read_size("much")


def test_a_damaged_stored_index_does_not_stop_a_search(gallery: Gallery) -> None:
    tune_small(gallery)
    entry = gallery.manifest.index_cache
    assert entry is not None
    (gallery.folder / entry.file.name).write_bytes(b"rubbish")
    assert len(Gallery.open(gallery.folder).search(gallery.embeddings(gallery.ids[:1]), 3)[0].ids) == 3
    with pytest.raises(CorruptGalleryError, match="none of distcam's"):
        FaissSearch.deserialise(b"rubbish" * 9, spec=SearchSpec(4, "l2"), source=lambda ids: ids)  # type: ignore
