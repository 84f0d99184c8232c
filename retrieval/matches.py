"""What a query returns: ranked gallery images, and everything needed to explain them without another forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    from .explanation import Explanation, Side
    from .retriever import Retriever

__all__ = ["Match", "Matches", "Query"]


@dataclass(frozen=True)
class Match:
    """One gallery image in a ranking; rank 1 is the nearest, a smaller distance is nearer whatever the metric."""

    rank: int
    id: int
    path: str
    label: str | None
    columns: Mapping[str, str]
    distance: float
    similarity: float
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """The match as JSON-able values."""
        return {
            "rank": self.rank,
            "id": self.id,
            "path": self.path,
            "label": self.label,
            "distance": self.distance,
            "similarity": self.similarity,
            **({"columns": dict(self.columns)} if self.columns else {}),
        }


@dataclass(frozen=True)
class Query:
    """The query image: its name, where it came from, and its encoding (a batch of one)."""

    name: str
    source: Any = field(repr=False)
    encoding: Encoding = field(repr=False)

    @property
    def image(self) -> Image:
        """The picture in RGB, read again from its source: rankings of thousands of queries hold no pictures."""
        return self.source if hasattr(self.source, "getbands") else read_image(self.source)


@dataclass(frozen=True)
class Matches:
    """The k nearest gallery images of one query, nearest first; equal distances are ordered by id.

    Iterating yields `Match` values; `show` prints them, `explain` says where in the pictures the similarity lies.
    """

    query: Query
    matches: tuple[Match, ...]
    metric: str
    retriever: Retriever = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __getitem__(self, rank_from_zero: int) -> Match:
        return self.matches[rank_from_zero]

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Gallery ids in rank order."""
        return np.array([match.id for match in self.matches], dtype=np.uint64)

    @cached_property
    def prototype(self) -> tuple[str, float] | None:
        """Label and distance of the nearest class prototype, or None when the gallery has no labels."""
        return next(iter(self.retriever.prototype_distances(self.query.encoding).items()), None)

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
        title = Text(f"{self.query.name}: {len(self)} nearest by {self.metric}")  # names may hold [brackets]
        table = Table(title=title, title_justify="left")
        for column, justify in (("rank", "right"), ("similarity", "right"), ("label", "left"), ("path", "left")):
            table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for match in self.matches:
            table.add_row(str(match.rank), f"{match.similarity:.4f}", Text(match.label or "–"), Text(match.path))
        console = console or Console()
        console.print(table)
        if self.prototype is not None:
            label, distance = self.prototype
            console.print(Text(f"nearest class prototype: {label} (distance {distance:.4f})"))

    def explain(
        self,
        *,
        against: str = "match",
        weighting: Weighting = "dist",
        space: Side = "metric",
        tau: float = 1.0,
        norm: Norm = "sum",
    ) -> Explanation:
        """Dist-CAM maps of the query, one per reference, from the one forward pass the query already had.

        Args:
            against: "match" (every match), "prototype" (the nearest class prototype), or a class label ("why not that
                class?").
            weighting: how channels are weighted, see `distcam.explain.channel_weights`.
            space: "metric" explains the space that ranks; "backbone" the pooled features before the head.
            tau: softness of 1/D in units of the median distance; 0 is the paper's formula to the letter.
            norm: normalisation of the weights.

        Raises:
            InputError: an unknown label, a gallery without labels, an empty ranking.

        Source: [Dist-CAM] Eq. 4–7.
        """
        from .explanation import explain

        return explain(self, against=against, weighting=weighting, space=space, tau=tau, norm=norm)

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON-able values."""
        nearest = self.prototype
        return {
            "query": self.query.name,
            "metric": self.metric,
            "matches": [match.to_dict() for match in self.matches],
            "prototype": None if nearest is None else {"label": nearest[0], "distance": nearest[1]},
        }
