from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import CorruptGalleryError, InputError, ShapeError
from distcam.index import PrototypeStore

LABELS = ["cat", None, "dog", "cat", "dog", "owl"]
POOLED = np.array([[1, 0, 2], [9, 9, 9], [0, 4, 0], [3, 0, 4], [0, 0, 2], [5, 5, 5]], np.float32)
EMBEDDING = np.array([[3, 4], [0, 2], [1, 0], [0, 5], [0, -2], [6, 8]], np.float32)


def _store(metric: str = "l2", rows: slice | list[int] = slice(None)) -> PrototypeStore:
    store = PrototypeStore(pooled_dim=3, embedding_dim=2, metric=metric)
    store.add(list(np.array(LABELS, object)[rows]), POOLED[rows], EMBEDDING[rows])
    return store


def _assert_same(one: PrototypeStore, other: PrototypeStore) -> None:
    assert one.labels == other.labels
    assert one.counts.tolist() == other.counts.tolist()
    assert one.total == other.total
    np.testing.assert_allclose(one.all_pooled(), other.all_pooled(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.all_embeddings(), other.all_embeddings(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.mean_pooled(), other.mean_pooled(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.mean_embedding(), other.mean_embedding(), rtol=1e-6, atol=1e-6)


def test_a_prototype_is_the_mean_of_its_class() -> None:
    store = _store()
    assert store.labels == ("cat", "dog", "owl")
    assert store.counts.tolist() == [2, 2, 1]
    assert store.pooled("cat").tolist() == [2, 0, 3]
    assert store.embedding("dog").tolist() == [0.5, -1]
    assert store.all_pooled()[1].tolist() == [0, 2, 1]
    assert store.pooled("cat").dtype == np.float32


def test_with_the_cosine_metric_unit_vectors_are_summed_and_the_mean_is_one_again() -> None:
    store = _store("cosine")
    mean = (np.array([0.6, 0.8]) + np.array([0.0, 1.0])) / 2
    np.testing.assert_allclose(store.embedding("cat"), mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(store.all_embeddings(), axis=1), 1, rtol=1e-6)
    assert store.pooled("cat").tolist() == [2, 0, 3]  # pooled vectors stay raw


def test_opposite_unit_vectors_have_the_zero_prototype() -> None:
    store = PrototypeStore(pooled_dim=1, embedding_dim=1, metric="cosine")
    store.add(["x", "x"], np.ones((2, 1)), np.array([[2.0], [-3.0]]))
    assert store.embedding("x").tolist() == [0]


def test_images_without_a_class_count_towards_the_mean_of_all() -> None:
    store = _store("cosine")
    assert store.total == 6
    assert len(store) == 3
    np.testing.assert_allclose(store.mean_pooled(), POOLED.mean(0), rtol=1e-6)
    unit = EMBEDDING / np.linalg.norm(EMBEDDING, axis=1, keepdims=True)
    np.testing.assert_allclose(store.mean_embedding(), unit.mean(0), rtol=1e-6)


def test_an_empty_store_has_zero_means_and_no_classes() -> None:
    store = PrototypeStore(pooled_dim=3, embedding_dim=2, metric="cosine")
    assert store.labels == ()
    assert store.all_pooled().shape == (0, 3)
    assert store.mean_embedding().tolist() == [0, 0]


def test_a_class_without_images_is_gone() -> None:
    store = _store()
    store.subtract(["owl"], POOLED[5:], EMBEDDING[5:])
    assert "owl" not in store
    assert store.labels == ("cat", "dog")
    with pytest.raises(InputError, match="no class 'owls' among 2"):
        store.pooled("owls")
    with pytest.raises(InputError, match="did you mean 'cat'"):
        store.pooled("cats")


def test_more_cannot_be_taken_out_than_was_put_in() -> None:
    store = _store()
    with pytest.raises(InputError, match="more images of 'owl' are taken out"):
        store.subtract(["cat", "owl", "owl"], POOLED[:3], EMBEDDING[:3])
    _assert_same(store, _store())


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"expected pooled and embedding of \(\(1, 3\), \(1, 2\)\)"):
        _store().add(["cat"], np.zeros((1, 2)), np.zeros((1, 2)))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(0, 6), gone=st.sets(st.integers(0, 5)))
def test_any_order_of_adding_subtracting_and_merging_gives_the_same(
    metric: str, order: list[int], cut: int, gone: set[int]
) -> None:
    store, other = _store(metric, order[:cut]), _store(metric, order[cut:])
    store.merge(other)
    out = sorted(gone)
    store.subtract([LABELS[row] for row in out], POOLED[out], EMBEDDING[out])
    _assert_same(store, _store(metric, [row for row in range(6) if row not in gone]))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(0, 6), gone=st.sets(st.integers(0, 5)))
def test_any_order_of_adding_and_subtracting_gives_the_same(
    metric: str, order: list[int], cut: int, gone: set[int]
) -> None:
    store, later = _store(metric, order[:cut]), order[cut:]
    store.add([LABELS[row] for row in later], POOLED[later], EMBEDDING[later])
    out = sorted(gone)
    store.subtract([LABELS[row] for row in out], POOLED[out], EMBEDDING[out])
    _assert_same(store, _store(metric, [row for row in range(6) if row not in gone]))


def test_stores_of_another_kind_do_not_merge() -> None:
    with pytest.raises(InputError, match="expected K=3, d=2, l2, got K=3, d=2, cosine"):
        _store("l2").merge(_store("cosine"))


def test_saving_and_loading_is_the_identity(tmp_path: Path) -> None:
    _store("cosine").save(tmp_path / "prototypes.h5")
    loaded = PrototypeStore.load(tmp_path / "prototypes.h5", pooled_dim=3, embedding_dim=2, metric="cosine")
    _assert_same(loaded, _store("cosine"))
    assert loaded.mean_embedding().tolist() == _store("cosine").mean_embedding().tolist()  # to the last bit


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prototypes.h5"
    _store().save(path)
    with pytest.raises(CorruptGalleryError, match="pooled_sum should be float64 of 4×7, is float64 of 4×3"):
        PrototypeStore.load(path, pooled_dim=7, embedding_dim=2, metric="l2")
