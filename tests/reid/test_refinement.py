"""Query expansion, camera normalisation, pooling, flipping, and an assessment that uses them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distcam import DistcamWarning
from distcam.encoders import Encoder
from distcam.errors import DistcamError, InputError, ShapeError
from distcam.images import Transform
from distcam.reid import (
    Features,
    Refinement,
    ReidData,
    ReidImage,
    ReidProtocol,
    assess,
    camera_normalised,
    changed_protocol,
    encode_data,
    evaluate_features,
    expand_queries,
    pool_views,
    read_features,
    write_features,
)
from distcam.reid.policies import labels_of
from distcam.reid.report import write_report


def unit(features: Any) -> Any:
    array = np.asarray(features, dtype=float)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


# ---- query expansion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neighbours", "alpha"), [(1, 0.0), (3, 0.0), (3, 2.5), (99, 1.0)])
def test_expansion_equals_a_plain_loop(neighbours: int, alpha: float) -> None:
    random = np.random.default_rng(0)
    query, gallery = random.normal(size=(7, 5)), random.normal(size=(20, 5))
    expanded = expand_queries(query, gallery, neighbours=neighbours, alpha=alpha)
    for row, vector in enumerate(unit(query)):
        cosine = unit(gallery) @ vector
        total = vector.copy()
        for place in np.argsort(-cosine)[:neighbours]:
            total += max(cosine[place], 0) ** alpha * unit(gallery)[place]
        np.testing.assert_allclose(expanded[row], unit(total), atol=1e-12)


@pytest.mark.parametrize("neighbours", [1, 3, 8])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_no_order_of_images_changes_an_expanded_query(neighbours: int, alpha: float) -> None:
    random = np.random.default_rng(0)
    points = random.integers(-1, 2, (40, 3)) + np.array([0.0, 0.0, 1.5])  # copies and equal distances everywhere
    query, gallery = points[:8], points[8:]
    expanded = expand_queries(query, gallery, neighbours=neighbours, alpha=alpha)
    for _ in range(5):
        first, second = random.permutation(8), random.permutation(32)
        permuted = expand_queries(query[first], gallery[second], neighbours=neighbours, alpha=alpha)
        np.testing.assert_array_equal(permuted, expanded[first])


def test_images_that_tie_for_the_last_place_share_it() -> None:
    expanded = expand_queries([[1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]], neighbours=1)
    np.testing.assert_allclose(expanded[0], unit([1.0, 1 / 3]))


def test_the_length_of_a_feature_does_not_matter() -> None:
    random = np.random.default_rng(1)
    query, gallery = random.normal(size=(4, 6)), random.normal(size=(9, 6))
    scaled = expand_queries(3 * query, gallery * random.uniform(1, 9, (9, 1)), neighbours=2)
    np.testing.assert_allclose(scaled, expand_queries(query, gallery, neighbours=2), atol=1e-12)


def test_a_query_is_not_expanded_by_itself() -> None:
    query, gallery = [[1.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]
    alone = expand_queries(query, gallery, neighbours=1, query_images=["a"], gallery_images=["a", "b"])
    np.testing.assert_allclose(alone[0], unit([1 + 0.5**0.5, 0.5**0.5]))
    np.testing.assert_allclose(expand_queries(query, gallery, neighbours=1), query)


def test_expansion_lifts_clustered_features() -> None:
    random = np.random.default_rng(2)
    centres = random.normal(size=(12, 32))
    who = np.repeat(np.arange(12), 6)
    query, gallery = (centres[who] + 1.4 * random.normal(size=(72, 32)) for _ in range(2))
    labels = [ReidImage(f"{side}{i}", int(k), side, "query") for side in (0, 1) for i, k in enumerate(who)]
    sides = {"query": labels_of(labels[:72]), "gallery": labels_of(labels[72:])}
    plain = evaluate_features(query, gallery, **sides).map_step
    assert evaluate_features(expand_queries(query, gallery, neighbours=4), gallery, **sides).map_step > plain + 0.02


# ---- cameras and views -----------------------------------------------------------------------------------------------


def test_standardised_cameras_have_mean_zero_and_spread_one() -> None:
    random = np.random.default_rng(3)
    cameras = [*"aaaaa", *"bbbbbb", None, None]
    features = random.normal(size=(13, 4)) + 5
    features[:, 3] = 2.0  # a constant dimension must not divide by zero
    normal = camera_normalised(features, cameras)
    for camera in ("a", "b", None):
        part = normal[[i for i, name in enumerate(cameras) if name == camera]]
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(part.std(axis=0), [1, 1, 1, 0], atol=1e-12)
    means = camera_normalised(features, cameras, statistics="mean")
    np.testing.assert_allclose(means[:5], features[:5] - features[:5].mean(axis=0))


def test_normalisation_undoes_a_shift_per_camera() -> None:
    random = np.random.default_rng(4)
    centres, shift = random.normal(size=(30, 16)), 6 * random.normal(size=(2, 16))
    vectors = [centres + shift[camera] + 0.3 * random.normal(size=(30, 16)) for camera in (0, 1)]
    images = [ReidImage(f"{camera}/{i}", i, camera, "query") for camera in (0, 1) for i in range(30)]
    extra = [ReidImage(f"0/{i}b", i, 0, "query") for i in range(30)]  # look-alikes from the query's camera
    gallery = np.concatenate([vectors[1], vectors[0] + 0.01])
    sides = {"query": labels_of(images[:30]), "gallery": labels_of([*images[30:], *extra])}
    plain = evaluate_features(vectors[0], gallery, **sides, metric="l2")
    normal = camera_normalised(np.concatenate([vectors[0], gallery]), [0] * 30 + [1] * 30 + [0] * 30)
    freed = evaluate_features(normal[:30], normal[30:], **sides, metric="l2")
    assert plain.rank(1) < 0.2
    assert freed.rank(1) > 0.9


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="camera b: one image alone"):
        camera_normalised(np.ones((3, 2)), ["a", "a", "b"])
    with pytest.raises(InputError, match="statistics must be one of"):
        camera_normalised(np.ones((2, 2)), [0, 0], statistics="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        camera_normalised([[np.nan], [1.0]], [0, 0])
    with pytest.raises(ShapeError, match="one camera per image"):
        camera_normalised(np.ones((2, 2)), [0])
    with pytest.raises(InputError, match="at least 1 neighbour"):
        expand_queries([[1.0]], [[1.0]], neighbours=0)
    with pytest.raises(InputError, match="query features: row 0 is zero"):
        expand_queries([[0.0, 0.0]], [[1.0, 0.0]])
    with pytest.raises(ShapeError, match="one group per image"):
        pool_views([[1.0]], [])


# ---- a data set, assessed --------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(tmp_path: Path) -> tuple[ReidData, Features]:
    """Twelve people, three cameras, one query each; junk and distractors; features around one centre per person."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(12, 24))
    images, vectors = [], []
    for who in range(12):
        for shot in range(6):
            role = "query" if shot == 0 else "gallery"
            images.append(ReidImage(f"{who}<b>{shot}.png", who + 1, shot % 3, role))  # type: ignore[arg-type]
            vectors.append(centres[who] + 2.0 * random.normal(size=24))
    for extra in range(6):
        images.append(ReidImage(f"junk{extra}.png", -1 if extra < 3 else 0, extra % 3, "gallery"))
        vectors.append(centres[extra] + 0.1 * random.normal(size=24))
    for image in images:
        Image.new("RGB", (8, 16), (len(image.path), 90, 120)).save(tmp_path / image.path)
    data = ReidData("market", tmp_path, tuple(images), ReidProtocol(distractors=(0,)))
    return data, Features(np.array(vectors, np.float32), tuple(i.path for i in images), {"encoder": "<i>none</i>"})


