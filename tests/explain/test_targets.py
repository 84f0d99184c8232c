"""Targets: the scalar by hand, what is settled on the unperturbed image, and what is refused."""

from __future__ import annotations

import doctest

import jaxtyping
import pytest
import torch
from torch import Tensor

import distcam.explain.targets as targets
from distcam.encoders import Encoding
from distcam.errors import InputError, ShapeError
from distcam.explain import METRICS, ClassScore, ComponentAt, PixelScore, Similarity, Target
from distcam.images.geometry import Box


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run-time shape checks off, as for users, so that the library's own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_doctests() -> None:
    assert doctest.testmod(targets).failed == 0


def test_all_three_are_targets() -> None:
    for target in (ClassScore(), PixelScore(0), Similarity(drawn(3))):
        assert isinstance(target, Target)


# --------------------------------------------------------------------------------------------------------- class score


@pytest.mark.parametrize(
    ("index", "asked"),
    [
        (1, [[1], [1]]),
        (torch.tensor([2, 0]), [[2], [0]]),
        (torch.tensor([[2, 0, 1]]), [[2, 0, 1], [2, 0, 1]]),
        (torch.tensor([[2, 2], [0, 1]]), [[2, 2], [0, 1]]),
    ],
)
def test_classes_are_given_for_all_images_or_for_each(index: int | Tensor, asked: list[list[int]]) -> None:
    logits = drawn(2, 3)
    assert torch.equal(ClassScore(index).fix(logits)(logits), logits.gather(1, torch.tensor(asked)))


def test_the_best_class_is_that_of_the_unperturbed_image() -> None:
    logits = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    score = ClassScore().fix(logits)
    assert score(logits).tolist() == [[2], [4]]
    assert score(-logits).tolist() == [[-2], [-4]]  # the other class is better now; the question stays the same


def test_rows_of_an_output_may_be_any_of_the_images() -> None:
    logits = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    score = ClassScore().fix(logits)
    assert score(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 1, 0])).tolist() == [[0], [2], [5]]


# ------------------------------------------------------------------------------------------------------- sets of pixels

#                       class 0 wins the left column and the lower right corner
LOGITS = torch.tensor([[[[5.0, 0.0, 1.0], [6.0, 0.0, 9.0]], [[0.0, 3.0, 2.0], [0.0, 4.0, 0.0]]]])


@pytest.mark.parametrize(
    ("pixels", "total"),
    [
        ("all", 21),
        ("predicted", 20),
        ("component", 11),  # the left column; the corner at the lower right touches nothing
        (ComponentAt(1, 0), 11),
        (ComponentAt(1, 2), 9),
        (ComponentAt(0, 1), 0),  # class 1 is predicted there
        (Box(0, 0, 1, 2), 11),
        (Box(0.4, 0.4, 2.5, 0.6), 5),  # centres at (0.5, 0.5) and (1.5, 0.5); the right edge is exclusive
        ((1, 2), 9),
        (torch.tensor([[True, False, True], [False, False, False]]), 6),
        (torch.tensor([[1, 1, 0], [0, 1, 1]]), 7),  # a map of labels
        (torch.tensor([[[1, 1, 0], [0, 1, 1]]]), 7),
        (torch.zeros(1, 1, 2, 3, dtype=torch.bool), 0),
    ],
)
def test_sets_of_pixels_by_hand(pixels, total: float) -> None:
    assert PixelScore(0, pixels).fix(LOGITS)(LOGITS).tolist() == [[total]]
    assert PixelScore(0, pixels).fix({"out": LOGITS})({"out": LOGITS}).tolist() == [[total]]


def test_each_class_of_each_image_has_its_own_pixels() -> None:
    logits = torch.cat([LOGITS, LOGITS.flip(1)])
    score = PixelScore(torch.tensor([[0, 1]])).fix(logits)
    assert score(logits).tolist() == [[20, 9 - 2 + 2], [9, 20]]
    assert score(logits[:1] * 0 + 1, torch.tensor([1])).tolist() == [[3, 3]]


def test_predicted_pixels_are_those_of_the_unperturbed_image() -> None:
    score = PixelScore(0).fix(LOGITS)
    assert score(torch.ones_like(LOGITS)).tolist() == [[3]]
    assert score(torch.ones_like(LOGITS) * torch.tensor([0.0, 1.0])[:, None, None]).tolist() == [[0]]


def test_a_winding_component_is_followed_to_its_end_and_in_each_image() -> None:
    spiral = ["#####", "....#", "###.#", "#...#", "#####"]
    inside = torch.tensor([[1.0 if cell == "#" else -1.0 for cell in row] for row in spiral])
    logits = torch.stack([torch.stack([inside, -inside]), torch.stack([-inside, inside])])
    score = PixelScore(torch.tensor([[0, 1]]), ComponentAt(0, 0)).fix(logits)
    assert score(logits).tolist() == [[17, 0], [0, 17]]


