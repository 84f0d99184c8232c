"""Whatever a caller asks a gallery with, as files, bytes and Pillow images, or as vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..images.given.arrays import INTENSITIES, image_of_array, is_array, is_of_floats, numpy_of
from ..images.given.inputs import IMAGE_KINDS, kind_of
from ..images.given.remote import fetched, is_url
from ..images.queries import list_queries
from ..remarks import remark
from .ranking import BareVector, Encodes, Query


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