def test_an_assessment_says_what_the_evaluation_says(crowd: Any) -> None:
    data, features = crowd
    found = assess(data, features)
    direct = evaluate_features(
        features.of(data.queries),
        features.of(data.gallery),
        query=labels_of(data.queries),
        gallery=labels_of(data.gallery),
        protocol=data.protocol,
    )
    assert found.evaluation.map_step == direct.map_step
    assert found.evaluation.counts["gallery_junk"] == direct.counts["gallery_junk"] == 3
    assert found.evaluation.counts["gallery"] == 66
    assert found.before is None
    assert found.promotions() == ()
    assert "refinement: none" in str(found)


def test_failures_are_sorted_and_show_the_first_wrong_and_right_answer(crowd: Any) -> None:
    data, features = crowd
    found = assess(data, features)
    failures = found.failures()
    precision = [failure.average_precision for failure in failures]
    assert precision == sorted(precision)
    assert precision[-1] < 1
    first_ranks = dict(zip((q.path for q in data.queries), found.evaluation.per_query.first_rank, strict=True))
    for failure in failures:
        assert failure.right.rank == first_ranks[failure.query.path]
        assert failure.right.image.identity == failure.query.identity
        assert failure.right.image.camera != failure.query.camera
        assert failure.wrong is not None
        assert failure.wrong.image.identity not in (failure.query.identity, -1)
        assert min(failure.right.rank, failure.wrong.rank) == 1
        is_distractor = failure.wrong.image.identity == 0
        assert ("the wrong answer is a distractor" in failure.causes) == is_distractor


def test_a_promoted_match_names_the_neighbours_it_shares(crowd: Any) -> None:
    data, features = crowd
    found = assess(data, features, refinement=Refinement(reranking=(6, 3, 0.3)))
    assert found.before is not None
    promotions = found.promotions()
    assert promotions
    before = dict(zip((q.path for q in data.queries), found.before.per_query.first_rank, strict=True))
    for promotion in promotions:
        assert promotion.rank_after < before[promotion.query.path] <= promotion.rank_before
        assert promotion.match.identity == promotion.query.identity
        assert sum(share for _, share in promotion.shared) == pytest.approx(1)
        assert all(image.identity != -1 for image, _ in promotion.shared)
    assert any(answer.shared for failure in found.failures() for answer in (failure.right, failure.wrong) if answer)
    assert json.loads(json.dumps(found.to_dict(per_query=True)))["promotions"]


