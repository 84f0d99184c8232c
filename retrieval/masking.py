"""Retrieval meets segmentation: vectors pooled under masks, and masks made of maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..encoders import Encoder, Inference
from ..encoders.regions import MaskPooling, pooled_under, weights_of
from ..errors import ImageError, InputError
from ..images import read_image
from ..images.masks import MaskFolder, read_mask
from ..index.storage.segments import MASK_COLUMN, NO_MASK

if TYPE_CHECKING:
    from ..index import Gallery, Record
    from .ranking import Match

Images = Iterable[tuple[Path, str]]


def region_of_file(file: str | PathLike[str], *, category: int | None = None) -> Bool[NDArray[Any], "height width"]:
    """A mask file as the region of a query: everything that is not black, or the pixels with a class's number."""
    mask = read_mask(file, category=category)
    if not mask.any():
        what = "nothing but black" if category is None else f"no pixel with the number {category}"
        raise InputError(f"{file}: the mask holds {what}, so there is nothing to search for")
    return mask


@dataclass(frozen=True, eq=False)
class EncodedBothWays:
    """Images as a whole and under their masks, from the same feature maps."""

    files: tuple[Path, ...]
    whole: tuple[Tensor, Tensor]
    masked: tuple[Tensor, Tensor]
    has_mask: Bool[Tensor, " n"]
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
    listed = list(images)
    if masks is not None and not strict:
        masks.join(path for _, path in listed).tell(what="a mask", lines=f"masks in {masks.folder}")
    under = None if masks is None else MaskPooling.of(masks, inference.encoder, strict=strict)
    weights: dict[Path, Tensor | None] = {}
    found: list[tuple[Path, bool]] = []
    vectors: list[tuple[Tensor, ...]] = []  # of whole images, then under masks
    skipped: list[str] = []

    def load(item: tuple[Path, str]) -> Tensor:
        file, path = item
        image = read_image(file, whole=True)
        weights[file] = None if under is None else under.weights(path, image.size)
        return inference.transform(image)

    for batch in inference.stream(listed, load=load):
        for failure in batch.failures:
            if strict:
                raise failure.error
            skipped.append(f"{failure.item[0]}: {failure.error.reason}")
        if batch.encoding is not None:
            own = [weights.pop(file) for file, _ in batch.items]
            found += [(file, each is not None) for (file, _), each in zip(batch.items, own, strict=True)]
            both = (batch.encoding, pooled_under(inference.encoder, batch.encoding, own))
            vectors.append(tuple(each.cpu() for encoding in both for each in (encoding.pooled, encoding.embedding)))
        if progress is not None:
            progress(len(found) + len(skipped))
    if under is not None:
        under.tell()
    if not found:
        raise InputError(f"none of the images could be used; the first: {[*skipped, 'there are none'][0]}")
    pooled, embedding, pooled_masked, embedding_masked = (torch.cat(part) for part in zip(*vectors, strict=True))
    return EncodedBothWays(
        files=tuple(file for file, _ in found),
        whole=(pooled, embedding),
        masked=(pooled_masked, embedding_masked),
        has_mask=torch.tensor([has_mask for _, has_mask in found]),
        skipped=tuple(skipped),
    )


def gallery_weights(
    gallery: Gallery, encoder: Encoder, images: Sequence[Record | Match], *, shape: tuple[int, int] | None = None
) -> list[Float[Tensor, "h w"]] | None:
    """The weights under which a gallery pooled these images of its own; None where it pools whole images."""
    masks = gallery.masks
    if masks is None:
        return None
    shape = shape or gallery.spec.map_shape or MaskPooling.of(masks, encoder).shape
    return [_stored_weights(image, masks, encoder, shape) for image in images]


def _stored_weights(
    image: Record | Match, masks: MaskFolder, encoder: Encoder, shape: tuple[int, int]
) -> Float[Tensor, "h w"]:
    digest = image.columns.get(MASK_COLUMN, NO_MASK)
    whole = torch.ones(shape)
    if digest == NO_MASK:
        return whole
    if masks.digest(image.path) != digest:
        raise InputError(
            f"{image.path} was pooled under a mask that is not at {masks.file(image.path)} any more, so this side "
            "cannot be explained; put it back, or renew the gallery with `distcam index add`"
        )
    try:
        mask = read_mask(masks.file(image.path), category=masks.category)
        size = (mask.shape[1], mask.shape[0])
        return weights_of(mask, size=size, encoder=encoder, shape=shape) if mask.any() else whole
    except ImageError as error:
        raise InputError(f"{image.path}: its mask: {error.reason}") from error
    except InputError:  # nothing of the mask is seen: pooled as a whole
        return whole
