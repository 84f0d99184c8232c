"""References of the maps of a localisation table: class prototypes, gallery images, and rows of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoders import Encoder, Inference
from ...encoders.encoding import border_mean, fold
from ...encoders.regions import MaskPooling, pooled_under
from ...errors import InputError
from ...explain.methods.surroundings import Surroundings
from ...explain.targets import distances
from ...images import Listing
from ...images.masks import MaskFolder
from ...index import Gallery
from ...index.prototypes import PrototypeStore
from ...metrics import Metric
from ...progress import Progress
from ...remarks import remark
from ..evidence import surroundings_of

ReferenceKind = Literal["prototypes", "nearest"]
Images = Iterable[tuple[Path, str]]


class ObjectImage(NamedTuple):
    """An image with one object and the object's class; `path` below a listing's folder is the key of its mask."""

    file: Path
    label: str
    path: str = ""


def photographs(listing: Listing, *, strict: bool = False) -> list[ObjectImage]:
    """The labelled images of a listing; how many have no label is a remark."""
    found = [ObjectImage(listing.file(each), each.label, each.path) for each in listing if each.label is not None]
    if not found:
        raise InputError(f"{listing.root} has no labels; expected a folder of class folders, or a CSV with path,label")
    if len(found) < len(listing):
        bare = next(record.path for record in listing if record.label is None)
        count = f"{len(listing) - len(found):,} of {len(listing):,} images"
        remark(f"{count} have no label and are left out, such as {bare}", strict=strict)
    return found


class _Batch(NamedTuple):
    """Some images: pooled vectors, embeddings, and the means of their maps' borders."""

    files: list[Path]
    pooled: Tensor
    embedding: Tensor
    border: Tensor


