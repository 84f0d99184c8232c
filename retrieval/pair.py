"""Two images explained without a gallery: one of them stands in for a gallery of one image."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from tempfile import mkstemp
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..encoders import Encoder, Inference
from ..encoders.inference import whole_encoder
from ..errors import InputError
from ..images import read_image, split_item
from ..index import Gallery, Hits, PrototypeStore, Record
from ..index.storage.manifest import Spec
from ..metrics.distances import Metric, SearchSpec, comparable, distances_to
from .explanation import Explanation
from .matches import Matches
from .retriever import Retriever

if TYPE_CHECKING:
    from ..index.storage.hdf5 import Array


def explain_pair(
    encoder: Encoder | str | PathLike[str],
    query: Any,
    match: Any,
    *,
    metric: Metric = "cosine",
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Explanation:
    """Maps of one image for the other, in both directions, from two files and an encoder.

    There is no gallery that the match could be set apart from, so `root_ratio` shows the parts of the similarity
    itself, and the usual number of lines on unrelated images stands for a measured one.

    Args:
        encoder: an encoder, or its checkpoint.
        query: a path, encoded bytes, or a Pillow image.
        match: the other image.
        metric: how their vectors are compared.
        device: "auto", "cpu", "cuda", …
        precision: of the arithmetic, "fp32", "bf16", or "auto".
        options: of `Matches.explain`, such as `weighting="dist"` or `detail="fine"`.

    Raises:
        InputError: an option that needs a gallery, such as `mean="border"` or a class label.
        ImageError: a file that is no usable image.
    """
    if (mean := options.get("mean", "auto")) != "auto":
        raise InputError(f"mean={mean!r} is taken of a gallery, and two images are none; leave it out")
    loaded = Encoder.load(encoder) if isinstance(encoder, str | PathLike) else encoder
    inference = Inference(whole_encoder(loaded), device=device, precision=precision)
    other = cast(Gallery, _OneImage(match, inference, metric))
    matches: Matches = Retriever(other, inference.encoder, inference=inference).query(query, k=1)
    return matches.explain(**options)


class _OneImage:
    """The part of a gallery that a `Retriever` reads, for one image encoded now and kept in memory."""

    folder = root = Path("a pair of images")
    labels: tuple[str, ...] = ()
    encoder_path = background = map_choice = masks = None
    snapshot = SimpleNamespace(is_remote=True)  # no index is asked for

    def __init__(self, image: Any, inference: Inference, metric: Metric) -> None:
        self._item = Path(image) if isinstance(image, str | PathLike) else self._written(image)
        name = str(image) if isinstance(image, str | PathLike) else getattr(image, "filename", "") or "the other image"
        self._record = Record(0, name)
        self._encoding = inference.encode_images([self._item]).detach().to("cpu")
        pooled, embedding = self.pooled([0]), self.embeddings([0])
        shape, self.metric, self.ids = self._encoding.feature_map.shape, metric, np.zeros(1, np.uint64)
        same = pooled.shape == embedding.shape and bool((pooled == embedding).all())
        self.spec = Spec(metric, embedding.shape[1], pooled.shape[1], (shape[-2], shape[-1]), same)
        self.prototypes = PrototypeStore(pooled_dim=pooled.shape[1], embedding_dim=embedding.shape[1], metric=metric)
        self.prototypes.add([None], pooled, embedding)
        entry = SimpleNamespace(precision=inference.precision, short_name=inference.encoder.short_name)
        self.manifest = SimpleNamespace(
            encoder=entry, lines=None, verification=None, rejection=None, gallery_id="", generation=0, box_margin=0.0
        )

    def _written(self, image: Any) -> Path:
        """A file of what is none, for as long as this is needed."""
        handle, name = mkstemp(".png", "distcam-")
        os.close(handle)
        weakref.finalize(self, os.unlink, name)
        (image if hasattr(image, "getbands") else read_image(image)).convert("RGB").save(name, compress_level=1)
        return Path(name)

    def __len__(self) -> int:
        return 1

    def check_encoder(self, _encoder: Encoder) -> None:
        """Nothing: it encoded the image."""

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        return [self._record for _ in ids]

    def item(self, _image: Record | int) -> Path:
        return self._item

    def file(self, _image: Record | int) -> Path:
        return Path(split_item(self._item)[0])

    def pooled(self, ids: Iterable[int] | Array) -> Array:
        return self._encoding.pooled.float().numpy()[[0 for _ in ids]]

    def embeddings(self, ids: Iterable[int] | Array) -> Array:
        return self._encoding.embedding.float().numpy()[[0 for _ in ids]]

    def maps(self, ids: Iterable[int] | Array) -> Array:
        return self._encoding.feature_map.float().numpy()[[0 for _ in ids]]

    def search(self, embeddings: Array, _k: int, **_: Any) -> list[Hits]:
        spec = SearchSpec(embeddings.shape[1], self.metric)
        own, queries = comparable(spec, self.embeddings([0])), comparable(spec, embeddings)
        return [Hits(self.ids, distances_to(spec, query, own)) for query in queries]
