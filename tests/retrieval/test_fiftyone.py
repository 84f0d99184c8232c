"""Explanations as FiftyOne samples: maps lie over the whole photograph, where the encoder looked."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from distcam import Gallery, Retriever
from distcam.errors import MissingExtraError
from distcam.retrieval import fiftyone_samples


def test_a_missing_library_is_named_with_its_extra(small_gallery, small_encoder, photos, monkeypatch) -> None:
    explanation = Retriever(small_gallery, small_encoder).query(next(photos.rglob("*.jpg")), k=2).explain()
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(MissingExtraError, match=r"distcam\[fiftyone\]"):
        fiftyone_samples(explanation)


def test_query_and_matches_hold_their_maps_and_what_the_gallery_says(small_gallery, small_encoder, photos) -> None:
    pytest.importorskip("fiftyone")
    file = sorted(photos.rglob("*.jpg"))[2]
    explanation = Retriever(small_gallery, small_encoder).query(file, k=3).explain()
    query, *matches = fiftyone_samples(explanation)
    assert (query.filepath, query.tags) == (str(file), ["query"])
    assert [sample["rank"] for sample in matches] == [1, 2, 3]
    assert [sample["ground_truth"].label for sample in matches] == [match.label for match in explanation.matches]
    for number, heat in enumerate(explanation.query_maps, 1):
        shown = query[f"evidence_{number}"].map
        assert shown.shape == (64, 64)
        at = np.unravel_index(int(heat.argmax()), heat.shape)
        cell = 64 // len(heat)
        assert shown[at[0] * cell : (at[0] + 1) * cell, at[1] * cell : (at[1] + 1) * cell].max() == shown.max() > 0.9
    assert 0.9 < matches[0]["evidence"].map.max() <= 1


def test_the_map_of_a_box_lies_in_the_box_of_its_photograph(photos, small_encoder, tmp_path) -> None:
    pytest.importorskip("fiftyone")
    files = sorted(photos.rglob("*.jpg"))[:4]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(["path,label,x1,y1,x2,y2", *(f"{file},a,16,24,48,56" for file in files)]))
    gallery = Gallery.build(table, small_encoder, out=tmp_path / "boxes.gallery", precision="fp32")
    explanation = Retriever(gallery, small_encoder).query(files[0], k=2).explain(weighting="dist")
    for sample, raw in zip(fiftyone_samples(explanation)[1:], torch.unbind(explanation.reference_maps), strict=True):
        shown = sample["evidence"].map
        assert shown.shape == (64, 64)
        outside = shown.copy()
        outside[24:56, 16:48] = 0
        assert outside.max() == 0
        if raw.max() > raw.min():
            assert shown[24:56, 16:48].max() > 0.9
