"""Lines of matches and verified rankings: with and without stored fine maps, through every change of a gallery."""

from __future__ import annotations

import copy
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from distcam.errors import InputError
from distcam.explain.verification import count_inliers, loftr, matcher_of
from distcam.index import Gallery
from distcam.remarks import DistcamWarning
from distcam.retrieval import Retriever
from distcam.retrieval.line_calibration import calibrate_verification

pytestmark = pytest.mark.filterwarnings("ignore:what lines are measured against:distcam.remarks.DistcamWarning")


@pytest.fixture(scope="module")
def own_photos(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines") / "photos"
    shutil.copytree(photos, folder)
    return folder


@pytest.fixture(scope="module")
def stored(own_photos, small_encoder, tmp_path_factory):
    """A gallery that keeps fine maps, with its scale."""
    out = tmp_path_factory.mktemp("lines") / "stored.gallery"
    gallery = Gallery.build(own_photos, small_encoder, out=out, store_lines=True, precision="fp32")
    Retriever(gallery, small_encoder, device="cpu").lines.keep()
    return Gallery.open(out)


def query_of(photos):
    return next(photos.rglob("*.jpg"))


def test_an_image_answers_itself(stored, own_photos, small_encoder):
    matches = Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), k=3)
    found = matches.lines(1, k=5)
    assert 0 < len(found.lines) <= 5
    assert found.has_geometry
    assert found.inliers == found.candidates
    for line in found.lines:
        assert line.query == pytest.approx(line.match)
    assert (
        found.caption
        == f"{found.inliers} of {found.candidates} places lie alike; unrelated images: {found.scale.null[0]}"
    )


def test_lines_are_in_pixels_of_both_images_within_what_the_encoder_sees(stored, own_photos, small_encoder):
    large = Image.open(query_of(own_photos)).resize((200, 100))
    found = Retriever(stored, small_encoder, device="cpu").query(large, k=1).lines()
    for line in found.lines:
        assert 0 < line.query[0] < 200
        assert 0 < line.query[1] < 100
        assert all(0 < coordinate < 64 for coordinate in line.match)


def test_stored_maps_and_images_give_the_same_lines(stored, small_gallery, own_photos, small_encoder):
    query = query_of(own_photos)
    kept, made = (Retriever(g, small_encoder, device="cpu").query(query, k=4).lines(2) for g in (stored, small_gallery))
    assert kept.match.path == made.match.path
    assert kept.inliers == pytest.approx(
        made.inliers, abs=3
    )  # the scales' samples differ in nothing but half precision
    assert {line.query for line in kept.lines} & {line.query for line in made.lines}


def test_with_stored_maps_only_the_query_is_encoded(stored, own_photos, small_encoder):
    retriever = Retriever(stored, small_encoder, device="cpu")
    seen = []
    handle = retriever.inference.encoder.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    matches = retriever.query(query_of(own_photos), k=5, verify=20)
    handle.remove()
    assert seen == [1]
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5]
    assert all(match.inliers is not None for match in matches)
    assert matches.to_dict()["verify"] == "lines:20"


def test_matches_behind_the_first_k_stay_and_the_first_are_the_same_images(stored, own_photos, small_encoder):
    retriever = Retriever(stored, small_encoder, device="cpu")
    plain, sorted_anew = (retriever.query(query_of(own_photos), k=12, verify=v) for v in (None, 6))
    assert plain.ids[6:].tolist() == sorted_anew.ids[6:].tolist()
    assert sorted(plain.ids[:6].tolist()) == sorted(sorted_anew.ids[:6].tolist())
    probabilities = [match.same for match in sorted_anew[:6]]
    assert probabilities == sorted(probabilities, reverse=True)
    maps = sorted_anew.feature_maps
    assert torch.from_numpy(stored.maps([match.id for match in sorted_anew])).equal(maps)


@pytest.mark.parametrize("verify", ["sift", "lines:many", "-3"])
def test_what_cannot_verify_is_refused(stored, own_photos, small_encoder, verify):
    with pytest.raises(InputError, match="how many matches"):
        Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), verify=verify)


def test_a_region_has_its_lines_inside(stored, own_photos, small_encoder):
    from distcam.images import Box

    matches = Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), k=2, region=Box(0, 0, 32, 64))
    for line in matches.lines(1).lines:
        assert line.query[0] < 40  # bilinear: the region's last position reaches a little beyond its edge


def test_a_stored_image_asks_without_being_opened(stored, small_encoder):
    retriever = Retriever(stored, small_encoder, device="cpu")
    matches = retriever.query_stored(int(stored.ids[0]), k=3, verify=10)
    assert all(match.inliers is not None for match in matches)


def test_fine_maps_follow_every_change(stored, own_photos, small_encoder, tmp_path):
    out = tmp_path / "changing.gallery"
    gallery = Gallery.build(own_photos / next(own_photos.iterdir()).name, small_encoder, out=out, store_lines=True)
    assert gallery.spec.fine_shape == (64, 8, 8)
    assert gallery.manifest.lines is not None
    assert not gallery.manifest.lines.is_measured
    gallery.add(own_photos, small_encoder)
    gallery.remove(paths=[gallery.records([int(gallery.ids[0])])[0].path])
    gallery.compact()
    gallery.sync(own_photos, small_encoder)
    by_file = {stored.file(record): record.id for record in stored.records(stored.ids)}
    assert len(gallery) == len(by_file)
    for record in gallery.records(gallery.ids):
        ours, theirs = gallery.fine_maps([record.id]), stored.fine_maps([by_file[gallery.file(record)]])
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)


