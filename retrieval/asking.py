"""Whatever a caller asks a gallery with, as files, bytes and Pillow images, or as vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..encoders.inference import Encodes
from ..errors import InputError
from ..images.given.arrays import INTENSITIES, image_of_array, is_array, is_of_floats, numpy_of
from ..images.given.inputs import IMAGE_KINDS, kind_of
from ..images.given.remote import fetch, is_url
from ..remarks import remark
from .ranking import BareVector, Query


def queries_of(images: Any, inference: Encodes, *, width: int) -> tuple[list[Query], bool]:
    """The queries, encoded, and whether they were a sequence; `width` is that of the gallery's embeddings.

    Raises:
        InputError: no query, something that is neither image nor vector, or a vector of another width.
        ImageError: an image that cannot be used.
    """
    given, many = _one_by_one(images, width)
    if not given:
        raise InputError("no query images were given")
    sources = [_source_of(each, width) for each in given]
    if floats := sum(map(is_of_floats, (each for each in given if getattr(each, "ndim", 1) > 1))):
        remark(f"{floats:,} query images are arrays of floats: {INTENSITIES}")
    encodable = [source for source in sources if not isinstance(source, BareVector)]
    encoded = iter(inference.encode_images(encodable) if encodable else ())
    queries = []
    for place, (each, source) in enumerate(zip(given, sources, strict=True)):
        if isinstance(source, BareVector):
            queries.append(Query(f"vector {place + 1}", None, source))
        else:
            queries.append(Query(name_of(each, place), source, next(encoded)))
    return queries, many


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


def _source_of(given: Any, width: int) -> Any:
    if is_array(given) and given.ndim == 1:
        vector = torch.from_numpy(np.array(numpy_of(given), np.float32))
        if len(vector) != width:
            raise InputError(f"expected a vector of {width} numbers, as this gallery's embeddings; got {len(vector)}")
        return BareVector(vector[None])
    if is_array(given):
        return image_of_array(given)
    if is_url(given):
        return fetch(given)
    if not isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview)) and not any(
        hasattr(given, name) for name in ("getbands", "read")
    ):
        raise InputError(f"expected a query as {IMAGE_KINDS}, or a vector of {width} numbers; got {kind_of(given)}")
    return given


def name_of(source: Any, position: int) -> str:
    """The name of an image that is asked about: its path or URL, or its place among the images."""
    if isinstance(source, (str, os.PathLike)):
        return str(source if is_url(source) else Path(source))
    return getattr(source, "filename", "") or f"query {position + 1}"
