"""Recipes of weakly supervised segmentation, from scenes to a measured segmenter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.segmentation.cam_training.training import (
    SEGMENTATION_TERMS,
    MeasuredSplit,
    MeasureSettings,
    SegmentationRecipe,
    masks_of,
    measure,
    train,
)
from distcam.segmentation.data import MaskedImages
from distcam.segmentation.pseudo_masks.sources import WeakSegmenter
from distcam.segmentation.segmenter.inference import InferenceSettings
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import SceneSet, write_scenes
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.classifier import load_classifier
from distcam.training.losses.registry import TermContext, build_objective
from distcam.training.recipes.recipe import RecipeFile

RECIPE = """
[data]
size = 32
multi_label = true
[data.scenes]
classes = 3
size = 32
splits.train = { per_class = 6, two_objects = 0.5 }
splits.test = { per_class = 4, two_objects = 0.5 }
[encoder]
architecture = "conv4"
options = { width = 8, last_pool = false }
[[loss]]
kind = "multi_label"
[sampler]
batch_size = 6
[run]
epochs = 2
precision = "fp32"
device = "cpu"
[measure]
scales = [1.0, 1.5]
[variants.cpn]
loss = [{ kind = "cpn" }]
[variants.seam]
loss = [{ kind = "seam", scale = 0.5 }]
[variants.cross_entropy]
loss = [{ kind = "cross_entropy" }]
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


@pytest.mark.parametrize("variant", [None, "cpn", "seam", "cross_entropy"])
def test_a_run_leaves_a_segmenter_with_what_it_measured(
    recipe: Path, cache: Path, tmp_path: Path, variant: str | None
) -> None:
    loaded = SegmentationRecipe.read(recipe, variant=variant)
    result = train(loaded, folder=tmp_path / "run", cache=cache)
    segmenter = WeakSegmenter.load(tmp_path / "run" / "weak_segmenter.safetensors")
    assert segmenter.is_refined == (variant in ("cpn", "seam"))
    expected = {"test.accuracy", "test.miou", "test.miou_multi_scale", "test.beta"}
    plain = {"test.miou_plain", "test.miou_multi_scale_plain"}
    assert set(result.metrics) == (expected | plain if segmenter.is_refined else expected)
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert segmenter.metadata["beta"] == result.metrics["test.beta"]
    assert segmenter.metadata["training"]["config"]["loss"][0]["kind"] == (variant or "multi_label")
    curves = json.loads((tmp_path / "run" / "background_curves.json").read_text())
    assert max(v for v in curves["test.miou"]["mean_iou"] if v is not None) == result.metrics["test.miou"]
    classifier, names, fingerprint = load_classifier(tmp_path / "run" / "classifier.safetensors")
    assert tuple(names) == segmenter.class_names
    assert fingerprint == segmenter.encoder.fingerprint
    torch.testing.assert_close(classifier.weight.detach(), segmenter.class_weights)


