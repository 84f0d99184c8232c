"""Ask a gallery "which of these is this?": one forward pass per query, then the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from types import NoneType
from typing import Any, Unpack, overload

import numpy as np
import torch

from ..encoders import Encoder, Encoding, Inference
from ..encoders.inference import Encodes, whole_encoder
from ..encoders.readouts import has_constant
from ..encoders.regions import Region, pool_region, weights_of
from ..errors import GalleryError, ImageError, InputError
from ..explain.places import visible_box
from ..explain.verification import parse_verify
from ..images import Box
from ..index import Gallery
from ..index.faiss.runtime import note_search_on_cpu
from ..index.rejection import Rejection
from ..index.search import Hits, Ids
from ..metrics.distances import Distances, comparable, distances_to
from ..remarks import remark
from .classification import Classed, GalleryClassifier, Prediction, classified
from .evidence import Detailed, gallery_weights
from .lines import LineFinder, sorted_by_lines
from .matches import Matches
from .queries import Asked, Ranked, queries_of, text_queries, with_text
from .ranking import BareVector, Match, Query, StoredEncoding, TextEncoding

Areas = Region | Sequence[Region | None] | None
_Prototypes = tuple[tuple[str, ...], np.ndarray[Any, np.dtype[np.float32]]]


class Retriever:
    """A gallery with the encoder that built it, ready for queries.

    Args:
        gallery: an open gallery or its folder.
        encoder: the encoder that built it; by default the copy that the gallery keeps.
        device: "auto", "cpu", "cuda", …
        precision: "fp32", "bf16", or "auto": the one the gallery was built with, so that an image finds itself at 0.
        inference: encodes in place of an `Inference` that would be made of the encoder by the last two.
        fine_layer: of the backbone, for lines; "auto" is the gallery's, or the last block with stride 8.

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
        fine_layer: str = "auto",
    ) -> None:
        self.gallery = Gallery.open(gallery) if isinstance(gallery, str | PathLike) else gallery
        if encoder is None and self.gallery.encoder_path is None:
            raise GalleryError(
                f"{self.gallery.folder} keeps no copy of its encoder {self.gallery.manifest.encoder.short_name} (a "
                "network of one's own is not copied, and imported vectors may come without); pass encoder, the one "
                "that made its vectors"
            )
        found = Encoder.load(self.gallery.encoder_path or "") if encoder is None else encoder
        self.encoder = found if inference is not None else whole_encoder(found)
        self.gallery.check_encoder(self.encoder)
        if precision == "auto":
            precision = self.gallery.manifest.encoder.precision or "auto"
        self.inference: Encodes = inference or Inference(self.encoder, device=device, precision=precision)
        self._given = (encoder, device, precision, fine_layer, inference is not None)
        self.lines = LineFinder(self, fine_layer)
        if inference is None and not self.gallery.snapshot.is_remote:
            note_search_on_cpu(device)
        self.detailed = Detailed(self)
        self._kept_prototypes: tuple[tuple[str, int], _Prototypes] | None = None
        self._kept_classes: tuple[tuple[str, int, str], frozenset[str]] | None = None
        self.kept_classifier: tuple[tuple[Any, ...], GalleryClassifier] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as its gallery's folder and its settings, with the encoder unless the gallery keeps it."""
        encoder, device, precision, fine_layer, has_own_inference = self._given
        if has_own_inference:
            raise GalleryError(
                "a retriever with an inference of its own stays in its process; in the other one, make a "
                f"Retriever(Gallery.open({str(self.gallery.folder)!r})) with an inference of that process"
            )
        settings: dict[str, Any] = {"device": device, "precision": precision, "fine_layer": fine_layer}
        return partial(Retriever, **settings), (self.gallery, encoder)

    @overload
    def query(
        self, images: str | PathLike[str] | bytes, *, region: Region | None = None, **options: Unpack[Asked]
    ) -> Matches: ...
    @overload
    def query(self, images: Sequence[Any], *, region: Areas = None, **options: Unpack[Asked]) -> list[Matches]: ...
    @overload
    def query(self, images: Any, *, region: Region | None = None, **options: Unpack[Asked]) -> Matches: ...

    def query(self, images: Any, *, region: Areas = None, **options: Unpack[Asked]) -> Matches | list[Matches]:
        """The k nearest gallery images of an image, or of each image of a sequence (encoded in batches).

        Args:
            images: a path, a URL, encoded bytes, a Pillow image, an array (rows, columns, 3), a tensor (3, rows,
                columns), or a vector of the embedding's width, which is searched but not explained; or a sequence of
                them, which gives a list.
            region: search for a part of the image only, and explain with that: a `Box` in pixels of the image, or
                a boolean array of its size. For several images one for all, or a sequence with one (or None) for each.
            options: `k`, `where`, `reject`, and `max_distance`, see `Ranked`; `text` and `text_weight`, see `Asked`.

        Raises:
            InputError: k < 1, an empty sequence, a filter that does not parse, a region that is empty or outside; two
                thresholds, or none in the gallery.
            ImageError: a file that is not a usable image.
        """
        self.require_threshold(**options)
        if options.get("verify"):
            _ = self.lines.layer  # so that the queries' own pass brings their fine maps
        queries, many = queries_of(images, self.inference, width=self.gallery.spec.embedding_dim)
        if region is not None:
            each = [region] * len(queries) if isinstance(region, (Box, np.ndarray)) else region
            if not isinstance(each, Sequence) or any(not isinstance(p, (Box, np.ndarray, NoneType)) for p in each):
                raise InputError(
                    f"a region is a Box or a boolean array, or a sequence with one for each image; got {region!r}"
                )
            if len(each) != len(queries):
                raise InputError(
                    f"expected {len(queries)} regions, one for each image (None for all of it); got {len(each)}"
                )
            parts = zip(queries, each, strict=True)
            queries = [query if part is None else self.focused(query, part, is_said=True) for query, part in parts]
        queries = [with_text(self, query, **options) for query in queries]
        results = self.rank(queries, **options)
        return results if many else results[0]

    def query_stored(
        self, image: int, *, region: Region | None = None, include_self: bool = False, **options: Unpack[Asked]
    ) -> Matches:
        """The k images nearest to one that the gallery holds: no forward pass, no file is opened.

        Only a region, or a map of a gallery that keeps none or whose maps are of class tokens, needs the image itself.

        Args:
            image: its id.
            region: see `query`.
            include_self: let the image find itself.
            options: see `Asked`.

        Raises:
            InputError: no such image, or what `query` refuses.
            ImageError: the image is needed, and its file is gone or damaged.
        """
        self.require_threshold(**options)
        query = self.stored(image)
        if region is not None:
            query = self.focused(query, region, is_said=True)
        query = with_text(self, query, **options)
        return self.rank([query], without=None if include_self else image, **options)[0]

    @overload
    def query_text(self, texts: str, **options: Unpack[Ranked]) -> Matches: ...  # type: ignore[overload-overlap]
    @overload
    def query_text(self, texts: Sequence[str], **options: Unpack[Ranked]) -> list[Matches]: ...

    def query_text(self, texts: str | Sequence[str], **options: Unpack[Ranked]) -> Matches | list[Matches]:
        """The k gallery images that answer a text best, or each text of a sequence; each match shows where it does.

        Args:
            texts: such as "a red mug on wood"; for an image with a text see `query`.
            options: see `Ranked`.

        Raises:
            InputError: an encoder without a text tower, an empty text, or what `query` refuses.
        """
        self.require_threshold(**options)
        if options.get("verify"):
            raise InputError("lines verify matches of images, and a text has no places; leave `verify` out")
        results = self.rank(text_queries(self.inference, [texts] if isinstance(texts, str) else texts), **options)
        return results[0] if isinstance(texts, str) else results

    def classify(self, images: Any, **options: Unpack[Classed]) -> list[Prediction]:
        """The class of each image, with a confidence that is calibrated on the gallery's own images, and its map.

        Args:
            images: what `query` or `list_items` takes; each image or box has an answer, an unusable one no class.
            options: `k`, `by`, `weighting`, `reject`, `max_distance`, `strict` and `progress`, see `Classed`.

        Raises:
            InputError: a gallery without images or labels, no threshold to reject by, k < 1, or no image.
        """
        return classified(self, images, **options)

    def stored(self, image: int, *, known_size: tuple[int, int] | None = None) -> Query:
        """An image of the gallery, given by its id, as a query; InputError when it is not there."""
        gallery = self.gallery
        record = gallery.records([image])[0]
        item = gallery.item(record)

        def encode() -> tuple[torch.Tensor, torch.Tensor | None]:
            is_kept = gallery.spec.map_shape is not None
            if not is_kept or has_constant(self.inference.encoder.backbone):  # of which a gallery keeps only the sum
                try:
                    encoding = self.inference.encode_images([item])
                    return encoding.feature_map, encoding.constant
                except ImageError as error:
                    if not is_kept:
                        raise
                    remark(f"{error}; the share of a similarity that no place explains is not known of it")
            return torch.from_numpy(gallery.maps([image])), None

        pooled = torch.from_numpy(gallery.pooled([image]))
        (weights,) = gallery_weights(gallery, self.inference.encoder, [record]) or (None,)
        same = gallery.spec.embedding_is_pooled
        embedding = pooled if same else torch.from_numpy(gallery.embeddings([image]))
        fine = None if gallery.spec.fine_shape is None else torch.from_numpy(gallery.fine_maps([image]))
        encoding = StoredEncoding(pooled, embedding, encode, fine)
        return Query(record.path, item, encoding, weights=weights, known_size=known_size)

    def rank(self, queries: Sequence[Query], *, without: int | None = None, **options: Unpack[Asked]) -> list[Matches]:
        """The k nearest gallery images of queries that are encoded already.

        Args:
            queries: at least one.
            without: the id of an image that is no answer.
            options: see `Ranked`; a text is joined beforehand.

        Raises:
            InputError: what `query` refuses, or vectors that do not fit the gallery.
        """
        rejection, k, where = self.require_threshold(**options), options.get("k", 10), options.get("where")
        limit = options.get("max_distance") if rejection is None else rejection.threshold
        vectors = torch.cat([query.encoding.embedding.cpu() for query in queries]).numpy()
        verify = options.get("verify") or None
        wanted = k if verify is None else max(k, parse_verify(verify)[1])
        found = self.gallery.search(vectors, wanted if without is None else wanted + 1, where=where)
        ranked = []
        for query, hits in zip(queries, found, strict=True):
            if without is not None:
                others = np.flatnonzero(hits.ids != without)[:wanted]
                hits = Hits(hits.ids[others], hits.distances[others])
            matches = Matches(query, self.matches_of(*hits), self.gallery.metric, self, where=where)
            if verify is not None:
                matches = sorted_by_lines(matches, verify).first(k)
            ranked.append(matches if limit is None else matches.within(limit, rejection=rejection))
        return ranked

    def against(self, query: Query, image: int) -> Matches:
        """A query beside one image of the gallery alone, wherever that ranks; InputError when it is not there."""
        ids, spec = np.array([image], np.uint64), self.gallery.snapshot.search_spec
        vectors = query.encoding.embedding.cpu().numpy(), self.gallery.embeddings(ids)
        own, other = (comparable(spec, each) for each in vectors)
        return Matches(query, self.matches_of(ids, distances_to(spec, own[0], other)), self.gallery.metric, self)

    def require_threshold(
        self, *, k: int = 10, reject: bool = False, max_distance: float | None = None, **_: Any
    ) -> Rejection | None:
        """The gallery's threshold if it is asked for, after a look at what can be refused before any work."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if reject and max_distance is not None:
            raise InputError("the gallery's threshold and a largest distance of yours exclude one another; give one")
        rejection = self.gallery.manifest.rejection if reject else None
        if reject and rejection is None:
            raise InputError(
                f"{self.gallery.folder} keeps no threshold to reject by; choose one with `distcam index calibrate` "
                "(Gallery.calibrate), or give a largest distance"
            )
        return rejection

    def focused(self, query: Query, region: Region, *, is_said: bool = False) -> Query:
        """The query pooled over a region alone; `is_said` remarks on a box that reaches beyond the image.

        Raises:
            InputError: a region that is empty or outside, or a query that has no image.
        """
        encoder, feature_map = self.inference.encoder, query.encoding.feature_map.to(self.inference.device)
        size = query.whole_size
        if isinstance(region, Box):
            visible_box(region, size, is_said=is_said)
        rows, columns = feature_map.shape[-2:]
        weights = weights_of(region, size=size, encoder=encoder, shape=(rows, columns)).to(feature_map.device)
        with torch.no_grad():
            pooled = pool_region(feature_map, weights, pooling=encoder.pooling)
            parts = {"constant": query.encoding.constant, "fine": query.encoding.fine}
            encoding = Encoding(feature_map, pooled, encoder.embed(pooled), **parts)
        return replace(query, encoding=encoding, region=region, weights=weights)

    def matches_of(self, ids: Ids, distances: Distances) -> tuple[Match, ...]:
        """Gallery images as matches, ranked in the order given."""
        found = zip(self.gallery.records(ids), ids.tolist(), distances.tolist(), strict=True)
        return tuple(
            Match(
                *(rank, number, record.path, record.label, record.columns, distance, self.similarity(distance)),
                file=self.gallery.file(record),
                item=self.gallery.item(record),
            )
            for rank, (record, number, distance) in enumerate(found, start=1)
        )

    def similarity(self, distance: float) -> float:
        """Larger is more alike: the cosine or dot product itself, the negative distance for L1 and L2."""
        return (1.0 if self.gallery.metric == "cosine" else 0.0) - distance

    def prototype_distances(self, encoding: Encoding | StoredEncoding | BareVector | TextEncoding) -> dict[str, float]:
        """Distance of an encoding (batch of one) to every class prototype, nearest first; empty without labels."""
        manifest, kept = self.gallery.manifest, self._kept_prototypes
        state = (manifest.gallery_id, manifest.generation)
        if kept is None or kept[0] != state:  # the gallery has moved on
            store = self.gallery.prototypes
            kept = self._kept_prototypes = (state, (store.labels, store.all_embeddings()))
        labels, vectors = kept[1]
        if not labels:
            return {}
        spec = self.gallery.snapshot.search_spec
        distances = distances_to(spec, comparable(spec, encoding.embedding.cpu().numpy())[0], vectors)
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
