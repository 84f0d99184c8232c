"""Retrieval measures: by hand, against slow loops and other libraries, and what must not change them."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score, normalized_mutual_info_score

from distcam.errors import FingerprintMismatchError, InputError, ShapeError
from distcam.images import load_dataset
from distcam.index import Gallery, encode_to_file, read_encodings
from distcam.metrics import METRICS, ranking
from distcam.metrics.distances import (
    SearchSpec,
    check_vectors,
    cluster,
    comparable,
    distances_to,
    normalised_mutual_information,
)
from distcam.metrics.intervals import bootstrap_means
from distcam.metrics.ranking import Pairing, measure_rankings
from distcam.retrieval import (
    Origin,
    RetrievalProtocol,
    default_protocol,
    evaluate_dataset,
    evaluate_embeddings,
    evaluate_encodings,
    evaluate_gallery,
)

QUICK = RetrievalProtocol(clusters=False, resamples=10)


def clustered(n, *, dim=8, classes=5, seed=0, noise=1.0):
    """Vectors around one centre per class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centres = rng.standard_normal((classes, dim))
    return (centres[labels] + noise * rng.standard_normal((n, dim))).astype(np.float32), labels


def slow_measures(queries, gallery, labels, gallery_labels, own, metric):
    """First rank, R-precision, MAP@R and AP of each query, by a walk through the sorted gallery in plain Python."""
    spec = SearchSpec(queries.shape[1], metric)
    queries, gallery = (comparable(spec, *check_vectors(spec, side)) for side in (queries, gallery))
    found = []
    for row, query in enumerate(queries):
        distances = distances_to(spec, query, gallery).tolist()
        kept = [(d, gallery_labels[g] == labels[row]) for g, d in enumerate(distances) if g != own[row]]
        ranked = sorted(kept)  # wrong before right at one distance
        ranks = [rank for rank, (_, right) in enumerate(ranked, 1) if right]
        if not ranks:
            found.append((0, 0, None, None, None))
            continue
        precisions = []
        for distance, right in ranked:
            if right:
                near = [other for d, other in kept if d <= distance]
                precisions.append(sum(near) / len(near))
        n = len(ranks)
        within = [precision for rank, precision in zip(ranks, precisions, strict=True) if rank <= n]
        found.append((n, ranks[0], len(within) / n, sum(within) / n, sum(precisions) / n))
    return found


def fast_measures(queries, gallery, labels, gallery_labels, own, metric, **options):
    spec = SearchSpec(queries.shape[1], metric)
    sides = [comparable(spec, *check_vectors(spec, side)) for side in (queries, gallery)]
    pairing = Pairing(np.asarray(labels), np.asarray(gallery_labels), np.asarray(own))
    return measure_rankings(*sides, pairing, spec=spec, **options)


