"""Distances of the nearest handed out anew: in the order of two probabilities, within what the protocol lets meet."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.explain.verification import PlaceReader
from distcam.images import Transform
from distcam.index import Gallery
from distcam.metrics.fusion import USUAL_FUSION, USUAL_NULL, Fusion, LineScale, Logistic, VerifyGain
from distcam.reid import assess, encode_data, line_verification, read_data, write_walkers
from distcam.reid.line_verification import VerifiedDistances


@pytest.fixture(scope="module")
def walkers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line_verification") / "walkers"
    write_walkers(folder, identities=6, cameras=2, images_per_camera=2, masks=False)
    return read_data(folder)


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"))


@pytest.fixture(scope="module")
def vectors(walkers, encoder):
    return encode_data([*walkers.queries, *walkers.gallery], walkers, encoder, device="cpu")


@pytest.mark.parametrize("verify", [2, "lines:5", 1000])
def test_the_nearest_that_may_meet_are_handed_out_anew(walkers, encoder, vectors, monkeypatch, verify) -> None:
    """Counts of places are drawn; the order is worked out from the protocol, query by query."""
    draw, told, calls = np.random.default_rng(0), [], []

    def count(_method, _query, matches, **_options):
        told.append(draw.integers(0, 60, len(matches)).tolist())
        return told[-1]

    monkeypatch.setattr(line_verification, "count_alike", count)
    scale = LineScale("", (0.0,) * 64, USUAL_NULL, 30, (0.5, 0.1))
    monkeypatch.setattr(PlaceReader, "measure_files", lambda reader, _files: setattr(reader, "scale", scale))
    monkeypatch.setattr(PlaceReader, "places_of_files", lambda _reader, files: files)
    found = assess(
        walkers,
        vectors,
        verified=partial(
            VerifiedDistances,
            encoder=encoder,
            verify=verify,
            device="cpu",
            progress=lambda *each: calls.append(each),
        ),
    )
    before, after = (each.rows(0, len(found.queries)) for each in (found._not_reranked, found._source))
    most = int(str(verify).removeprefix("lines:"))
    for query, old, new, alike in zip(found.queries, before, after, told, strict=True):
        same = [(each.camera, each.identity) == (query.camera, query.identity) for each in found.gallery]
        meets = np.flatnonzero(~np.array(same)).tolist()
        nearest = sorted(meets, key=lambda place: old[place])[:most]
        judged = USUAL_FUSION([1 - old[place] for place in nearest], alike, scale)
        order = [nearest[place] for place in np.argsort(-judged, kind="stable")]
        assert sorted(nearest, key=lambda place: new[place]) == order
        assert sorted(new[nearest]) == sorted(old[nearest])
        others = np.setdiff1d(np.arange(len(old)), nearest)
        assert (new[others] == old[others]).all()
    assert calls == [(number, len(found.queries)) for number in range(1, len(found.queries) + 1)]
    assert str(verify).removeprefix("lines:") in found.about["verified"]


def test_images_that_answer_themselves_come_first(walkers, encoder, vectors) -> None:
    """With its own image in the gallery every query has as many places alike there as anywhere."""
    reader = PlaceReader(line_verification.Inference(encoder, device="cpu"), "cosine")
    files = [walkers.file(image) for image in walkers.gallery[:8]]
    reader.measure_files(files)
    places = reader.places_of_files([files[0], *files[:6]])
    alike = line_verification.count_alike("lines", places[0], places[1:])
    assert alike[0] == max(alike) > 0
    assert reader.places_of_files(files[:1])[0] is places[0]  # seen lately


def test_similarities_are_measured_as_distances_are_ranked(walkers, encoder) -> None:
    """By l1 too, of which lines divide no shares: they take the cosine's."""
    inference = line_verification.Inference(encoder, device="cpu")
    reader, files = PlaceReader(inference, "l1"), [walkers.file(image) for image in walkers.gallery[:3]]
    reader.measure_files(files)
    vectors = inference.encode_images(files).embedding.numpy().astype(float)
    apart = [-np.abs(vectors[i] - vectors[j]).sum() for i in range(3) for j in range(3) if i != j]
    assert reader.scale.similarity == pytest.approx((np.mean(apart), np.std(apart)))
    assert reader.metric == "cosine"


def test_a_gallery_s_own_calibration_joins_the_probabilities(walkers, encoder, vectors, tmp_path) -> None:
    """As `index calibrate --verify` left it; a gallery of another encoder, or without one, is refused."""
    own = Fusion(Logistic(0.0, 0.0), Logistic(3.0, 1.0), "9 of its own images")
    with Gallery.build(walkers.root / "query", encoder, out=tmp_path / "g", device="cpu") as gallery:
        with pytest.raises(InputError, match="keeps no calibration of lines"):
            line_verification.fusion_of(gallery.folder, encoder)
        gain = VerifyGain(own, 5, 9, 0.1, 0.2, 0.0, 0.1, gallery.manifest.generation)
        gallery.keep_lines(LineScale("", (0.0,) * 64, USUAL_NULL, 30, (0.5, 0.1)), gain)
    fusion = line_verification.fusion_of(tmp_path / "g", encoder)
    assert (fusion.inliers, fusion.similarity) == (own.inliers, own.similarity)
    found = assess(walkers, vectors, verified=partial(VerifiedDistances, encoder=encoder, verify=2, fusion=fusion))
    assert "by calibration on 9 of its own images (g)" in found.about["verified"]


@pytest.mark.parametrize(("verify", "says"), [("foo", "not understood"), ("1", "2 matches or more")])
def test_what_cannot_be_verified_is_refused_before_anything_is_encoded(walkers, monkeypatch, verify, says) -> None:
    monkeypatch.setattr("distcam.reid.features.encode_data", lambda *_args, **_options: pytest.fail("encoded"))
    asked = ["reid", "evaluate", str(walkers.root), "--encoder", "conv4", "--weights", "random", "--verify", verify]
    failed = CliRunner().invoke(app, asked)
    assert says in str(failed.exception)
