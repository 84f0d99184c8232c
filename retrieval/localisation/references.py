"""References of the maps of a localisation table: class prototypes, gallery images, and rows of a classifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ...encoders import Inference
from ...encoders.folding import border_mean, fold
from ...encoders.layers import plain_name
from ...encoders.regions import MaskPooling, pooled_under
from ...encoders.weight_files import fetch_imagenet, read_state_dict
from ...errors import InputError
from ...explain.methods.surroundings import Surroundings
from ...explain.targets import distances
from ...images import Listing
from ...images.masks import MaskFolder
from ...index.prototypes import PrototypeStore
from ...metrics import Metric
from ...progress import Progress
from ...remarks import remark
from ..evidence import surroundings_of

ReferenceKind = Literal["prototypes", "nearest"]
Images = Iterable[tuple[Path, str]]
_CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")


class Photograph(NamedTuple):
    """An image with one object and the object's class; `path` below a listing's folder is the key of its mask."""

    file: Path
    label: str
    path: str = ""


def photographs(listing: Listing, *, strict: bool = False) -> list[Photograph]:
    """The labelled images of a listing; how many have no label is a remark."""
    found = [Photograph(listing.file(each), each.label, each.path) for each in listing if each.label is not None]
    if not found:
        raise InputError(f"{listing.root} has no labels; expected a folder of class folders, or a CSV with path,label")
    if len(found) < len(listing):
        bare = next(record.path for record in listing if record.label is None)
        count = f"{len(listing) - len(found):,} of {len(listing):,} images"
        remark(f"{count} have no label and are left out, such as {bare}", strict=strict)
    return found


@dataclass(frozen=True, eq=False)
class EncodedBothWays:
    """Images as a whole and under their masks, from the same feature maps."""

    files: tuple[Path, ...]
    whole: tuple[Tensor, Tensor]
    masked: tuple[Tensor, Tensor]
    has_mask: Bool[Tensor, " n"]
    border: Float[Tensor, "n d"]
    skipped: tuple[str, ...] = ()


def encode_both_ways(
    images: Images,
    inference: Inference,
    masks: MaskFolder | None,
    *,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> EncodedBothWays:
    """Each image encoded once and pooled twice: over all of it, and under its mask (of None over all of it)."""
    listed, encoder = list(images), inference.encoder
    if masks is not None and not strict:
        masks.join(path for _, path in listed).tell(what="a mask", lines=f"masks in {masks.folder}")
    under = None if masks is None else MaskPooling.of(masks, encoder, strict=strict)
    weights: dict[Path, Tensor | None] = {}
    found: list[tuple[Path, bool]] = []
    vectors: list[tuple[Tensor, ...]] = []  # of whole images, then under masks, then of borders
    skipped: list[str] = []

    def load(item: tuple[Path, str]) -> Tensor:
        file, path = item
        pixels, size = inference.transform.read(file, whole=True)
        weights[file] = None if under is None else under.weights(path, size)
        return pixels

    for batch in inference.stream(listed, load=load):
        if strict and batch.failures:
            raise batch.failures[0].error
        skipped += [f"{failure.item[0]}: {failure.error.reason}" for failure in batch.failures]
        if batch.encoding is not None:
            own = [weights.pop(file) for file, _ in batch.items]
            found += [(file, each is not None) for (file, _), each in zip(batch.items, own, strict=True)]
            border = border_mean(fold(batch.encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map)
            both = (batch.encoding, pooled_under(encoder, batch.encoding, own))
            vectors.append((*(each.cpu() for one in both for each in (one.pooled, one.embedding)), border.cpu()))
        if progress is not None:
            progress(len(found) + len(skipped))
    if under is not None:
        under.tell()
    if not found:
        raise InputError(f"none of the images could be used; the first: {[*skipped, 'there are none'][0]}")
    pooled, embedding, *masked, border = (torch.cat(part) for part in zip(*vectors, strict=True))
    return EncodedBothWays(
        files=tuple(file for file, _ in found),
        whole=(pooled, embedding),
        masked=(masked[0], masked[1]),
        has_mask=torch.tensor([has_mask for _, has_mask in found]),
        border=border,
        skipped=tuple(skipped),
    )


@dataclass(frozen=True, eq=False)
class References:
    """Labelled images by their vectors, and the prototypes of their classes.

    Attributes:
        labels: the c classes, sorted.
        files: the n images.
        classes: (n,), the class of each.
        pooled: (n, k).
        embeddings: (n, d), raw.
        prototypes: (c, d), in the space that ranks.
        surroundings: the images on average, in the space that ranks; without a border where no map was at hand.
        metric: how embeddings are compared.
        skipped: images that could not be read, with the reason.
    """

    labels: tuple[str, ...]
    files: tuple[Path, ...]
    classes: Tensor
    pooled: Tensor
    embeddings: Tensor
    prototypes: Tensor
    surroundings: Surroundings
    metric: Metric
    skipped: tuple[str, ...] = ()

    @classmethod
    def encode(
        cls,
        images: Listing | Iterable[Photograph],
        inference: Inference,
        *,
        metric: Metric = "cosine",
        masks: MaskFolder | None = None,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> References:
        """The labelled images of a listing, or photographs, one forward pass each.

        Raises:
            InputError: fewer than two classes are left.
            ImageError: with `strict`, an image that cannot be used.
        """
        listed = photographs(images, strict=strict) if isinstance(images, Listing) else images
        known = {photograph.file: photograph for photograph in listed}
        keyed = [(file, photograph.path or str(file)) for file, photograph in known.items()]
        report = None if progress is None else lambda done: progress(done, len(known))
        found = encode_both_ways(keyed, inference, masks, strict=strict, progress=report)
        names = [known[file].label for file in found.files]
        if len(set(names)) < 2:
            raise InputError(f"the references have {len(set(names))} classes; at least two are compared")
        if found.skipped:
            count = len(found.skipped)
            remark(f"{count:,} references cannot be used and are left out, the first: {found.skipped[0]}")
        given: dict[str, Any] = {"metric": metric, "files": found.files, "skipped": found.skipped}
        borders = found.border.numpy()
        if metric == "cosine":
            borders = borders / np.linalg.norm(found.masked[1].numpy(), axis=1, keepdims=True).clip(1e-12)
        return cls.of(names, *found.masked, border=borders.mean(0, dtype=np.float64).astype(np.float32), **given)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        pooled: Tensor,
        embeddings: Tensor,
        *,
        metric: Metric = "cosine",
        border: NDArray[np.float32] | None = None,
        files: Sequence[Path] = (),
        skipped: Sequence[str] = (),
    ) -> References:
        """References whose vectors are known: of each label, pooled vector and embedding; of all the mean border."""
        store = PrototypeStore(pooled_dim=pooled.shape[1], embedding_dim=embeddings.shape[1], metric=metric)
        store.add(list(names), pooled.numpy(), embeddings.numpy())
        place = {label: number for number, label in enumerate(store.labels)}
        return cls(
            labels=store.labels,
            files=tuple(files),
            classes=torch.tensor([place[name] for name in names]),
            pooled=pooled,
            embeddings=embeddings,
            prototypes=torch.from_numpy(store.all_embeddings()),
            surroundings=surroundings_of(store, border),
            metric=metric,
            skipped=tuple(skipped),
        )

    def predicted(self, embeddings: Tensor, *, reference: ReferenceKind, files: Sequence[Path] = ()) -> Tensor:
        """The class of the nearest prototype, or of the nearest image, (b,); −1 where two classes are equally near."""
        if reference == "prototypes":
            found, classes = distances(embeddings, self.prototypes, self.metric), torch.arange(len(self.labels))
        else:
            found, classes = self._to_images(embeddings, files), self.classes
        rounding = 8 * torch.finfo(found.dtype).eps * found.masked_fill(found.isinf(), 0).abs().amax(1, keepdim=True)
        is_nearest = found <= found.amin(1, keepdim=True) + rounding
        first, last = (torch.where(is_nearest, classes, beyond) for beyond in (len(self.labels), -1))
        return torch.where(first.amin(1) == last.amax(1), last.amax(1), -1)

    def of_classes(
        self, embeddings: Tensor, classes: Tensor, *, reference: ReferenceKind, files: Sequence[Path] = ()
    ) -> Tensor:
        """The reference of each class asked for, (b, m, d): its prototype, or the nearest of its images."""
        if reference == "prototypes":
            return self.prototypes[classes]
        to_images = self._to_images(embeddings, files)[:, None]
        nearest = to_images.masked_fill(self.classes != classes[..., None], torch.inf).argmin(-1)
        return self.embeddings[nearest]

    def _to_images(self, embeddings: Tensor, files: Sequence[Path]) -> Tensor:
        found = distances(embeddings, self.embeddings, self.metric)
        place = {file: number for number, file in enumerate(self.files)}
        for row, file in enumerate(files):
            if file in place:
                found[row, place[file]] = torch.inf
        return found


class LinearClassifier(NamedTuple):
    """Scores behind average pooling: `weight` (c, k) times the pooled vector plus `bias` (c,)."""

    weight: Tensor
    bias: Tensor

    def predicted(self, pooled: Tensor) -> Tensor:
        """The class with the highest score, (b,)."""
        return (pooled @ self.weight.T + self.bias).argmax(1)

    def for_references(self, references: References) -> LinearClassifier:
        """The rows of the references' classes: for each class the output that most of its images excite."""
        votes = self.predicted(references.pooled)
        rows = [int(votes[references.classes == number].mode().values) for number in range(len(references.labels))]
        for number, row in enumerate(rows):
            if row in rows[:number]:
                first = references.labels[rows.index(row)]
                raise InputError(
                    f"the network's classifier calls {first!r} and {references.labels[number]!r} the same "
                    f"(output {row}), so it has no map for each; use `cam_probe`, which is learnt on the references"
                )
        return LinearClassifier(self.weight[rows], self.bias[rows])


