"""The segmentation network, its losses, and the way from image-level labels to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from distcam.datasets.masked_images import VocFolder
from distcam.encoders import Encoder
from distcam.errors import InputError, WeightsError
from distcam.explain import PixelScore, explain_image
from distcam.images import Transform
from distcam.segmentation.data import MaskedImages
from distcam.segmentation.pipeline import run_segmentation, score_segmenter
from distcam.segmentation.pipeline_recipe import PipelineRecipe, is_pipeline
from distcam.segmentation.pseudo_masks.make import make_masks
from distcam.segmentation.pseudo_masks.refining import CrfSettings, dense_crf
from distcam.segmentation.pseudo_masks.sources import load_source
from distcam.segmentation.segmenter.inference import InferenceSettings
from distcam.segmentation.segmenter.losses import (
    SEGMENTER_TERMS,
    Constrain,
    Expand,
    PixelCrossEntropy,
    Pooled,
    dense_labels,
    dense_training_set,
    rank_pooled,
)
from distcam.segmentation.segmenter.segmenter import build_segmenter, class_probabilities, load_segmenter
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training.data.augment import AugmentSettings
from distcam.training.data.batches import TrainingBatches
from distcam.training.data.samplers import SamplerSettings, make_sampler, shuffled
from distcam.training.engine.loop import fit
from distcam.training.engine.step import Batch, Mix, Regions, Step, TrainingProgress
from distcam.training.losses.registry import TermContext, build_objective
from distcam.training.recipes.recipe import RecipeFile
from distcam.training.recipes.settings import OptimiserSettings, Settings

SMALL = {"encoder": "conv4", "encoder_options": {"width": 8, "last_pool": False}, "hidden": 8}
TRANSFORM = Transform(32, fit="squash")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    written = write_scenes(
        folder, classes=blueprints(2), splits={"train": 6, "test": 2}, size=32, masks=True, two_object_share=0.5
    )
    return MaskedImages.from_scenes(written)


def small(names=("cat", "dog"), **options):
    return build_segmenter("light", names, weights="random", transform=TRANSFORM, options=SMALL, **options)


def step_of(logits, labels, regions=None, mix=None, size=(4, 4)):
    """A step whose encoder answers with these logits."""

    class Answer(torch.nn.Module):
        def forward(self, images):
            pooled = logits.mean((-2, -1))
            from distcam.encoders import Encoding

            return Encoding(logits, pooled, pooled)

    images = torch.zeros(len(logits), 3, *size)
    batch = Batch(images, torch.tensor(labels), torch.arange(len(logits)), regions, mix)
    return Step(Answer(), batch, TrainingProgress(0, 1, 0))


def regions_of(*masks):
    """The regions of masks, one for each number but 255."""
    row, number, raster = [], [], []
    for i, mask in enumerate(masks):
        for value in sorted(set(np.unique(mask).tolist()) - {255}):
            row.append(i)
            number.append(value)
            raster.append(torch.from_numpy((np.asarray(mask) == value).astype(np.float32)))
    return Regions(
        torch.tensor(row), torch.tensor(number), torch.zeros(len(row), dtype=torch.bool), torch.stack(raster)
    )


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["light", "lraspp_mobilenet_v3_large"])
def test_a_network_survives_its_file(architecture, tmp_path) -> None:
    options = SMALL if architecture == "light" else {}
    segmenter = build_segmenter(
        architecture, ["cat", "dog"], weights="random", transform=TRANSFORM, options=options, seed=3
    )
    segmenter.metadata = {"note": "kept"}
    segmenter.save(tmp_path / "net.safetensors")
    loaded = load_segmenter(tmp_path / "net.safetensors")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    assert np.array_equal(class_probabilities(segmenter, image), class_probabilities(loaded, image))
    assert (loaded.class_names, loaded.metadata) == (("cat", "dog"), {"note": "kept"})
    assert loaded.fingerprint == segmenter.fingerprint
    Encoder.load("conv4", weights="random", options={"width": 8}).save(tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match="holds no segmentation network"):
        load_segmenter(tmp_path / "encoder.safetensors")


def test_probabilities_lie_in_the_pictures_pixels_and_sum_to_one() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    found = class_probabilities(small(), image, settings=InferenceSettings(scales=(1.0, 2.0), flip=True))
    assert found.shape == (3, 24, 40)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    mirrored = class_probabilities(
        small(), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), settings=InferenceSettings(scales=(1.0,), flip=True)
    )
    once = class_probabilities(small(), image, settings=InferenceSettings(scales=(1.0,), flip=True))
    assert np.allclose(once, mirrored[:, :, ::-1], atol=1e-2)


def test_it_can_be_explained_as_any_segmentation_network() -> None:
    network = small().network()
    assert (network.kind, network.classes, network.n_classes) == ("segmenter", ("background", "cat", "dog"), 3)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert network.model(pixels)["out"].shape == (1, 3, 32, 32)
    found = explain_image(network.model, pixels, target=PixelScore(1, "all"), method="hirescam", layer=network.layer)
    assert found.maps.shape[-2:] == (4, 4)


def test_an_encoder_that_was_trained_gives_its_backbone(tmp_path) -> None:
    encoder = Encoder.load(
        "conv4", weights="random", transform=TRANSFORM, options={"width": 8, "last_pool": False}, seed=5
    )
    encoder.save(tmp_path / "encoder.safetensors")
    segmenter = build_segmenter(
        "light", ["cat", "dog"], transform=TRANSFORM, weights=tmp_path / "encoder.safetensors", options={"hidden": 8}
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(segmenter.backbone(images), encoder(images).feature_map)
    segmenter.save(tmp_path / "net.safetensors")
    loaded = load_segmenter(tmp_path / "net.safetensors")
    assert torch.equal(loaded(images).feature_map, segmenter(images).feature_map)


def test_unknown_names_and_options_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no segmentation network 'deeplab'; nearest: .*deeplabv3_resnet"):
        build_segmenter("deeplab", ["a"], weights="random", transform=TRANSFORM)
    with pytest.raises(
        InputError, match="unknown option of light 'width', nearest is 'hidden'; there are dilation, encoder"
    ):
        build_segmenter("light", ["a"], weights="random", transform=TRANSFORM, options={"width": 3})
    with pytest.raises(InputError, match="torchvision's lraspp_mobilenet_v3_large takes no options, got width"):
        build_segmenter("lraspp_mobilenet_v3_large", ["a"], weights="random", transform=TRANSFORM, options={"width": 3})
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        small().save(tmp_path / "net.pt")


# --- masks as regions of a batch --------------------------------------------------------------------------------------


def test_masks_come_back_from_the_regions_of_a_batch(scenes) -> None:
    data = dense_training_set(scenes, TRANSFORM)
    batches = TrainingBatches(data, shuffled(len(data), 4, seed=0))
    for batch in batches.epoch(0):
        for row, i in enumerate(batch.index.tolist()):
            assert np.array_equal(dense_labels(batch)[row].numpy(), scenes.mask(i))


def test_masks_move_with_their_pictures(scenes) -> None:
    data = dense_training_set(scenes, TRANSFORM)
    settings = AugmentSettings(flip=1.0, shift=0.0)
    batch = next(TrainingBatches(data, shuffled(len(data), 4, seed=0), augment=settings).epoch(0))
    for row, i in enumerate(batch.index.tolist()):
        assert np.array_equal(dense_labels(batch)[row].numpy(), scenes.mask(i)[:, ::-1])
    moved = AugmentSettings(flip=0.0, shift=0.3)
    shifted = dense_labels(next(TrainingBatches(data, shuffled(len(data), 4, seed=0), augment=moved).epoch(0)))
    assert (shifted == 255).any()  # what moved in from outside is undecided


def test_pictures_without_masks_teach_nothing(scenes, tmp_path) -> None:
    with pytest.raises(InputError, match="has no mask to learn from"):
        dense_training_set(scenes.without_masks(), TRANSFORM)
    for name in scenes.names:
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(file)
    with pytest.raises(InputError, match="none of the 12 masks has a decided pixel; lower the threshold"):
        dense_training_set(scenes.with_masks(tmp_path), TRANSFORM)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_cross_entropy_of_the_decided_pixels_by_hand() -> None:
    mask = np.full((4, 4), 255)
    mask[0, :3], mask[1, 0] = 0, 1
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1, 1, 0] = 3.0
    step = step_of(logits, [[1.0]], regions_of(mask))
    of_background, of_class = np.log(2), np.log(1 + np.exp(-3.0))
    assert float(PixelCrossEntropy()(step)) == pytest.approx((3 * of_background + of_class) / 4, rel=1e-5)
    assert float(PixelCrossEntropy(balance="background")(step)) == pytest.approx(
        (of_background + of_class) / 2, rel=1e-5
    )
    assert step.log["accuracy"] == 1.0
    nothing = step_of(logits.requires_grad_(), [[1.0]])
    value = PixelCrossEntropy()(nothing)
    assert float(value.detach()) == 0
    assert value.requires_grad


def test_pooled_logits_leave_the_background_out() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = [[1.0, 0.0], [1.0, 1.0]]
    expected = functional.multilabel_soft_margin_loss(logits[:, 1:].mean((2, 3)), torch.tensor(labels))
    assert torch.allclose(Pooled()(step_of(logits, labels)), expected)
    expected = functional.multilabel_soft_margin_loss(logits[:, 1:].amax((2, 3)), torch.tensor(labels))
    assert torch.allclose(Pooled(pooling="max")(step_of(logits, labels)), expected)


def test_rank_pooling_lies_between_the_maximum_and_the_mean() -> None:
    probabilities = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rank_pooled(probabilities, 0.0), probabilities.amax((2, 3)))
    assert torch.allclose(rank_pooled(probabilities, 1.0), probabilities.mean((2, 3)))
    between = [float(rank_pooled(probabilities, decay)[0, 0]) for decay in (0.0, 0.5, 0.9, 1.0)]
    assert between == sorted(between, reverse=True)


def test_expansion_by_hand() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    probabilities = logits.softmax(1)[0]

    def pooled(values, decay):
        decay = decay ** (41 * 41 / 4)
        weights = [decay**j if decay else float(j == 0) for j in range(4)]
        ordered = sorted(values.flatten().tolist(), reverse=True)
        return sum(w * v for w, v in zip(weights, ordered, strict=True)) / sum(weights)

    expected = (
        -np.log(pooled(probabilities[1], 0.996))
        - np.log(1 - pooled(probabilities[2], 0.0))
        - np.log(pooled(probabilities[0], 0.999))
    )
    assert float(Expand()(step_of(logits, [[1.0, 0.0]]))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match=r"expected the decay shown in \[0, 1\], got 2"):
        Expand(shown=2)


def test_constraining_is_the_divergence_from_the_crf() -> None:
    pytest.importorskip("pydensecrf", reason="the dense CRF needs pip install 'distcam[crf]'")
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    step = step_of(logits, [[1.0]], size=(8, 8))
    colours = (TRANSFORM.denormalise(step.batch.images)[0].clamp(0, 1) * 255).round().byte()
    picture = Image.fromarray(colours.permute(1, 2, 0).numpy())
    wanted = dense_crf(picture, logits.softmax(1)[0].detach().numpy(), settings=CrfSettings().scaled(8 / 500))
    wanted = torch.from_numpy(wanted).clamp(min=1e-4)
    wanted = wanted / wanted.sum(0)
    expected = (wanted * (wanted.log() - logits.softmax(1)[0].log())).sum(0).mean()
    value = Constrain(TRANSFORM)(step)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), abs=1e-3)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.abs().sum() > 0


def test_losses_want_columns_and_unmixed_images() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    with pytest.raises(InputError, match="a segmentation network learns from 0/1 columns, one per class; got labels"):
        Pooled()(step_of(logits, [0, 1]))
    with pytest.raises(InputError, match="a segmentation network cannot learn from blended images"):
        Expand()(step_of(logits, [[1.0, 0.0]] * 2, mix=Mix(torch.tensor([1, 0]), 0.5)))
    with pytest.raises(InputError, match="unknown option of pixels 'balanced', nearest is 'balance'"):
        build_objective([{"kind": "pixels", "balanced": 1}], TermContext(small(), ["a", "b"]), terms=SEGMENTER_TERMS)


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_one_loop_trains_it_and_leaves_a_file(scenes, tmp_path) -> None:
    data = dense_training_set(scenes, TRANSFORM)
    segmenter = small(scenes.class_names)
    context = TermContext(segmenter, data.class_names, multi_label=True)
    objective = build_objective([{"kind": "pixels", "balance": "background"}], context, terms=SEGMENTER_TERMS)
    sampler = make_sampler(SamplerSettings(batch_size=6), data.labels)
    settings = Settings(epochs=12, optimiser=OptimiserSettings(learning_rate=1e-2))
    result = fit(segmenter, TrainingBatches(data, sampler), objective, settings, folder=tmp_path / "run")
    assert result.loss_per_epoch[-1] < 0.8 * result.loss_per_epoch[0]
    loaded = load_segmenter(tmp_path / "run" / "encoder.safetensors")
    assert loaded.fingerprint == segmenter.fingerprint
    assert loaded.metadata["training"]["epochs"] == 12
    score = score_segmenter(loaded, scenes)
    assert score.pixel_accuracy > 0.4
    with pytest.raises(InputError, match="the model knows the classes cat, dog"):
        score_segmenter(small(), scenes)


RECIPE = """
name = "tiny"
[data]
size = 32
scenes = {{ classes = 2, train = 4, test = 2, size = 32 }}
[weak.encoder]
architecture = "conv4"
options = {{ width = 8, last_pool = false }}
[[weak.loss]]
kind = "cross_entropy"
[weak.run]
epochs = 1
[cues]
inference = {{ scales = [1.0], flip = false }}
{cues}
[segmenter]
weights = "weak"
options = {{ hidden = 8 }}
run = {{ epochs = 1 }}
[variants.outlined]
data = {{ outlined = 2, outlines = "box" }}
weak.loss.gain = {{ kind = "gain" }}
[variants.truth]
cues = {{ kind = "truth" }}
segmenter.weights = "random"
"""


def written_recipe(folder, cues=""):
    file = folder / "tiny.toml"
    file.write_text(RECIPE.format(cues=cues))
    return file


def test_a_recipe_may_put_a_crf_behind_its_network(scenes, tmp_path, monkeypatch) -> None:
    file = written_recipe(tmp_path)
    asked = PipelineRecipe.read(file, changes=["segmenter.refine=crf", "segmenter.crf.steps=3"]).network
    assert (asked.refine, asked.crf.steps) == ("crf", 3)
    with pytest.raises(InputError, match="crf is not used by refine 'none'"):
        PipelineRecipe.read(file, changes=["segmenter.crf.steps=3"])
    seen = []

    def least_likely(image, scores, *, settings):
        seen.append(settings)
        return scores.max() - scores

    monkeypatch.setattr("distcam.segmentation.pipeline.dense_crf", least_likely)
    segmenter = small(scenes.class_names)
    plain, refined = (score_segmenter(segmenter, scenes, crf=crf) for crf in (None, asked.crf))
    assert seen == [asked.crf] * len(scenes)
    assert plain.confusion.tolist() != refined.confusion.tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe's whole run: the folder of recipe, scenes and run, the recipe, and the result."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = PipelineRecipe.read(written_recipe(folder))
    return folder, recipe, run_segmentation(recipe, folder=folder / "run", cache=folder, seed=1)


def test_a_whole_run_leaves_maps_masks_and_a_network_and_can_be_taken_up_again(whole) -> None:
    tmp_path, recipe, result = whole
    assert is_pipeline(RecipeFile.read(tmp_path / "tiny.toml"))
    wanted = {"maps.mean_iou", "maps.beta", "masks.coverage", "masks.accuracy", "masks.mean_iou", "test.mean_iou"}
    assert wanted <= set(result.metrics)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"weak", "masks", "network", "segmenter.safetensors", "result.json"} <= names
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["metrics"]["test.mean_iou"] == pytest.approx(result.metrics["test.mean_iou"])
    with pytest.raises(InputError, match="holds a run already"):
        run_segmentation(recipe, folder=tmp_path / "run", cache=tmp_path, seed=1)
    again = run_segmentation(recipe, folder=tmp_path / "run", cache=tmp_path, seed=1, resume=True)
    assert again.metrics == result.metrics
    with pytest.raises(InputError, match="cannot resume"):
        run_segmentation(recipe, folder=tmp_path / "run", cache=tmp_path, seed=2, resume=True)


@pytest.mark.parametrize(
    "cues",
    [
        'kind = "pseudo_masks"\nbeta = "best"',
        'kind = "pseudo_masks"\nrefine = "walk"\nwalk = { steps = 4, radius = 2, side = 16 }',
        'refine = "affinity"\naffinity = { epochs = 1, dim = 4, radius = 1 }\nwalk = { steps = 4, radius = 2 }',
    ],
)
def test_masks_can_be_made_in_several_ways(cues, whole, tmp_path) -> None:
    recipe, drawn = PipelineRecipe.read(written_recipe(tmp_path, cues)), whole[0] / "scenes"
    data = recipe.data.load("train", folder=tmp_path, cache=drawn)
    masks = VocFolder(tmp_path / "masks", data.class_names, settings={})
    metrics = make_masks(load_source(whole[0] / "run" / "weak"), data, masks, stage=recipe.cues)
    assert 0 < metrics["masks.coverage"] <= 1
    if "pseudo" in cues:
        assert metrics["masks.coverage"] == 1
    if "best" in cues:
        assert metrics["masks.mean_iou"] == pytest.approx(metrics["maps.mean_iou"])


def test_variants_have_outlines_or_the_truth(whole) -> None:
    file, drawn = whole[0] / "tiny.toml", whole[0]
    outlined = PipelineRecipe.read(file, variant="outlined")
    assert (outlined.data.outlined, outlined.data.outlines, len(outlined.weak.loss)) == (2, "box", 2)
    assert "masks.accuracy" in run_segmentation(outlined, cache=drawn).metrics
    truth = PipelineRecipe.read(
        file, variant="truth", changes=["segmenter.options.encoder=conv4", "segmenter.options.encoder_options.width=8"]
    )
    assert truth.weak is None
    assert set(run_segmentation(truth, cache=drawn).metrics) >= {"test.mean_iou", "test.pixel_accuracy"}


def test_recipes_that_do_not_fit_are_refused(tmp_path) -> None:
    def table(**changes):
        return {"data": {"scenes": {"classes": 2}}, "weak": {"checkpoint": "x"}, **changes}

    with pytest.raises(InputError, match="unknown table or key of the recipe 'cue', nearest is 'cues'"):
        PipelineRecipe.from_dict(table(cue={}))
    with pytest.raises(InputError, match=r"expected one of scenes, voc, camvid, .*images; got scenes and voc"):
        PipelineRecipe.from_dict(table(data={"scenes": {}, "voc": "x"}))
    for seed in ("a", 1.7, True):
        with pytest.raises(InputError, match=f"seed: expected a whole number, got {seed!r}"):
            PipelineRecipe.from_dict(table(seed=seed))
    with pytest.raises(InputError, match=r"\[weak\] needs a checkpoint, or a \[\[weak.loss\]\].*; got neither"):
        PipelineRecipe.from_dict(table(weak={}))
    for name in ("data", "weak", "cues", "segmenter"):
        with pytest.raises(InputError, match=f"{name}: expected a table, got 3"):
            PipelineRecipe.from_dict(table(**{name: 3}))
    with pytest.raises(
        InputError, match=r"\[segmenter.augment\]: masks do not go with mixup, cutmix or manifold_mixup"
    ):
        PipelineRecipe.from_dict(table(segmenter={"augment": {"mixup": 0.2}}))
    with pytest.raises(InputError, match=r"unknown key in .segmenter. 'wieghts', nearest is 'weights'"):
        PipelineRecipe.from_dict(table(segmenter={"wieghts": "random"}))
    with pytest.raises(InputError, match="boxed are further images beside those of outlines"):
        PipelineRecipe.from_dict(table(data={"voc": "x", "outlined": 2, "outlines": "box", "boxed": 2}))
    few = {"scenes": {"classes": 2, "train": 1, "test": 1, "size": 32}}
    nothing = PipelineRecipe.from_dict({"data": few, "cues": {"kind": "truth"}})
    with pytest.raises(InputError, match="the recipe trains nothing"):
        run_segmentation(nothing, cache=tmp_path)
    unset = PipelineRecipe.from_dict(table(data={"voc": "$NOWHERE_AT_ALL/x"}))
    with pytest.raises(InputError, match="set the environment variable NOWHERE_AT_ALL"):
        run_segmentation(unset, cache=tmp_path)


RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("file", sorted(RECIPES.glob("segment_*.toml")), ids=lambda path: path.stem)
def test_every_variant_of_our_recipes_is_sound(file) -> None:
    assert is_pipeline(RecipeFile.read(file))
    for variant in (None, *RecipeFile.read(file).variants):
        recipe = PipelineRecipe.read(file, variant=variant)
        assert recipe.network is not None
        assert (recipe.weak is None) == (recipe.cues.kind == "truth")
        if recipe.data.outlined:
            assert [table["kind"] for table in recipe.weak.loss] == ["cross_entropy", "gain"]


def test_rank_pooling_of_two_pixels_comes_out_as_by_hand() -> None:
    pooled = rank_pooled(torch.tensor([[[[0.2, 0.8]]]]), 0.5)
    assert pooled.item() == pytest.approx((0.8 + 0.5 * 0.2) / 1.5)
