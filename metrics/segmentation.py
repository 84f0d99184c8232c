"""Agreement of masks with the truth: confusion, intersection over union, accuracy, and the background's curve.

As in PASCAL VOC: counts are summed over all images before anything is divided, the background counts as a class, and
void pixels of the truth count nowhere. A class that neither the truth nor the prediction knows has no value (nan) and
is left out of the mean. Where a prediction is void, it is wrong: the pixel is missing from its class, and belongs to no
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ..errors import InputError, ShapeError
from ..remarks import remark

VOID = 255  # nobody has decided about the pixel
BETAS = tuple(round(0.02 * step, 2) for step in range(51))  # 0, 0.02, … 1

Mask = UInt8[np.ndarray, "h w"]
"""Class numbers: 0 background, c + 1 class c, 255 void."""


def confusion_matrix(truth: Mask, prediction: Mask, n_classes: int) -> Int[np.ndarray, "c c_and_void"]:
    """Pixels by true class (row) and predicted class (column); the last column is predicted as void.

    Void pixels of the truth are left out; `n_classes` counts the background.

    >>> confusion_matrix(np.uint8([[0, 1, 255]]), np.uint8([[0, 0, 1]]), 2).tolist()
    [[1, 0, 0], [1, 0, 0]]
    """
    if truth.shape != prediction.shape:
        raise ShapeError(f"expected masks of the same shape, got {truth.shape} for the truth and {prediction.shape}")
    _require_numbers("truth", truth, n_classes)
    _require_numbers("prediction", prediction, n_classes)
    known = truth != VOID
    column = np.where(prediction[known] == VOID, n_classes, prediction[known]).astype(np.int64)
    cell = truth[known].astype(np.int64) * (n_classes + 1) + column
    return np.bincount(cell, minlength=n_classes * (n_classes + 1)).reshape(n_classes, n_classes + 1)


@dataclass(frozen=True, eq=False)
class SegmentationScore:
    """Agreement of masks with the truth: a `confusion_matrix` over images, with the names of its classes."""

    class_names: tuple[str, ...]
    confusion: Int[np.ndarray, "c c_and_void"]
    images: int
    # of each class, in pixels, the mean over images that show it in both masks, nan without any; None if not measured
    hausdorff: Float[np.ndarray, " c"] | None = None

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if self.confusion.shape != (count, count + 1):
            raise ShapeError(f"expected a confusion matrix ({count}, {count + 1}), got {self.confusion.shape}")

    @property
    def iou(self) -> Float[np.ndarray, " c"]:
        """Intersection over union of each class, in [0, 1]; nan if it is in neither."""
        hits = np.diag(self.confusion)
        return _shares(hits, self.confusion.sum(1) + self.confusion[:, :-1].sum(0) - hits)

    @property
    def mean_iou(self) -> float:
        """The mean IoU (mIoU): the mean over the classes that have one; nan if none has."""
        return _mean(self.iou)

    @property
    def f1(self) -> Float[np.ndarray, " c"]:
        """F1 of each class's pixels, the Dice coefficient over all images, in [0, 1]; nan if it is in neither."""
        hits, both = np.diag(self.confusion), self.confusion.sum(1) + self.confusion[:, :-1].sum(0)
        return _shares(2 * hits, both)

    @property
    def class_accuracy(self) -> Float[np.ndarray, " c"]:
        """Share of each class's pixels that were found, in [0, 1]; nan without any."""
        return _shares(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all pixels with the right class, in [0, 1]."""
        return float(_shares(np.trace(self.confusion[:, :-1]), self.confusion.sum()))

    def table(self) -> str:
        """A line per class, the means, and the class that each is taken for most often."""
        width = max(len("pixel accuracy"), *map(len, self.class_names))
        lines = [f"{'':{width}}     IoU     F1  found  taken most often for"]
        columns = zip(self.class_names, self.iou, self.f1, self.class_accuracy, strict=True)
        for c, (name, iou, f1, found) in enumerate(columns):
            wrong = self.confusion[c].copy()
            wrong[c] = 0
            other = (*self.class_names, "void")[int(wrong.argmax())] if wrong.any() else ""
            share = f"{other} ({wrong.max() / self.confusion[c].sum():.3f})" if other else ""
            lines.append(
                f"{name:{width}}  {_in_table(iou):>6}  {_in_table(f1):>5}  {_in_table(found):>5}  {share}".rstrip()
            )
        means = [_in_table(_mean(values)) for values in (self.f1, self.class_accuracy)]
        lines.append(f"{'mean':{width}}  {_in_table(self.mean_iou):>6}  {means[0]:>5}  {means[1]:>5}")
        lines.append(f"{'pixel accuracy':{width}}  {_in_table(self.pixel_accuracy):>6}")
        if self.hausdorff is not None:
            lines.append(f"{'':{width}}  Hausdorff distance in pixels, where both masks show the class")
            pairs = zip((*self.class_names, "mean"), (*self.hausdorff, _mean(self.hausdorff)), strict=True)
            lines += [f"{name:{width}}  {'–' if np.isnan(value) else f'{value:.1f}':>6}" for name, value in pairs]
        lines.append(f"{self.images} images")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; nan becomes null."""
        return {
            "mean_iou": _in_json(self.mean_iou),
            "mean_f1": _in_json(_mean(self.f1)),
            "pixel_accuracy": _in_json(self.pixel_accuracy),
            "mean_class_accuracy": _in_json(_mean(self.class_accuracy)),
            "iou": self._by_class(self.iou),
            "f1": self._by_class(self.f1),
            **({} if self.hausdorff is None else {"mean_hausdorff": _in_json(_mean(self.hausdorff))}),
            **({} if self.hausdorff is None else {"hausdorff": self._by_class(self.hausdorff)}),
            "confusion": self.confusion.tolist(),
            "class_names": list(self.class_names),
            "images": self.images,
        }

    def _by_class(self, values: Float[np.ndarray, " c"]) -> dict[str, float | None]:
        return {name: _in_json(value) for name, value in zip(self.class_names, values, strict=True)}


def hausdorff_distance(one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> float:
    """The largest distance, in pixels, from a pixel of either set to the nearest of the other; nan if one is empty.

    >>> hausdorff_distance(np.array([[True, False, False]]), np.array([[True, False, True]]))
    2.0
    """
    from scipy.ndimage import distance_transform_edt

    if not one.any() or not other.any():
        return float("nan")
    return float(max(distance_transform_edt(~other)[one].max(), distance_transform_edt(~one)[other].max()))


def evaluate_masks(
    pairs: Iterable[tuple[Mask, Mask]], class_names: Sequence[str], *, hausdorff: bool = False
) -> SegmentationScore:
    """The score of (truth, prediction) pairs, masks of one size each; `class_names` by number, "background" first.

    With `hausdorff` also each class's distance, void pixels of the truth left out, for which every mask is looked at
    class by class.

    Raises:
        InputError: no pair, or a number that is no class.
        ShapeError: two masks differ in size.
    """
    total = np.zeros((len(class_names), len(class_names) + 1), dtype=np.int64)
    images, distances = 0, np.zeros((2, len(class_names)))  # their sums and numbers
    for truth, prediction in pairs:
        total += confusion_matrix(truth, prediction, len(class_names))
        images += 1
        for c in np.intersect1d(truth, prediction[truth != VOID]) if hausdorff else ():
            if c != VOID:
                distances[:, c] += hausdorff_distance(truth == c, (prediction == c) & (truth != VOID)), 1
    if not images:
        raise InputError("expected one image with a mask or more to compare with, got none")
    means = _shares(*distances) if hausdorff else None
    return SegmentationScore(tuple(class_names), total, images, means)


def remark_on_shift(score: SegmentationScore) -> None:
    """Say that masks look numbered from elsewhere: most pixels agree once every number is moved by one."""
    confusion, count, total = score.confusion, len(score.confusion), max(int(score.confusion.sum()), 1)
    agree = np.trace(confusion[:, :count]) / total
    moved = {"higher": np.trace(confusion[1:, :count]) / total, "lower": np.trace(confusion[:, 1:count]) / total}
    where, share = max(moved.items(), key=lambda item: item[1])
    if share > 0.5 and share > 3 * agree:
        remark(
            f"the masks look shifted by one: {share:.1%} of the pixels agree with the truth if every number is one "
            f"{where}, {agree:.1%} as they are; here 0 is background and the first class is 1"
        )


@dataclass(frozen=True, eq=False)
class BackgroundCurve:
    """mIoU as a function of the constant background score β: β in rising order, and a score for each.

    The best β is found on the images that it is reported for, as is the custom; the curve shows how much that says.
    """

    betas: tuple[float, ...]
    scores: tuple[SegmentationScore, ...]

    @property
    def mean_iou(self) -> tuple[float, ...]:
        """The mean IoU for each β."""
        return tuple(score.mean_iou for score in self.scores)

    @property
    def best_beta(self) -> float:
        """The β with the highest mIoU; the smallest of several."""
        return self.betas[int(np.nanargmax(self.mean_iou))]

    @property
    def best_score(self) -> SegmentationScore:
        """The score at the best β."""
        return self.scores[int(np.nanargmax(self.mean_iou))]

    def table(self) -> str:
        """A line per β with a bar."""
        lines = ["   β     mIoU"]
        for beta, value in zip(self.betas, self.mean_iou, strict=True):
            mark = "  ← best" if beta == self.best_beta else ""
            bar = "" if np.isnan(value) else "█" * round(40 * value)
            lines.append(f"{beta:.3f}  {_in_table(value):>6}  {bar}{mark}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "betas": list(self.betas),
            "mean_iou": [_in_json(value) for value in self.mean_iou],
            "best_beta": self.best_beta,
            "best": self.best_score.to_dict(),
        }


def background_curve(
    pairs: Iterable[tuple[Mask, Float[np.ndarray, "c h w"]]],
    class_names: Sequence[str],
    *,
    betas: Sequence[float] = BETAS,
) -> BackgroundCurve:
    """The score of argmax over (β, class scores) for every β; each image is looked at once.

    Pairs are a true mask and the scores of the foreground classes in its pixels; `class_names` begin with "background".

    Raises:
        InputError: no pair, no β, a number that is no class, or void in every pixel.
        ShapeError: scores for another number of classes or pixels.
    """
    counter = CurveCounter(class_names, betas=betas)
    for truth, scores in pairs:
        counter.add(truth, scores)
    return counter.curve()


class CurveCounter:
    """The background's curve, image by image, where the scores have another use, too; see `background_curve`."""

    def __init__(self, class_names: Sequence[str], *, betas: Sequence[float] = BETAS) -> None:
        self.class_names = tuple(class_names)
        self._levels = np.unique(np.asarray(betas, dtype=float))
        if not self._levels.size:
            raise InputError("expected one background score or more, got none")
        count = len(self.class_names)
        # by (truth, strongest class, number of the βs that lie below its score)
        self._pixels = np.zeros((count, count, len(self._levels) + 1), dtype=np.int64)
        self._images = 0

    def add(self, truth: Mask, scores: Float[np.ndarray, "c h w"]) -> None:
        """Take an image into account: its true mask, and the scores of the foreground classes."""
        count, scores = len(self.class_names), np.asarray(scores)
        if scores.shape != (count - 1, *truth.shape):
            raise ShapeError(f"expected scores of shape {(count - 1, *truth.shape)}, got {scores.shape}")
        _require_numbers("truth", truth, count)
        known = truth != VOID
        strongest = scores.argmax(0)[known] + 1
        below = np.searchsorted(self._levels, scores.max(0)[known])  # a tie is background, the first in the argmax
        cell = (truth[known].astype(np.int64) * count + strongest) * (len(self._levels) + 1) + below
        self._pixels += np.bincount(cell, minlength=self._pixels.size).reshape(self._pixels.shape)
        self._images += 1

    def curve(self) -> BackgroundCurve:
        """The curve of the images so far."""
        if not self._images:
            raise InputError("expected one image with a mask or more to compare with, got none")
        if not self._pixels.any():
            raise InputError(f"every pixel of the {self._images} masks is void, so no background score is the best one")
        count, found = len(self.class_names), []
        for number in range(len(self._levels)):
            confusion = np.zeros((count, count + 1), dtype=np.int64)
            confusion[:, :count] = self._pixels[:, :, number + 1 :].sum(2)
            confusion[:, 0] += self._pixels[:, :, : number + 1].sum((1, 2))
            found.append(SegmentationScore(self.class_names, confusion, self._images))
        return BackgroundCurve(tuple(self._levels.tolist()), tuple(found))


def _require_numbers(what: str, values: Mask, n_classes: int) -> None:
    wrong = values[(values >= n_classes) & (values != VOID)]
    if wrong.size:
        raise InputError(f"the {what} holds the class number {wrong[0]}; expected 0 to {n_classes - 1}, or {VOID}")


def _shares(part: Any, whole: Any) -> Float[np.ndarray, ...]:
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole)


def _mean(values: Float[np.ndarray, " c"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _in_table(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _in_json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
