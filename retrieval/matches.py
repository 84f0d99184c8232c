"""What a query returns: ranked gallery images, and everything needed to explain them without another forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..encoders import Encoding
from ..errors import InputError
from ..images import read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..explain import Norm, Weighting
    from ..explain.regions import Region
    from ..index.rejection import Rejection
    from .correspondence import PictureCorrespondence
    from .explanation import Explanation, Side
    from .retriever import Retriever
    from .stored import BareVector, StoredEncoding

__all__ = ["Match", "Matches", "Query"]


@dataclass(frozen=True)
class Match:
    """One gallery image in a ranking; rank 1 is the nearest, a smaller distance is nearer whatever the metric.

    Attributes:
        is_accepted: whether it is as near as the query asked for; None if it asked for nothing.
    """

    rank: int
    id: int
    path: str
    label: str | None
    columns: Mapping[str, str]
    distance: float
    similarity: float
    file: Path
    is_accepted: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The match as JSON-able values."""
        return {
            "rank": self.rank,
            "id": self.id,
            "path": self.path,
            "label": self.label,
            "distance": self.distance,
            "similarity": self.similarity,
            **({} if self.is_accepted is None else {"is_accepted": self.is_accepted}),
            **({"columns": dict(self.columns)} if self.columns else {}),
        }


