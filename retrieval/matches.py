"""The result of a query: a ranking that can be judged by a distance, printed, and explained, as pairs of places too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..errors import ImageError, InputError
from ..explain.drawing.page import save_drawing
from ..explain.drawing.panels import MISSING, DrawStyle, grid, map_tiles
from ..explain.drawing.rendering import draw_points
from ..explain.methods.correspondence import Correspondence, correspondence
from ..explain.places import middle_of, position_of
from ..explain.weightings import RECOMMENDED
from ..images import Box, read_image
from ..images.inline import SHOWN, Tile, data_frame, fragment, more
from ..metrics.maps import rectify
from .evidence import Evidence, Space
from .explanation import Explanation
from .lines import MatchLines, lines_of
from .printing import show_ranking
from .ranking import Match, Ranking, TextEncoding, image_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..encoders.fine import Detail
    from ..explain import Mean, Norm, Weighting
    from ..index.rejection import Rejection


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
        shape = self.parts.shares.shape
        return [
            PlacePair(
                middle_of(pair.query, self.query_view, shape[:2]),
                middle_of(pair.match, self.match_view, shape[2:]),
                pair.share,
            )
            for pair in self.parts.mutual_pairs(limit)
        ]

    def show(self, point: Point | None = None, *, limit: int = 6, look: DrawStyle | None = None) -> Image:
        """The query with a point and the match under the map for it; without a point the best pairs, numbered alike."""
        query, match = self._ranking.query.image, read_image(self.match.item)
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

        def arrays() -> dict[str, Any]:
            views = {"query_view": np.array(self.query_view), "match_view": np.array(self.match_view)}
            return {"shares": self.parts.shares.numpy(), "total": np.array(self.parts.total), **views}

        what = "a correspondence is saved as .png, .jpg or .npz"
        return save_drawing(path, what, lambda: self.show(point), arrays)


@dataclass(frozen=True, repr=False)
class Matches(Ranking):
    """The k nearest gallery images of one query, nearest first; equal distances are ordered by id.

    Iterating yields `Match` values; `show` prints them, `explain` says where in the images the similarity lies.

    Attributes:
        max_distance: how far a match may be, if the query asked; farther images are still listed, but not accepted.
        rejection: the gallery's threshold, with its error rates, if `max_distance` is that.
        verify: by what the first matches were sorted anew, such as "lines:20"; None if they are in order of distance.
    """

    max_distance: float | None = None
    rejection: Rejection | None = None
    verify: str | None = None

    def reordered(self, matches: Sequence[Match], order: Sequence[int], *, verify: str | None) -> Matches:
        """The same images in another order, with what was computed of them; `order` holds their places now."""
        new = replace(self, matches=tuple(matches), verify=verify)
        rows = torch.tensor(order)
        for name in ("feature_maps", "fine_maps", "_encoded"):
            if (kept := self.__dict__.get(name)) is not None:
                new.__dict__[name] = kept[rows] if isinstance(kept, Tensor) else kept.changed(lambda part: part[rows])
        return new

    def first(self, k: int) -> Matches:
        """The first k matches."""
        if k >= len(self):
            return self
        return self.reordered(self.matches[:k], range(k), verify=self.verify)

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
        """True if the nearest image is near enough to be a match; None if the query did not ask."""
        return None if self.max_distance is None else any(match.is_accepted for match in self.matches)

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Gallery ids in rank order."""
        return np.array([match.id for match in self.matches], dtype=np.uint64)

    def __repr__(self) -> str:
        first = ", ".join(f"{match.label or match.file.name} {match.similarity:.3f}" for match in self.matches[:3])
        rest = ", …" * (len(self) > 3)
        return f"Matches({self.query.short_name!r}, {len(self)} nearest by {self.metric}: {first}{rest})"

    def _repr_html_(self) -> str:
        """HTML for a notebook: the query beside its first matches, as thumbnails."""
        query = self.query
        own = []
        with suppress(ImageError, InputError):  # a file that is gone, or a bare vector
            own.append(Tile(query.image, "query", query.short_name))
        tiles = [
            Tile(
                image_of(match.item) or MISSING,
                f"{match.rank} · {match.label or '–'}",
                f"{match.similarity:.3f}{', too far' * (match.is_accepted is False)} · {match.path}",
            )
            for match in self.matches[:SHOWN]
        ]
        title = f"{query.short_name}: {len(self)} nearest by {self.metric}"
        return fragment(title, [[*own, *tiles]], notes=more(len(self), "matches"))

    def to_pandas(self) -> Any:
        """The ranking as a DataFrame, a row for each match; the gallery's columns follow, `column_…` where taken.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = []
        for match in self.matches:
            own = {"query": self.query.name, **match.to_dict()}
            columns = own.pop("columns", {})
            rows.append(own | {f"column_{name}" if name in own else name: each for name, each in columns.items()})
        return data_frame(rows)

    def show(self, console: Console | None = None) -> None:
        """Print the ranking as a table."""
        show_ranking(self.to_dict(), console or Console(), where=None if self.where is None else str(self.where))

    def explain(
        self,
        *,
        against: str | int = "match",
        versus: str | int | None = None,
        weighting: Weighting | None = None,
        mean: Mean = "auto",
        space: Space = "metric",
        tau: float = 1.0,
        norm: Norm = "sum",
        detail: Detail = "auto",
    ) -> Explanation:
        """Maps of what on the query speaks for each reference, from the one forward pass the query already had.

        Args:
            against: "match" (every match), a rank (3 or "rank:3"), "prototype" (the nearest class prototype), or a
                class label ("why not that class?"). "label:match" is a class that is called match.
            versus: another rank, prototype, or label: the maps then show what pulls the query to `against` rather than
                to this one, positive where it does and negative where it does the opposite. Itself is left out.
            weighting: how channels are weighted, see `distcam.explain.channel_weights`. The maps of "dist", the
                paper's, are in `Explanation.dist_maps` as well. Left out: what the gallery's `map_choice` says, else
                "root_ratio".
            mean: what of the gallery "root_ratio" takes off, see `distcam.explain.Surroundings.settings`.
            space: "metric" explains the space that ranks; "backbone" the pooled features before the head.
            tau: softness of 1/D in units of the median distance; 0 is the paper's formula to the letter.
            norm: normalisation of the weights.
            detail: "fine" dilates the network's last stage: twice the rows and columns, for another pass of 1.3 to 1.5
                times the usual cost for the query and each match; "finer" takes a larger image, and so another vector.
                "auto" does so, without their margins, for images that `pad` leaves little of the network's input, as
                of twice as wide as high, for 1.2 passes each; of all others, and of regions, it is "plain".

        Raises:
            InputError: an unknown label or rank, a gallery without labels, an empty ranking, a `mean` that is not kept.

        Source: [Dist-CAM] Eq. 4–7; `root_ratio` is ours.
        """
        evidence = Evidence(self, space, detail)
        choice = self.retriever.gallery.map_choice
        if weighting is None and (choice is None or mean != "auto" or space != "metric"):
            weighting = RECOMMENDED
        elif weighting is None and choice is not None:
            weighting, mean = cast("Weighting", choice.weighting), cast("Mean", choice.mean)
        assert weighting is not None
        if weighting != "root_ratio":
            if mean != "auto":
                raise InputError(f"mean={mean!r} is for the weighting root_ratio, not for {weighting!r}; leave it out")
            evidence.mean(weighting)  # refused before anything is computed
        references, vectors = evidence.references(against)
        opposite, opposite_vector = None, None
        if versus is not None and weighting == "caam":
            raise InputError("the weighting caam is the same for every reference: it has nothing to say on `versus`")
        if versus == "match":
            raise InputError("`versus='match'` would be all matches; name one by its rank, such as rank:2")
        if versus is not None:
            (opposite,), opposite_vector = evidence.references(versus)
            kept = [place for place, reference in enumerate(references) if reference != opposite]
            if not kept:
                raise InputError(
                    f"`against` and `versus` both name {opposite.short_name}: nothing tells it from itself"
                )
            references, vectors = tuple(references[place] for place in kept), vectors[kept]
        return Explanation(references, weighting, mean, opposite, evidence, vectors, opposite_vector, tau, norm)

    def correspondence(self, rank: int = 1, *, space: Space = "metric") -> PictureCorrespondence:
        """The similarity of the query and a match, divided among pairs of places on the two images.

        Args:
            rank: of the match, from 1.
            space: "metric" divides the similarity that ranks; "backbone" that of the pooled features before the head.

        Raises:
            InputError: no such rank, a gallery that ranks by l1 (which does not divide), or a file that is gone.
        """
        match, evidence = self.at_rank(rank), Evidence(self, space)
        query, transform = evidence.query_response, self.retriever.encoder.transform
        answer, metric = evidence.match_response((rank,))[0], self.retriever.gallery.metric
        return PictureCorrespondence(
            match=match,
            parts=correspondence(query.map[0], answer, metric=metric),
            query_view=transform.view(*self.query.image.size),
            match_view=transform.view(*read_image(match.item).size),
            is_exact=query.is_exact,
            _ranking=self,
        )

    def lines(self, rank: int = 1, k: int = 20) -> MatchLines:
        """The places on a match that answer places on the query, as lines; they show likeness, not identity.

        Read from a finer layer of the same forward pass, under the exact shares of the similarity; of them the k
        strongest that follow one similarity transform, or that there is none: see `explain.methods.lines`.

        Args:
            rank: of the match, from 1.
            k: how many lines at most.

        Raises:
            InputError: no such rank, or a query or match whose image is gone.
        """
        return lines_of(Evidence(self, "metric"), rank, k=k)

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON-able values."""
        nearest, words = self.prototype, self.query.encoding
        return {
            "query": self.query.name,
            **({"text": words.text, "text_weight": words.weight} if isinstance(words, TextEncoding) else {}),
            "metric": self.metric,
            **({} if self.max_distance is None else {"max_distance": self.max_distance, "is_known": self.is_known}),
            **({} if self.rejection is None else {"rejection": asdict(self.rejection)}),
            **({} if self.verify is None else {"verify": self.verify}),
            "matches": [match.to_dict() for match in self.matches],
            "prototype": None
            if nearest is None
            else {
                "label": nearest[0],
                "distance": nearest[1],
                "similarity": self.retriever.similarity(nearest[1]),
            },
        }
