"""A ranking: a query, the gallery images nearest to it, and what both need to be explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..encoders import Encoder, Encoding
from ..encoders.fine import FineReader
from ..errors import ImageError, InputError, UnknownEncoderError
from ..explain.drawing.rendering import draw_text
from ..images import Box, read_image, split_item

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..encoders.regions import Region
    from ..index.storage.manifest import EncoderEntry
    from .retriever import Retriever


@dataclass(frozen=True, eq=False)
class StoredEncoding:
    """An `Encoding` of one image whose vectors are read from a gallery; its feature map is fetched when asked for."""

    pooled: Float[Tensor, "1 k"]
    embedding: Float[Tensor, "1 d"]
    _fetch: Callable[[], tuple[Tensor, Tensor | None]] = field(repr=False)
    fine: Float[Tensor, "1 c u v"] | None = None  # only from a gallery that keeps fine maps

    @cached_property
    def _fetched(self) -> tuple[Tensor, Tensor | None]:
        return self._fetch()

    @property
    def feature_map(self) -> Float[Tensor, "1 k h w"]:
        """From the gallery if it keeps maps, else of the file, which is encoded once more."""
        return self._fetched[0]

    @property
    def constant(self) -> Float[Tensor, "1 k"] | None:
        """See `Encoding`; not known where the gallery keeps the map and the image's file is gone."""
        return self._fetched[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a plain `Encoding`: where the feature map would be fetched from is not known elsewhere."""
        return Encoding, (self.feature_map, self.pooled, self.embedding, self.constant, self.fine)


@dataclass(frozen=True, eq=False)
class BareVector:
    """An embedding from elsewhere: it can be searched for, but there is no image to explain."""

    embedding: Float[Tensor, "1 d"]

    @property
    def pooled(self) -> Tensor:
        """Not known."""
        raise InputError("a bare vector has neither pooled features nor a feature map; query with an image to explain")

    feature_map = constant = pooled
    fine = None


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """A text in the space of image embeddings, alone or joined with the encoding of an image."""

    text: str  # the words
    vector: Float[Tensor, "1 d"]  # theirs, as the text tower gives it
    image: Encoding | StoredEncoding | None = None  # the encoding that it is joined with
    weight: float = 1.0  # of the text in the mean of the two unit vectors; 1 without an image

    @cached_property
    def embedding(self) -> Float[Tensor, "1 d"]:
        """The vector that is searched."""
        if self.image is None:
            return self.vector
        vector: Tensor = self.joined(self.image.embedding[..., None, None]).mean((-2, -1))
        return vector

    def joined(self, response: Float[Tensor, "1 d h w"]) -> Float[Tensor, "1 d h w"]:
        """The response map of an image joined with the text, which is the same at every place."""
        words = normalize(self.vector.to(response), dim=1)[..., None, None]
        length = response.mean((-2, -1), keepdim=True).norm(dim=1, keepdim=True)
        joined: Tensor = self.weight * words + (1 - self.weight) * response / length.clamp(min=1e-12)
        return joined

    @property
    def fine(self) -> Tensor | None:
        """The fine map of the image."""
        return None if self.image is None else self.image.fine

    @property
    def pooled(self) -> Tensor:
        """Not known."""
        raise InputError("a text has no features before the head; explain it in the space that ranks, space='metric'")

    constant = None  # not known: how much of the similarity comes from no place is said of images alone

    @property
    def feature_map(self) -> Tensor:
        """That of the image."""
        if self.image is None:
            raise InputError("a text has no feature map")
        return self.image.feature_map


@dataclass(frozen=True)
class Query:
    """The query, an image or a text: its name, where it came from, and its encoding (a batch of one).

    Attributes:
        source: a path, bytes or a Pillow image; None when only the encoding is left, or for a bare vector.
        region: the part of the image that was searched for, in its pixels; None for all of it.
        weights: of the positions of the feature map, with mean 1, where there is a region. Pooled vector and embedding
            are then those of the region; the feature map is the whole image's.
        known_size: width and height of the upright image, where they are known without reading it.
        enlarged: its pixels for detail "finer", of an elongated image without a source.
    """

    name: str
    source: Any = field(repr=False)
    encoding: Encoding | StoredEncoding | BareVector | TextEncoding = field(repr=False)
    region: Region | None = field(default=None, repr=False, compare=False)
    weights: Tensor | None = field(default=None, repr=False, compare=False)
    known_size: tuple[int, int] | None = field(default=None, repr=False, compare=False)
    enlarged: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def has_image(self) -> bool:
        """False for a text alone, which is explained on the matches' side only."""
        return not isinstance(self.encoding, TextEncoding) or self.encoding.image is not None

    @property
    def short_name(self) -> str:
        """A file's name without its folders, or the text."""
        return Path(self.name).name if self.has_image else self.name

    @property
    def image(self) -> Image:
        """The image in RGB, read again from its source: rankings of thousands of queries hold no images.

        Of a text alone its words on a card.

        Raises:
            InputError: the query has no image.
            ImageError: the file is gone or damaged.
        """
        if not self.has_image:
            return draw_text(self.name)
        if self.source is None:
            raise InputError(f"{self.name} has no image: only its encoding was given")
        return self.source if hasattr(self.source, "getbands") else read_image(self.source)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the image, which is read for it unless `known_size` says."""
        return self.known_size or self.image.size

    @property
    def whole_size(self) -> tuple[int, int]:
        """Width and height in the file's own pixels, in which regions are given.

        Raises:
            ImageError: a JPEG so large that it is read at a reduced size.
        """
        if self.known_size or self.source is None or hasattr(self.source, "getbands"):
            return self.size
        return read_image(self.source, whole=True).size


def image_of(file: Path) -> Image | None:
    """The image of a file; None where it is gone or damaged."""
    try:
        return read_image(file)
    except ImageError:
        return None


@dataclass(frozen=True)
class Match:
    """One gallery image in a ranking; rank 1 is the nearest, a smaller distance is nearer whatever the metric.

    Attributes:
        file: the image's file.
        item: what `read_image` reads of it: the file, or of a box the crop with the gallery's margin.
        is_accepted: whether it is as near as the query asked for; None if it asked for nothing.
        inliers: places that lie alike on query and match; None unless matches were verified by lines.
        same: the probability of "the same" by which it was then sorted, see `distcam.metrics.fusion`.
    """

    rank: int
    id: int
    path: str
    label: str | None
    columns: Mapping[str, str]
    distance: float
    similarity: float
    file: Path
    item: Path
    is_accepted: bool | None = None
    inliers: int | None = None
    same: float | None = None

    @property
    def box(self) -> Box | None:
        """The part of the image that is the match, without the margin; None for all of it."""
        return split_item(self.path)[1]

    def to_dict(self) -> dict[str, Any]:
        """The match as JSON-able values."""
        always = ("rank", "id", "path", "label", "distance", "similarity")
        names = (*always, *(name for name in ("is_accepted", "inliers", "same") if getattr(self, name) is not None))
        columns = {"columns": dict(self.columns)} if self.columns else {}
        return {name: getattr(self, name) for name in names} | columns


class UnknownInference:
    """Stands in for an `Inference` of an encoder nobody has: a gallery's own images and vectors can be searched for."""

    device = torch.device("cpu")

    def __init__(self, entry: EncoderEntry) -> None:
        self.encoder = cast("Encoder", _UnknownEncoder(entry.fingerprint, entry.short_name))
        self.fine = cast("FineReader", self.encoder)

    def __call__(self, *_given: Any) -> NoReturn:
        """Refused."""
        raise UnknownEncoderError(
            "the gallery's encoder is not at hand: its own images and vectors can be searched for, but no image can be "
            "encoded or explained; --encoder CHECKPOINT names one"
        )

    transform = read = encode_images = __call__


@dataclass(frozen=True)
class _UnknownEncoder:
    fingerprint: str
    short_name: str
    text = None

    def __getattr__(self, name: str) -> NoReturn:
        UnknownInference.__call__(cast(UnknownInference, self), name)


@dataclass(frozen=True)
class Ranking:
    """The k nearest gallery images of one query, nearest first; equal distances are ordered by id."""

    query: Query
    matches: tuple[Match, ...]
    metric: str
    retriever: Retriever = field(repr=False, compare=False)
    where: str | None = None

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __getitem__(self, rank_from_zero: int) -> Match:
        return self.matches[rank_from_zero]

    def at_rank(self, rank: int) -> Match:
        """The match of a rank, counted from 1."""
        if not 1 <= rank <= len(self):
            raise InputError(f"there is no rank {rank}: {self.query.name} has {len(self)} matches, ranks from 1")
        return self.matches[rank - 1]

    @cached_property
    def prototype(self) -> tuple[str, float] | None:
        """Label and distance of the nearest class prototype among the classes that the filter keeps images of."""
        distances = self.retriever.prototype_distances(self.query.encoding)
        kept = None if self.where is None else self.retriever.classes_where(self.where)
        return next((pair for pair in distances.items() if kept is None or pair[0] in kept), None)

    @property
    def has_feature_maps(self) -> bool:
        """True if `feature_maps` can be had: the gallery stores them, or every matched image is still where it was."""
        stored = self.retriever.gallery.spec.map_shape is not None
        return len(self) > 0 and (stored or all(match.file.is_file() for match in self.matches))

    @cached_property
    def feature_maps(self) -> Tensor:
        """Feature maps "n k h w" of the matched images: the gallery stores them, or one forward pass makes them."""
        gallery = self.retriever.gallery
        if gallery.spec.map_shape is not None:
            return torch.from_numpy(gallery.maps([match.id for match in self.matches]))
        self._require_files("feature maps: build with --store-maps")
        return self._encoded.feature_map.cpu()

    def _require_files(self, stored: str) -> None:
        gone = [match.path for match in self.matches if not match.file.is_file()]
        if gone or not self.matches:
            raise InputError(
                f"{[*gone, 'the match'][0]} is not in {self.retriever.gallery.root} any more, and the gallery stores "
                f"no {stored}, or say where the images lie now (--root, or Gallery.open(…, root=…))"
            )

    @cached_property
    def _encoded(self) -> Encoding:
        """The matched images, encoded once."""
        return self.retriever.inference.encode_images([match.item for match in self.matches])

    @cached_property
    def fine_maps(self) -> Tensor:
        """Fine maps "n c u v" of the matched images: the gallery stores them, or a forward pass makes them."""
        gallery = self.retriever.gallery
        if gallery.spec.fine_shape is not None:
            return torch.from_numpy(gallery.fine_maps([match.id for match in self.matches]))
        self._require_files("fine maps: build with --store-lines")
        self.retriever.inference.fine.read(self.retriever.lines.layer)
        if self.__dict__.get("_encoded") is not None and self._encoded.fine is None:
            del self.__dict__["_encoded"]
        fine = self._encoded.fine
        assert fine is not None
        return fine.cpu()