def test_every_refinement_is_named_and_changes_something(crowd: Any) -> None:
    data, features = crowd
    plain = assess(data, features).evaluation.map_step
    for refinement in (
        Refinement(camera_statistics="mean"),
        Refinement(expansion=(3, 1.0)),
        Refinement(reranking=(6, 3, 0.3)),
        Refinement(camera_statistics="standard", expansion=(2, 0.0), reranking=(6, 3, 0.3)),
    ):
        found = assess(data, features, refinement=refinement)
        assert found.evaluation.map_step != plain
        for line in refinement.describe():
            assert line in str(found)
    # with one query per person and camera there is nothing to pool
    assert assess(data, features, refinement=Refinement(multi_query=True)).evaluation.map_step == pytest.approx(plain)


def test_multi_query_pools_further_views_and_never_the_answers(crowd: Any) -> None:
    data, features = crowd
    views = tuple(ReidImage(f"view{q.path}", q.identity, q.camera, "multi_query") for q in data.queries)
    exact = np.stack(
        [features.of([image for image in data.gallery if image.identity == q.identity]).mean(0) for q in views]
    )
    more = ReidData("market", data.root, (*data.images, *views), data.protocol)
    both = Features(np.concatenate([features.vectors, exact]), (*features.paths, *(v.path for v in views)))
    pooled = assess(more, both, refinement=Refinement(multi_query=True))
    assert pooled.evaluation.map_step > assess(data, features).evaluation.map_step + 0.05
    asked = ReidData(
        "csv", data.root, tuple(ReidImage(i.path, i.identity, i.camera, "test") for i in data.queries), ReidProtocol()
    )
    with pytest.raises(InputError, match="would pool queries with their own matches"):
        assess(asked, features, protocol=ReidProtocol(same_camera="keep"), refinement=Refinement(multi_query=True))


def test_decisions_are_changed_by_name() -> None:
    changed = changed_protocol(ReidProtocol(), "same_camera=keep, distractors=0+x,junk=")
    assert (changed.same_camera, changed.distractors, changed.junk) == ("keep", (0, "x"), ())
    assert changed_protocol(ReidProtocol(), "") == ReidProtocol()
    with pytest.raises(InputError, match="nearest is same_camera"):
        changed_protocol(ReidProtocol(), "samecamera=keep")
    with pytest.raises(InputError, match="no_match must be one of"):
        changed_protocol(ReidProtocol(), "no_match=maybe")


def test_features_survive_their_file_and_missing_ones_are_named(crowd: Any, tmp_path: Path) -> None:
    data, features = crowd
    file = write_features(tmp_path / "f.h5", features, results={"map_step": 0.5})
    again = read_features(file, data)
    np.testing.assert_array_equal(again.vectors, features.vectors)
    assert (again.paths, again.about) == (features.paths, features.about)
    with pytest.raises(InputError, match=r"1 of 1 images have no features, first: other\.png"):
        again.of([ReidImage("other.png", 1, 0, "query")])
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="expected features written by"):
        read_features(tmp_path / "broken.h5", data)


def test_flipping_averages_an_image_with_its_mirror_image(crowd: Any) -> None:
    data, _ = crowd
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=(32, 16), fit="squash"))
    some = data.queries[:3]
    for i, image in enumerate(some):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data.file(image))
    flipped = encode_data(some, data, encoder, flip=True, device="cpu", precision="fp32", batch_size=4)
    encoder.eval()
    with torch.no_grad():
        images = [encoder.transform(Image.open(data.file(image))) for image in some]
        pixels = encoder.transform.normalise(torch.stack(images))
        expected = (encoder(pixels).embedding + encoder(pixels.flip(-1)).embedding) / 2
    np.testing.assert_allclose(flipped.vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert flipped.about["flip"] is True


def test_an_unreadable_image_is_left_out_and_named_or_stops_a_strict_evaluation(crowd: Any) -> None:
    data, _ = crowd
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=(32, 16), fit="squash"))
    data.file(data.queries[1]).write_bytes(b"no image")
    with pytest.warns(DistcamWarning, match="1 of 12 images cannot be used and are left out, the first: 1<b>0.png"):
        encode_data(data.queries, data, encoder, device="cpu")
    with pytest.raises(DistcamError, match=r"1<b>0\.png"):
        encode_data(data.queries, data, encoder, device="cpu", strict=True)


# ---- the report ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_offline_and_escapes_names(crowd: Any, tmp_path: Path) -> None:
    data, features = crowd
    found = assess(data, features, refinement=Refinement(reranking=(6, 3, 0.3)))
    data.file(data.gallery[4]).unlink()  # a picture that is gone leaves a grey box
    text = write_report(tmp_path / "r.html", found, title="<script>alert(1)</script>").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert {"b", "i"} & set(page.tags) <= {"b"}  # b only in the cards of scores
    assert "&lt;b&gt;" in text
    assert "&lt;i&gt;none" in text
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    for part in ("CMC", "ROC", "first wrong: rank", "by the neighbours they share", "gallery images of the query"):
        assert part in text
