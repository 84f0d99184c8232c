"""Measures of an encoder in training: predictions, neighbours, and maps, beside what chance would give."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import top_k_accuracy_score
from torch import nn

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.explain import energy_in_box, peak_in_box, upsample
from distcam.images import Box, Transform
from distcam.training.data.outlines import RegionTable
from distcam.training.data.training_set import TrainingSet
from distcam.training.losses.classifier import ClassifierTerm
from distcam.training.recipes.evaluator import (
    METRICS,
    EvaluationSettings,
    Evaluator,
    energy_in_raster,
    rank_among_others,
    recall,
)

PLAIN = Transform(8, fit="squash", mean=(0, 0, 0), std=(1, 1, 1))


def recall_at(embeddings, labels, *, k, distance="cosine"):
    return recall(rank_among_others(embeddings, labels, distance), k)


def spots(count, classes=("red", "green", "blue")):
    """Images that are black but for one square in the class's colour; the squares are the regions."""
    generator = torch.Generator().manual_seed(count)
    pixels, raster = torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count, 8, 8, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    for i, (y, x) in enumerate(torch.randint(0, 6, (count, 2), generator=generator).tolist()):
        raster[i, y : y + 3, x : x + 3] = 1
        pixels[i, labels[i], y : y + 3, x : x + 3] = 255
    regions = RegionTable(torch.arange(count), labels, torch.zeros(count, dtype=torch.bool), raster)
    return TrainingSet.from_pixels(pixels, labels, transform=PLAIN, class_names=classes, regions=regions)


@pytest.fixture
def seeing():
    """An encoder whose feature map is the image, and a classifier that knows the colours."""
    encoder = Encoder(nn.Identity(), transform=PLAIN)
    classifier = ClassifierTerm(3, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(3))
        classifier.bias.zero_()
    return encoder, classifier


OF_FEW_CLASSES = tuple(name for name in METRICS if name not in ("accuracy_top_5", "presence_accuracy"))
ALL = EvaluationSettings(metrics=OF_FEW_CLASSES)


def test_one_who_sees_everything_gets_everything_right(seeing) -> None:
    encoder, classifier = seeing
    found = Evaluator({"train": spots(9), "test": spots(12)}, ALL, classifier=classifier)(encoder)
    for name in OF_FEW_CLASSES:
        assert found[f"test.{name}"] == pytest.approx(1), name
    assert found["test.energy_chance"] == pytest.approx(float(spots(12).regions.raster.float().mean()))


def test_a_classifier_that_is_blind_points_beside_the_object(seeing) -> None:
    encoder, classifier = seeing
    with torch.no_grad():
        classifier.weight.copy_(-torch.eye(3))
    sets = {"train": spots(9), "test": spots(12)}
    found = Evaluator(sets, ALL, classifier=classifier)(encoder)
    assert found["test.accuracy"] == 0
    assert found["test.energy_cam"] < 1e-6
    assert found["test.energy_gradcam"] == pytest.approx(found["test.energy_chance"])  # nothing is left of the map
    assert found["test.peak_cam"] == 0
    assert found["test.recall_at_1"] == 1


def test_splits_of_other_classes_are_measured_by_what_needs_no_classifier(seeing) -> None:
    encoder, classifier = seeing
    sets = {"train": spots(9), "novel": spots(12, ("a", "b", "c")), "test": spots(6)}
    settings = EvaluationSettings(metrics=("accuracy", "recall_at_1", "energy_cam", "energy_dist_cam"))
    found = Evaluator(sets, settings, classifier=classifier)(encoder)
    novel = {name for name in found if name.startswith("novel")}
    assert novel == {"novel.recall_at_1", "novel.energy_dist_cam", "novel.energy_chance"}
    assert found["novel.energy_dist_cam"] == pytest.approx(1)