def read_classifier(architecture: str, weights: str | os.PathLike[str], *, pooled_dim: int) -> LinearClassifier | None:
    """The linear classifier in a file of weights, if it has one that acts on the pooled vector; else None.

    Args:
        architecture: for `weights="imagenet"`, which fetches torchvision's.
        weights: the file that the encoder was loaded from, "imagenet", or "random" (which has none).
        pooled_dim: length of the encoder's pooled vector; a classifier of another width belongs to another layer.

    Raises:
        WeightsError: the file cannot be read.
    """
    if weights == "random":
        return None
    state = fetch_imagenet(architecture)[0] if weights == "imagenet" else read_state_dict(weights)
    found = []
    for name, tensor in state.items():
        plain = plain_name(name)
        if not plain.startswith(_CLASSIFIERS) or not plain.endswith(".weight"):
            continue
        matrix = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        if matrix.ndim == 2 and matrix.shape[1] == pooled_dim:
            bias = state.get(f"{name.removesuffix('weight')}bias", torch.zeros(len(matrix)))
            found.append(LinearClassifier(matrix.float(), bias.float()))
    return found[0] if len(found) == 1 else None


def linear_probe(references: References, *, decay: float = 1e-2) -> LinearClassifier:
    """A softmax classifier learnt on the references' pooled vectors: CAM for encoders that have no classifier."""
    from sklearn.linear_model import LogisticRegression

    vectors, is_binary = references.pooled, len(references.labels) == 2
    mean, spread = vectors.mean(0), vectors.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    strength = (2 if is_binary else 1) / (decay * len(vectors))  # of two classes one row is learnt, which both share
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
    model.fit(((vectors - mean) / spread).numpy(), references.classes.numpy())
    weight, bias = (torch.from_numpy(part).float() for part in (model.coef_, model.intercept_))
    if is_binary:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    raw = weight / spread
    return LinearClassifier(raw, bias - raw @ mean)
