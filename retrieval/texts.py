"""Options of queries, and texts as queries, alone or joined with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from ..encoders import Encoding
from ..encoders.inference import Encodes
from ..errors import InputError
from .ranking import Query, StoredEncoding, TextEncoding

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
