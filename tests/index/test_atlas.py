"""Galleries in two dimensions: against scikit-learn's components, and against distances counted one by one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from distcam.errors import InputError, MissingExtraError
from distcam.index import Gallery, atlas, import_gallery


def gallery_of(folder: Path, vectors: Any, metric: Any = "cosine") -> Gallery:
    folder.mkdir()
    np.save(folder / "v.npy", np.asarray(vectors, np.float32))
    rows = "\n".join(f"{number}.jpg,{'ab'[number % 2]}" for number in range(len(vectors)))
    (folder / "t.csv").write_text(f"path,label\n{rows}\n")
    return import_gallery(folder / "t.csv", folder / "g", embeddings=folder / "v.npy", metric=metric)


def points_of(count: int, dim: int, *, seed: int = 0) -> Any:
    """Vectors far from the origin whose directions hold less and less of the variance."""
    draw = np.random.default_rng(seed)
    turn = np.linalg.qr(draw.standard_normal((dim, dim)))[0]
    return 20 + (draw.standard_normal((count, dim)) * 0.8 ** np.arange(dim)) @ turn


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_coordinates_and_shares_are_those_of_scikit_learn(tmp_path: Path, monkeypatch: Any, metric: str) -> None:
    monkeypatch.setattr(atlas, "_BLOCK_BYTES", 8 * 40 * 70)  # blocks of 70 images
    gallery = gallery_of(tmp_path / "p", points_of(300, 40), metric)
    ranked = gallery.ranking_vectors(gallery.ids).astype(np.float64)
    expected = PCA(2, svd_solver="full").fit(ranked)
    found = gallery.atlas(outliers=False)
    points = expected.transform(ranked)
    points *= np.sign((points * found.points).sum(0))
    assert np.abs(found.points - points).max() < 1e-4 * np.abs(points).max()
    assert found.shares == pytest.approx(expected.explained_variance_ratio_, rel=1e-5)
    assert found.ids.tolist() == gallery.ids.tolist()
    again = gallery.atlas(outliers=False)
    assert np.array_equal(found.points, again.points)


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1"])
def test_a_score_is_the_distance_to_the_fifth_nearest_other_image(tmp_path: Path, metric: str) -> None:
    gallery = gallery_of(tmp_path / "p", points_of(40, 6), metric)
    kind = {"cosine": "cosine", "l2": "euclidean", "l1": "cityblock"}[metric]
    distances = np.sort(cdist(gallery.embeddings(gallery.ids), gallery.embeddings(gallery.ids), kind), axis=1)
    assert gallery.atlas().outliers == pytest.approx(distances[:, 5], rel=1e-4, abs=1e-6)


def test_one_image_one_dimension_and_equal_vectors_have_their_places(tmp_path: Path) -> None:
    single = gallery_of(tmp_path / "one", [[1.0, 2.0]]).atlas()
    assert single.points.tolist() == [[0, 0]]
    assert single.shares == (0, 0)
    assert single.outliers is not None
    assert single.outliers.tolist() == [0]
    line = gallery_of(tmp_path / "line", [[1.0], [2.0], [6.0]], "l2").atlas()
    assert line.points.tolist() == [[-2, 0], [-1, 0], [3, 0]]
    assert line.shares == (1, 0)
    assert np.isfinite(gallery_of(tmp_path / "equal", np.ones((9, 4))).atlas().points).all()


def test_umap_keeps_clusters_apart_and_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    vectors = np.repeat(np.eye(4)[:2], 12, axis=0) + 0.01 * points_of(24, 4)
    gallery = gallery_of(tmp_path / "p", vectors)
    with pytest.raises(InputError, match="holds 1 images; an atlas by umap needs 16"):
        gallery_of(tmp_path / "one", [[1.0, 2.0]]).atlas("umap")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"distcam\[umap\]"):
        gallery.atlas("umap")


@pytest.mark.slow  # numba compiles for many seconds
def test_umap_parts_what_lies_apart_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="UMAP is not installed: pip install 'distcam[umap]'")
    draw = np.random.default_rng(0)
    groups = np.repeat(np.eye(8)[:2] * 10, 20, axis=0) + draw.standard_normal((40, 8)) * 0.1
    gallery = gallery_of(tmp_path / "p", groups, "l2")
    found = gallery.atlas("umap", outliers=False)
    between = cdist(found.points[:20], found.points[20:])
    within = cdist(found.points[:20], found.points[:20])
    assert between.min() > np.median(within)
    assert np.array_equal(found.points, gallery.atlas("umap", outliers=False).points)
