"""Ask a gallery "which of these is this?": one forward pass per query, then the search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..encoders import Encoder, Encoding, Inference
from ..errors import GalleryError, InputError
from ..index import Gallery
from ..index.search import Hits, SearchSpec, comparable, distances_to
from .matches import Match, Matches, Query

__all__ = ["Retriever"]


class Retriever:
    """A gallery with the encoder that built it, ready for queries.

    Args:
        gallery: an open gallery or its folder.
        encoder: the encoder that built it; by default the copy that the gallery keeps.
        device: "auto", "cpu", "cuda", …
        precision: "fp32", "bf16", or "auto": the one the gallery was built with, so that an image finds itself at 0.

    Raises:
        FingerprintMismatchError: the encoder is not the one that built the gallery.
        GalleryError: the gallery keeps no encoder (it was built with the user's own module) and none was given.
    """

    def __init__(
        self,
        gallery: Gallery | str | PathLike[str],
        encoder: Encoder | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
        self.encoder = encoder if encoder is not None else _stored_encoder(self.gallery)
        self.gallery.check_encoder(self.encoder)
        if precision == "auto":
            precision = self.gallery.manifest.encoder.precision or "auto"
        self.inference = Inference(self.encoder, device=device, precision=precision)

    @overload
    def query(self, images: str | PathLike[str] | bytes, *, k: int = 10, where: str | None = None) -> Matches: ...
    @overload
    def query(self, images: Sequence[Any], *, k: int = 10, where: str | None = None) -> list[Matches]: ...
    @overload
    def query(self, images: Any, *, k: int = 10, where: str | None = None) -> Matches: ...

    def query(self, images: Any, *, k: int = 10, where: str | None = None) -> Matches | list[Matches]:
        """The k nearest gallery images of an image, or of each image of a sequence (encoded in batches).

        Args:
            images: a path, encoded bytes or a Pillow image; or a sequence of them, which gives a list.
            k: how many matches; fewer come back when the gallery (or the filter) holds fewer.
            where: a filter such as `label=cat` or `year>=2020 and camera!=3`.

        Raises:
            InputError: k < 1, an empty sequence, a filter that does not parse.
            ImageError: a file that is not a usable image.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        many = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        sources = list(images) if many else [images]
        if not sources:
            raise InputError("no query images were given")
        results = self._rank(sources, self.inference.encode_images(sources), k, where)
        return results if many else results[0]

    def _rank(self, sources: list[Any], encoding: Encoding, k: int, where: str | None) -> list[Matches]:
        hits = self.gallery.search(encoding.embedding.cpu().numpy(), k, where=where)
        queries = (Query(_name(source, i), source, encoding[i]) for i, source in enumerate(sources))
        return [
            Matches(query, self._matches(hit), self.gallery.metric, self)
            for query, hit in zip(queries, hits, strict=True)
        ]

    def _matches(self, hits: Hits) -> tuple[Match, ...]:
        records = self.gallery.records(hits.ids)
        return tuple(
            Match(
                rank=rank,
                id=int(hits.ids[rank - 1]),
                path=record.path,
                label=record.label,
                columns=record.columns,
                distance=float(hits.distances[rank - 1]),
                similarity=self.similarity(float(hits.distances[rank - 1])),
                file=self.gallery.file(record),
            )
            for rank, record in enumerate(records, start=1)
        )

    def similarity(self, distance: float) -> float:
        """Larger is more alike: the cosine or dot product itself, the negative distance for L1 and L2."""
        return (1.0 if self.gallery.metric == "cosine" else 0.0) - distance

    def prototype_distances(self, encoding: Encoding) -> dict[str, float]:
        """Distance of an encoding (batch of one) to every class prototype, nearest first; empty without labels."""
        labels, vectors = self._prototypes
        if not labels:
            return {}
        spec = SearchSpec(vectors.shape[1], self.gallery.spec.metric)
        query = comparable(spec, encoding.embedding.cpu().numpy())[0]
        distances = distances_to(spec, query, vectors)
        return {labels[i]: float(distances[i]) for i in np.argsort(distances, kind="stable")}

    @cached_property
    def _prototypes(self) -> tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.float32]]]:
        store = self.gallery.prototypes
        return store.labels, store.all_embeddings()


def _stored_encoder(gallery: Gallery) -> Encoder:
    if gallery.encoder_path is None:
        raise GalleryError(
            f"{gallery.folder} keeps no encoder (it was built with a module of your own); pass `encoder`"
        )
    return Encoder.load(gallery.encoder_path)


def _name(source: Any, position: int) -> str:
    if isinstance(source, (str, PathLike)):
        return str(Path(source))
    return getattr(source, "filename", "") or f"query {position + 1}"
