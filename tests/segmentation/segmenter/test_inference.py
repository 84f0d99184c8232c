"""Class scores in an image's pixels: scales, mirror images, absent classes, and where the maps come from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.errors import InputError, WeightsError
from distcam.images import Transform
from distcam.segmentation.data import MaskedImages
from distcam.segmentation.pseudo_masks.sources import ClassifierMaps, WeakSegmenter, load_source, network_of
from distcam.segmentation.segmenter.inference import (
    InferenceSettings,
    class_scores,
    max_normalised,
    predicted_classes,
    score_images,
)
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes
from distcam.training.losses.classifier import ClassifierTerm, save_classifier

TRANSFORM = Transform((16, 32), fit="squash")
ONCE = InferenceSettings(scales=(1.0,), flip=False)


class Fixed:
    """Maps that are a fixed function of the pixels: brightness, and its opposite."""

    class_names = ("bright", "dark", "never")
    transform = TRANSFORM

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.labels: list[torch.Tensor | None] = []

    def class_maps(self, images, *, refined=True, labels=None):
        self.sizes.append(tuple(images.shape))
        self.labels.append(labels)
        grey = functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        return torch.cat([grey, -grey, torch.full_like(grey, -1.0)], 1)


@pytest.fixture(scope="module")
def picture():
    values = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    values[:, :20] //= 4
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    written = write_scenes(folder, classes=blueprints(3), splits={"test": 2}, size=32, masks=True, two_object_share=0)
    return MaskedImages.from_scenes(written, "test")


def trained(*, pooling="gap", head="linear"):
    encoder = Encoder.load(
        "conv4", weights="random", transform=Transform(32, fit="squash"), pooling=pooling, options={"width": 8}
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        classifier = ClassifierTerm(encoder.embedding_dim, 3, multi_label=True, head=head)
    return encoder, classifier.eval()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_one_look_is_the_enlarged_positive_part_over_its_maximum(picture) -> None:
    source = Fixed()
    scores = class_scores(source, picture, settings=ONCE)
    pixels = TRANSFORM.normalise(TRANSFORM(picture)[None])
    maps = source.class_maps(pixels).clamp(min=0)
    large = functional.interpolate(maps, (24, 40), mode="bilinear", align_corners=False)[0]
    expected = large / large.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert scores.shape == (3, 24, 40)
    assert np.allclose(scores, expected.numpy(), atol=1e-6)
    assert (scores[2] == 0).all()


def test_scales_and_mirror_images_are_summed_before_they_are_scaled(picture) -> None:
    source = Fixed()
    scores = class_scores(source, picture, settings=InferenceSettings(scales=(0.5, 2.0), flip=True))
    assert source.sizes == [(2, 3, 8, 16), (2, 3, 32, 64)]
    total = torch.zeros(3, 24, 40)
    for scale in (0.5, 2.0):
        for mirrored in (False, True):
            size = (round(16 * scale), round(32 * scale))
            resized = TRANSFORM.adapted(size=size)
            pixels = resized.normalise(resized(picture)[None])
            maps = source.class_maps(pixels.flip(-1) if mirrored else pixels).clamp(min=0)
            maps = maps.flip(-1) if mirrored else maps
            total += functional.interpolate(maps, (24, 40), mode="bilinear", align_corners=False)[0]
    assert np.allclose(scores, max_normalised(total).numpy(), atol=1e-6)


def test_a_mirrored_picture_has_mirrored_scores(picture) -> None:
    settings = InferenceSettings(scales=(1.0, 1.5), flip=True)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    once, again = (class_scores(Fixed(), each, settings=settings) for each in (picture, mirrored))
    assert np.allclose(once, again[:, :, ::-1], atol=2e-2)  # a resized mirror image differs in its rounding


def test_classes_that_are_not_shown_have_no_score(picture) -> None:
    source = Fixed()
    scores = class_scores(source, picture, shown=[1], settings=InferenceSettings(scales=(1.0,)))
    assert scores[0].max() == 0
    assert scores[1].max() == 1
    assert source.labels[0].tolist() == [[0, 1, 0]] * 2


def test_the_pictures_own_size_keeps_its_proportions(picture) -> None:
    source = Fixed()
    class_scores(source, picture, settings=InferenceSettings(scales=(0.5, 1.0), flip=False, base="image"))
    assert source.sizes == [(1, 3, 12, 20), (1, 3, 24, 40)]


def test_predicted_classes_are_those_with_a_positive_logit_or_the_best(picture) -> None:
    dark = Image.new("RGB", (20, 20), (0, 0, 0))
    assert predicted_classes(Fixed(), dark) == (1,)
    told = SimpleNamespace(
        class_names=Fixed.class_names, transform=TRANSFORM, presence=lambda images: torch.tensor([[-3.0, -2.0, -9.0]])
    )
    assert predicted_classes(told, picture) == (1,)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="expected scales above 0 and up to 8"):
        InferenceSettings(scales=())
    with pytest.raises(InputError, match="expected scales above 0 and up to 8"):
        InferenceSettings(scales=(1.0, 0.0))


# --- classifiers ------------------------------------------------------------------------------------------------------


def test_cam_and_grad_cam_are_one_picture_behind_average_pooling(picture) -> None:
    encoder, classifier = trained()
    names = ["a", "b", "c"]
    cam = class_scores(ClassifierMaps(encoder, classifier, names), picture)
    grad = class_scores(ClassifierMaps(encoder, classifier, names, method="gradcam"), picture)
    assert np.allclose(cam, grad, atol=1e-5)


@pytest.mark.parametrize(("pooling", "head"), [("gap", "cosine"), ("gem", "linear")])
def test_grad_cam_in_closed_form_is_that_of_autograd(pooling, head) -> None:
    encoder, classifier = trained(pooling=pooling, head=head)
    source = ClassifierMaps(encoder, classifier, ["a", "b", "c"], method="gradcam")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = source.class_maps(images)
    feature_map = encoder(images).feature_map.detach().requires_grad_()
    logits = classifier.logits(encoder.head(encoder.pooling(feature_map)))
    for c in range(3):
        (gradient,) = torch.autograd.grad(logits[:, c].sum(), feature_map, retain_graph=True)
        slow = (gradient.sum((2, 3), keepdim=True) * feature_map).sum(1)
        assert torch.allclose(maps[:, c], slow, atol=1e-5)


def test_the_encoder_stays_in_the_mode_it_had() -> None:
    encoder, classifier = trained()
    encoder.train()
    ClassifierMaps(encoder, classifier, ["a", "b", "c"]).class_maps(torch.zeros(1, 3, 32, 32))
    assert encoder.training
    with pytest.raises(InputError, match="2 names of classes for 3 class weights"):
        ClassifierMaps(encoder, classifier, ["a", "b"])


def test_what_training_left_is_found_again(tmp_path, scenes) -> None:
    encoder, classifier = trained()
    encoder.save(tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match=r"gives no class maps; expected a weak segmenter, or an encoder beside"):
        load_source(tmp_path)
    save_classifier(tmp_path / "classifier.safetensors", classifier, scenes.class_names, fingerprint="other")
    with pytest.raises(WeightsError, match="belongs to another encoder"):
        load_source(tmp_path)
    save_classifier(
        tmp_path / "classifier.safetensors", classifier, scenes.class_names, fingerprint=encoder.fingerprint
    )
    source = load_source(tmp_path)
    again = load_source(tmp_path / "encoder.safetensors", method="gradcam")
    image = scenes.image(0)
    assert np.allclose(class_scores(source, image), class_scores(again, image), atol=1e-5)
    pixels = source.transform.normalise(source.transform(image)[None])
    assert torch.allclose(network_of(source).model(pixels), classifier.logits(encoder.eval()(pixels).embedding))
    with pytest.raises(InputError, match="Fixed does not say which classes an image shows"):
        network_of(Fixed())


def test_a_weak_segmenter_is_found_and_scores_every_picture(tmp_path, scenes) -> None:
    encoder, classifier = trained()
    WeakSegmenter(encoder, classifier.class_weights().detach(), scenes.class_names).save(
        tmp_path / "weak_segmenter.safetensors"
    )
    source = load_source(tmp_path)
    assert source.class_names == scenes.class_names
    done = []
    found = dict(score_images(source, scenes, settings=ONCE, progress=lambda *step: done.append(step)))
    assert done[-1] == (6, 6)
    for i, scores in found.items():
        assert scores.shape == (3, 32, 32)
        assert [c for c in range(3) if scores[c].any()] in ([], list(scenes.labels(i)))
    other = SimpleNamespace(class_names=("x", "y"))
    with pytest.raises(InputError, match="the model knows the classes x, y"):
        next(score_images(other, scenes))


def test_a_number_that_is_no_class_is_refused(picture) -> None:
    for wrong in (-1, 3):
        with pytest.raises(InputError, match=f"the image shows class {wrong}; expected 0 to 2"):
            class_scores(Fixed(), picture, shown=[0, wrong])


def test_a_scale_that_leaves_too_few_pixels_is_named(picture) -> None:
    encoder = Encoder.load("conv4", weights="random", options={"width": 8}, transform=Transform(32))
    source = ClassifierMaps(encoder, ClassifierTerm(encoder.pooled_dim, 2, multi_label=True), ("a", "b"))
    with pytest.raises(InputError, match=r"scale 0\.1 makes an input of 3 x 3 pixels"):
        class_scores(source, picture, settings=InferenceSettings(scales=(0.1,)))


def test_maps_of_three_pixels_are_scaled_as_by_hand() -> None:
    scaled = max_normalised(torch.tensor([[[2.0, -1.0, 4.0]], [[-1.0, 0.0, -3.0]]]))
    assert scaled.tolist() == [[[0.5, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]
