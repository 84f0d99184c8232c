"""Distances of the nearest handed out anew: in the order of two probabilities, within what the protocol lets meet."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from distcam.cli.app import app
from distcam.encoders import Encoder
from distcam.images import Transform
from distcam.metrics.fusion import USUAL_FUSION, USUAL_NULL, LineScale
from distcam.reid import assess, encode_data, line_verification, read_data, write_walkers


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
    monkeypatch.setattr(line_verification._LineReader, "measure", lambda eye, _images: setattr(eye, "scale", scale))
    found = assess(
        walkers,
        vectors,
        verified=line_verification.verifier(encoder, verify, device="cpu", progress=lambda *each: calls.append(each)),
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
    eye = line_verification._LineReader(walkers, line_verification.Inference(encoder, device="cpu"), "cosine")
    eye.measure(walkers.gallery[:8])
    first, *others = walkers.gallery[:6]
    alike = eye.alike(first, [first, *others], "lines")
    assert alike[0] == max(alike) > 0


def test_similarities_are_measured_as_distances_are_ranked(walkers, encoder) -> None:
    """By l1 too, of which lines divide no shares: they take the cosine's."""
    inference = line_verification.Inference(encoder, device="cpu")
    eye, images = line_verification._LineReader(walkers, inference, "l1"), walkers.gallery[:3]
    eye.measure(images)
    vectors = inference.encode_images([walkers.file(image) for image in images]).embedding.numpy().astype(float)
    apart = [-np.abs(vectors[i] - vectors[j]).sum() for i in range(3) for j in range(3) if i != j]
    assert eye.scale.similarity == pytest.approx((np.mean(apart), np.std(apart)))
    assert eye._reader.metric == "cosine"


@pytest.mark.parametrize(("verify", "says"), [("foo", "not understood"), ("1", "2 matches or more")])
def test_what_cannot_be_verified_is_refused_before_anything_is_encoded(walkers, monkeypatch, verify, says) -> None:
    monkeypatch.setattr("distcam.reid.features.encode_data", lambda *_args, **_options: pytest.fail("encoded"))
    asked = ["reid", "evaluate", str(walkers.root), "--encoder", "conv4", "--weights", "random", "--verify", verify]
    failed = CliRunner().invoke(app, asked)
    assert says in str(failed.exception)
