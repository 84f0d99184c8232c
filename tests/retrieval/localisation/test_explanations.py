"""The benchmark of explanations on drawn scenes: its measures, floors, the recommendation, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distcam.encoders import Encoder, Inference
from distcam.errors import InputError
from distcam.images import list_images
from distcam.index import Gallery
from distcam.index.storage.background import MapChoice
from distcam.retrieval import Retriever
from distcam.retrieval.localisation.explanation_table import DEFAULT, ExplanationTable
from distcam.retrieval.localisation.explanations import (
    benchmark_explanations,
    default_methods,
    from_gallery,
    from_images,
)
from distcam.retrieval.localisation.references import ObjectImage
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes

METHODS = (DEFAULT, "dist", "cam_probe", "q*s", "root_ratio@mean=half")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explanations")
    write_scenes(folder, classes=blueprints(4), splits={"all": 4}, size=64, two_object_share=0.0)
    return folder / "all"


@pytest.fixture(scope="module")
def table(folder: Path, small_encoder: Encoder) -> ExplanationTable:
    inference = Inference(small_encoder, precision="fp32", device="cpu")
    asked, references = from_images(list_images(folder), None, inference, 8)
    return benchmark_explanations(
        asked, small_encoder, references, composites=4, methods=METHODS, faithful=1, precision="fp32", n_samples=50
    )


def test_blind_maps_are_at_chance_and_every_measure_is_there(table: ExplanationTable) -> None:
    assert list(table.values) == [*METHODS, "caam", "random", "centre", "full"]
    assert table.measures[0] == "right_of_two"
    assert len(table.measures) == 6
    assert table.estimate("caam", "right_of_two").value == pytest.approx(0.5)
    assert table.estimate("caam", "energy_of_four").value == pytest.approx(0.25, abs=0.02)
    assert table.estimate("caam", "sensitivity").value == pytest.approx(1)
    assert table.estimate(DEFAULT, "sensitivity").value < table.estimate("dist", "sensitivity").value
    assert table.difference(DEFAULT, DEFAULT) == (0, 0, 0)
    with pytest.raises(InputError, match="no 'best' in this table"):
        table.estimate("best", "right_of_two")


def test_another_weighting_wins_only_where_its_lead_is_beyond_chance(table: ExplanationTable) -> None:
    def with_lead(name: str, lead: torch.Tensor) -> ExplanationTable:
        base = {n: {"right_of_two": torch.zeros(4)} for n in table.values}
        return replace(table, values={**base, name: {"right_of_two": lead}}, n_samples=500)

    assert with_lead("dist", torch.ones(4)).best()[0] == "dist"
    assert with_lead("dist", torch.tensor([1.0, -1.0, 1.0, -0.5])).best() == (DEFAULT, None)
    assert with_lead("cam_probe", torch.ones(4)).best()[0] == DEFAULT  # needs a classifier, so it is no weighting


def test_the_table_shows_itself(table: ExplanationTable, tmp_path: Path) -> None:
    text = table.table()
    assert "| `root_ratio` |" in text
    assert "default |" in text
    content = json.loads(json.dumps(table.to_dict()))
    assert content["composites"]["right_of_two"] == 4
    assert content["rows"][0]["right_of_two"]["low"] <= content["rows"][0]["right_of_two"]["value"]
    page = table.save(tmp_path / "page.html").read_text()
    assert "asked for" in page
    assert "<th>right of two</th>" in page


def test_a_gallery_is_asked_by_images_that_are_held_out(folder: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(folder, small_encoder, out=tmp_path / "gallery", precision="fp32", device="cpu")
    asked, references = from_gallery(gallery, None, 8, seed=0)
    assert len(asked) == 8
    assert len(references.files) == 8
    assert not {image.file for image in asked} & set(references.files)
    assert references.surroundings.border is not None
    names = default_methods(references, "prototypes", has_classifier=False)
    assert "root_ratio@mean=half" in names
    assert "root_ratio@mean=max" not in names  # the default takes it, so it would be there twice


def test_a_gallery_that_keeps_a_choice_explains_by_it(folder: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    gallery = Gallery.build(folder, small_encoder, out=tmp_path / "gallery", precision="fp32", device="cpu")
    matches = Retriever(gallery, small_encoder).query(gallery.file(int(gallery.ids[0])), k=2)
    assert matches.explain().weighting == DEFAULT
    choice = MapChoice("dot_centered", "auto", 0.9, 0.8, 0.05, 0.15, composites=40, generation=0)
    gallery.choose_maps(choice)
    assert Gallery.open(gallery.folder).map_choice == choice
    explained = matches.explain()
    assert explained.weighting == "dot_centered"
    assert "right in 0.900 of 40 composites" in " ".join(explained.words)
    assert matches.explain(weighting="dist").weighting == "dist"
    assert matches.explain(mean="gallery").weighting == DEFAULT
    gallery.choose_maps(None)
    assert matches.explain().weighting == DEFAULT


def test_what_cannot_be_composed_is_refused(folder: Path, small_encoder: Encoder) -> None:
    inference = Inference(small_encoder, precision="fp32", device="cpu")
    asked, references = from_images(list_images(folder), None, inference, 8)
    with pytest.raises(InputError, match="two classes that have references"):
        benchmark_explanations([image for image in asked if image.label == asked[0].label], small_encoder, references)
    with pytest.raises(InputError, match="2 or more"):
        benchmark_explanations([ObjectImage(Path("a"), "a")], small_encoder, references, composites=1)