def test_masks_of_each_question() -> None:
    masks = torch.zeros(1, 2, 2, 3, dtype=torch.bool)
    masks[0, 0, 0, 0] = masks[0, 1, 1, 1] = True
    assert PixelScore(torch.tensor([[0, 1]]), masks).fix(LOGITS)(LOGITS).tolist() == [[5, 4]]


# ---------------------------------------------------------------------------------------------------------- similarity


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_are_those_of_torch(metric: str) -> None:
    vectors, references = drawn(2, 5), drawn(2, 3, 5, seed=1)
    expected = {
        "cosine": torch.cosine_similarity(vectors[:, None], references, dim=-1),
        "l2": -torch.cdist(vectors[:, None], references)[:, 0],
        "l1": -torch.cdist(vectors[:, None], references, p=1)[:, 0],
        "dot": torch.einsum("bd,bmd->bm", vectors, references),
    }[metric]
    torch.testing.assert_close(Similarity(references, metric).fix(vectors)(vectors), expected)


def test_references_are_shared_or_of_each_image() -> None:
    vectors, references = drawn(2, 5), drawn(3, 5, seed=1)
    shared = Similarity(references).fix(vectors)(vectors)
    torch.testing.assert_close(shared, Similarity(references.expand(2, -1, -1)).fix(vectors)(vectors))
    torch.testing.assert_close(shared[:, :1], Similarity(references[0]).fix(vectors)(vectors))


def test_an_encoding_is_compared_by_its_embedding() -> None:
    encoding = Encoding(torch.ones(1, 2, 1, 1), torch.ones(1, 2), torch.tensor([[3.0, 4.0]]))
    assert Similarity(torch.tensor([1.0, 1.0]), "dot").fix(encoding)(encoding).item() == 7


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_finite_at_distance_0_and_length_0(metric: str) -> None:
    vectors = torch.stack([torch.zeros(5), torch.ones(5)]).requires_grad_()
    references = torch.stack([torch.zeros(5), torch.ones(5)])
    scores = Similarity(references, metric).fix(vectors)(vectors)
    (gradient,) = torch.autograd.grad(scores.sum(), vectors)
    assert scores.isfinite().all()
    assert gradient.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ messages


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize(
    ("target", "output", "error", "message"),
    [
        (
            lambda: ClassScore(torch.tensor([0, 1, 2])),
            drawn(2, 3),
            ShapeError,
            r"2 images need classes of shape.*got \(3,\)",
        ),
        (lambda: ClassScore(torch.zeros(3, 1).long()), drawn(2, 3), ShapeError, r"got \(3, 1\)"),
        (lambda: ClassScore(3), drawn(2, 3), InputError, r"from 0 to 2; got \[3\]"),
        (lambda: ClassScore(torch.tensor([[0.5]])), drawn(2, 3), InputError, "whole numbers"),
        (lambda: ClassScore(0), drawn(2, 3, 4, 4), ShapeError, r"\(b, c\); got a tensor \(2, 3, 4, 4\)"),
        (lambda: ClassScore(0), {"aux": drawn(2, 3)}, ShapeError, "got a dict"),
        (lambda: PixelScore(0), drawn(2, 3), ShapeError, r"\(b, c, h, w\).*got a tensor \(2, 3\)"),
        (lambda: PixelScore(0, "best"), LOGITS, InputError, "choose one of all, predicted, component"),
        (lambda: PixelScore(0, (2, 0)), LOGITS, InputError, "holds no pixel of an output with 2 rows and 3 columns"),
        (
            lambda: PixelScore(0, torch.ones(3, 2) > 0),
            LOGITS,
            ShapeError,
            r"one of \[\(2, 3\), \(1, 2, 3\).*got torch.bool",
        ),
        (lambda: PixelScore(0, torch.ones(2, 3)), LOGITS, ShapeError, "got torch.float32"),
        (lambda: Similarity(drawn(4)), drawn(2, 3), ShapeError, r"references are \(3,\), .* got \(4,\)"),
        (lambda: Similarity(drawn(3, 1, 3)), drawn(2, 3), ShapeError, r"\(2, m, 3\); got \(3, 1, 3\)"),
        (lambda: Similarity(drawn(3), "cos"), drawn(2, 3), InputError, "metric='cos' is not known"),
        (lambda: Similarity(drawn(3) / 0), drawn(2, 3), InputError, "NaN or infinite"),
        (lambda: Similarity(drawn(3)), drawn(2, 3, 1), ShapeError, r"an Encoding or an output \(b, d\)"),
    ],
)
def test_what_does_not_fit_says_expected_and_got(target, output, error, message: str) -> None:
    with pytest.raises(error, match=message):
        target().fix(output)