def _encoded(
    images: Images,
    inference: Inference,
    masks: MaskFolder | None,
    skipped: list[str],
    *,
    strict: bool,
    progress: Callable[[int], None] | None,
) -> Iterator[_Batch]:
    """The images that can be used, pooled under their masks, one batch or more; the others are added to `skipped`."""
    listed, encoder = list(images), inference.encoder
    if masks is not None and not strict:
        masks.join(path for _, path in listed).tell(what="a mask", lines=f"masks in {masks.folder}")
    under = None if masks is None else MaskPooling.of(masks, encoder, strict=strict)
    weights: dict[Path, Tensor | None] = {}
    count = 0

    def load(item: tuple[Path, str]) -> Tensor:
        file, path = item
        pixels, size = inference.transform.read(file, whole=True)
        weights[file] = None if under is None else under.weights(path, size)
        return pixels

    for batch in inference.stream(listed, load=load):
        if strict and batch.failures:
            raise batch.failures[0].error
        skipped += [f"{failure.item[0]}: {failure.error.reason}" for failure in batch.failures]
        count += len(batch.items)
        if batch.encoding is not None:
            files = [file for file, _ in batch.items]
            border = border_mean(fold(batch.encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map)
            masked = pooled_under(encoder, batch.encoding, [weights.pop(file) for file in files])
            yield _Batch(files, masked.pooled.cpu(), masked.embedding.cpu(), border.cpu())
        if progress is not None:
            progress(count + len(skipped))
    if under is not None:
        under.tell()
    if not count:
        raise InputError(f"none of the images could be used; the first: {[*skipped, 'there are none'][0]}")


@dataclass(frozen=True, eq=False)
class References:
    """Labelled images by their vectors, and the prototypes of their classes.

    Attributes:
        labels: the c classes, sorted.
        files: the n images; none where their vectors were not kept.
        classes: (n,), the class of each.
        pooled: (n, k); (0, k) where they were not kept.
        embeddings: (n, d), raw; likewise.
        class_means: (c, k), the mean pooled vector of each class.
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
    class_means: Tensor
    prototypes: Tensor
    surroundings: Surroundings
    metric: Metric
    skipped: tuple[str, ...] = ()

    @classmethod
    def encode(
        cls,
        images: Listing | Iterable[ObjectImage],
        inference: Inference,
        *,
        metric: Metric = "cosine",
        masks: MaskFolder | None = None,
        keep_images: bool = True,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> References:
        """The labelled images of a listing, or photographs, one forward pass each.

        Without `keep_images` their vectors are summed up and forgotten: prototypes in the memory of c classes, and
        neither "nearest" nor a probe.

        Raises:
            InputError: fewer than two classes are left.
            ImageError: with `strict`, an image that cannot be used.
        """
        listed = photographs(images, strict=strict) if isinstance(images, Listing) else images
        known = {photograph.file: photograph for photograph in listed}
        keyed = [(file, photograph.path or str(file)) for file, photograph in known.items()]
        report = None if progress is None else lambda done: progress(done, len(known))
        store: PrototypeStore | None = None
        kept: list[_Batch] = []
        names, skipped, borders = list[str](), list[str](), np.zeros(())
        for batch in _encoded(keyed, inference, masks, skipped, strict=strict, progress=report):
            own, pooled, embedding = [known[file].label for file in batch.files], *map(Tensor.numpy, batch[1:3])
            store = store or PrototypeStore(pooled_dim=pooled.shape[1], embedding_dim=embedding.shape[1], metric=metric)
            store.add(own, pooled, embedding)
            lengths = np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12) if metric == "cosine" else 1.0
            borders = borders + (batch.border.numpy() / lengths).sum(0, dtype=np.float64)
            names += own
            kept += [batch] if keep_images else [_Batch([], *(part[:0] for part in batch[1:]))]
        if store is None or len(store) < 2:
            raise InputError(f"the references have {len(set(names))} classes; at least two are compared")
        if skipped:
            remark(f"{len(skipped):,} references cannot be used and are left out, the first: {skipped[0]}")
        return cls._of_store(
            store,
            names,
            torch.cat([batch.pooled for batch in kept]),
            torch.cat([batch.embedding for batch in kept]),
            border=(borders / len(names)).astype(np.float32),
            files=[file for batch in kept for file in batch.files],
            skipped=skipped,
        )

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        pooled: Tensor,
        embeddings: Tensor,
        *,
        metric: Metric = "cosine",
        files: Sequence[Path] = (),
        border: NDArray[np.float32] | None = None,
    ) -> References:
        """References whose vectors are known: of each label, pooled vector and embedding; and their mean border."""
        store = PrototypeStore(pooled_dim=pooled.shape[1], embedding_dim=embeddings.shape[1], metric=metric)
        store.add(list(names), pooled.numpy(), embeddings.numpy())
        return cls._of_store(store, names, pooled, embeddings, files=files, border=border)

    @classmethod
    def of_gallery(cls, gallery: Gallery, encoder: Encoder, *, keep_images: bool = True) -> References:
        """The images of a gallery that have a class, by the vectors that it keeps; no image is read.

        FingerprintMismatchError: another encoder made the gallery. InputError: it has fewer than two classes.
        """
        gallery.check_encoder(encoder)
        store = gallery.prototypes
        if len(store) < 2:
            raise InputError(f"the gallery {gallery.folder} has {len(store)} classes; at least two are compared")
        records = [each for each in gallery.records(gallery.ids) if each.label is not None] if keep_images else []
        ids = [record.id for record in records]
        counted = np.repeat(store.labels, store.counts).tolist()
        return cls._of_store(
            store,
            [str(record.label) for record in records] if keep_images else counted,
            torch.from_numpy(gallery.pooled(ids)),
            torch.from_numpy(gallery.embeddings(ids)),
            border=gallery.background,
            files=[gallery.item(record) for record in records],
        )

    @classmethod
    def _of_store(
        cls,
        store: PrototypeStore,
        names: Sequence[str],
        pooled: Tensor,
        embeddings: Tensor,
        *,
        border: NDArray[np.float32] | None = None,
        files: Sequence[Path] = (),
        skipped: Sequence[str] = (),
    ) -> References:
        place = {label: number for number, label in enumerate(store.labels)}
        return cls(
            labels=store.labels,
            files=tuple(files),
            classes=torch.tensor([place[name] for name in names]),
            pooled=pooled,
            embeddings=embeddings,
            class_means=torch.from_numpy(store.all_pooled()),
            prototypes=torch.from_numpy(store.all_embeddings()),
            surroundings=surroundings_of(store, border),
            metric=store.metric,
            skipped=tuple(skipped),
        )

    def require_images(self, what: str) -> None:
        """Nothing, if the images' vectors were kept; else InputError about what needs them."""
        if not len(self.pooled):
            raise InputError(f"{what} needs the references' own vectors, which were not kept: keep_images=True")

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
        self.require_images("the nearest image")
        found = distances(embeddings, self.embeddings, self.metric)
        place = {file: number for number, file in enumerate(self.files)}
        for row, file in enumerate(files):
            if file in place:
                found[row, place[file]] = torch.inf
        return found
