"""Weakly supervised localisation: do maps that were learnt without boxes find what people drew boxes around?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoders import Encoder, Encoding, Inference
from ...encoders.layers import closest
from ...encoders.trained_on import Overlap, say_overlap
from ...errors import ImageError, InputError
from ...explain import peak_in_box, rectify, upsample
from ...explain.checks.sanity import two_object_preference
from ...explain.places import project, sample_mask
from ...files import file_digests
from ...images import Box, Listing
from ...images.boxes.joined import BoxedImage, BoxedImages
from ...images.masks import wrong_size
from ...metrics import Metric
from ...metrics.localisation import THRESHOLDS, box_coverage, box_overlaps, energy_shares, pixel_counts
from ...metrics.maps import spearman
from ...progress import Progress
from ...remarks import remark
from .classifiers import LinearClassifier
from .explanations import Composing
from .maps import MapMaker
from .references import ObjectImage, ReferenceKind, References
from .results import ImageScores, LocalisationTable

Masks = Callable[[BoxedImage], NDArray[np.bool_]]


def localise(
    images: BoxedImages,
    encoder: Encoder,
    references: References | Listing,
    *,
    methods: Sequence[str] | None = None,
    reference: ReferenceKind = "prototypes",
    classifier: LinearClassifier | None = None,
    metric: Metric = "cosine",
    masks: Masks | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    composites: int = 0,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    n_samples: int = 1000,
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> LocalisationTable:
    """Measure how well the maps of several methods find the objects in images with boxes.

    One forward pass for each image serves all methods but the gradient ones, which need their own. Every method is
    asked for the image's own class (with prototypes: its prototype; with "nearest": its nearest image), for another
    class drawn at random, and for the class of a second object where the image shows one. Maps are enlarged to the
    network's input, negative values set to 0, scaled to [0, 1]; found boxes are compared with the true ones in the
    image's own geometry (`Transform.locate`), so what the transform cuts off counts as not found.

    Args:
        images: with class and boxes, see `boxed_images`.
        encoder: left as it is.
        references: labelled images, or what `References.encode` made of them with this encoder.
        methods: names as in `parse_methods`; `DEFAULT_METHODS` if left out, without "cam" where there is no classifier.
        reference: class prototypes, or the nearest image.
        classifier: the network's own, see `read_classifier`; for "cam".
        metric: how embeddings are compared, unless `references` are encoded already.
        masks: the object's pixels in an image, at the image's size; adds PxAP. An image whose mask cannot be read, or
            has another size, is left out.
        thresholds: fractions of the maps' range; .2 has to be one of them.
        composites: of so many images of two photographs, and of four, whether a map points to the one asked for;
            2 or more, 0 for none. See `benchmark_explanations`.
        device: see `Inference`.
        precision: see `Inference`.
        batch_size: see `Inference`.
        n_samples: bootstrap samples for the intervals; 0 leaves them out.
        seed: of the random map, the other class, and the bootstrap.
        strict: stop at the first image that cannot be used, instead of leaving it out with a remark.
        progress: called with (images done, images in all).

    Raises:
        InputError: an unknown method, "cam" without a classifier, a class without references, or composites of one.
        ImageError: with `strict`, an image or a mask that cannot be used.

    Source: [Dist-CAM] Table 1; measures as in Choe et al. 2020.
    """
    inference = Inference(encoder, device=device, precision=precision, batch_size=batch_size)
    if isinstance(references, Listing):
        references = References.encode(references, inference, metric=metric, strict=strict)
    images = _with_references(images, references, strict=strict)
    generator = torch.Generator().manual_seed(seed)
    maker = MapMaker.of(encoder, methods, references, classifier, generator, reference=reference, strict=strict)
    composing = Composing(inference, maker, composites, strict=strict) if composites else None
    judge = _Judge(maker, tuple(thresholds))
    parts, chances, skipped = [], [], []
    measured: list[BoxedImage] = []
    astray: list[tuple[str, str]] = []
    for seen, failures in _seen(images, inference, masks, astray):
        if strict and failures:
            raise failures[0]
        skipped += [str(failure) for failure in failures]
        if seen is not None:
            parts.append(judge.scores(seen))
            measured += seen.images
            chances += [float(box_coverage(own, judge.size).mean()) for own in seen.boxes]
        if progress is not None:
            progress(len(skipped) + len(measured), len(images))
    if not parts:
        raise InputError(f"none of the {len(images)} images can be read; the first: {skipped[0]}")
    _remark_on_masks(astray, strict=strict)
    if skipped:
        remark(f"{len(skipped):,} of {len(images):,} images cannot be used and are left out, the first: {skipped[0]}")
    return LocalisationTable(
        scores={method.name: ImageScores.cat([part[method.name] for part in parts]) for method in maker.methods},
        energy_chance=torch.tensor(chances, dtype=torch.float64),
        composites=_composed(composing, measured),
        encoder=encoder.short_name,
        seen_as=inference.seen_as,
        reference=reference,
        n_references=len(references.classes),
        n_classes=len(references.labels),
        notes=_notes(images, [*references.skipped, *skipped]),
        trained_on=_trained_on(encoder, measured),
        n_samples=n_samples,
        seed=seed,
    )


def _with_references(images: BoxedImages, references: References, *, strict: bool) -> BoxedImages:
    """The images whose class has references."""
    unknown = [image for image in images if image.label not in references.labels]
    if not unknown:
        return images
    kept = tuple(image for image in images if image.label in references.labels)
    first = unknown[0]
    message = (
        f"images of class {first.label!r} have no reference; nearest: {closest(first.label, list(references.labels))}"
    )
    if not kept:
        raise InputError(message)
    remark(f"{len(unknown):,} of {len(images):,} images are left out, as {first.path}: {message}", strict=strict)
    return replace(images, images=kept)


def _composed(composing: Composing | None, images: Sequence[BoxedImage]) -> dict[str, dict[str, Tensor]]:
    asked = [ObjectImage(image.file, image.label, image.path) for image in images]
    return {} if composing is None else composing.draw(asked)


def _trained_on(encoder: Encoder, images: Sequence[BoxedImage]) -> Overlap | None:
    """How much of the images the encoder was trained on; None where that is not known."""
    known, files = encoder.trained_on, [image.file for image in images]
    return None if known is None else say_overlap(known.overlap([i.label for i in images], file_digests(files)))


def _notes(images: BoxedImages, unusable: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if images.without_boxes or images.without_label:
        notes.append(f"Left out: {images.without_boxes} images without a box, {images.without_label} without a class.")
    if unusable:
        notes.append(f"Left out since they cannot be used: {len(unusable)} images, the first: {unusable[0]}")
    return tuple(notes)


class _Seen(NamedTuple):
    """A batch of images as the network saw them; boxes and views are in pixels of its input."""

    images: list[BoxedImage]
    boxes: list[list[Box]]
    others: list[list[Box]]
    shown: list[Box]
    pixels: Tensor
    masks: list[NDArray[np.bool_]]
    encoding: Encoding


def _seen(
    images: BoxedImages, inference: Inference, masks: Masks | None, astray: list[tuple[str, str]]
) -> Iterator[tuple[_Seen | None, list[ImageError]]]:
    """The images in batches, and those that cannot be used."""
    transform = inference.transform
    read: dict[Path, tuple[Tensor, tuple[int, int], NDArray[np.bool_] | None]] = {}

    def load(image: BoxedImage) -> Tensor:
        pixels, size = transform.read(image.file, whole=True)
        mask = None if masks is None else _mask_of(image, size, masks, astray)
        read[image.file] = (pixels, size, mask)
        return pixels

    def projected(image: BoxedImage, labels: Sequence[str], size: tuple[int, int]) -> list[Box]:
        return [project(box, transform, size) for label in labels for box in image.boxes_of(label, *size)]

    for batch in inference.stream(images, load=load):
        failures = [ImageError(failure.item.path, failure.error.reason) for failure in batch.failures]
        if batch.encoding is None:
            yield None, failures
            continue
        pixels, sizes, drawn = zip(*(read.pop(image.file) for image in batch.items), strict=True)
        known = list(zip(batch.items, sizes, strict=True))
        yield (
            _Seen(
                images=batch.items,
                boxes=[projected(image, image.labels[:1], size) for image, size in known],
                others=[projected(image, image.labels[1:2], size) for image, size in known],
                shown=[project(Box(0, 0, *size), transform, size) for size in sizes],
                pixels=torch.stack(pixels),
                masks=[mask for mask in drawn if mask is not None],
                encoding=batch.encoding.to("cpu"),
            ),
            failures,
        )


def _mask_of(
    image: BoxedImage, size: tuple[int, int], masks: Masks, astray: list[tuple[str, str]]
) -> NDArray[np.bool_]:
    """The mask of an image of this (width, height); notes in `astray` its key in `_ASTRAY`, or "", and the image."""
    try:
        mask = masks(image)
    except (ImageError, InputError) as error:
        raise ImageError(image.path, f"its mask: {getattr(error, 'reason', error)}") from error
    if (problem := wrong_size("", (mask.shape[1], mask.shape[0]), size)) is not None:
        raise ImageError(image.path, problem.replace("  ", " "))
    outside = mask.copy()
    for box in image.boxes_of(image.label, *size):
        outside[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = False
    is_outside = 2 * int(outside.sum()) > int(mask.sum())
    astray.append((_OUTSIDE if is_outside else "every pixel" if mask.all() else "", image.path))
    return mask


_OUTSIDE = "more outside of the boxes than inside"
_ASTRAY = {
    "every pixel": "no pixel of theirs is black, so every map lies on the object",
    _OUTSIDE: "masks may be inverted (what is not black is the object) or those of other images",
}


def _remark_on_masks(astray: Sequence[tuple[str, str]], *, strict: bool) -> None:
    """Say if most masks contradict the boxes, or mark everything."""
    for fault, meaning in _ASTRAY.items():
        found = [path for own, path in astray if own == fault]
        if len(found) > max(2, len(astray) / 2):
            remark(
                f"{len(found):,} of {len(astray):,} masks mark {fault}, as that of {found[0]}: {meaning}", strict=strict
            )


@dataclass(frozen=True, eq=False)
class _Judge:
    """Asks the questions about a batch and measures the maps."""

    maker: MapMaker
    thresholds: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the network's input."""
        transform = self.maker.encoder.transform
        return transform.height, transform.width

    def scores(self, seen: _Seen) -> dict[str, ImageScores]:
        """Everything that is measured on a batch, by method."""
        classes, references = self._questions(seen.images), self.maker.references
        files = [image.file for image in seen.images]
        embeddings = seen.encoding.embedding
        asked = references.of_classes(embeddings, classes, reference=self.maker.reference, files=files)
        nearest = references.predicted(embeddings, reference=self.maker.reference, files=files)
        found = self.maker.maps(seen.encoding, seen.pixels, asked, classes)
        scores = {}
        for method in self.maker.methods:
            classifier = self.maker.classifiers.get(method.kind)
            predicted = nearest if classifier is None else classifier.predicted(seen.encoding.pooled)
            scores[method.name] = self._measured(found[method.name], seen, predicted == classes[:, 0])
        return scores

    def _questions(self, images: Sequence[BoxedImage]) -> Tensor:
        """(b, 3) classes: the image's own, another at random, and that of a second object (or its own again)."""
        labels = self.maker.references.labels
        own = torch.tensor([labels.index(image.label) for image in images])
        other = (own + torch.randint(1, len(labels), own.shape, generator=self.maker.generator)) % len(labels)
        pairs = [
            (image.label, *image.labels[1:2]) if _has_second(image, labels) else (image.label,) for image in images
        ]
        return torch.stack([own, other, torch.tensor([labels.index(pair[-1]) for pair in pairs])], 1)

    def _measured(self, maps: Tensor, seen: _Seen, is_right: Tensor) -> ImageScores:
        heat = rectify(upsample(maps[:, 0], self.size))
        counts = None
        if seen.masks:
            pairs = [sample_mask(mask, self.maker.encoder.transform) for mask in seen.masks]
            masks, inside = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
            counts = pixel_counts(heat, masks, ignore=~inside)
        return ImageScores(
            overlaps=box_overlaps(heat, seen.boxes, thresholds=self.thresholds, visible=seen.shown),
            is_right=is_right,
            peak=torch.tensor([peak_in_box(map_, *own) for map_, own in zip(heat, seen.boxes, strict=True)]).double(),
            energy=energy_shares(heat, torch.stack([box_coverage(own, self.size) for own in seen.boxes])),
            sensitivity=spearman(maps[:, 0], maps[:, 1]).double(),
            two_objects=self._preferences(maps, seen),
            pixels=counts,
        )

    def _preferences(self, maps: Tensor, seen: _Seen) -> Tensor:
        """For the images with a second object whose class has a reference."""
        labels = self.maker.references.labels
        rows = [row for row, image in enumerate(seen.images) if _has_second(image, labels) and seen.others[row]]
        if not rows:
            return torch.empty(0, dtype=torch.float64)
        heat = upsample(maps[rows][:, [0, 2]], self.size).double()
        own, other = (
            torch.stack([box_coverage(boxes[row], self.size) for row in rows]) for boxes in (seen.boxes, seen.others)
        )
        return two_object_preference(heat[:, 0], heat[:, 1], own, other)


def _has_second(image: BoxedImage, labels: Sequence[str]) -> bool:
    return len(image.labels) > 1 and image.labels[1] in labels
