"""Episode manifests: what they refuse, what their hash means, and that they come back from disk as they were."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from distcam.errors import InputError, ShapeError
from distcam.fewshot import EpisodeManifest, sample_episodes

NAMES = ["a1", "a2", "a3", "b1", "b2", "b3", "c1"]
LABELS = ["a", "a", "a", "b", "b", "b", "c"]


def manifest(support, query, names=NAMES, labels=LABELS) -> EpisodeManifest:
    return EpisodeManifest(names, labels, np.array(support), np.array(query))


def test_a_manifest_by_hand_knows_its_ways_and_targets() -> None:
    episodes = manifest([[[3], [0]]], [[1, 4, 2, 5]])
    assert (episodes.n_episodes, episodes.n_way, episodes.n_shot, episodes.n_query) == (1, 2, 1, 2)
    assert episodes.class_names.tolist() == ["a", "b", "c"]
    assert episodes.ways.tolist() == [[1, 0]]  # b, then a
    assert episodes.target.tolist() == [[1, 0, 1, 0]]
    assert not episodes.is_balanced  # as many of each class, but not listed class by class


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        ([[[0], [3]]], [[1, 3]], r"episode 0: 'b1' is in support and query"),
        ([[[0], [3]]], [[1, 1]], r"episode 0: 'a2' is twice"),
        ([[[0, 3], [4, 5]]], [[1, 2]], r"support images of a way must all be of one class"),
        ([[[0], [1]]], [[2, 2]], r"two ways are the same class"),
        ([[[0], [3]]], [[1, 6]], r"query 'c1' is of no class of its episode"),
        ([[[0], [7]]], [[1, 4]], r"outside 0…6"),
        ([[[0], [-1]]], [[1, 4]], r"outside 0…6"),
    ],
)
def test_episodes_without_meaning_are_refused(support, query, message) -> None:
    with pytest.raises(InputError, match=message):
        manifest(support, query)


@pytest.mark.parametrize(
    ("support", "query"),
    [([[0], [3]], [[1, 4]]), ([[[0], [3]]], [[1, 4, 2]]), ([[[0]]], [[1]]), ([[[0.0], [3.0]]], [[1, 4]])],
)
def test_arrays_of_another_shape_or_kind_are_refused(support, query) -> None:
    with pytest.raises(ShapeError):
        manifest(support, query)


def test_names_must_be_unique_and_belong_to_the_labels() -> None:
    with pytest.raises(InputError, match="'a1' occurs 2 times"):
        manifest([[[0], [3]]], [[1, 4]], names=["a1", *NAMES[:-1]])
    with pytest.raises(ShapeError, match="6 names and 7 labels"):
        manifest([[[0], [3]]], [[1, 4]], names=NAMES[:-1])
    with pytest.raises(InputError, match="labels are missing, the first in row 2"):
        manifest([[[0], [3]]], [[1, 4]], labels=["a", "a", float("nan"), "b", "b", "b", "c"])


def test_a_manifest_keeps_its_own_arrays() -> None:
    support = np.array([[[0], [3]]], dtype=np.int32)
    episodes = manifest(support, [[1, 4]])
    support[:] = 5
    assert episodes.support.tolist() == [[[0], [3]]]


def test_the_hash_is_of_the_content_not_of_the_order_of_the_items() -> None:
    order = [6, 2, 0, 1, 5, 3, 4]
    place = np.argsort(order)
    same = manifest(place[[[[0], [3]]]], place[[[1, 4]]], [NAMES[i] for i in order], [LABELS[i] for i in order])
    episodes = manifest([[[0], [3]]], [[1, 4]])
    assert same.content_hash == episodes.content_hash
    assert same.support.tolist() != episodes.support.tolist()
    assert manifest([[[0], [3]]], [[2, 4]]).content_hash != episodes.content_hash
    relabelled = manifest([[[0], [3]]], [[1, 4]], labels=["a", "a", "a", "b", "b", "b", "d"])
    assert relabelled.split_hash != episodes.split_hash
    assert relabelled.content_hash != episodes.content_hash


def test_items_are_found_in_another_listing_by_name() -> None:
    episodes = manifest([[[0], [3]]], [[1, 4]])
    assert episodes.rows_in(["new", *reversed(NAMES)]).tolist() == [7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(InputError, match=r"2 of the manifest's 7 items are not in the listing, the first is 'b3'"):
        episodes.rows_in(NAMES[:5])


@pytest.mark.parametrize("dirichlet", [None, 2])
def test_save_then_load_is_the_identity(tmp_path, dirichlet) -> None:
    labels = np.repeat(["Grün/字", "b c", "\udce4"], 30)  # a name that is no UTF-8, as file systems allow
    names = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    episodes = sample_episodes(labels, names=names, n_way=3, n_query=4, n_episodes=20, dirichlet=dirichlet, seed=7)
    episodes.save(tmp_path / "episodes.h5")
    loaded = EpisodeManifest.load(tmp_path / "episodes.h5")
    assert loaded.content_hash == episodes.content_hash
    assert loaded.describe() == episodes.describe()
    for name in ("names", "labels", "support", "query", "target"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(episodes, name))
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.h5"]


def test_a_changed_file_does_not_pass_its_own_hash(tmp_path) -> None:
    path = tmp_path / "episodes.h5"
    manifest([[[0], [3]]], [[1, 4]]).save(path)
    with h5py.File(path, "a") as file:
        file["query"][0, 0] = 2
    with pytest.raises(InputError, match=r"episodes.h5: .* does not match its own hash"):
        EpisodeManifest.load(path)


def test_files_that_are_no_manifest_give_one_clear_error(tmp_path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name in ("text.h5", "other.h5", "missing.h5"):
        with pytest.raises(InputError, match=f"{name} is not an episode manifest"):
            EpisodeManifest.load(tmp_path / name)
    with pytest.raises(InputError, match="is not a folder"):
        manifest([[[0], [3]]], [[1, 4]]).save(tmp_path / "nowhere" / "episodes.h5")


def test_the_batch_sampler_lists_support_and_queries_class_by_class() -> None:
    episodes = manifest([[[3], [0]]], [[4, 5, 1, 2]])
    assert episodes.batch_sampler() == [[3, 4, 5, 0, 1, 2]]
    with pytest.raises(InputError, match="different numbers of queries"):
        manifest([[[3], [0]]], [[4, 1, 5, 2]]).batch_sampler()


def test_a_data_loader_takes_the_batch_sampler_whatever_its_workers() -> None:
    from torch.utils.data import DataLoader

    episodes = sample_episodes(LABELS[:6], n_way=2, n_query=2, n_episodes=5)
    batches = [batch.tolist() for batch in DataLoader(range(6), batch_sampler=episodes.batch_sampler())]
    assert batches == episodes.batch_sampler()
