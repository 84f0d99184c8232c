"""Queries: options of every way to ask a gallery, and images, vectors and texts as queries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..encoders import Encoding
from ..encoders.inference import Encodes
from ..errors import InputError
from ..images.given.arrays import INTENSITIES, image_of_array, is_array, is_of_floats, numpy_of
from ..images.given.inputs import IMAGE_KINDS, kind_of
from ..images.given.remote import fetched, is_url
from ..images.queries import list_queries
from ..remarks import remark
from .ranking import BareVector, Query, StoredEncoding, TextEncoding

if TYPE_CHECKING:
    from .retriever import Retriever


class Ranked(TypedDict, total=False):
    """Options of every way to query.

    Attributes:
        k: how many matches, by default 10; fewer come back when the gallery (or the filter) holds fewer.
        where: a filter such as `label=cat` or `year>=2020 and camera!=3`.
        reject: accept only what is as near as the gallery's own threshold says, see `Gallery.calibrate`.
        max_distance: the same with a threshold of yours, in units of the gallery's metric.
        verify: sort the first matches anew by lines, for instances (the same individual, object, place), not for
            classes: how many (20), or a method with how many ("lines:20", "lightglue:10", "loftr").
    """

    k: int
    where: str | None
    reject: bool
    max_distance: float | None
    verify: int | str | None


class Asked(Ranked, total=False):
    """Options of a query with images."""

    text: str | None  # words to join each image with: what is searched is the weighted mean of the two unit vectors
    text_weight: float  # of the text in that mean, by default 0.5; the image has the rest.


def queries_of(images: Any, inference: Encodes, *, width: int) -> tuple[list[Query], bool]:
    """The queries, encoded, and whether they were a sequence; `width` is that of the gallery's embeddings.

    Raises:
        InputError: no query, something that is neither image nor vector, or a vector of another width.
        ImageError: an image that cannot be used.
    """
    given, many = one_by_one(images, width)
    if not given:
        raise InputError("no query images were given")
    sources = [source_of(each, width) for each in given]
    encodable = [source for source in sources if not isinstance(source, BareVector)]
    encoded = iter(inference.encode_images(encodable) if encodable else ())
    queries = []
    for place, (each, source) in enumerate(zip(given, sources, strict=True)):
        is_vector = isinstance(source, BareVector)
        queries.append(Query(name_of(each, place), *((None, source) if is_vector else (source, next(encoded)))))
    return queries, many


def given_images(images: Any, *, width: int, margin: float) -> list[Any]:
    """What `one_by_one` finds, and what folders, patterns, tables and data sets hold, with boxes wider by a margin."""
    is_sequence = isinstance(images, Sequence) and not isinstance(images, str)
    if is_sequence or is_array(images) or any(hasattr(images, name) for name in ("getbands", "read")):
        return one_by_one(images, width)[0]
    files, problems = list_queries([images], margin=margin)
    for problem in problems:
        remark(problem)
    return files


def one_by_one(images: Any, width: int) -> tuple[list[Any], bool]:
    """The images and vectors of what may be a sequence of them, and whether it is one."""
    given, many = _one_by_one(images, width)
    if floats := sum(is_of_floats(each) and each.ndim > 1 for each in given):
        remark(f"{floats:,} query images are arrays of floats: {INTENSITIES}")
    return given, many


def _one_by_one(images: Any, width: int) -> tuple[list[Any], bool]:
    if is_array(images) and images.ndim == 2 and is_of_floats(images) and images.shape[1] == width:
        raise InputError(
            f"an array {tuple(images.shape)} of floats may be {len(images)} vectors or one image in grey; expected "
            "list(array) for vectors, array[..., None] for an image"
        )
    if is_array(images) and (images.ndim == 4 or (images.ndim == 1 and "float" not in str(images.dtype))):
        return list(images), True
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes, bytearray, memoryview)):
        return [images], False
    if images and all(type(each) in (float, int) for each in images):
        return [torch.tensor(images)], False
    return list(images), True


def source_of(given: Any, width: int) -> Any:
    """What an encoder reads of an image that is asked about, or a vector of this width."""
    if is_array(given) and given.ndim == 1:
        vector = torch.from_numpy(np.array(numpy_of(given), np.float32))
        if len(vector) != width:
            raise InputError(f"expected a vector of {width} numbers, as this gallery's embeddings; got {len(vector)}")
        return BareVector(vector[None])
    if is_array(given):
        return image_of_array(given)
    given = fetched(given)
    if not isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview)) and not any(
        hasattr(given, name) for name in ("getbands", "read")
    ):
        raise InputError(f"expected a query as {IMAGE_KINDS}, or a vector of {width} numbers; got {kind_of(given)}")
    return given


def name_of(source: Any, position: int) -> str:
    """The name of an image or vector that is asked about: its path or URL, or its place among the images."""
    if isinstance(source, (str, os.PathLike)):
        return str(source if is_url(source) else Path(source))
    kind = "vector" if is_array(source) and source.ndim == 1 else "query"
    return getattr(source, "filename", "") or f"{kind} {position + 1}"


def text_queries(inference: Encodes, texts: Sequence[str]) -> list[Query]:
    """Texts as queries; InputError where the encoder takes none."""
    vectors = _vectors(inference, texts)
    return [Query(text, None, TextEncoding(text, vectors[i : i + 1])) for i, text in enumerate(texts)]


def with_text(
    retriever: Retriever, query: Query, *, text: str | None = None, text_weight: float = 0.5, **_: Any
) -> Query:
    """An image's query joined with a text; itself without one. See `Asked`."""
    if text is None:
        return query
    if not 0 < text_weight < 1:
        raise InputError(f"expected `text_weight` between 0 and 1, both excluded, got {text_weight}")
    metric, image = retriever.gallery.metric, query.encoding
    if metric in ("l1", "l2"):
        raise InputError(
            f"an image and a text are joined as unit vectors, which a gallery with metric {metric} does not compare; "
            "build it with metric cosine or dot"
        )
    if not isinstance(image, (Encoding, StoredEncoding)):
        raise InputError(f"{query.name} is no image that a text could be joined with")
    words = _vectors(retriever.inference, [text])
    joined = TextEncoding(text, words, image=image, weight=text_weight)
    name = f"{query.name} ({1 - text_weight:.3g}) with {text!r} ({text_weight:.3g})"
    return replace(query, name=name, encoding=joined)


@torch.no_grad()
def _vectors(inference: Encodes, texts: Sequence[str]) -> Tensor:
    """The texts' vectors "n d" on the CPU; they are short, so they are computed in the thread that asks."""
    return inference.encoder.encode_text(texts).cpu()
