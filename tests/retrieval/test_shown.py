"""Results as people see them in a notebook: one line, a piece of HTML, a DataFrame, a figure of matplotlib."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from distcam import Retriever
from distcam.errors import MissingExtraError
from distcam.retrieval import evaluate_embeddings

pytestmark = pytest.mark.filterwarnings("ignore:what lines are measured against")


@pytest.fixture(scope="module")
def matches(small_gallery, small_encoder, photos):
    return Retriever(small_gallery, small_encoder, precision="fp32").query(sorted(photos.rglob("*.jpg"))[3], k=12)


def test_every_result_is_one_short_line(matches, small_gallery) -> None:
    for result in (matches, matches.explain(), matches.lines(), small_gallery):
        assert "\n" not in repr(result)
        assert len(repr(result)) < 250
    assert repr(matches).startswith(f"Matches('{matches.query.short_name}', 12 nearest by cosine: ")
    assert repr(matches.explain(versus=2)).endswith("11 references rather than match 2, root_ratio)")


def test_ten_matches_with_their_maps_are_small_and_the_rest_is_counted(matches, small_gallery) -> None:
    shown, explained = matches._repr_html_(), matches.explain()._repr_html_()
    assert shown.count("<img") == 11  # the query, and ten of twelve
    assert "and 2 more of 12 matches" in shown
    assert explained.count("<img") >= 1 + 10 + 3 * 10
    assert max(len(shown), len(explained)) < 300_000
    assert small_gallery._repr_html_().count("<img") == 10


def test_images_that_are_gone_are_not_missed(matches, small_gallery, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(small_gallery, "root", tmp_path)
    assert "<img" not in small_gallery._repr_html_()
    again = Retriever(small_gallery, matches.retriever.encoder).query_stored(0, k=3)
    assert again._repr_html_().count("<img") == 3  # grey ones


def test_matches_are_rows_of_a_frame(matches) -> None:
    pytest.importorskip("pandas")
    table = matches.within(0.5).to_pandas()
    assert list(table.columns)[:7] == ["query", "rank", "id", "path", "label", "distance", "similarity"]
    assert table["path"].tolist() == [match.path for match in matches]
    assert table["is_accepted"].dtype == bool


def test_an_evaluation_is_a_frame_of_scores_or_of_queries() -> None:
    pytest.importorskip("pandas")
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    found = evaluate_embeddings(vectors, ["a", "b", "c"] * 4)
    assert found.to_pandas().set_index("score").loc["R@1", "value"] == found["R@1"]
    assert len(found.to_pandas(per_query=True)) == 12
    assert repr(found).startswith("Evaluation(R@1 ")
    assert "<td" in found._repr_html_()


def test_a_figure_has_an_axis_for_each_image_and_map_and_the_words(matches) -> None:
    pytest.importorskip("matplotlib")
    explanation = matches.first(2).explain()
    figure = explanation.figure()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["query", *(f"{match.rank} · {match.label}" for match in matches.first(2))]
    assert len(titles) == 3 * 4
    assert figure.get_supxlabel().replace("\n", " ") == " ".join(explanation.words)
    assert len(matches.lines().figure().axes) == 1


def test_a_figure_leaves_nothing_open_and_names_its_extra(matches, monkeypatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    matches.first(1).explain().figure()
    assert pyplot.get_fignums() == before
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("distcam[plot]")):
        matches.first(1).explain().figure()