def assert_measures(found, expected):
    for column, values in zip(found[:5], zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(column, np.array(values, float), rtol=0, atol=1e-14)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    #           a0  a1  b0  b1  c: alone in its class
    vectors = [[0], [1], [3], [4], [9]]
    result = evaluate_embeddings(vectors, ["a", "a", "b", "b", "c"], protocol=dataclasses.replace(QUICK, metric="l2"))
    assert result["R@1"] == 1.0
    assert result.counts["queries_without_relevant"] == 1
    assert result.counts["queries_scored"] == 4
    assert np.isnan(result.per_query.map_at_r[4])


def test_query_and_gallery_by_hand():
    result = evaluate_embeddings(
        [[0.0], [5.0]],
        ["a", "b"],
        gallery=[[1.0], [2.0], [6.0], [7.0]],
        gallery_labels=["b", "a", "b", None],
        protocol=dataclasses.replace(QUICK, metric="l2", recall_at=(1, 2)),
    )  # a: b at 1, a at 2; b: 6 (b) at 1, 7 (none) at 2, then a at 3, b at 4
    assert (result["R@1"], result["R@2"]) == (0.5, 1.0)
    assert result.per_query.average_precision.tolist() == pytest.approx([1 / 2, (1 + 2 / 4) / 2])
    assert result.per_query.map_at_r.tolist() == pytest.approx([0.0, 1 / 2])


def test_a_querys_own_image_is_no_answer_and_takes_no_rank():
    vectors = np.eye(3, dtype=np.float32)
    found = fast_measures(vectors, vectors, [0, 0, 0], [0, 0, 0], [0, 1, 2], "cosine")
    assert found.n_relevant.tolist() == [2, 2, 2]
    assert found.average_precision.tolist() == [1.0, 1.0, 1.0]


# --- oracles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("block_bytes", "at_once"), [(1, 1 << 18), (5_000, 7), (1 << 20, 100), (1 << 20, 1 << 18)])
def test_measures_equal_those_of_a_full_sort(metric, block_bytes, at_once, monkeypatch):
    monkeypatch.setattr(ranking, "_AT_ONCE", at_once)  # right answers, and close ones, that are measured together
    vectors, labels = clustered(120, seed=1)
    vectors[40:60] = vectors[:20]  # copies tie exactly
    vectors[60:70] = 2 * vectors[:10]  # and with the cosine, so do multiples
    own = np.arange(120)
    sides = (vectors, vectors, labels, labels, own, metric)
    assert_measures(fast_measures(*sides, block_bytes=block_bytes), slow_measures(*sides))


@pytest.mark.parametrize("metric", METRICS)
def test_large_classes_are_counted_by_sorting_with_the_same_measures(metric):
    vectors, labels = clustered(150, classes=2, seed=2)
    own = np.arange(150)
    sides = (vectors, vectors, labels, labels, own, metric)
    assert_measures(fast_measures(*sides), slow_measures(*sides))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 2)), min_size=2, max_size=14),
    st.sampled_from(["l2", "l1", "dot"]),
)
def test_measures_of_grids_full_of_ties_equal_those_of_a_full_sort(points, metric):
    vectors = np.array([point[:2] for point in points], np.float32)
    labels = [point[2] for point in points]
    own = np.arange(len(points))
    sides = (vectors, vectors, labels, labels, own, metric)
    assert_measures(fast_measures(*sides), slow_measures(*sides))


def test_near_ties_below_single_precision_are_told_apart():
    gallery = np.array([[1, 1e-4], [1, 2e-4], [1, 1.5e-4]], np.float32)  # 1 − cos differs by about 1e-8
    query = np.array([[1, 0]], np.float32)
    found = fast_measures(query, gallery, [0], [0, 1, 0], [-1], "cosine")
    assert found.average_precision.tolist() == [1.0]


def test_scores_equal_those_of_pytorch_metric_learning():
    vectors, labels = clustered(300, seed=3, noise=2.0)
    result = evaluate_embeddings(vectors, labels, protocol=QUICK)
    calculator = AccuracyCalculator(exclude=("NMI", "AMI"), k=None, device=torch.device("cpu"))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = calculator.get_accuracy(unit, labels)
    assert result["R@1"] == pytest.approx(theirs["precision_at_1"])
    assert result["MAP@R"] == pytest.approx(theirs["mean_average_precision_at_r"])
    assert result["R-precision"] == pytest.approx(theirs["r_precision"])
    assert result["mAP"] == pytest.approx(theirs["mean_average_precision"])


def test_scores_with_a_gallery_equal_those_of_pytorch_metric_learning():
    vectors, labels = clustered(260, seed=4, noise=2.0)
    asked, searched = slice(0, 80), slice(80, None)
    protocol = dataclasses.replace(QUICK, metric="l2")
    result = evaluate_embeddings(
        vectors[asked], labels[asked], gallery=vectors[searched], gallery_labels=labels[searched], protocol=protocol
    )
    calculator = AccuracyCalculator(exclude=("NMI", "AMI"), k=None, device=torch.device("cpu"))
    theirs = calculator.get_accuracy(vectors[asked], labels[asked], vectors[searched], labels[searched])
    assert result["MAP@R"] == pytest.approx(theirs["mean_average_precision_at_r"])
    assert result["mAP"] == pytest.approx(theirs["mean_average_precision"])