def test_a_gallery_without_fine_maps_says_so(small_gallery):
    with pytest.raises(InputError, match="keeps no fine maps; build it with --store-lines"):
        small_gallery.fine_maps([0])


def test_a_scale_that_is_not_kept_is_measured_and_said(small_gallery, own_photos, small_encoder):
    with pytest.warns(DistcamWarning, match="measured on 24 images of it now"):
        Retriever(small_gallery, small_encoder, device="cpu").query(query_of(own_photos), k=1).lines()


def test_files_that_are_gone_are_named(own_photos, small_encoder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(own_photos, folder)
    gallery = Gallery.build(folder, small_encoder, out=tmp_path / "g")
    query = query_of(own_photos)
    for file in list(folder.rglob("*.jpg"))[::2]:
        file.unlink()
    matches = Retriever(gallery, small_encoder, device="cpu").query(query, k=10)
    with pytest.raises(InputError, match="build with --store-lines"):
        matches.lines(1)
    with pytest.warns(DistcamWarning, match="not verified by lines"):
        unchanged = Retriever(gallery, small_encoder, device="cpu").query(query, k=10, verify=10)
    assert unchanged.ids.tolist() == matches.ids.tolist()


def test_another_layer_may_be_named_where_nothing_is_stored(small_gallery, stored, own_photos, small_encoder):
    found = Retriever(small_gallery, small_encoder, device="cpu", fine_layer="encoder.1").lines.layer
    assert found.endswith("encoder.1")
    with pytest.raises(InputError, match="fine maps of another layer"):
        _ = Retriever(stored, small_encoder, device="cpu", fine_layer="encoder.1").lines.layer


def test_lines_are_drawn_and_written(stored, own_photos, small_encoder, tmp_path):
    found = Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), k=2).lines(2)
    assert found.save(tmp_path / "lines.png").is_file()
    with np.load(found.save(tmp_path / "lines.npz")) as arrays:
        assert arrays["query_points"].shape == arrays["match_points"].shape == (len(found.lines), 2)
    with pytest.raises(InputError, match=r"\.png, \.jpg or \.npz"):
        found.save(tmp_path / "lines.txt")
    written = found.to_dict()
    assert len(written["shares"]) == np.prod(written["shapes"][0]) * np.prod(written["shapes"][1])
    assert all(0 <= value <= 1 for line in written["lines"] for value in line)


def test_no_common_geometry_is_said_and_drawn_faintly(stored, own_photos, small_encoder):
    found = Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), k=2).lines(2)
    strict = copy.copy(found)
    object.__setattr__(strict, "scale", copy.copy(found.scale))
    object.__setattr__(strict.scale, "null", (100, 100, 100))
    assert not strict.has_geometry
    assert strict.caption.startswith("no common geometry (")
    drawn = np.asarray(strict.tile().image).reshape(-1, 3)
    assert (drawn == 150).all(1).any()


def test_calibration_is_kept_and_used(own_photos, small_encoder, tmp_path):
    gallery = Gallery.build(own_photos, small_encoder, out=tmp_path / "g", store_lines=True)
    retriever = Retriever(gallery, small_encoder, device="cpu")
    found = calibrate_verification(retriever, verify=5)
    assert found.queries == 24
    assert 0 <= found.before <= 1
    assert found.low <= found.after - found.before <= found.high
    kept = Gallery.open(tmp_path / "g").manifest
    assert kept.verification == found
    assert kept.lines is not None
    assert kept.lines.is_measured


def test_a_gallery_without_classes_cannot_be_calibrated(own_photos, small_encoder, tmp_path):
    gallery = Gallery.build(own_photos, small_encoder, out=tmp_path / "g", labels="none")
    with pytest.raises(InputError, match="images of four classes or more"):
        calibrate_verification(Retriever(gallery, small_encoder, device="cpu"))


def test_kornias_matchers_count_alike(own_photos):
    features = pytest.importorskip("kornia.feature", reason="kornia is an extra")
    image = Image.open(query_of(own_photos))
    points = 100 * torch.rand(50, 2)
    assert count_inliers(lambda *_images: (points, points, torch.ones(50)), image, image) == 50
    network = loftr(features.LoFTR(pretrained=None).eval())
    assert count_inliers(network, image, image) >= 0


def test_weights_that_cannot_be_had_end_in_one_line(monkeypatch):
    features = pytest.importorskip("kornia.feature", reason="kornia is an extra")

    def offline(*_args, **_options):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(features, "LoFTR", offline)
    matcher_of.cache_clear()
    with pytest.raises(InputError, match=r"weights of loftr cannot be downloaded.*use --verify lines"):
        matcher_of("loftr")


def test_warnings_are_not_given_for_what_is_kept(stored, own_photos, small_encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Retriever(stored, small_encoder, device="cpu").query(query_of(own_photos), k=3, verify=5).lines(1)
