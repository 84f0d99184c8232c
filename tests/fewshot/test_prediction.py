"""Answers by a few labelled vectors: classes of different sizes, the maps' logits, and calibration on the support."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from distcam import DistcamWarning
from distcam.errors import InputError
from distcam.fewshot.methods import METHODS, classifier_of
from distcam.fewshot.prediction import Support


@pytest.fixture
def ways():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(k, 6, generator=generator, dtype=torch.float64) + 2 * torch.eye(6, dtype=torch.float64)[way]
        for way, k in enumerate((1, 3, 4))
    )


@pytest.fixture
def query(ways):
    return torch.cat([way[:1] + 0.1 for way in ways])


def test_prototypes_are_the_means_of_classes_of_different_sizes(ways, query) -> None:
    found = Support(classifier_of("simpleshot-l2n"), ways).logits(query).softmax(1)
    means = torch.stack([normalize(way, dim=1).mean(0) for way in ways])
    distances = (normalize(query, dim=1)[:, None] - means).square().sum(-1)
    torch.testing.assert_close(found, (-distances).softmax(1))


def test_the_nearest_neighbour_is_not_moved_by_repeated_images(ways, query) -> None:
    found = Support(classifier_of("nn"), ways).logits(query).softmax(1)
    nearest = torch.stack([torch.cdist(query, way).square().amin(1) for way in ways], 1)
    torch.testing.assert_close(found, (-nearest).softmax(1))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"proto-power", "simpleshot-cl2n"}))
def test_the_maps_explain_the_logits_that_answer(ways, query, method) -> None:
    support = Support(classifier_of(method), ways)
    answers = support.answers(query)
    assert answers is not None
    torch.testing.assert_close(answers.logits().softmax(1), support.logits(query).softmax(1))


def test_calibration_asks_images_by_the_others_of_their_class(ways) -> None:
    found = Support(classifier_of("proto"), ways).calibration()
    assert (found.n, found.source) == (7, "7 support images, each by the others")  # the first class has one alone
    assert found.accuracy == 1
    alone = Support(classifier_of("proto"), tuple(way[:1] for way in ways)).calibration()
    assert "not calibrated: there is one image per class" in str(alone)


def test_a_transductive_answer_needs_other_images_and_unequal_classes_are_named(ways, query) -> None:
    support = Support(classifier_of("bdcspn"), ways)
    with pytest.raises(InputError, match="ask about several"):
        support.logits(query[:1])
    assert (support.logits(query).argmax(1).numpy() == np.arange(3)).all()
    with pytest.warns(DistcamWarning, match="1 to 4 images, and bdcspn takes equally many"):
        support.say_repeats()
    with pytest.raises(InputError, match="two classes"):
        Support(classifier_of("proto"), ways[:1])