def test_average_precision_equals_scikit_learns():
    vectors, labels = clustered(80, seed=5)
    result = evaluate_embeddings(vectors, labels, protocol=dataclasses.replace(QUICK, metric="l1"))
    for query in range(80):
        others = np.arange(80) != query
        distances = np.abs(vectors.astype(np.float64) - vectors[query]).sum(axis=1)[others]
        expected = average_precision_score(labels[others] == labels[query], -distances)
        assert result.per_query.average_precision[query] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_nmi_equals_scikit_learns(pairs):
    first, second = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns that a partition may be a regression target
        expected = normalized_mutual_info_score(first, second)
    assert normalised_mutual_information(first, second) == pytest.approx(expected, abs=1e-9)


def test_clustering_finds_separate_classes_and_repeats():
    vectors, labels = clustered(200, noise=0.05, seed=6)
    found = evaluate_embeddings(vectors, labels, protocol=RetrievalProtocol(resamples=2, metric="l2"))
    assert found["NMI"] > 0.85  # k-means may merge two of five classes
    assert (cluster(vectors, 5, seed=3) == cluster(vectors, 5, seed=3)).all()


def test_ranks_agree_with_the_gallerys_own_search(small_gallery):
    result = evaluate_gallery(small_gallery, protocol=dataclasses.replace(QUICK, metric=small_gallery.metric))
    records = small_gallery.records(small_gallery.ids)
    for row, hits in enumerate(small_gallery.search(small_gallery.embeddings(small_gallery.ids), len(records))):
        found = [small_gallery.records([i])[0].label for i in hits.ids if i != records[row].id]
        assert found.index(records[row].label) + 1 == result.per_query.first_rank[row]


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_images_does_not_matter_without_ties(seed):
    vectors, labels = clustered(60, seed=7)
    order = np.random.default_rng(seed).permutation(60)
    before = evaluate_embeddings(vectors, labels, protocol=QUICK)
    after = evaluate_embeddings(vectors[order], labels[order], protocol=QUICK)
    for name in before.scores:
        assert after[name] == pytest.approx(before[name], abs=1e-12)
    assert after.per_query.first_rank.tolist() == before.per_query.first_rank[order].tolist()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([2.0**-20, 0.25, 8.0, 2.0**30]), st.sampled_from(METRICS))
def test_rescaling_all_vectors_changes_nothing(factor, metric):
    vectors, labels = clustered(60, seed=8)
    protocol = dataclasses.replace(QUICK, metric=metric)
    before = evaluate_embeddings(vectors, labels, protocol=protocol)
    after = evaluate_embeddings(vectors * np.float32(factor), labels, protocol=protocol)
    assert after.to_dict() == before.to_dict()


def test_renaming_classes_changes_nothing():
    vectors, labels = clustered(60, seed=9)
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    assert evaluate_embeddings(vectors, names[labels], protocol=QUICK)["MAP@R"] == pytest.approx(
        evaluate_embeddings(vectors, labels.tolist(), protocol=QUICK)["MAP@R"]
    )


def test_measures_are_ordered():
    vectors, labels = clustered(150, noise=3.0, seed=10)
    result = evaluate_embeddings(vectors, labels, protocol=QUICK)
    assert result["R@1"] <= result["R@2"] <= result["R@4"] <= result["R@8"]
    assert result["MAP@R"] <= result["R-precision"]
    assert result["MAP@R"] <= result["mAP"]


# --- errors of the mean -----------------------------------------------------------------------------------------------


def test_the_bootstrap_over_queries_meets_the_textbook():
    values = np.random.default_rng(0).random((400, 1))
    found = bootstrap_means(values, np.arange(400), samples=4000, seed=1).std(ddof=1)
    assert found == pytest.approx(values.std() / 20, rel=0.05)


def test_the_bootstrap_over_classes_sees_that_a_class_succeeds_as_one():
    classes = np.repeat(np.arange(20), 50)
    values = np.repeat(np.random.default_rng(0).random(20), 50)[:, None]
    over_queries = bootstrap_means(values, np.arange(1000), samples=500, seed=1).std(ddof=1)
    over_classes = bootstrap_means(values, classes, samples=500, seed=1).std(ddof=1)
    assert over_classes / over_queries == pytest.approx(50**0.5, rel=0.15)