def test_runs_repeat_and_resume_to_the_same_weights(recipe: Path, cache: Path, tmp_path: Path) -> None:
    short = SegmentationRecipe.read(recipe, variant="cpn", changes=["measure.scales=[1.0]", "measure.flip=false"])
    whole = train(short)  # without a place to keep the scenes

    class Stop(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 4:  # of 6 batches: after the first epoch's checkpoint
            raise Stop

    with pytest.raises(Stop):
        train(short, folder=tmp_path / "run", cache=cache, progress=stop)
    resumed = train(short, folder=tmp_path / "run", cache=cache, resume=True)
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint
    assert resumed.metrics == whole.metrics


def test_monitoring_keeps_the_best_epoch_by_miou(recipe: Path, cache: Path) -> None:
    loaded = SegmentationRecipe.read(recipe, changes=['run.monitor="test.miou"', "measure.scales=[1.0]"])
    result = train(loaded, cache=cache)
    best = max(row["test.miou"] for row in result.fit.history)
    assert result.fit.metrics["test.miou"] == best


def test_measuring_true_maps_gives_one_and_masks_of_regions_are_the_masks(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", classes=blueprints(3), splits={"test": 3}, size=32, two_object_share=1.0, masks=True)
    scenes, transform = SceneSet.read(tmp_path / "set"), Transform(32, fit="squash")
    images = MaskedImages.from_scenes(scenes, "test")
    data = images.training_set(transform, masks_for=range(len(images)))
    truth = MeasuredSplit(data, masks_of(data, "test"))
    assert all(np.array_equal(truth.masks[i], images.mask(i)) for i in range(len(images)))

    class Oracle:
        """Whatever it is shown, it answers with the next true mask."""

        def __init__(self) -> None:
            self.class_names, self.transform, self.seen = images.class_names, transform, 0

        def class_maps(self, pictures: torch.Tensor, *, refined: bool = True, labels: object = None) -> torch.Tensor:
            assert refined
            assert pictures.shape == (1, 3, 32, 32)
            mask = torch.from_numpy(truth.masks[self.seen])
            self.seen += 1
            return torch.stack([(mask == c + 1).float() for c in range(3)])[None]

    curve = measure(Oracle(), truth, InferenceSettings(scales=(1.0,), flip=False))
    assert curve.best_score.mean_iou == 1.0
    assert measure(Oracle(), truth, InferenceSettings(scales=(1.0,), flip=False), limit=2).best_score.images == 2


def test_camvid_and_voc_are_data_of_a_recipe(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    root = tmp_path / "photographs" / "street"
    for split in ("train", "val"):
        for kind in ("", "_masks"):
            (root / f"{split}{kind}").mkdir(parents=True)
        for i in range(11):
            mask = np.full((24, 24), i, np.uint8)
            mask[12:] = (i + 1) % 11
            Image.fromarray(mask).save(root / f"{split}_masks" / f"{i}.png")
            Image.fromarray(np.repeat(mask[..., None] * 20, 3, 2)).save(root / split / f"{i}.png")
    monkeypatch.setenv("DISTCAM_DATA", str(tmp_path / "photographs"))
    text = RECIPE.split("[data]")[0] + '[data]\nphotographs = "camvid:street"\nsize = 32\n[encoder]'
    recipe.write_text(text + RECIPE.split("[encoder]")[1], encoding="utf-8")
    result = train(
        SegmentationRecipe.read(recipe, changes=["run.epochs=1", "measure.scales=[1.0]", "measure.flip=false"])
    )
    assert set(result.metrics) == {"val.accuracy", "val.miou", "val.beta"}


def test_voc_trains_on_the_list_behind_the_mark(recipe: Path, tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(1, 21):
        for folder, name in (("SegmentationClassAug", f"a{i}"), ("SegmentationClass", f"v{i}")):
            Image.new("L", (24, 24), i).save(root / folder / f"{name}.png")
            Image.new("RGB", (24, 24), (i, 9, 9)).save(root / "JPEGImages" / f"{name}.jpg")
    for split, letter in (("trainaug", "a"), ("val", "v")):
        names = "".join(f"{letter}{i}\n" for i in range(1, 21))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    text = RECIPE.split("[data]")[0] + '[data]\nimages = "voc:VOC2012#trainaug"\nsize = 32\n[encoder]'
    recipe.write_text(text + RECIPE.split("[encoder]")[1], encoding="utf-8")
    opened = SegmentationRecipe.read(recipe).open(Transform(32, fit="squash"), cache=tmp_path)
    assert [len(opened.sets[name]) for name in ("train", "val")] == [20, 20]
    assert torch.equal(opened.sets["train"].labels, torch.eye(20))
    with pytest.raises(
        InputError, match="no list of the split 'train' in ImageSets/Segmentation; there are trainaug, val"
    ):
        SegmentationRecipe.read(recipe, changes=["data.images=voc:VOC2012"]).open(Transform(32), cache=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.multi_label=false"], "0/1 labels: data.multi_label = true"),
        (["measure.split=3"], "nearest is 'splits'"),
        (['measure.splits=["novel"]'], "unknown split 'novel'"),
        (['measure.splits=["train"]'], "'train' has no masks"),
        (['loss=[{kind="cpnn"}]'], "nearest is 'cpn'"),
        (['loss=[{kind="proxy_anchor"}]'], "0/1"),
    ],
)
def test_what_does_not_fit_is_refused(recipe: Path, cache: Path, changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(SegmentationRecipe.read(recipe, changes=changes), cache=cache)


def test_settings_of_the_measure_are_checked() -> None:
    with pytest.raises(InputError, match="betas in"):
        MeasureSettings(betas=(1.5,))
    assert MeasureSettings(scales=(1.0,), flip=False).multiple is None


def test_a_set_without_outlines_has_no_masks() -> None:
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    data = TrainingSet.from_pixels(pixels, torch.eye(2), transform=Transform(8))
    with pytest.raises(InputError, match="has no masks"):
        masks_of(data, "test")


@pytest.mark.parametrize("name", ["cpn", "cpn_sweeps"])
def test_every_variant_of_the_recipes_reads_and_its_losses_build(name: str) -> None:
    file = Path(__file__).parents[3] / "recipes" / f"{name}.toml"
    encoder = Encoder.load(
        "wrn28_10", weights="random", options={"depth": 10, "width": 1, "stride": 2}, transform=Transform(96)
    )
    context = TermContext(encoder, ["a", "b"], multi_label=True)
    for variant in RecipeFile.read(file).variants:
        recipe = SegmentationRecipe.read(file, variant=variant)
        build_objective(recipe.loss, context, terms=SEGMENTATION_TERMS)
