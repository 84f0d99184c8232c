"""Explanations: the maps are Dist-CAM of the stored vectors, on both sides, in every form they can be saved in."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distcam import Encoder, Gallery, Retriever
from distcam.encoders import Linear
from distcam.encoders.readouts import read_out
from distcam.errors import InputError
from distcam.explain import WEIGHTINGS, Surroundings, dist_cam, fold, ratio_maps
from distcam.images import Box, Transform
from distcam.remarks import DistcamWarning
from distcam.retrieval import write_report


@pytest.fixture(scope="module")
def matches(small_gallery, small_encoder, photos):
    return Retriever(small_gallery, small_encoder, precision="fp32").query(sorted(photos.rglob("*.jpg"))[3], k=4)


def surroundings_of(gallery: Gallery) -> Surroundings:
    store = gallery.prototypes
    vectors = (store.mean_embedding(), store.mean_magnitude(), gallery.background)
    return Surroundings(*map(torch.from_numpy, vectors), images=store.total, classes=len(store))


def test_maps_are_root_ratios_of_the_stored_vectors_with_dist_cam_beside_them(matches, small_gallery):
    explanation, response = matches.explain(), matches.query.encoding.feature_map
    stored = torch.from_numpy(small_gallery.embeddings(matches.ids))[None]
    expected = ratio_maps(response, stored, surroundings_of(small_gallery), is_class=False)
    torch.testing.assert_close(explanation.query_maps, expected.maps[0])
    torch.testing.assert_close(explanation.dist_maps, dist_cam(response, stored)[0])
    torch.testing.assert_close(matches.explain(weighting="dist").query_maps, explanation.dist_maps)
    assert matches.explain(weighting="dist").dist_maps is None
    assert [reference.name for reference in explanation.references] == [match.path for match in matches]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_explains_both_sides(matches, weighting):
    explanation = matches.explain(weighting=weighting)
    assert explanation.query_maps.shape == explanation.reference_maps.shape == (4, 4, 4)
    assert explanation.query_maps.isfinite().all()
    assert explanation.reference_maps.isfinite().all()


def test_dot_maps_of_both_sides_sum_to_the_similarity(matches):
    explanation = matches.explain(weighting="dot")
    similarities = torch.tensor([match.similarity for match in matches])
    torch.testing.assert_close(explanation.query_maps.sum((1, 2)), similarities, atol=2e-3, rtol=0)
    torch.testing.assert_close(explanation.reference_maps.sum((1, 2)), similarities, atol=2e-3, rtol=0)


def test_a_prototype_is_set_apart_from_the_larger_of_mean_and_border(matches, small_gallery):
    prototype = torch.from_numpy(small_gallery.prototypes.embedding(matches.prototype[0]))[None, None]
    expected = ratio_maps(
        matches.query.encoding.feature_map, prototype, surroundings_of(small_gallery), mean="max", is_class=True
    )
    torch.testing.assert_close(matches.explain(against="prototype").query_maps, expected.maps[0])


def test_the_words_say_what_is_shown_and_how_far_it_depends_on_the_match(matches):
    shows, apart, depends = matches.explain().words
    assert "What sets this match apart" in shows
    assert "lies at the edges of its images" in apart
    assert "on the match" in depends
    assert "rank correlation" in depends
    assert matches.explain(versus=2).words[0].startswith("Orange places speak for the match, blue ones for ")
    assert "hardly depends" in matches.explain(weighting="caam").words[-1]


def test_an_empty_map_is_said_to_be_one(small_gallery, small_encoder, photos):
    (itself,) = Retriever(small_gallery, small_encoder).query([next(photos.rglob("*.jpg"))], k=1)
    explanation = itself.explain(weighting="gradcam_cos")
    assert explanation.query_maps.abs().max() == 0
    assert explanation.words[1:] == ("No place speaks for match 1 by this weighting.",)


def test_a_mean_is_for_the_weighting_that_takes_it(matches):
    with pytest.raises(InputError, match="mean='border' is for the weighting root_ratio, not for 'dist'"):
        matches.explain(weighting="dist", mean="border")
    maps = [matches.explain(mean=mean).query_maps for mean in ("gallery", "border")]
    assert not torch.equal(*maps)


def test_a_prototype_is_one_reference_without_a_picture(matches):
    explanation = matches.explain(against="prototype")
    assert len(explanation) == 1
    assert explanation.references[0].label == matches.prototype[0]
    assert explanation.references[0].distance == matches.prototype[1]
    assert explanation.reference_maps is None
    assert explanation.reference_image(0) is None


def test_any_class_can_be_asked_about(matches, small_gallery):
    label = small_gallery.labels[0]
    assert matches.explain(against=label).references[0].name == f"prototype of {label}"
    with pytest.raises(InputError, match="no class 'unicorn'"):
        matches.explain(against="unicorn")


def test_stored_maps_and_files_give_the_same_maps_on_matches(photos, small_encoder, matches, tmp_path):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "maps.gallery", store_maps=True, precision="fp32")
    stored = Retriever(gallery, small_encoder, precision="fp32").query(matches.query.source, k=4).explain()
    fresh = matches.explain().reference_maps
    torch.testing.assert_close(stored.reference_maps[1:], fresh[1:], atol=1e-4, rtol=2e-3)
    torch.testing.assert_close(stored.reference_maps[0], fresh[0], atol=0, rtol=0.1)  # of itself: every D is rounding


def test_the_sensitivity_is_one_for_the_class_agnostic_map(matches):
    assert matches.explain(weighting="caam").sensitivity == pytest.approx(1)
    assert -1 <= matches.explain(weighting="dot_centered").sensitivity < 1


def test_the_unrelated_image_is_unlike_the_query_wherever_its_class_lies(small_gallery, small_encoder, photos):
    vectors = torch.from_numpy(small_gallery.embeddings(small_gallery.ids))
    for query in sorted(photos.rglob("*.jpg"))[::5]:
        matches = Retriever(small_gallery, small_encoder).query(query, k=2)
        others = torch.cat([matches.explain()._evidence.unrelated, vectors])
        similarity = torch.nn.functional.cosine_similarity(others, matches.query.encoding.embedding)
        assert similarity[0] < similarity[1:].median()


def test_a_ranking_of_everything_leaves_no_unrelated_image(small_gallery, small_encoder, photos):
    matches = Retriever(small_gallery, small_encoder).query(next(photos.rglob("*.jpg")), k=1000)
    assert matches.explain().sensitivity is None


def test_a_linear_head_is_folded_and_another_head_is_called_inexact(photos, tmp_path):
    torch.manual_seed(0)
    query = next(photos.rglob("*.jpg"))
    for name, head, exact in (
        ("linear", Linear(64, 16), True),
        ("mlp", nn.Sequential(nn.Linear(64, 16), nn.GELU()), False),
    ):
        encoder = Encoder.load("conv4", weights="random", head=head.eval(), transform=Transform(size=64, fit="squash"))
        gallery = Gallery.build(photos, encoder, out=tmp_path / name)
        matches = Retriever(gallery, encoder).query(query, k=2)
        explanation = matches.explain(weighting="dot")
        assert explanation.is_exact is exact
        torch.testing.assert_close(
            explanation.query_maps.sum((1, 2)), torch.tensor([match.similarity for match in matches]), atol=5e-3, rtol=0
        )
        assert matches.explain(space="backbone").query_maps.shape == (2, 4, 4)
        with pytest.raises(InputError, match="not kept for space='backbone'"):
            matches.explain(space="backbone", weighting="dot_centered")


def test_explanations_are_saved_as_picture_arrays_and_page(matches, tmp_path):
    explanation = matches.explain()
    with Image.open(explanation.save(tmp_path / "why.png")) as image:
        assert image.width > 500
    with np.load(explanation.save(tmp_path / "why.npz"), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["query_maps"], explanation.query_maps.numpy())
    assert explanation.save(tmp_path / "why.html").stat().st_size > 10_000
    with pytest.raises(InputError, match=r"\.png, \.jpg, \.npz or \.html"):
        explanation.save(tmp_path / "why.txt")


def test_a_report_is_one_file_that_asks_for_nothing(matches, tmp_path):
    hostile = matches.explain()
    file = write_report(tmp_path / "deep" / "report.html", [hostile], notes=["<script>alert(1)</script>"], labels=["x"])
    text = file.read_text()
    assert "http" not in text.split('<script type="application/json"')[0].replace("http-equiv", "")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>" in text
    assert "<script>alert" not in text
    query = data["queries"][0]
    assert len(query["references"]) == len(matches) + 1  # and the prototype
    assert set(query["references"][1]["query_maps"]) == set(WEIGHTINGS)
    assert len(query["references"][1]["query_maps"]["dist"]) == 4 * 4
    assert query["references"][0]["maps"] is None
    assert all(image["uri"].startswith("data:image/jpeg;base64,") for image in data["images"].values())


def test_a_report_says_what_its_colours_and_cards_mean(matches, photos, tmp_path):
    def read(explanation):
        text = write_report(tmp_path / "r.html", [explanation]).read_text()
        return text, json.loads(text.split('id="data">')[1].split("</script>")[0])

    text, data = read(matches.explain(weighting="dot_centered"))
    assert data["weightings"][0] == "dot_centered"
    assert set(data["weightings"]) == set(data["queries"][0]["words"]) == set(WEIGHTINGS)
    assert all(data["queries"][0]["words"].values())
    assert data["signed"] == [name for name in WEIGHTINGS if name in ("dot", "dot_centered", "gradcam_cos")]
    raw = [value for each in data["queries"][0]["references"] for value in each["query_maps"]["gradcam_cos"]]
    assert min(raw) < 0 < max(raw)  # blue and orange need both sides
    assert all(image["view"] == [0, 0, 1, 1] for image in data["images"].values())
    assert "How to read this page" in text
    prototype = data["queries"][0]["references"][0]
    assert prototype["name"].startswith("the member nearest to it: ")
    assert prototype["label"] in prototype["name"]
    assert prototype["image"] in data["images"]
    assert set(read(matches.explain(versus=2))[1]["signed"]) == set(WEIGHTINGS)


def test_a_report_dims_what_the_encoder_did_not_see(photos, tmp_path):
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="crop"))
    with Image.open(next(photos.rglob("*.jpg"))) as image:
        image.resize((96, 64)).save(tmp_path / "wide.jpg")
    matches = Retriever(Gallery.build(photos, encoder, out=tmp_path / "g"), encoder).query(tmp_path / "wide.jpg", k=2)
    text = write_report(tmp_path / "r.html", [matches.explain()]).read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    left, _, right, _ = data["images"][data["queries"][0]["image"]]["view"]
    assert 0 < left < right < 1
    assert 'class: "unseen"' in text


def test_elongated_images_are_looked_at_closer_on_both_sides_and_no_others(photos, tmp_path):
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="pad"))
    (tmp_path / "set").mkdir()
    for place, file in enumerate(sorted(photos.rglob("*.jpg"))[::6]):
        with Image.open(file) as image:
            image.resize((128, 40) if place % 2 else (64, 64)).save(tmp_path / f"set/{place}.jpg")
    gallery = Gallery.build(tmp_path / "set", encoder, out=tmp_path / "g", store_maps=True, precision="fp32")
    retriever = Retriever(gallery, encoder)
    wide = retriever.query(tmp_path / "set/1.jpg", k=4)
    found, plain, finer = (
        wide.explain(weighting="dot", **named) for named in ({}, {"detail": "plain"}, {"detail": "finer"})
    )
    torch.testing.assert_close(found.query_maps, finer.query_maps)
    assert (found.query_maps.shape, plain.query_maps.shape) == ((4, 6, 6), (4, 4, 4))
    for match, own, plainly, closer in zip(
        wide, found.reference_maps, plain.reference_maps, finer.reference_maps, strict=True
    ):
        is_wide = match.path in ("1.jpg", "3.jpg")
        torch.testing.assert_close(own if is_wide else own.sum(), closer if is_wide else plainly.sum())
    assert (
        "Looked at closer, without margins, which take much of what the network sees: the query and 2 matches."
        in str(found.words)
    )
    assert "takes 31% of what the network sees, the rest is margin; detail finer looks closer" in str(plain.words)
    square = retriever.query(tmp_path / "set/0.jpg", k=4)
    assert square.explain().query_maps.shape == (4, 4, 4)
    region = retriever.query(tmp_path / "set/1.jpg", k=1, region=Box(0, 0, 60, 40)).explain()
    assert region.query_maps.shape == (1, 4, 4)
    (tmp_path / "set/3.jpg").unlink()  # its stored map is what is left
    assert "the query and 1 match." in str(retriever.query(tmp_path / "set/1.jpg", k=4).explain().words)


def test_a_network_that_takes_one_size_explains_the_pass_that_ranks_and_says_so(photos, tmp_path):
    class OneSize(nn.Conv2d):
        def forward(self, images):
            assert images.shape[2:] == (64, 64), "only 64×64"
            return super().forward(images)

    encoder = Encoder(OneSize(3, 8, 16, 16), transform=Transform(size=64, fit="pad"))
    with Image.open(next(photos.rglob("*.jpg"))) as image:
        image.resize((128, 40)).save(tmp_path / "wide.jpg")
    retriever = Retriever(Gallery.build(photos, encoder, out=tmp_path / "g", precision="fp32"), encoder)
    found = retriever.query(tmp_path / "wide.jpg", k=2).explain()
    assert found.query_maps.shape == (2, 4, 4)
    assert "the rest is margin; no closer look at it is possible here" in str(found.words)


def test_a_prototype_is_shown_by_its_nearest_member(matches):
    explanation = matches.explain(against="prototype")
    member = explanation.nearest_member(0)
    assert member.label == explanation.references[0].label
    assert explanation.member_image(0).size == (64, 64)
    assert matches.explain().nearest_member(0) is None


def test_a_report_under_every_weighting_unfolds_each_side_once(matches, tmp_path, monkeypatch):
    counts = Counter()

    def counted(name, function):
        def count(*args, **options):
            counts[name] += 1
            return function(*args, **options)

        return count

    monkeypatch.setattr("distcam.retrieval.evidence.fold", counted("fold", fold))
    monkeypatch.setattr("distcam.retrieval.explanation.dist_cam", counted("maps", dist_cam))
    monkeypatch.setattr("distcam.retrieval.explanation.ratio_maps", counted("maps", ratio_maps))
    matches.explain().save(tmp_path / "why.html")
    assert counts["fold"] == 2  # the query and its matches
    assert counts["maps"] == 3 * len(WEIGHTINGS)  # on the query for matches and prototype, and on the matches


def test_a_report_says_what_it_cannot_do(matches, tmp_path):
    with pytest.raises(InputError, match="at least one explanation"):
        write_report(tmp_path / "r.html", [])
    with pytest.raises(InputError, match="expected 1 labels"):
        write_report(tmp_path / "r.html", [matches.explain()], labels=["a", "b"])


def test_a_match_whose_file_is_gone_is_explained_on_the_query_only(photos, small_encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    gallery = Gallery.build(copy, small_encoder, out=tmp_path / "g")
    shutil.rmtree(copy)
    matches = Retriever(gallery, small_encoder).query(next(photos.rglob("*.jpg")), k=2)
    explanation = matches.explain()
    assert explanation.query_maps.shape == (2, 4, 4)
    with pytest.raises(InputError, match="--store-maps"):
        _ = explanation.reference_maps
    assert explanation.reference_image(0) is None
    assert explanation.save(tmp_path / "new folder" / "gone.png").is_file()
    assert explanation.save(tmp_path / "gone.html").is_file()


def test_a_picture_that_was_damaged_since_is_left_out_of_the_report(photos, small_encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    for name, stored in (("maps", True), ("files", False)):
        gallery = Gallery.build(copy, small_encoder, out=tmp_path / name, store_maps=stored)
        matches = Retriever(gallery, small_encoder).query(next(photos.rglob("*.jpg")), k=3)
        original = matches[1].file.read_bytes()
        matches[1].file.write_bytes(b"junk")
        explanation = matches.explain()
        assert explanation.save(tmp_path / f"{name}.png").is_file()
        assert explanation.save(tmp_path / f"{name}.html").is_file()
        matches[1].file.write_bytes(original)


def test_the_share_that_no_place_explains_is_told_of_class_tokens_alone(matches, photos, tmp_path):
    timm = pytest.importorskip("timm")
    assert matches.explain().unexplained is None
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
    network = read_out(timm.create_model("vit_tiny_patch16_224", **options))
    encoder = Encoder(network, transform=Transform(64)).eval()
    gallery = Gallery.build(photos, encoder, out=tmp_path / "gallery")
    retriever = Retriever(gallery, encoder, precision="fp32")
    found = retriever.query(min(photos.rglob("*.jpg")), k=3)
    explanation = found.explain(weighting="dot")
    read = explanation.query_maps.sum((-2, -1))  # the whole similarity: what is read, and what is everywhere
    constant, vectors = found.query.encoding.constant[0], torch.from_numpy(gallery.embeddings(found.ids))
    unexplained = torch.nn.functional.normalize(vectors) @ constant / found.query.encoding.embedding.norm()
    torch.testing.assert_close(torch.tensor(explanation.unexplained) * read, unexplained, rtol=1e-3, atol=1e-4)
    assert any("is read directly from places" in each for each in explanation.words)
    assert explanation.to_arrays()["unexplained"].shape == (3,)
    copied = shutil.copytree(photos, tmp_path / "copy")
    keeping = Retriever(Gallery.build(copied, encoder, out=tmp_path / "maps", store_maps=True), encoder)
    shares = [each.query_stored(0, k=3).explain(weighting="dot").unexplained for each in (retriever, keeping)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    stored = keeping.query_stored(0, k=3)
    shutil.rmtree(copied)
    with pytest.warns(DistcamWarning, match="share of a similarity that no place explains is not known"):
        assert stored.explain(weighting="dot").unexplained is None


def test_a_readout_through_an_activation_is_told_to_be_of_first_order(photos, tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Tanh()]
    encoder = Encoder(read_out(nn.Sequential(*layers)), transform=Transform(64)).eval()
    with pytest.warns(DistcamWarning, match="maps are of first order"):
        gallery = Gallery.build(photos, encoder, out=tmp_path / "gallery", store_maps=True)
    retriever = Retriever(gallery, encoder)
    for found in (retriever.query_stored(0, k=3), retriever.query(min(photos.rglob("*.jpg")), k=3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DistcamWarning)  # said once for each copy of the network
            explanation = found.explain()
        assert not explanation.is_exact
        assert any("hold to first order" in each for each in explanation.words)