def test_a_single_class_has_no_error_over_classes():
    result = evaluate_embeddings([[0], [1], [2]], ["a"] * 3, protocol=dataclasses.replace(QUICK, metric="l2"))
    assert result.scores["R@1"].class_error is None
    assert "–" in result.table()


# --- what is said -----------------------------------------------------------------------------------------------------


def test_every_table_states_its_protocol():
    vectors, labels = clustered(40, seed=11)
    text = evaluate_embeddings(vectors, labels, protocol=RetrievalProtocol(resamples=5)).table()
    for part in (
        "cosine",
        "own image",
        "wrong answers first",
        "without a relevant image",
        "bootstrap",
        "k-means",
        "MAP@R",
    ):
        assert part in text


def test_the_result_is_json_and_holds_the_queries_on_request():
    result = evaluate_embeddings([[0], [1], [7]], ["a", "a", "b"], protocol=dataclasses.replace(QUICK, metric="l2"))
    found = json.loads(json.dumps(result.to_dict(per_query=True)))
    assert found["per_query"]["first_rank"] == [1, 1, None]
    assert found["protocol"]["own_image"] == "excluded"
    assert "per_query" not in result.to_dict()
    with pytest.raises(KeyError, match="MAP@R"):
        result["map"]


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="another image of its class"):
        evaluate_embeddings([[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
    with pytest.raises(InputError, match="finite queries"):
        evaluate_embeddings([[0, np.nan]], ["a"])
    with pytest.raises(InputError, match="all zeros"):
        evaluate_embeddings([[0, 0], [1, 1]], ["a", "a"])
    with pytest.raises(ShapeError, match="one label for each of 2"):
        evaluate_embeddings([[0, 1], [1, 1]], ["a"])
    with pytest.raises(ShapeError, match="gallery vectors of shape"):
        evaluate_embeddings([[0, 1]], ["a"], gallery=[[1, 2, 3]], gallery_labels=["a"])
    with pytest.raises(InputError, match="expected gallery_labels"):
        evaluate_embeddings([[0, 1]], ["a"], gallery=[[1, 2]])
    with pytest.raises(InputError, match="give one, or leave them out"):
        evaluate_embeddings([[0, 1]], ["a"], gallery_labels=["a"])
    with pytest.raises(InputError, match="rows of the gallery"):
        evaluate_embeddings([[0, 1]], ["a"], gallery=[[1, 2]], gallery_labels=["a"], own=[3])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"metric": "cos"}, "metric out of"),
        ({"recall_at": (4, 1)}, "ascending"),
        ({"recall_at": ()}, "ascending"),
        ({"resamples": 1}, "2 resamples"),
    ],
)
def test_an_impossible_protocol_is_refused(bad, message):
    with pytest.raises(InputError, match=message):
        RetrievalProtocol(**bad)


# --- data sets, encodings, galleries ----------------------------------------------------------------------------------


def test_a_data_set_is_encoded_evaluated_and_cached(photos, small_encoder, tmp_path):
    dataset, cache = load_dataset(photos), tmp_path / "photos.h5"
    protocol = dataclasses.replace(default_protocol(dataset), resamples=5)
    first = evaluate_dataset(dataset, small_encoder, protocol=protocol)
    made = evaluate_dataset(dataset, small_encoder, protocol=protocol, cache=cache)
    again = evaluate_dataset(dataset, small_encoder, protocol=protocol, cache=cache)
    assert first.counts["queries"] == 24
    assert first.to_dict()["scores"] == made.to_dict()["scores"] == again.to_dict()["scores"]
    assert small_encoder.short_name in first.table()
    assert "size=64" in first.table()
    assert "cached encodings" in again.table()

    other = dataclasses.replace(dataset, records=dataset.records[:-1])
    with pytest.raises(InputError, match="other images, labels or roles"):
        evaluate_dataset(other, small_encoder, cache=cache)


