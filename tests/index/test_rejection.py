"""Rejection thresholds: chosen by what they let through, kept in the gallery."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.errors import InputError
from distcam.index import Gallery, PrototypeStore
from distcam.index.rejection import (
    NearestOfBothKinds,
    Probes,
    choose_threshold,
    class_threshold,
    nearest_of_both_kinds,
    own_probes,
    probes_of,
)
from distcam.metrics.distances import SearchSpec, comparable, distances_to
from distcam.remarks import DistcamWarning


def chosen(same: list[float], other: list[float], target: float):
    nearest = NearestOfBothKinds(np.array(same), np.array(other))
    return choose_threshold(nearest, target=target, source="by hand", generation=1)


def test_a_threshold_by_hand() -> None:
    # Alarms at 0.3, 0.4, 0.45: up to one of three may pass, so the threshold may rise to just before 0.4.
    rejection = chosen([0.1, 0.2, 0.5], [0.3, 0.4, 0.45], 0.4)
    assert (rejection.threshold, rejection.false_alarm_rate) == (0.3, pytest.approx(1 / 3))
    assert rejection.identification_rate == pytest.approx(2 / 3)  # the third is nearer to another class
    assert rejection.closed_set_rate == pytest.approx(2 / 3)
    assert rejection.is_resolved
    assert not chosen([0.1, 0.2, 0.5], [0.3, 0.4, 0.45], 0.1).is_resolved  # three probes cannot tell 10 % from none


def test_probes_without_their_class_are_unknown_only_and_ties_are_wrong() -> None:
    rejection = chosen([np.inf, 0.2, 0.3], [0.5, 0.4, 0.3], 0.5)
    assert (rejection.n_known, rejection.n_unknown) == (2, 3)
    assert rejection.closed_set_rate == 0.5


@pytest.mark.parametrize(
    ("same", "other", "target", "message"),
    [
        ([0.1], [0.2], 0.0, r"must lie in \(0, 1\)"),
        ([np.inf], [0.2], 0.1, "0 probes have an image of their class"),
        ([0.1], [np.inf], 0.1, "0 an image of another"),
        ([0.5, 0.6], [0.1, 0.1], 0.1, "no threshold keeps false alarms at 10.00%"),
    ],
)
def test_what_cannot_be_calibrated_says_why(same: list[float], other: list[float], target: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(same, other, target)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=3, max_size=40), st.floats(0.05, 0.95))
def test_the_rate_is_kept_and_no_larger_observed_distance_would_keep_it(
    pairs: list[tuple[float, float]], target: float
) -> None:
    same, other = (np.array(side) for side in zip(*pairs, strict=True))
    try:
        rejection = choose_threshold(NearestOfBothKinds(same, other), target=target, source="", generation=0)
    except InputError:
        assert (other <= min(same.min(), other.min())).mean() > target or (same >= other).all()
        return
    assert (other <= rejection.threshold).mean() == pytest.approx(rejection.false_alarm_rate)
    assert rejection.false_alarm_rate <= target
    larger = [d for d in (*same[same < other], *other) if d > rejection.threshold]
    assert all((other <= d).mean() > target for d in larger)


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_the_two_distances_are_those_of_a_plain_loop(
    photos: Path, small_encoder, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distcam.metrics.distances._NUMBERS", 1024)  # fewer rows at a time than there are probes
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", metric=metric, precision="fp32")
    snapshot = gallery.snapshot
    probes = own_probes(snapshot, most=10, seed=3)
    nearest = nearest_of_both_kinds(snapshot, probes)
    spec = SearchSpec(gallery.spec.embedding_dim, metric)
    vectors = comparable(spec, gallery.embeddings(gallery.ids))
    labels = np.array([record.label for record in gallery.records(gallery.ids)])
    for row, number in enumerate(probes.ids):
        place = int(np.flatnonzero(gallery.ids == number)[0])
        distances = distances_to(spec, vectors[place], vectors)
        own, is_self = labels == labels[place], gallery.ids == number
        assert nearest.same[row] == distances[own & ~is_self].min()
        assert nearest.other[row] == distances[~own].min()


@pytest.mark.parametrize("are_own", [True, False])
def test_the_threshold_of_classes_is_that_of_a_plain_loop(are_own: bool) -> None:
    rng = np.random.default_rng(0)
    labels = [*"aabbbccdde"]  # e is alone
    vectors = rng.standard_normal((10, 6)).astype(np.float32) + 3 * np.eye(6)[[ord(each) - 97 for each in labels]]
    store = PrototypeStore(pooled_dim=6, embedding_dim=6, metric="cosine")
    store.add(labels, vectors, vectors)
    unknown = []
    for row in range(10):
        means = {}
        for label in set(labels) - {labels[row]}:
            unit = [vectors[i] / np.linalg.norm(vectors[i]) for i in range(10) if labels[i] == label]
            means[label] = np.mean(unit, axis=0)
        mine = vectors[row] / np.linalg.norm(vectors[row])
        far = sorted(1 - mine @ (mean / np.linalg.norm(mean)) for mean in means.values())
        unknown.append(far[0] ** 2 / far[1])
    codes = np.array([ord(each) - 97 for each in labels])
    ids = np.arange(10, dtype=np.uint64) if are_own else None
    found = class_threshold(store, Probes(vectors, codes, ids), "abcde", target=0.3)
    assert found is not None
    assert np.mean(np.array(unknown) <= found + 1e-6) <= 0.3
    assert min(each for each in unknown if each > found + 1e-6) == pytest.approx(sorted(unknown)[3], rel=1e-4)
    two = PrototypeStore(pooled_dim=6, embedding_dim=6, metric="cosine")
    two.add(labels[:5], vectors[:5], vectors[:5])
    assert class_threshold(two, Probes(vectors[:5], codes[:5]), "abcde", target=0.3) is None  # one class is left


def test_distances_to_classes_leave_an_image_of_its_own_out() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]], np.float32)
    store = PrototypeStore(pooled_dim=2, embedding_dim=2, metric="l2")
    store.add(["a", "a", "b", None], vectors, vectors)
    assert store.distances(vectors[:1]) == pytest.approx(np.array([[0.5**0.5, 1.0]]))
    own = store.distances(vectors, ["a", "a", "b", None])
    assert own[0, 0] == pytest.approx(2**0.5)  # the other image of its class
    assert own[2, 1] == np.inf
    assert own[3] == pytest.approx(store.distances(vectors[3:])[0])


def test_a_group_is_passed_over_and_a_foreign_label_is_unknown(photos: Path, small_encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    snapshot, vectors = gallery.snapshot, gallery.embeddings(gallery.ids[:2])
    records = gallery.records(gallery.ids[:2])
    probes = probes_of(
        snapshot, vectors, [records[0].label, "stranger"], column="path", groups=[record.path for record in records]
    )
    nearest = nearest_of_both_kinds(snapshot, probes, column="path")
    assert nearest.same[0] > 0  # its own picture has the same path and does not count
    assert nearest.same[1] == np.inf
    assert nearest_of_both_kinds(snapshot, probes).same[0] == 0


def test_probes_whose_classes_the_gallery_spells_otherwise_are_remarked_on(
    photos: Path, small_encoder, tmp_path: Path
) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    label = gallery.records(gallery.ids[:1])[0].label
    vectors = gallery.embeddings(gallery.ids[:2])
    with pytest.warns(DistcamWarning, match=f"1 classes of the probes .*, such as '{label.upper()}' .* and '{label}'"):
        probes_of(gallery.snapshot, vectors, [label.upper(), "stranger"])
    probes_of(gallery.snapshot, vectors, [label, "stranger"])


def test_the_threshold_is_kept_in_the_gallery_and_survives_changes(photos: Path, small_encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    assert gallery.manifest.rejection is None
    rejection = gallery.calibrate(false_alarm_rate=0.2)
    assert gallery.manifest.rejection == rejection
    gallery.remove(paths=[gallery.records(gallery.ids[:1])[0].path])
    gallery.compact()
    again = Gallery.open(tmp_path / "g")
    assert again.manifest.rejection == rejection
    assert again.info()["rejection"]["threshold"] == rejection.threshold
    assert again.verify().is_sound


def test_a_manifest_from_before_there_were_thresholds_is_read(photos: Path, small_encoder, tmp_path: Path) -> None:
    from distcam.index.storage.manifest import _checksum

    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    gallery.close()
    path = tmp_path / "g" / "manifest.json"
    content = json.loads(path.read_text())
    known = {
        "threshold": 0.1,
        "target": 0.01,
        "false_alarm_rate": 0.0,
        "identification_rate": 1.0,
        "closed_set_rate": 1.0,
    }
    known |= {"n_known": 9, "n_unknown": 9, "is_resolved": False, "source": "", "generation": 1}
    del content["rejection"], content["checksum"]
    for rejection in ({}, {"rejection": known}):  # of versions without any, and without one for classes
        older = {**content, **rejection}
        path.write_text(json.dumps({**older, "checksum": _checksum(older)}))
        found = Gallery.open(tmp_path / "g").manifest.rejection
        assert (found and (found.threshold, found.class_threshold)) == ((0.1, None) if rejection else None)


def test_the_command_calibrates_on_its_own_and_on_other_images(photos: Path, small_gallery, tmp_path: Path) -> None:
    folder = tmp_path / "copy.gallery"
    shutil.copytree(small_gallery.folder, folder)
    command = ["index", "calibrate", str(folder), "--json", "--false-alarms", "0.3"]
    own = CliRunner().invoke(app, command)
    assert json.loads(own.stdout)["n_known"] == 24
    other = CliRunner().invoke(app, [*command, "--queries", str(photos)])
    assert json.loads(other.stdout)["source"] == f"24 images of {photos}"
    assert Gallery.open(folder).manifest.rejection.n_known == 24
    rows = [f"{file},{box},{file.parent.name}" for file in photos.rglob("*.jpg") for box in ("0,0,40,64", "8,0,64,64")]
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2,label\n" + "\n".join(rows))
    boxes = CliRunner().invoke(app, [*command, "--queries", str(tmp_path / "boxes.csv")])
    assert json.loads(boxes.stdout)["n_known"] == 48
    wrong = CliRunner().invoke(app, [*command, "--exclude-same", "camera"])
    assert isinstance(wrong.exception, InputError)
    assert "camera" in str(wrong.exception)