@dataclass(frozen=True)
class Query:
    """The query image: its name, where it came from, and its encoding (a batch of one).

    Attributes:
        source: a path, bytes or a Pillow image; None when only the encoding is left, or for a bare vector.
        region: the part of the picture that was searched for, in its pixels; None for all of it.
        weights: of the positions of the feature map, with mean 1, where there is a region. Pooled vector and embedding
            are then those of the region; the feature map is the whole picture's.
        known_size: width and height of the upright picture, where they are known without reading it.
    """

    name: str
    source: Any = field(repr=False)
    encoding: Encoding | StoredEncoding | BareVector = field(repr=False)
    region: Region | None = field(default=None, repr=False, compare=False)
    weights: Tensor | None = field(default=None, repr=False, compare=False)
    known_size: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    @property
    def image(self) -> Image:
        """The picture in RGB, read again from its source: rankings of thousands of queries hold no pictures.

        Raises:
            InputError: the query has no picture.
            ImageError: the file is gone or damaged.
        """
        if self.source is None:
            raise InputError(f"{self.name} has no picture: only its encoding was given")
        return self.source if hasattr(self.source, "getbands") else read_image(self.source)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, which is read for it unless `known_size` says."""
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


@dataclass(frozen=True)
class Matches:
    """The k nearest gallery images of one query, nearest first; equal distances are ordered by id.

    Iterating yields `Match` values; `show` prints them, `explain` says where in the pictures the similarity lies.

    Attributes:
        max_distance: how far a match may be, if the query asked; farther images are still listed, but not accepted.
        rejection: the gallery's threshold, with its error rates, if `max_distance` is that.
        where: the filter that the query asked with, if any.
    """

    query: Query
    matches: tuple[Match, ...]
    metric: str
    retriever: Retriever = field(repr=False, compare=False)
    max_distance: float | None = None
    rejection: Rejection | None = None
    where: str | None = None

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __getitem__(self, rank_from_zero: int) -> Match:
        return self.matches[rank_from_zero]

    def at_rank(self, rank: int) -> Match:
        """The match of a rank, counted from 1.

        Raises:
            InputError: there are fewer matches.
        """
        if not 1 <= rank <= len(self):
            raise InputError(f"there is no rank {rank}: {self.query.name} has {len(self)} matches, ranks from 1")
        return self.matches[rank - 1]

    def within(self, max_distance: float, *, rejection: Rejection | None = None) -> Matches:
        """The same ranking, whose matches are accepted up to a distance; `rejection` says where it is from.

        Raises:
            InputError: a distance that is no number.
        """
        if math.isnan(max_distance):
            raise InputError("expected a largest distance, got NaN")
        judged = tuple(replace(match, is_accepted=match.distance <= max_distance) for match in self.matches)
        return replace(self, matches=judged, max_distance=max_distance, rejection=rejection)

    @property
    def is_known(self) -> bool | None:
        """Whether the nearest image is near enough to be a match; None if the query did not ask."""
        return None if self.max_distance is None else any(match.is_accepted for match in self.matches)

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Gallery ids in rank order."""
        return np.array([match.id for match in self.matches], dtype=np.uint64)

    @cached_property
    def prototype(self) -> tuple[str, float] | None:
        """Label and distance of the nearest class prototype among the classes that the filter keeps images of.

        None when there is no such class, or the gallery has no labels.
        """
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
        """Feature maps "n k h w" of the matched images: the gallery stores them, or one forward pass makes them.

        Raises:
            InputError: the gallery stores no maps and a file is gone.
        """
        gallery, inference = self.retriever.gallery, self.retriever.inference
        if not self.has_feature_maps:
            gone = next((match.path for match in self.matches if not match.file.is_file()), "the match")
            raise InputError(
                f"{gone} is not in {gallery.root} any more, and the gallery stores no feature maps: "
                "build with --store-maps, or say where the pictures lie now (--root, or Gallery.open(…, root=…))"
            )
        if gallery.spec.map_shape is not None:
            return torch.from_numpy(gallery.maps(self.ids))
        return inference.encode_images([match.file for match in self.matches]).feature_map.cpu()

    def show(self, console: Console | None = None) -> None:
        """Print the ranking as a table."""
        among = "" if self.where is None else f" among {self.where}"
        title = Text(f"{self.query.name}: {len(self)} nearest by {self.metric}{among}")  # names may hold [brackets]
        table = Table(title=title, title_justify="left")
        judged = () if self.max_distance is None else ("distance",)  # what the threshold is about
        for column in ("rank", "similarity", *judged):
            table.add_column(column, justify="right")
        for column in ("label", "path"):
            table.add_column(column, overflow="fold")
        if self.max_distance is not None:
            table.add_column("match")
        for match in self.matches:
            verdict = () if match.is_accepted is None else ("yes" if match.is_accepted else "too far",)
            names = Text(match.label or "–"), Text(match.path)
            away = () if self.max_distance is None else (f"{match.distance:.4f}",)
            table.add_row(str(match.rank), f"{match.similarity:.4f}", *away, *names, *verdict)
        console = console or Console()
        console.print(table)
        if self.max_distance is not None:
            console.print(Text(self._verdict))
        if self.prototype is not None:
            nearest, distance = self.prototype
            similarity = self.retriever.similarity(distance)
            console.print(
                Text(f"nearest class prototype: {nearest} (similarity {similarity:.4f}, distance {distance:.4f})")
            )

    @property
    def _verdict(self) -> str:
        accepted = sum(match.is_accepted is True for match in self.matches)
        if accepted:
            return f"{accepted} within distance {self.max_distance:.4g}"
        nearest = (
            f"the nearest image is {self.matches[0].distance:.4g} away" if self.matches else "no image was searched"
        )
        return f"no match: {nearest}, at most {self.max_distance:.4g} was allowed"

    def explain(
        self,
        *,
        against: str | int = "match",
        versus: str | int | None = None,
        weighting: Weighting = "dist",
        space: Side = "metric",
        tau: float = 1.0,
        norm: Norm = "sum",
    ) -> Explanation:
        """Dist-CAM maps of the query, one per reference, from the one forward pass the query already had.

        Args:
            against: "match" (every match), a rank (3 or "rank:3"), "prototype" (the nearest class prototype), or a
                class label ("why not that class?"). "label:match" is a class that is called match.
            versus: another rank, prototype, or label: the maps then show what pulls the query to `against` rather than
                to this one, positive where it does and negative where it does the opposite.
            weighting: how channels are weighted, see `distcam.explain.channel_weights`.
            space: "metric" explains the space that ranks; "backbone" the pooled features before the head.
            tau: softness of 1/D in units of the median distance; 0 is the paper's formula to the letter.
            norm: normalisation of the weights.

        Raises:
            InputError: an unknown label or rank, a gallery without labels, an empty ranking.

        Source: [Dist-CAM] Eq. 4–7.
        """
        from .explanation import explain

        return explain(self, against=against, versus=versus, weighting=weighting, space=space, tau=tau, norm=norm)

    def correspondence(self, rank: int = 1, *, space: Side = "metric") -> PictureCorrespondence:
        """Which place of the query belongs to which place of a match: its similarity divided among pairs of places.

        Args:
            rank: of the match, from 1.
            space: "metric" divides the similarity that ranks; "backbone" that of the pooled features before the head.

        Raises:
            InputError: no such rank, a gallery that ranks by l1 (which does not divide), or a file that is gone.
        """
        from .correspondence import correspondence

        return correspondence(self, rank, space=space)

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON-able values."""
        nearest = self.prototype
        return {
            "query": self.query.name,
            "metric": self.metric,
            **({} if self.max_distance is None else {"max_distance": self.max_distance, "is_known": self.is_known}),
            **({} if self.rejection is None else {"rejection": asdict(self.rejection)}),
            "matches": [match.to_dict() for match in self.matches],
            "prototype": None if nearest is None else {"label": nearest[0], "distance": nearest[1]},
        }