def test_only_what_is_asked_for_is_computed(seeing) -> None:
    encoder, classifier = seeing
    sets = {"train": spots(9), "test": spots(12)}
    found = Evaluator(sets, ALL, classifier=classifier, only=["test.nmi", "train.accuracy"])(encoder)
    assert set(found) == {"test.nmi", "train.accuracy"}


def test_the_encoder_is_left_as_it_was(seeing) -> None:
    encoder, classifier = seeing
    encoder.train()
    encoder.pooling.eval()
    Evaluator({"train": spots(9), "test": spots(6)}, classifier=classifier)(encoder)
    assert encoder.training
    assert not encoder.pooling.training


def test_neighbours_agree_with_pytorch_metric_learning() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 5
    vectors = torch.randn(60, 4, generator=generator) + torch.nn.functional.one_hot(labels, 5)[:, :4]
    normalised = torch.nn.functional.normalize(vectors)
    peer = AccuracyCalculator(("precision_at_1",), k=1, device=torch.device("cpu"))
    assert recall_at(vectors, labels, k=1) == pytest.approx(peer.get_accuracy(normalised, labels)["precision_at_1"])
    distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    nearest = distances.argsort(1)[:, :4]
    expected = (labels[nearest] == labels[:, None]).any(1).float().mean()
    assert recall_at(vectors, labels, k=4, distance="l2") == pytest.approx(float(expected))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_equal_embeddings_find_nothing_first_in_whatever_order(distance) -> None:
    labels = torch.arange(50) // 5
    for order in (torch.arange(50), torch.randperm(50, generator=torch.Generator().manual_seed(0))):
        for vectors in (torch.full((50, 7), 0.3), torch.zeros(50, 7)):
            assert recall_at(vectors, labels[order], k=8, distance=distance) == 0
            assert recall_at(vectors, labels[order], k=49, distance=distance) == 1


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_order_of_a_split_changes_no_measure_of_neighbours(distance) -> None:
    encoder = Encoder(nn.Identity(), transform=PLAIN)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[20:35] = pixels[:15]  # copies, most of them in another class
    labels = torch.randint(0, 4, (40,), generator=generator)
    settings = EvaluationSettings(metrics=("recall_at_1", "recall_at_4", "map_at_r", "r_precision"), distance=distance)
    found = []
    for order in (torch.arange(40), torch.randperm(40, generator=generator)):
        data = TrainingSet.from_pixels(pixels[order], labels[order], transform=PLAIN, class_names=("a", "b", "c", "d"))
        found.append(Evaluator({"train": data, "test": data}, settings)(encoder))
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_a_classifier_that_prefers_no_class_is_right_nowhere(seeing) -> None:
    encoder, classifier = seeing
    with torch.no_grad():
        classifier.weight.zero_()
    sets = {"train": spots(9), "test": spots(12)}
    assert Evaluator(sets, EvaluationSettings(("accuracy",)), classifier=classifier)(encoder)["test.accuracy"] == 0


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        recall_at(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 0]), k=1)


def test_energy_in_a_raster_is_energy_in_its_box() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(5, 4, 4, generator=generator)
    box = Box(3, 5, 12, 14)
    raster = torch.zeros(5, 16, 16)
    raster[:, 5:14, 3:12] = 1
    shares, hits = energy_in_raster(maps, raster)
    for row, heat in enumerate(upsample(maps, 16)):
        assert float(shares[row]) == pytest.approx(energy_in_box(heat, box).share, rel=1e-5)
        assert bool(hits[row]) == peak_in_box(heat, box)
    flat_share, flat_hit = energy_in_raster(torch.ones(1, 4, 4), raster[:1])
    assert float(flat_share) == pytest.approx(81 / 256)
    assert not flat_hit.any()


