"""Ask a gallery "which of these is this?": one forward pass per query, then the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Protocol, overload

import numpy as np
import torch

from ..encoders import Encoder, Encoding, Inference
from ..encoders.inference import whole_encoder
from ..errors import GalleryError, InputError
from ..explain.regions import Region, coverage, pool_region, region_weights
from ..images import Box
from ..index import Gallery
from ..index.faiss.runtime import note_search_on_cpu
from ..index.rejection import Rejection
from ..index.search import Hits, SearchSpec, comparable, distances_to
from .masking import stored_weights
from .matches import Match, Matches, Query
from .stored import BareVector, StoredEncoding

__all__ = ["Encodes", "Retriever"]

_Prototypes = tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.float32]]]


class Encodes(Protocol):
    """What a retriever needs of an `Inference`; a server puts its own queue in place of it."""

    encoder: Encoder
    device: torch.device

    def encode_images(self, images: Sequence[Any]) -> Encoding:
        """The encoding of files, bytes or Pillow images."""


class Retriever:
    """A gallery with the encoder that built it, ready for queries.

    Args:
        gallery: an open gallery or its folder.
        encoder: the encoder that built it; by default the copy that the gallery keeps.
        device: "auto", "cpu", "cuda", …
        precision: "fp32", "bf16", or "auto": the one the gallery was built with, so that an image finds itself at 0.
        inference: encodes in place of an `Inference` that would be made of the encoder by the last two.

    Raises:
        FingerprintMismatchError: the encoder is not the one that built the gallery.
        GalleryError: the gallery keeps no copy of its encoder and none was given.
    """

    def __init__(
        self,
        gallery: Gallery | str | PathLike[str],
        encoder: Encoder | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        inference: Encodes | None = None,
    ) -> None:
        self.gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
        found = _stored_encoder(self.gallery) if encoder is None else encoder
        self.encoder = found if inference is not None else whole_encoder(found)
        self.gallery.check_encoder(self.encoder)
        if precision == "auto":
            precision = self.gallery.manifest.encoder.precision or "auto"
        self.inference: Encodes = inference or Inference(self.encoder, device=device, precision=precision)
        self._given = (encoder, device, precision, inference is not None)
        if inference is None and not self.gallery.snapshot.is_remote:
            note_search_on_cpu(device)
        self._kept_prototypes: tuple[tuple[str, int], _Prototypes] | None = None
        self._kept_classes: tuple[tuple[str, int, str], frozenset[str]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as its gallery's folder and its settings, with the encoder unless the gallery keeps it.

        Raises:
            GalleryError: it was made with an `inference` of the caller's.
        """
        encoder, device, precision, has_own_inference = self._given
        if has_own_inference:
            raise GalleryError(
                "a retriever with an inference of its own stays in its process; in the other one, make a "
                f"Retriever(Gallery.open({str(self.gallery.folder)!r})) with an inference of that process"
            )
        return _made_again, (self.gallery, encoder, device, precision)

    @overload
    def query(
        self,
        images: str | PathLike[str] | bytes,
        *,
        k: int = 10,
        where: str | None = None,
        region: Region | None = None,
        reject: bool = False,
        max_distance: float | None = None,
    ) -> Matches: ...
    @overload
    def query(
        self,
        images: Sequence[Any],
        *,
        k: int = 10,
        where: str | None = None,
        region: Region | Sequence[Region | None] | None = None,
        reject: bool = False,
        max_distance: float | None = None,
    ) -> list[Matches]: ...
    @overload
    def query(
        self,
        images: Any,
        *,
        k: int = 10,
        where: str | None = None,
        region: Region | None = None,
        reject: bool = False,
        max_distance: float | None = None,
    ) -> Matches: ...

    def query(
        self,
        images: Any,
        *,
        k: int = 10,
        where: str | None = None,
        region: Region | Sequence[Region | None] | None = None,
        reject: bool = False,
        max_distance: float | None = None,
    ) -> Matches | list[Matches]:
        """The k nearest gallery images of an image, or of each image of a sequence (encoded in batches).

        Args:
            images: a path, encoded bytes or a Pillow image; or a sequence of them, which gives a list.
            k: how many matches; fewer come back when the gallery (or the filter) holds fewer.
            where: a filter such as `label=cat` or `year>=2020 and camera!=3`.
            region: search for a part of the picture only, and explain with that: a `Box` in pixels of the picture, or
                a boolean array of its size. For several images one for all, or a sequence with one (or None) for each.
            reject: accept only what is as near as the gallery's own threshold says, see `Gallery.calibrate`.
            max_distance: the same with a threshold of yours, in units of the gallery's metric.

        Raises:
            InputError: k < 1, an empty sequence, a filter that does not parse, a region that is empty or outside; two
                thresholds, or none in the gallery.
            ImageError: a file that is not a usable image.
        """
        many = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        sources = list(images) if many else [images]
        if not sources:
            raise InputError("no query images were given")
        self._check(k, reject=reject, max_distance=max_distance)
        encoding = self.inference.encode_images(sources)
        queries = [Query(_name(source, i), source, encoding[i]) for i, source in enumerate(sources)]
        if region is not None:
            regions = _one_each(region, len(queries))
            queries = [
                query if part is None else self.focused(query, part)
                for query, part in zip(queries, regions, strict=True)
            ]
        results = self.rank(queries, k=k, where=where, reject=reject, max_distance=max_distance)
        return results if many else results[0]

    def query_stored(
        self,
        image: int,
        *,
        k: int = 10,
        where: str | None = None,
        region: Region | None = None,
        reject: bool = False,
        max_distance: float | None = None,
        include_self: bool = False,
    ) -> Matches:
        """The k images nearest to one that the gallery holds: no forward pass, no file is opened.

        Only a region, or a map of a gallery that keeps none, needs the picture itself.

        Args:
            image: its id.
            k: as for `query`, and so are the next four.
            where: see `query`.
            region: see `query`.
            reject: see `query`.
            max_distance: see `query`.
            include_self: let the image find itself.

        Raises:
            InputError: no such image, or what `query` refuses.
            ImageError: the picture is needed, and its file is gone or damaged.
        """
        self._check(k, reject=reject, max_distance=max_distance)
        query = self.stored(image)
        if region is not None:
            query = self.focused(query, region)
        without = None if include_self else image
        (matches,) = self.rank([query], k=k, where=where, reject=reject, max_distance=max_distance, without=without)
        return matches

    def stored(self, image: int, *, known_size: tuple[int, int] | None = None) -> Query:
        """An image of the gallery, given by its id, as a query; InputError when it is not there."""
        gallery = self.gallery
        record = gallery.records([image])[0]
        file = gallery.file(record)

        def feature_map() -> torch.Tensor:
            if gallery.spec.map_shape is not None:
                return torch.from_numpy(gallery.maps([image]))
            return self.inference.encode_images([file]).feature_map

        pooled = torch.from_numpy(gallery.pooled([image]))
        weights = stored_weights(gallery, self.inference.encoder, record)
        same = gallery.spec.embedding_is_pooled
        embedding = pooled if same else torch.from_numpy(gallery.embeddings([image]))
        encoding = StoredEncoding(pooled, embedding, feature_map)
        return Query(record.path, file, encoding, weights=weights, known_size=known_size)

    def rank(
        self,
        queries: Sequence[Query],
        *,
        k: int = 10,
        where: str | None = None,
        reject: bool = False,
        max_distance: float | None = None,
        without: int | None = None,
    ) -> list[Matches]:
        """The k nearest gallery images of queries that are encoded already; see `query`.

        Args:
            queries: at least one.
            k: as for `query`, and so are the next three.
            where: see `query`.
            reject: see `query`.
            max_distance: see `query`.
            without: the id of an image that is no answer.

        Raises:
            InputError: what `query` refuses, or vectors that do not fit the gallery.
        """
        rejection = self._check(k, reject=reject, max_distance=max_distance)
        limit = max_distance if rejection is None else rejection.threshold
        vectors = torch.cat([query.encoding.embedding for query in queries]).cpu().numpy()
        found = self.gallery.search(vectors, k if without is None else k + 1, where=where)
        ranked = [
            Matches(query, self._matches(_first(hits, k, without)), self.gallery.metric, self, where=where)
            for query, hits in zip(queries, found, strict=True)
        ]
        return ranked if limit is None else [matches.within(limit, rejection=rejection) for matches in ranked]

    def _check(self, k: int, *, reject: bool, max_distance: float | None) -> Rejection | None:
        """The gallery's threshold if it is asked for, after a look at what can be refused before any work."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        return self._rejection(max_distance) if reject else None

    def _rejection(self, max_distance: float | None) -> Rejection:
        """The threshold that the gallery keeps."""
        if max_distance is not None:
            raise InputError("the gallery's threshold and a largest distance of yours exclude one another; give one")
        rejection = self.gallery.manifest.rejection
        if rejection is None:
            raise InputError(
                f"{self.gallery.folder} keeps no threshold to reject by; choose one with `distcam index calibrate` "
                "(Gallery.calibrate), or give a largest distance"
            )
        return rejection

    def focused(self, query: Query, region: Region) -> Query:
        """The query pooled over a region alone.

        Raises:
            InputError: a region that is empty or outside, or a query that has no picture.
        """
        encoder, feature_map = self.inference.encoder, query.encoding.feature_map.to(self.inference.device)
        size = query.whole_size
        rows, columns = feature_map.shape[-2:]
        shares = coverage(region, size=size, view=encoder.transform.view(*size), shape=(rows, columns))
        weights = region_weights(shares).to(feature_map.device)
        with torch.no_grad():
            pooled = pool_region(feature_map, weights, pooling=encoder.pooling)
            encoding = Encoding(feature_map, pooled, encoder.embed(pooled))
        return replace(query, encoding=encoding, region=region, weights=weights)

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

    def prototype_distances(self, encoding: Encoding | StoredEncoding | BareVector) -> dict[str, float]:
        """Distance of an encoding (batch of one) to every class prototype, nearest first; empty without labels."""
        labels, vectors = self._prototypes()
        if not labels:
            return {}
        spec = SearchSpec(vectors.shape[1], self.gallery.spec.metric)
        query = comparable(spec, encoding.embedding.cpu().numpy())[0]
        distances = distances_to(spec, query, vectors)
        return {labels[i]: float(distances[i]) for i in np.argsort(distances, kind="stable")}

    def classes_where(self, where: str) -> frozenset[str]:
        """The classes of the images that a filter keeps.

        Raises:
            InputError: it does not parse, or names a column that the gallery does not have.
        """
        manifest, kept = self.gallery.manifest, self._kept_classes
        state = (manifest.gallery_id, manifest.generation, where)
        if kept is None or kept[0] != state:
            snapshot = self.gallery.snapshot
            label = snapshot.column("label")
            codes = np.unique(label.codes[np.isin(snapshot.ids, self.gallery.ids_where(where))])
            kept = self._kept_classes = (state, frozenset(label.values[code] for code in codes if code >= 0))
        return kept[1]

    def _prototypes(self) -> _Prototypes:
        """Labels and vectors, computed anew when the gallery has moved on."""
        manifest, kept = self.gallery.manifest, self._kept_prototypes
        state = (manifest.gallery_id, manifest.generation)
        if kept is None or kept[0] != state:
            store = self.gallery.prototypes
            kept = self._kept_prototypes = (state, (store.labels, store.all_embeddings()))
        return kept[1]


def _made_again(gallery: Gallery, encoder: Encoder | None, device: str, precision: str) -> Retriever:
    return Retriever(gallery, encoder, device=device, precision=precision)


def _stored_encoder(gallery: Gallery) -> Encoder:
    if gallery.encoder_path is None:
        raise GalleryError(
            f"{gallery.folder} keeps no copy of its encoder {gallery.manifest.encoder.short_name} (a network of one's "
            "own is not copied, and imported vectors may come without); pass encoder, the one that made its vectors"
        )
    return Encoder.load(gallery.encoder_path)


def _first(hits: Hits, k: int, without: int | None) -> Hits:
    """The first k hits, one id passed over."""
    if without is None:
        return hits
    kept = np.flatnonzero(hits.ids != without)[:k]
    return Hits(hits.ids[kept], hits.distances[kept])


def _one_each(region: Any, n_queries: int) -> Sequence[Region | None]:
    """The region of each query: one for all of them, or as many as there are."""
    if isinstance(region, (Box, np.ndarray)):
        return [region] * n_queries
    if not isinstance(region, Sequence) or any(not isinstance(part, (Box, np.ndarray, NoneType)) for part in region):
        raise InputError(f"a region is a Box or a boolean array, or a sequence with one for each image; got {region!r}")
    if len(region) != n_queries:
        raise InputError(f"expected {n_queries} regions, one for each image (None for all of it); got {len(region)}")
    return region


def _name(source: Any, position: int) -> str:
    if isinstance(source, (str, PathLike)):
        return str(Path(source))
    return getattr(source, "filename", "") or f"query {position + 1}"
