"""Region queries, contrasts and correspondences through `Retriever` and `Matches`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from distcam import Encoder, Gallery, Retriever
from distcam.encoders import GeM, Linear
from distcam.errors import InputError, ShapeError
from distcam.explain import DrawStyle, contrast, dist_cam
from distcam.images import Box, Transform, read_image
from distcam.retrieval import write_report


@pytest.fixture(scope="module")
def retriever(small_gallery, small_encoder):
    return Retriever(small_gallery, small_encoder, precision="fp32")


@pytest.fixture(scope="module")
def files(photos):
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture(scope="module")
def matches(retriever, files):
    return retriever.query(files[3], k=4)


# ------------------------------------------------------------------------------------------------------------- regions


def test_the_whole_picture_as_a_region_changes_nothing(retriever, files):
    whole = retriever.query(files[0], k=5)
    asked = retriever.query(files[0], k=5, region=Box(0, 0, 64, 64))
    assert [match.id for match in asked] == [match.id for match in whole]
    torch.testing.assert_close(asked.explain().query_maps, whole.explain().query_maps)


def test_a_region_is_searched_by_its_own_mean(retriever, files, small_gallery):
    matches = retriever.query(
        files[0], k=3, region=Box(0, 0, 32, 24)
    )  # of 4×4 positions of 16 pixels: 1.5 rows, 2 columns
    feature_map = matches.query.encoding.feature_map[0]
    mean = (feature_map[:, 0, :2].sum(1) + 0.5 * feature_map[:, 1, :2].sum(1)) / 3
    torch.testing.assert_close(matches.query.encoding.embedding[0], mean)
    rows = torch.from_numpy(small_gallery.embeddings(matches.ids))
    similarities = torch.cosine_similarity(rows, mean[None])
    torch.testing.assert_close(torch.tensor([match.similarity for match in matches]), similarities, atol=1e-5, rtol=0)


def test_a_region_is_explained_inside_itself_and_dot_maps_still_sum_to_the_similarity(retriever, files):
    matches = retriever.query(files[0], k=3, region=Box(0, 0, 32, 24))
    maps = matches.explain(weighting="dot").query_maps
    assert maps[:, 2:].eq(0).all()
    assert maps[:, :, 2:].eq(0).all()
    similarities = torch.tensor([match.similarity for match in matches])
    torch.testing.assert_close(maps.sum((1, 2)), similarities, atol=1e-4, rtol=0)
    answers = matches.explain(weighting="dot").reference_maps
    torch.testing.assert_close(answers.sum((1, 2)), similarities, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_head_and_gem_pooling_take_part(photos, files, tmp_path, fit):
    torch.manual_seed(0)
    transform = Transform(size=(48, 64), fit=fit)
    encoder = Encoder.load(
        "conv4", weights="random", pooling=GeM(p=2.0), head=Linear(64, 8).eval(), transform=transform
    )
    retriever = Retriever(Gallery.build(photos, encoder, out=tmp_path / "g", precision="fp32"), encoder)
    matches = retriever.query(files[0], k=2, region=Box(10, 20, 40, 60))
    maps = matches.explain(weighting="dot").query_maps
    similarities = torch.tensor([match.similarity for match in matches])
    torch.testing.assert_close(maps.sum((1, 2)), similarities, atol=2e-3, rtol=0)
    assert matches.correspondence(1).parts.total == pytest.approx(matches[0].similarity, abs=2e-3)


def test_a_mask_is_a_region_and_each_picture_may_have_its_own(retriever, files):
    mask = np.zeros((64, 64), dtype=bool)
    mask[:24, :32] = True
    box = Box(0, 0, 32, 24)
    by_mask, whole, by_box = retriever.query([files[0]] * 3, k=3, region=[mask, None, box])
    torch.testing.assert_close(by_mask.query.encoding.embedding, by_box.query.encoding.embedding)
    assert whole.query.region is None
    both = retriever.query(files[:2], k=1, region=box)
    assert all(matches.query.region == box for matches in both)


def test_a_picture_object_may_be_asked_about_too(retriever, files):
    picture = read_image(files[0])
    by_file, by_picture = (retriever.query(source, k=2, region=Box(3, 3, 40, 30)) for source in (files[0], picture))
    assert [match.id for match in by_file] == [match.id for match in by_picture]


def test_what_is_no_region_is_refused(retriever, files):
    with pytest.raises(InputError, match="empty or lies outside the image of 64×64"):
        retriever.query(files[0], region=Box(64, 0, 80, 10))
    with pytest.raises(InputError, match="expected 2 regions"):
        retriever.query(files[:2], region=[None])
    with pytest.raises(InputError, match=r"a Box or a boolean array.*\(1, 2, 3, 4\)"):
        retriever.query(files[0], region=(1, 2, 3, 4))
    with pytest.raises(ShapeError, match=r"= \(64, 64\); got bool \(3, 3\)"):
        retriever.query(files[0], region=np.ones((3, 3), dtype=bool))


def test_pictures_reports_and_arrays_tell_of_the_region(retriever, files, tmp_path):
    plain, asked = (retriever.query(files[0], k=2, region=region).explain() for region in (None, Box(5, 5, 30, 40)))
    assert ImageChops.difference(asked.marked_query, plain.marked_query).getbbox() is not None
    with np.load(asked.save(tmp_path / "x.npz")) as arrays:
        assert arrays["region_weights"].mean() == pytest.approx(1)
    assert "Only the region" in asked.save(tmp_path / "x.html").read_text()
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:30, 10:50] = True
    assert retriever.query(files[0], region=mask).explain().show().width > 500


# ----------------------------------------------------------------------------------------------------------- contrasts


def test_why_a_and_not_b_is_the_contrast_of_the_stored_vectors(matches, small_gallery):
    explanation = matches.explain(against=1, versus="rank:3", weighting="dist*s")
    assert [reference.name for reference in explanation.references] == [matches[0].path]
    assert explanation.versus.name == matches[2].path
    stored = torch.from_numpy(small_gallery.embeddings(matches.ids))
    feature_map = matches.query.encoding.feature_map
    expected = contrast(feature_map, stored[None, :1], stored[None, 2:3], weighting="dist*s")[0]
    torch.testing.assert_close(explanation.query_maps, expected)
    assert explanation.reference_maps.shape == (1, 4, 4)


def test_classes_prototypes_and_matches_can_be_set_against_each_other(matches, small_gallery):
    one, other = small_gallery.labels[:2]
    store = small_gallery.prototypes
    vectors = [torch.from_numpy(store.embedding(label))[None, None] for label in (one, other)]
    explanation = matches.explain(against=one, versus=other, weighting="dist")
    torch.testing.assert_close(explanation.query_maps, contrast(matches.query.encoding.feature_map, *vectors)[0])
    assert explanation.reference_maps is None
    assert len(matches.explain(versus=other)) == 4
    assert [each.match.rank for each in matches.explain(versus=3).references] == [1, 2, 4]
    assert matches.explain(against="match", versus="prototype").versus.label == matches.prototype[0]


def test_a_dot_contrast_sums_to_the_difference_of_the_similarities(matches):
    maps = matches.explain(versus=4, weighting="dot").query_maps
    similarities = torch.tensor([match.similarity for match in matches])
    torch.testing.assert_close(maps.sum((1, 2)), (similarities - similarities[3])[:3], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("weighting", "against", "versus"),
    [("root_ratio", "rank:2", 2), ("dot", "prototype", "prototype"), ("caam", "match", 2)],
)
def test_a_contrast_that_would_be_blank_is_refused(matches, weighting, against, versus):
    with pytest.raises(InputError, match="nothing"):
        matches.explain(weighting=weighting, against=against, versus=versus)


def test_a_class_may_be_called_match_prototype_or_rank(photos, files, small_encoder, tmp_path):
    for number, name in enumerate(("match", "prototype", "rank:1")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for file in files[6 * number : 6 * number + 2]:
            (folder / file.name).write_bytes(file.read_bytes())
    gallery = Gallery.build(tmp_path / "photos", small_encoder, out=tmp_path / "g", precision="fp32")
    matches = Retriever(gallery, small_encoder).query(files[0], k=2)
    for name in ("match", "prototype", "rank:1"):
        assert matches.explain(against=f"label:{name}").references[0].label == name
    assert len(matches.explain(against="match")) == 2
    assert matches.explain(against="label:match", versus="label:prototype").versus.label == "prototype"


def test_a_rank_that_is_none_is_refused(matches):
    with pytest.raises(InputError, match=r"there is no rank 5: .* has 4 matches"):
        matches.explain(against=5)
    with pytest.raises(InputError, match="'label:rank:first'"):
        matches.explain(versus="rank:first")
    with pytest.raises(InputError, match="name one by its rank"):
        matches.explain(versus="match")


def test_a_contrast_is_reported_as_one(matches, tmp_path):
    explanation = matches.explain(versus=2)
    text = write_report(tmp_path / "r.html", [explanation]).read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert "blue ones for match 2." in data["queries"][0]["words"]["root_ratio"]
    assert [each["title"][0] for each in data["queries"][0]["references"]] == ["1", "3", "4"]
    assert "caam" not in data["weightings"]
    with np.load(explanation.save(tmp_path / "x.npz")) as arrays:
        assert str(arrays["versus"]) == matches[1].path
    assert explanation.weighted("dot").versus == explanation.versus


# ------------------------------------------------------------------------------------------------------ correspondence


def test_the_shares_of_all_pairs_sum_to_the_similarity_of_the_match(matches):
    for match in matches:
        found = matches.correspondence(match.rank)
        assert found.parts.total == pytest.approx(match.similarity, abs=2e-3)
        assert abs(found.parts.residual) < 1e-5


def test_points_are_in_pixels_of_the_pictures(matches):
    found = matches.correspondence(2)
    torch.testing.assert_close(found.on_match((17, 50)), found.parts.on_match((3, 1)))
    torch.testing.assert_close(found.on_query((63.9, 0)), found.parts.on_query((0, 3)))
    for pair, position in zip(found.pairs(3), found.parts.mutual_pairs(3), strict=True):
        assert pair.query == (16 * position.query[1] + 8, 16 * position.query[0] + 8)
        assert pair.share == position.share
    with pytest.raises(InputError, match=r"\(64, 3\) lies outside what the encoder sees"):
        found.on_match((64, 3))


def test_a_picture_corresponds_to_itself(matches, small_encoder):
    found = matches.correspondence(1)  # the query is in the gallery
    maps = dist_cam(matches.query.encoding.feature_map, matches.query.encoding.embedding[None], weighting="dot")
    torch.testing.assert_close(found.parts.on_query(), maps[0, 0], atol=2e-3, rtol=2e-2)


def test_correspondences_are_drawn_and_saved(matches, tmp_path):
    found = matches.correspondence(2)
    for point in (None, (20, 30)):
        with Image.open(found.save(tmp_path / "deep" / "x.png", point)) as image:
            assert image.width > 600
    with np.load(found.save(tmp_path / "x.npz")) as arrays:
        assert arrays["shares"].sum() == pytest.approx(float(arrays["total"]), abs=1e-5)
    with pytest.raises(InputError, match=r"\.png, \.jpg or \.npz"):
        found.save(tmp_path / "x.html")


def test_a_gallery_that_ranks_by_l1_says_that_it_does_not_divide(photos, files, small_encoder, tmp_path):
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", metric="l1", precision="fp32")
    with pytest.raises(InputError, match="sum of magnitudes"):
        Retriever(gallery, small_encoder).query(files[0], k=1).correspondence()


# ------------------------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize("style", ["overlay", "contour", "box"])
@pytest.mark.parametrize("scale", ["each", "shared"])
def test_every_look_is_drawn(matches, style, scale):
    plain = matches.explain().show()
    drawn = matches.explain().show(DrawStyle(style=style, scale=scale, colours="viridis"))
    assert drawn.width == plain.width
    assert ImageChops.difference(drawn.crop(plain.getbbox()), plain).getbbox() is not None