def test_a_cache_of_another_encoder_is_refused(photos, small_encoder, tmp_path):
    from distcam.encoders import Encoder

    evaluate_dataset(load_dataset(photos), small_encoder, protocol=QUICK, cache=tmp_path / "photos.h5")
    other = Encoder.load("conv4", weights="random", transform=small_encoder.transform, seed=1)
    with pytest.raises(FingerprintMismatchError, match="choose another --cache"):
        evaluate_dataset(load_dataset(photos), other, cache=tmp_path / "photos.h5")


def test_queries_search_the_gallery_of_their_data_set(photos, small_encoder, tmp_path):
    table = tmp_path / "set.csv"
    files = sorted(photos.rglob("*.jpg"))
    lines = [f"{file},{file.parent.name},{i % 3 == 0},{i % 3 != 0}" for i, file in enumerate(files)]
    table.write_text("\n".join(["path,label,is_query,is_gallery", *lines]))
    result = evaluate_dataset(load_dataset(table), small_encoder, protocol=QUICK)
    assert (result.counts["queries"], result.counts["gallery"]) == (8, 16)

    encode_to_file(photos, small_encoder, tmp_path / "all.h5", precision="fp32")
    encodings = read_encodings(tmp_path / "all.h5")
    is_query = np.arange(24) % 3 == 0
    labels = np.array(encodings.labels)
    expected = evaluate_embeddings(
        encodings.embeddings[is_query], labels[is_query],
        gallery=encodings.embeddings[~is_query], gallery_labels=labels[~is_query], protocol=QUICK,
    )  # fmt: skip
    assert result.to_dict()["scores"] == expected.to_dict()["scores"]


def test_images_that_are_in_the_gallery_do_not_find_themselves(photos, small_encoder, small_gallery):
    protocol = dataclasses.replace(QUICK, metric=small_gallery.metric)
    inside = evaluate_gallery(small_gallery, protocol=protocol)
    asked = evaluate_dataset(load_dataset(photos), small_encoder, gallery=small_gallery, protocol=protocol)
    assert asked.to_dict()["scores"] == inside.to_dict()["scores"]
    assert "searched in the gallery" in asked.table()


def test_encodings_of_another_encoder_are_not_compared_with_a_gallery(photos, small_encoder, small_gallery, tmp_path):
    from distcam.encoders import Encoder

    other = Encoder.load("conv4", weights="random", transform=small_encoder.transform, seed=1)
    encode_to_file(photos, other, tmp_path / "other.h5")
    with pytest.raises(FingerprintMismatchError, match="gallery's encoder"):
        evaluate_gallery(small_gallery, read_encodings(tmp_path / "other.h5"))
    with pytest.raises(FingerprintMismatchError):
        evaluate_dataset(load_dataset(photos), other, gallery=small_gallery)


def test_unreadable_images_are_left_out_and_counted(photos, small_encoder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    broken = sorted(copy.rglob("*.jpg"))[0]
    broken.write_bytes(b"not an image")
    result = evaluate_dataset(load_dataset(copy), small_encoder, protocol=QUICK)
    assert result.counts["queries"] == 23
    assert "1 of 24 images could not be read" in result.table()


def test_a_gallery_without_its_folder_is_evaluated_by_class(photos, small_encoder, tmp_path):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", metric="l1", precision="fp32")
    encode_to_file(photos, small_encoder, tmp_path / "all.h5", precision="fp32")
    protocol = dataclasses.replace(QUICK, metric="l1")
    of_file = evaluate_encodings(read_encodings(tmp_path / "all.h5"), protocol=protocol)
    assert evaluate_gallery(gallery, protocol=protocol).to_dict()["scores"] == of_file.to_dict()["scores"]


def test_what_an_encoder_has_not_is_not_named_in_its_line() -> None:
    description = {"layer": "", "pooling": {"type": "gap"}, "head": {"type": "identity"}}
    lines = Origin(encoder="timm:vit/ab12cd34", description=description).describe()
    assert lines[0] == "encoder: timm:vit/ab12cd34, pooling type=gap, head type=identity"
    named = Origin(encoder="resnet18/ab12cd34", description={"layer": "layer4"}).describe()
    assert named[0] == "encoder: resnet18/ab12cd34, layer layer4"