def test_several_labels_count_as_right_if_the_highest_score_is_one_of_them(seeing) -> None:
    encoder, classifier = seeing
    data = spots(6)
    both = torch.nn.functional.one_hot(data.labels, 3).float()
    both[:3, 0] = 1
    several = TrainingSet.from_pixels(
        data.pixels(torch.arange(6)), both, transform=PLAIN, class_names=data.class_names, regions=data.regions
    )
    sets = {"train": several, "test": several}
    found = Evaluator(sets, EvaluationSettings(metrics=("accuracy", "energy_cam")), classifier=classifier)(encoder)
    assert found["test.accuracy"] == 1
    with pytest.raises(InputError, match="'recall_at_1' applies to none of the splits test"):
        Evaluator(sets, EvaluationSettings(), classifier=classifier)


def wheel(count):
    """Images of one level in one of seven channels that a classifier sees as they are."""
    labels = torch.arange(count) % 7
    data = TrainingSet.from_pixels(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), labels, transform=PLAIN)
    classifier = ClassifierTerm(3, 7)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([5.0, 4, 3, 2, 1, 0, 0]))
    return data, classifier


def test_the_top_five_are_those_of_scikit_learn_but_that_ties_are_lost(seeing) -> None:
    encoder, _ = seeing
    data, classifier = wheel(14)
    settings = EvaluationSettings(metrics=("accuracy", "accuracy_top_5"))
    found = Evaluator({"train": data, "test": data}, settings, classifier=classifier)(encoder)
    assert found == {"test.accuracy": pytest.approx(1 / 7), "test.accuracy_top_5": pytest.approx(5 / 7)}
    scores = classifier.bias.detach().expand(14, -1).numpy()
    oracle = top_k_accuracy_score(data.labels.numpy(), scores, k=5)
    assert found["test.accuracy_top_5"] == pytest.approx(oracle)
    with torch.no_grad():
        classifier.bias.zero_()
    assert (
        Evaluator({"train": data, "test": data}, settings, classifier=classifier)(encoder)["test.accuracy_top_5"] == 0
    )


def test_the_presence_of_every_class_is_right_or_wrong_by_itself(seeing) -> None:
    encoder, classifier = seeing
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
    pixels += seen[:, :, None, None].to(torch.uint8) * 200
    truth = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]])
    data = TrainingSet.from_pixels(pixels, truth, transform=PLAIN, class_names=("boat", "water", "bird"))
    settings = EvaluationSettings(metrics=("presence_accuracy",))
    found = Evaluator({"train": data, "test": data}, settings, classifier=classifier)(encoder)
    each = {"boat": 0.75, "water": 0.75, "bird": 1.0}
    expected = {f"test.presence_accuracy.{name}": value for name, value in each.items()}
    assert found == pytest.approx({"test.presence_accuracy": 2.5 / 3, **expected})


def test_what_cannot_be_measured_is_said(seeing) -> None:
    _, classifier = seeing
    sets = {"train": spots(9), "test": spots(6)}
    with pytest.raises(InputError, match="'accuracy' applies to none of the splits test: predictions"):
        Evaluator(sets)
    for metric in ("accuracy_top_5", "presence_accuracy"):
        with pytest.raises(InputError, match=f"'{metric}' applies to none of the splits test: .*six or more"):
            Evaluator(sets, EvaluationSettings(metrics=(metric,)), classifier=classifier)
    with pytest.raises(InputError, match="unknown split 'tset', nearest is 'test'"):
        Evaluator(sets, EvaluationSettings(splits=("tset",)), classifier=classifier)
    with pytest.raises(InputError, match="unknown metric 'acuracy', nearest is 'accuracy'"):
        EvaluationSettings(metrics=("acuracy",))
    with pytest.raises(InputError, match=r"test.accuracy cannot be measured"):
        Evaluator(sets, EvaluationSettings(metrics=("nmi",)), only=["test.accuracy"])


def test_the_energy_of_four_pixels_comes_out_as_by_hand() -> None:
    maps, outline = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    share, hit = energy_in_raster(maps, outline)
    assert (share.tolist(), hit.tolist()) == ([0.75], [1.0])
