"""Localisation tables on drawn scenes: the floors, the geometry, references, classifiers, and what is refused."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import distcam.retrieval.localisation.evaluate as localisation
import distcam.retrieval.localisation.maps as localisation_maps
from distcam.encoders import Encoder, Inference
from distcam.errors import FingerprintMismatchError, ImageError, InputError
from distcam.explain.places import project
from distcam.explain.targets import distances
from distcam.images import Box, Transform, list_images
from distcam.images.boxes.formats import read_boxes
from distcam.images.boxes.joined import BoxedImage, BoxedImages, boxed_images
from distcam.index import Gallery
from distcam.metrics.localisation import box_coverage
from distcam.remarks import DistcamWarning
from distcam.retrieval import LocalisationTable, References, localise, read_classifier
from distcam.retrieval.localisation.classifiers import LinearClassifier, linear_probe
from distcam.retrieval.localisation.maps import parse_methods
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training.losses.classifier import ClassifierTerm, save_classifier

METHODS = ("cam_probe", "dist", "log_ratio", "dot_centered", "hirescam")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("localisation")
    classes = blueprints(3)
    write_scenes(folder / "one", classes=classes, splits={"gallery": 3}, size=64, two_object_share=0.0)
    write_scenes(folder / "two", classes=classes, splits={"query": 2}, size=64, two_object_share=1.0)
    return folder


@pytest.fixture(scope="module")
def boxed(scenes: Path) -> BoxedImages:
    return boxed_images(list_images(scenes / "two" / "query"), read_boxes(scenes / "two" / "boxes.csv"))


@pytest.fixture(scope="module")
def references(scenes: Path, small_encoder: Encoder) -> References:
    return References.encode(list_images(scenes / "one" / "gallery"), Inference(small_encoder, precision="fp32"))


@pytest.fixture(scope="module")
def table(boxed: BoxedImages, small_encoder: Encoder, references: References) -> LocalisationTable:
    return localise(boxed, small_encoder, references, methods=METHODS, precision="fp32", n_samples=200)


def test_a_table_is_a_frame_and_a_table_of_a_notebook(table: LocalisationTable) -> None:
    pytest.importorskip("pandas")
    frame = table.to_pandas().set_index("method")
    assert frame.loc["full", "peak"] == table["full"].peak.value
    assert frame.loc["caam", "max_box_acc_low"] == table["caam"].max_box_acc.low
    assert table._repr_html_().count("<tr>") == 1 + len(table.rows)
    assert "\n" not in repr(table)


def test_the_floors_are_in_every_table(table: LocalisationTable) -> None:
    assert [row.method for row in table.rows] == [*METHODS, "caam", "random", "centre", "full"]
    assert len(table) == 6
    assert table["caam"].sensitivity.value == pytest.approx(1)
    assert table["caam"].two_objects is not None
    assert table["caam"].two_objects.value == pytest.approx(0.5)
    assert table["full"].energy.value == pytest.approx(float(table.energy_chance.mean()))
    assert abs(table["random"].sensitivity.value) < 0.7
    assert table["dot_centered"].sensitivity.value < table["dist"].sensitivity.value < 1


def test_the_whole_picture_and_a_centred_box_by_hand(table: LocalisationTable, boxed: BoxedImages) -> None:
    # the pyramid is (2i + 1) / 64 at pixel i of the left half, scaled (2i + 1 - 1) / 62: at least .2 from i = 7 on
    whole, middle = Box(0, 0, 64, 64), Box(7, 7, 57, 57)
    for name, guess in (("full", whole), ("centre", middle)):
        best = [max(guess.iou(box) for box in image.boxes_of(image.label, 64, 64)) for image in boxed]
        np.testing.assert_allclose(table.scores[name].overlaps.at(0.2), best, atol=1e-9)


def test_the_table_shows_itself(table: LocalisationTable) -> None:
    text = table.table()
    assert text.splitlines()[0].startswith("conv4/")
    assert "| `caam` |" in text
    assert "two objects" in text
    assert "PxAP" not in text
    content = json.loads(json.dumps(table.to_dict()))
    assert content["images"] == 6
    row = content["rows"][0]
    assert row["max_box_acc"]["low"] <= row["max_box_acc"]["value"] <= row["max_box_acc"]["high"]
    assert row["gt_known_error_best"]["value"] == pytest.approx(1 - row["max_box_acc"]["value"])
    with pytest.raises(InputError, match="no method 'cam'"):
        table["cam"]


def test_differences_are_paired(table: LocalisationTable) -> None:
    assert table.difference("dist", "dist") == (0, 0, 0)
    found = table.difference("dist", "full", "energy")
    assert found.value == pytest.approx(table["dist"].energy.value - table["full"].energy.value)
    assert found.low <= found.value <= found.high
    with pytest.raises(InputError, match="measure='speed'"):
        table.difference("dist", "full", "speed")


def test_the_same_seed_gives_the_same_table(
    boxed: BoxedImages, small_encoder: Encoder, references: References, table: LocalisationTable
) -> None:
    again = localise(boxed, small_encoder, references, methods=METHODS, precision="fp32", n_samples=200, batch_size=4)
    for row, other in zip(table.rows, again.rows, strict=True):
        if row.method != "random":  # drawn batch by batch
            assert other.max_box_acc.value == pytest.approx(row.max_box_acc.value)
            assert other.energy.value == pytest.approx(row.energy.value, abs=1e-4)


def test_masks_add_pixel_precision(
    scenes: Path, boxed: BoxedImages, small_encoder: Encoder, references: References
) -> None:
    def masks(image: BoxedImage) -> np.ndarray:
        return (box_coverage(image.boxes_of(image.label, 64, 64), (64, 64)) > 0.5).numpy()

    found = localise(
        boxed,
        small_encoder,
        references,
        methods=["dist"],
        masks=masks,
        reference="nearest",
        precision="fp32",
        n_samples=20,
    )
    chance = float(table_chance(masks, boxed))
    assert found["full"].pxap is not None
    assert found["full"].pxap.value == pytest.approx(chance)
    assert "PxAP" in found.table()


@pytest.mark.parametrize("kind", ["of another size", "turned", "unreadable", "missing"])
def test_an_image_with_a_bad_mask_is_left_out_and_noted(
    boxed: BoxedImages, small_encoder: Encoder, references: References, kind: str
) -> None:
    def masks(image: BoxedImage) -> np.ndarray:
        if image == boxed.images[0]:
            if kind == "unreadable":
                raise ImageError("m.png", "damaged")
            if kind == "missing":
                raise InputError("expected at m.png")
            return np.ones((32, 64) if kind == "turned" else (9, 9), dtype=bool)
        return np.ones((64, 64), dtype=bool)

    some = BoxedImages(boxed.images[:3])
    with pytest.warns(DistcamWarning, match=r"1 of 3 images cannot be used .*its mask"):
        found = localise(some, small_encoder, references, methods=["dist"], masks=masks, n_samples=0)
    assert len(found) == 2
    assert found["full"].pxap is not None


def table_chance(masks: object, boxed: BoxedImages) -> float:
    return float(np.mean([masks(image).mean() for image in boxed]))  # type: ignore[operator]


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (64, 64)])
def test_projection_undoes_locate(fit: str, size: tuple[int, int]) -> None:
    transform = Transform(32, fit=fit)
    box = Box(12, 10, 20, 22)
    there = transform.locate(box, *size)
    np.testing.assert_allclose(project(there, transform, size), box, atol=1e-9)


def test_an_image_is_not_its_own_reference(references: References) -> None:
    files = list(references.files[:2])
    found = references.of_classes(
        references.embeddings[:2], references.classes[:2, None], reference="nearest", files=files
    )
    assert not torch.equal(found[0, 0], references.embeddings[0])
    own = references.of_classes(references.embeddings[:2], references.classes[:2, None], reference="nearest")
    torch.testing.assert_close(own[:, 0], references.embeddings[:2])


def test_references_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    references = References.of(["a", "a", "b"], vectors, vectors, metric="l2")
    torch.testing.assert_close(references.prototypes, torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(references.surroundings.mean, torch.tensor([4 / 3, 2 / 3]))
    query = torch.tensor([[0.9, 1.0]])
    assert references.predicted(query, reference="prototypes").tolist() == [1]
    assert references.predicted(query, reference="nearest").tolist() == [0]
    asked = references.of_classes(query, torch.tensor([[1, 0]]), reference="nearest")
    assert asked.tolist() == [[[0, 2], [1, 0]]]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
@pytest.mark.parametrize("reference", ["prototypes", "nearest"])
def test_an_image_equally_near_to_two_classes_is_called_neither(metric: str, reference: str) -> None:
    vectors = torch.randn(9, 33, generator=torch.Generator().manual_seed(0))
    vectors[3:6] = vectors[:3]  # the second class is the first
    query = torch.cat([vectors[:3] + 0.01, vectors[6:] + 0.01])
    for names in (list("aaabbbccc"), list("bbbaaaccc"), list("cccbbbaaa")):
        references = References.of(names, vectors, vectors, metric=metric)  # type: ignore[arg-type]
        found = references.predicted(query, reference=reference).tolist()  # type: ignore[arg-type]
        assert set(found) <= {-1, references.labels.index(names[-1])}
        if metric != "dot":
            assert found == [-1] * 3 + [references.labels.index(names[-1])] * 3


@pytest.mark.parametrize("metric", ["cosine", "dot", "l1", "l2"])
def test_distances_are_what_they_say(metric: str) -> None:
    one, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 8.0]])
    expected = {"cosine": 0.2, "dot": -32.0, "l1": 7.0, "l2": 5.0}[metric]
    assert distances(one, other, metric).item() == pytest.approx(expected)


def test_the_probe_separates_what_can_be_separated() -> None:
    vectors = torch.tensor([[1.0, 0.0, 5.0], [2.0, 0.0, 5.0], [0.0, 1.0, 5.0], [0.0, 2.0, 5.0]])
    references = References.of(["a", "a", "b", "b"], vectors, vectors)
    probe = linear_probe(references)
    assert probe.predicted(vectors).tolist() == [0, 0, 1, 1]
    assert bool(probe.weight.isfinite().all())  # the third channel is constant


def test_a_classifiers_rows_are_those_that_the_mean_images_excite() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    references = References.of(["a", "a", "b"], vectors, vectors)
    classifier = LinearClassifier(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.zeros(3))
    rows = classifier.for_references(references)
    assert rows.weight.tolist() == [[1, 0], [0, 1]]
    small = LinearClassifier(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(
        InputError, match="has 1 outputs, the references 2 classes; it has no map for each; use `cam_probe`"
    ):
        small.for_references(references)


def test_of_two_classes_with_one_row_the_second_takes_its_next_best_and_that_is_said() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    references = References.of(["sunglass", "sunglasses", "tench"], vectors, vectors)
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.0], [-1.0, -1.0]])
    classifier = LinearClassifier(weight, torch.zeros(4))
    said = "calls 'sunglass' and 'sunglasses' the same .output 1., so `cam` takes output 2 for 'sunglasses'; .* 1 of 3"
    with pytest.warns(DistcamWarning, match=said):
        found = classifier.for_references(references)
    assert found.weight.tolist() == weight[[1, 2, 0]].tolist()
    with pytest.raises(InputError, match="calls 'sunglass' and 'sunglasses' the same"):
        classifier.for_references(references, strict=True)


def test_synsets_of_every_output_are_in_the_outputs_order() -> None:
    vectors = torch.eye(3)
    references = References.of(["n01443537", "n01440764", "n01484850"], vectors, vectors)
    blind = LinearClassifier(torch.zeros(3, 3), torch.arange(3.0))
    assert blind.for_references(references) is blind
    assert references.labels == ("n01440764", "n01443537", "n01484850")


def test_references_without_their_images_have_the_same_prototypes_and_say_what_they_lack(
    scenes: Path, small_encoder: Encoder, references: References, boxed: BoxedImages
) -> None:
    listing, inference = (
        list_images(scenes / "one" / "gallery"),
        Inference(small_encoder, precision="fp32", batch_size=2),
    )
    lean = References.encode(listing, inference, keep_images=False)
    assert (lean.labels, len(lean.classes), len(lean.embeddings)) == (references.labels, 9, 0)
    for name in ("prototypes", "class_means"):
        torch.testing.assert_close(getattr(lean, name), getattr(references, name))
    torch.testing.assert_close(lean.surroundings.border, references.surroundings.border)
    one, other = (
        localise(boxed, small_encoder, each, methods=METHODS[1:2], n_samples=0) for each in (lean, references)
    )
    assert one["dist"].energy.value == pytest.approx(other["dist"].energy.value)
    with pytest.raises(InputError, match="cam_probe needs the references' own vectors, which were not kept"):
        linear_probe(lean)
    with pytest.raises(InputError, match="the nearest image needs the references' own vectors"):
        lean.predicted(references.embeddings, reference="nearest")


@pytest.mark.parametrize("keep", [True, False])
def test_a_gallery_gives_the_references_that_its_images_would(
    scenes: Path, small_encoder: Encoder, references: References, tmp_path: Path, keep: bool
) -> None:
    built = Gallery.build(scenes / "one" / "gallery", small_encoder, out=tmp_path / "g", precision="fp32")
    found = References.of_gallery(built, small_encoder, keep_images=keep)
    assert found.labels == references.labels
    assert torch.equal(found.classes.sort().values, references.classes.sort().values)
    torch.testing.assert_close(found.prototypes, references.prototypes)
    torch.testing.assert_close(found.surroundings.mean, references.surroundings.mean)
    assert set(found.files) == (set(references.files) if keep else set())
    if keep:
        order = [references.files.index(file) for file in found.files]
        torch.testing.assert_close(found.embeddings, references.embeddings[order], atol=1e-3, rtol=1e-3)
    with pytest.raises(FingerprintMismatchError):
        References.of_gallery(built, Encoder.load("conv4", weights="random", transform=Transform(32), seed=9))


@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_classifier_is_read_where_it_fits(tmp_path: Path, wrapped: str) -> None:
    state = {"fc.weight": torch.ones(7, 4), "fc.bias": torch.full((7,), 2.0), "conv.weight": torch.ones(4, 4)}
    state = {f"{wrapped}{name}": tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    found = read_classifier("x", tmp_path / "weights.pth", pooled_dim=4)
    assert found is not None
    assert found.weight.shape == (7, 4)
    assert found.bias.tolist() == [2.0] * 7
    assert read_classifier("x", tmp_path / "weights.pth", pooled_dim=5) is None
    assert read_classifier("x", "random", pooled_dim=4) is None


def test_cam_uses_the_networks_own_classifier(
    boxed: BoxedImages, small_encoder: Encoder, references: References
) -> None:
    probe = linear_probe(references)
    found = localise(
        boxed, small_encoder, references, methods=["cam", "cam_probe"], classifier=probe, precision="fp32", n_samples=0
    )
    assert found["cam"].max_box_acc == found["cam_probe"].max_box_acc
    assert found["cam"].energy.low == found["cam"].energy.value  # no samples, no interval


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distt", "no method 'distt', nearest:"),
        ("dist@tau=-1", "a number of 0 or more"),
        ("dist@eps=1", "expected `@tau=NUMBER`"),
        ("hirescam@tau=1", "no method"),
    ],
)
def test_unknown_methods_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_methods([name])


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, boxed: BoxedImages, small_encoder: Encoder, references: References
) -> None:
    with pytest.raises(InputError, match="`cam` needs the network's own classifier"):
        localise(boxed, small_encoder, references, methods=["cam"])
    stranger = BoxedImages((BoxedImage("x", tmp_path / "x.jpg", "zebra", boxed.images[0].boxes),))
    with pytest.raises(InputError, match="images of class 'zebra' have no reference"):
        localise(stranger, small_encoder, references)
    mixed = BoxedImages((*boxed.images[:2], *stranger.images))
    with pytest.warns(DistcamWarning, match="1 of 3 images are left out, as x: images of class 'zebra' have no"):
        localise(mixed, small_encoder, references, methods=["dist"], n_samples=0)
    with pytest.raises(InputError, match="images of class 'zebra' have no reference"):
        localise(mixed, small_encoder, references, methods=["dist"], strict=True)
    gone = BoxedImages((BoxedImage("x", tmp_path / "x.jpg", references.labels[0], boxed.images[0].boxes),))
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        localise(gone, small_encoder, references, methods=["dist"])


def test_an_unreadable_image_is_left_out_and_noted(
    tmp_path: Path, boxed: BoxedImages, small_encoder: Encoder, references: References
) -> None:
    gone = BoxedImage("gone.jpg", tmp_path / "gone.jpg", references.labels[0], boxed.images[0].boxes)
    some = BoxedImages((gone, *boxed.images[:2]))
    with pytest.warns(DistcamWarning, match=r"1 of 3 images cannot be used .*, the first: gone.jpg: no such file"):
        found = localise(some, small_encoder, references, methods=["dist"], precision="fp32", n_samples=0)
    with pytest.raises(ImageError, match=r"gone.jpg: no such file"):
        localise(some, small_encoder, references, methods=["dist"], strict=True)
    assert len(found) == 2
    assert "gone.jpg" in found.notes[0]


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(localisation).failed == 0
    assert doctest.testmod(localisation_maps).failed == 0


def test_a_training_left_its_classifier_beside_the_encoder(tmp_path) -> None:
    file = tmp_path / "encoder.safetensors"
    assert read_classifier(str(file), None, pooled_dim=4) is None
    term = ClassifierTerm(4, 3)
    save_classifier(tmp_path / "classifier.safetensors", term, ["b", "a", "c"], fingerprint="x")
    found = read_classifier(str(file), None, pooled_dim=4)
    assert found is not None
    assert found.class_names == ("b", "a", "c")
    assert torch.equal(found.weight, term.weight)
    assert read_classifier(str(file), None, pooled_dim=5) is None
    references = SimpleNamespace(labels=["a", "b"])
    assert torch.equal(found.for_references(references).weight, term.weight[[1, 0]])
    assert torch.equal(found.for_references(references).bias, term.bias[[1, 0]])
    save_classifier(
        tmp_path / "classifier.safetensors", ClassifierTerm(4, 3, head="cosine"), ["b", "a", "c"], fingerprint="x"
    )
    assert read_classifier(str(file), None, pooled_dim=4) is None
