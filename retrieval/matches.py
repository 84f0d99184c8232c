"""The result of a query: a ranking that can be judged by a distance, printed, and explained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..explain.methods.correspondence import correspondence
from ..images import read_image
from .correspondence import PictureCorrespondence
from .evidence import Evidence, Space
from .explanation import Explanation
from .ranking import Ranking

if TYPE_CHECKING:
    from ..explain import Norm, Weighting
    from ..index.rejection import Rejection


@dataclass(frozen=True)
class Matches(Ranking):
    """The k nearest gallery images of one query, nearest first; equal distances are ordered by id.

    Iterating yields `Match` values; `show` prints them, `explain` says where in the images the similarity lies.

    Attributes:
        max_distance: how far a match may be, if the query asked; farther images are still listed, but not accepted.
        rejection: the gallery's threshold, with its error rates, if `max_distance` is that.
    """

    max_distance: float | None = None
    rejection: Rejection | None = None

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
            console.print(Text(self._verdict(self.max_distance)))
        if self.prototype is not None:
            nearest, distance = self.prototype
            similarity = self.retriever.similarity(distance)
            console.print(
                Text(f"nearest class prototype: {nearest} (similarity {similarity:.4f}, distance {distance:.4f})")
            )

    def _verdict(self, max_distance: float) -> str:
        accepted = sum(match.is_accepted is True for match in self.matches)
        if accepted:
            return f"{accepted} within distance {max_distance:.4g}"
        nearest = f"the nearest image is {self.matches[0].distance:.4g} away" if len(self) else "no image was searched"
        return f"no match: {nearest}, at most {max_distance:.4g} was allowed"

    def explain(
        self,
        *,
        against: str | int = "match",
        versus: str | int | None = None,
        weighting: Weighting = "dist",
        space: Space = "metric",
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
        evidence = Evidence(self, space)
        evidence.mean(weighting)  # refused before anything is computed
        references, vectors = evidence.references(against)
        opposite, opposite_vector = None, None
        if versus == "match":
            raise InputError("versus='match' would be all matches; name one by its rank, such as versus=2 or 'rank:2'")
        if versus is not None:
            (opposite,), opposite_vector = evidence.references(versus)
        return Explanation(references, weighting, opposite, evidence, vectors, opposite_vector, tau, norm)

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
            match_view=transform.view(*read_image(match.file).size),
            is_exact=query.is_exact,
            _ranking=self,
        )

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
