"""Queries: what comes back, in which order, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from distcam import Encoder, Gallery, Matches, Retriever
from distcam.errors import FingerprintMismatchError, GalleryError, ImageError, InputError
from distcam.images import Transform, read_image


@pytest.fixture(scope="module")
def retriever(small_gallery, small_encoder):
    return Retriever(small_gallery, small_encoder, precision="fp32")


def picture(photos, index=0):
    return sorted(photos.rglob("*.jpg"))[index]


def test_a_gallery_image_finds_itself_first_at_distance_zero(retriever, photos):
    file = picture(photos)
    matches = retriever.query(file, k=3)
    assert matches[0].file == file
    assert matches[0].distance == pytest.approx(0, abs=1e-6)
    assert matches[0].similarity == pytest.approx(1, abs=1e-6)
    assert [match.rank for match in matches] == [1, 2, 3]
    assert matches[0].label == file.parent.name


def test_the_ranking_is_that_of_the_plain_cosine(retriever, photos, small_encoder):
    files = sorted(photos.rglob("*.jpg"))
    with torch.no_grad():
        pixels = torch.stack([small_encoder.transform(read_image(file)) for file in files])
        vectors = nn.functional.normalize(small_encoder(small_encoder.transform.normalise(pixels)).embedding, dim=1)
    expected = (1 - vectors @ vectors[5]).numpy()
    matches = retriever.query(files[5], k=len(files))
    order = [files.index(match.file) for match in matches]
    np.testing.assert_allclose([match.distance for match in matches], expected[order], atol=1e-5)
    assert (np.diff(expected[order]) > -1e-5).all()


def test_several_queries_are_encoded_together_and_answered_in_order(retriever, photos):
    files = sorted(photos.rglob("*.jpg"))[:5]
    results = retriever.query(files, k=2)
    assert [matches[0].file for matches in results] == files
    alone = retriever.query(files[3], k=2)
    assert [match.id for match in alone] == [match.id for match in results[3]]


def test_paths_bytes_and_pictures_are_queries(retriever, photos):
    file = picture(photos, 7)
    ids = [retriever.query(source, k=1)[0].id for source in (file, str(file), file.read_bytes(), read_image(file))]
    assert len(set(ids)) == 1


def test_a_filter_restricts_the_matches(retriever, photos):
    file = picture(photos)
    other = retriever.gallery.labels[-1]
    matches = retriever.query(file, k=10, where=f"label='{other}'")
    assert {match.label for match in matches} == {other}
    assert len(matches) == 6


def test_more_matches_than_images_give_all_images(retriever, photos):
    assert len(retriever.query(picture(photos), k=1000)) == len(retriever.gallery)


def test_against_one_image_it_is_the_match_that_a_ranking_of_all_has(retriever, photos):
    every = retriever.query(picture(photos), k=1000)
    for match in (every[0], every[-1]):
        (alone,) = retriever.against(every.query, match.id)
        assert (alone.id, alone.rank, alone.path) == (match.id, 1, match.path)
        assert alone.distance == pytest.approx(match.distance, abs=1e-7)
    with pytest.raises(InputError):
        retriever.against(every.query, 10_000)


def test_the_encoder_comes_with_the_gallery(small_gallery, photos):
    retriever = Retriever(small_gallery.folder)
    assert retriever.query(picture(photos), k=1)[0].file == picture(photos)


def test_another_encoder_is_refused_with_both_names(small_gallery):
    other = Encoder.load("conv4", weights="random", seed=1, transform=Transform(size=64, fit="squash"))
    with pytest.raises(FingerprintMismatchError, match=other.short_name):
        Retriever(small_gallery, other)


def test_a_gallery_of_a_custom_network_asks_for_it(photos, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    encoder = Encoder.load(network, transform=Transform(size=64))
    gallery = Gallery.build(photos, encoder, out=tmp_path / "own.gallery")
    with pytest.raises(GalleryError, match=r"keeps no copy of its encoder .*; pass encoder"):
        Retriever(gallery)
    assert len(Retriever(gallery, encoder).query(picture(photos))) == 10


@pytest.mark.parametrize("metric", ["l2", "l1", "dot"])
def test_other_metrics_rank_by_themselves(photos, small_encoder, tmp_path, metric):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", metric=metric)
    matches = Retriever(gallery, small_encoder).query(picture(photos), k=4)
    distances = [match.distance for match in matches]
    assert distances == sorted(distances)
    assert matches[0].similarity == -matches[0].distance
    assert matches.explain().query_maps.isfinite().all()


def test_the_nearest_prototype_is_the_nearest_of_all(retriever, photos):
    matches = retriever.query(picture(photos), k=1)
    distances = retriever.prototype_distances(matches.query.encoding)
    assert set(distances) == set(retriever.gallery.labels)
    assert matches.prototype == min(distances.items(), key=lambda item: item[1])
    unit = nn.functional.normalize(matches.query.encoding.embedding[0], dim=0).numpy()
    for label, distance in distances.items():
        assert distance == pytest.approx(1 - unit @ retriever.gallery.prototypes.embedding(label), abs=1e-5)


def test_results_are_json_and_a_table(retriever, photos, capsys):
    matches = retriever.query(picture(photos), k=2)
    text = json.loads(json.dumps(matches.to_dict()))
    assert text["matches"][0]["rank"] == 1
    assert text["prototype"]["label"] in retriever.gallery.labels
    matches.show()
    assert matches[0].label in capsys.readouterr().out


def test_bad_queries_are_refused(retriever, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a picture")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        retriever.query([picture(photos), bad])
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        retriever.query(picture(photos), k=0)
    with pytest.raises(InputError, match="no query images"):
        retriever.query([])


def test_an_unlabelled_gallery_has_no_prototypes(photos, small_encoder, tmp_path):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", labels="none")
    matches = Retriever(gallery, small_encoder).query(picture(photos), k=2)
    assert isinstance(matches, Matches)
    assert matches.prototype is None
    with pytest.raises(InputError, match="no labels"):
        matches.explain(against="prototype")


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "dot"])
def test_a_largest_distance_accepts_the_matches_up_to_it(photos, small_encoder, tmp_path, metric):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", metric=metric, precision="fp32")
    retriever = Retriever(gallery, small_encoder, precision="fp32")
    plain = retriever.query(picture(photos), k=5)
    assert (plain.is_known, plain[0].is_accepted, plain.max_distance) == (None, None, None)
    limit = plain[2].distance  # itself included
    judged = retriever.query(picture(photos), k=5, max_distance=limit)
    assert [match.is_accepted for match in judged] == [match.distance <= limit for match in plain]
    assert [match.id for match in judged] == [match.id for match in plain]
    assert judged.is_known
    nearer = np.nextafter(plain[0].distance, -np.inf)
    assert retriever.query(picture(photos), k=5, max_distance=nearer).is_known is False


def test_the_gallery_rejects_by_the_threshold_it_was_calibrated_to(photos, small_encoder, tmp_path, capsys):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32")
    retriever = Retriever(gallery, small_encoder, precision="fp32")
    with pytest.raises(InputError, match=r"keeps no threshold.*distcam index calibrate"):
        retriever.query(picture(photos), reject=True)
    rejection = gallery.calibrate(false_alarm_rate=0.2)
    matches = retriever.query([picture(photos), picture(photos, 9)], k=24, reject=True)
    for each in matches:
        assert each.rejection == rejection
        assert [m.is_accepted for m in each] == [m.distance <= rejection.threshold for m in each]
    found = json.loads(json.dumps(matches[0].to_dict()))
    assert (found["max_distance"], found["is_known"]) == (rejection.threshold, True)
    assert found["rejection"]["source"] == rejection.source
    assert {match["is_accepted"] for match in found["matches"]} == {True, False}
    matches[0].show()
    shown = capsys.readouterr().out
    assert "too far" in shown
    assert "within distance" in shown
    retriever.query(picture(photos), k=2, max_distance=-1.0).show()
    assert "no match: the nearest image is" in capsys.readouterr().out
    with pytest.raises(InputError, match="give one"):
        retriever.query(picture(photos), reject=True, max_distance=0.1)
    with pytest.raises(InputError, match="NaN"):
        retriever.query(picture(photos), max_distance=float("nan"))


def test_an_empty_ranking_has_no_match(retriever, photos):
    matches = retriever.query(picture(photos), where="label=nobody", max_distance=1.0)
    assert (len(matches), matches.is_known) == (0, False)
