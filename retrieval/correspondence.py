"""Pairs of places on two images: the share of a match's similarity between a point here and a point there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..explain.drawing.panels import DrawStyle, Tile, grid, map_tiles
from ..explain.drawing.rendering import draw_points
from ..explain.methods.correspondence import Correspondence
from ..explain.places import position_of
from ..files import replacing
from ..images import Box, read_image
from ..metrics.maps import rectify
from .ranking import Match, Ranking

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]


class PlacePair(NamedTuple):
    """A point (x, y) on the query and its partner on the match, in pixels of each image, and their share."""

    query: Point
    match: Point
    share: float


@dataclass(frozen=True, eq=False)
class PictureCorrespondence:
    """The similarity of a query and a match, divided among all pairs of places.

    Attributes:
        match: the gallery image.
        parts: the shares in positions of the two feature maps, with their total and residual.
        query_view: the rectangle of the query image that its positions divide evenly, in its pixels.
        match_view: that of the match.
        is_exact: False when a non-linear head could only be unfolded to first order; the total is exact even so.
    """

    match: Match
    parts: Correspondence
    query_view: Box
    match_view: Box
    is_exact: bool
    _ranking: Ranking = field(repr=False)

    def on_match(self, point: Point) -> Tensor:
        """Float "u v", raw: where on the match lies what this point (x, y) of the query image contributes.

        Raises:
            InputError: the encoder does not see that point.
        """
        return self.parts.on_match(position_of(point, self.query_view, self.parts.shares.shape[:2]))

    def on_query(self, point: Point) -> Tensor:
        """Float "h w", raw: where on the query lies what this point (x, y) of the match contributes.

        Raises:
            InputError: the encoder does not see that point.
        """
        return self.parts.on_query(position_of(point, self.match_view, self.parts.shares.shape[2:]))

    def pairs(self, limit: int = 10) -> list[PlacePair]:
        """The places that are each other's best partner, as the middles of their positions; largest share first."""
        rows, columns, match_rows, match_columns = self.parts.shares.shape

        def middle(position: tuple[int, int], view: Box, shape: tuple[int, int]) -> Point:
            row, column = ((index + 0.5) / n for index, n in zip(position, shape, strict=True))
            return view.left + column * view.width, view.top + row * view.height

        return [
            PlacePair(
                middle(pair.query, self.query_view, (rows, columns)),
                middle(pair.match, self.match_view, (match_rows, match_columns)),
                pair.share,
            )
            for pair in self.parts.mutual_pairs(limit)
        ]

    def show(self, point: Point | None = None, *, limit: int = 6, look: DrawStyle | None = None) -> Image:
        """The query with a point and the match under the map for it; without a point the best pairs, numbered alike."""
        query, match = self._ranking.query.image, read_image(self.match.file)
        title = f"{self.match.rank} · {self.match.label or '–'}"
        total = f"similarity {self.parts.total:.3f}" if self._ranking.metric in ("cosine", "dot") else "query"
        if point is None:
            pairs = self.pairs(limit)
            ours = Tile(draw_points(query, [pair.query for pair in pairs]), title="query", caption=total)
            theirs = Tile(draw_points(match, [pair.match for pair in pairs]), title=title)
            return grid([[ours, theirs]], tile_size=320)
        heat = rectify(self.on_match(point))[None]
        mark = (float(point[0]), float(point[1]))
        (tile,) = map_tiles([match], heat, views=[self.match_view], look=look, title=title)
        low, _, high = tile.caption.partition(" … ")
        tile = replace(tile, caption=f"shares of the similarity, {low} to {high}" if high else tile.caption)
        marked = Tile(draw_points(query, [mark]), title="query, with the point", caption=total)
        return grid([[marked, tile]], tile_size=320)

    def save(self, path: str | PathLike[str], point: Point | None = None) -> Path:
        """Write what `show` draws (`.png`, `.jpg`), or the shares as arrays (`.npz`).

        Raises:
            InputError: any other ending.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".png", ".jpg", ".jpeg", ".npz"):
            raise InputError(f"{path.name}: a correspondence is saved as .png, .jpg or .npz")
        with replacing(path) as aside:
            if kind == ".npz":
                np.savez_compressed(
                    aside,
                    shares=self.parts.shares.numpy(),
                    total=np.array(self.parts.total),
                    query_view=np.array(self.query_view),
                    match_view=np.array(self.match_view),
                )
            else:
                self.show(point).save(aside)
        return path
