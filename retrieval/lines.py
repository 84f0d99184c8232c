"""Lines between a query and its matches, and matches sorted anew by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..errors import ImageError, InputError
from ..explain.drawing.figures import figure_of
from ..explain.drawing.page import save_drawing
from ..explain.drawing.panels import grid
from ..explain.drawing.rendering import draw_links
from ..explain.methods.correspondence import pairwise_shares
from ..explain.methods.lines import Lines, Places, find_lines
from ..explain.places import image_in_view, middle_of
from ..explain.verification import SAMPLE, PlaceReader, count_alike, parse_verify
from ..images import read_image
from ..images.inline import Tile
from ..metrics.fusion import USUAL_FUSION, Fusion, LineScale
from ..remarks import counted, remark
from .evidence import Evidence, folded, gallery_weights
from .ranking import Match, Ranking

if TYPE_CHECKING:
    from PIL.Image import Image

    from .matches import Matches
    from .retriever import Retriever

Point = tuple[float, float]


class Line(NamedTuple):
    """A point (x, y) on the query and the place that answers it on the match, in pixels of each image."""

    query: Point
    match: Point
    strength: float


@dataclass(frozen=True, eq=False, repr=False)
class MatchLines:
    """The lines between a query and one match, strongest first. They show likeness, not identity.

    Attributes:
        match: the gallery image.
        lines: the strongest that follow one similarity transform; without one the strongest of all.
        inliers: how many lines follow the transform.
        candidates: out of how many.
        scale: how many do so on unrelated images of the gallery.
        found: every candidate, in cells of the fine maps.
    """

    match: Match
    lines: tuple[Line, ...]
    inliers: int
    candidates: int
    scale: LineScale
    found: Lines = field(repr=False)
    _evidence: Evidence = field(repr=False)
    _sizes: tuple[tuple[int, int], tuple[int, int]] = field(repr=False)  # of query and match, (width, height)

    @property
    def has_geometry(self) -> bool:
        """True if more lines agree than on 99 of 100 unrelated pairs."""
        return self.inliers > self.scale.null[2]

    @property
    def caption(self) -> str:
        """The lines in words."""
        return self._alike if self.has_geometry else f"no common geometry ({self._alike})"

    @property
    def _alike(self) -> str:
        usual = f"unrelated images{'' if self.scale.pairs else ', usually'}: {self.scale.null[0]}"
        return f"{self.inliers} of {counted(self.candidates, 'place')} lie alike; {usual}"

    def show(self, *, tile_size: int = 480) -> Image:
        """Query and match side by side with their lines: as wide as they are strong, thin grey without geometry."""
        return grid([[self.tile()]], tile_size=tile_size)

    def figure(self) -> Any:
        """What `show` draws, as a figure of matplotlib.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return figure_of([[self.tile()]])

    def __repr__(self) -> str:
        return f"MatchLines({self.match.path!r}: {self.caption})"

    def tile(self) -> Tile:
        """What `show` draws, for a grid of several."""
        query, match = self._evidence.ranking.query.image, read_image(self.match.item)
        joined = draw_links(query, match, self.lines, is_faint=not self.has_geometry)
        title = f"query, and {self.match.rank} · {self.match.label or '–'}"
        return Tile(joined, title=title if self.has_geometry else f"{title}: no common geometry", caption=self._alike)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write what `show` draws (`.png`, `.jpg`), or the lines as arrays (`.npz`).

        Raises:
            InputError: any other ending.
        """
        return save_drawing(path, "lines are saved as .png, .jpg or .npz", self.show, self.to_arrays)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The lines as plain arrays."""
        return {
            "query_points": np.array([line.query for line in self.lines], float).reshape(-1, 2),
            "match_points": np.array([line.match for line in self.lines], float).reshape(-1, 2),
            "strengths": np.array([line.strength for line in self.lines], float),
            "inliers": np.array(self.inliers),
            "candidates": np.array(self.candidates),
            "null": np.array(self.scale.null),
        }

    def to_dict(self) -> dict[str, Any]:
        """The lines and the shares of all pairs of positions as JSON-able values, in fractions of both images."""
        evidence, retriever = self._evidence, self._evidence.ranking.retriever
        answer = evidence.match_response((self.match.rank,))[0]
        shares = pairwise_shares(evidence.query_response.map[0], answer, metric=retriever.lines.reader.metric)
        sizes = self._sizes
        views = [retriever.encoder.transform.view(*size) for size in sizes]
        shapes = shares.shape[:2], shares.shape[2:]
        shares = shares / shares.abs().amax().clamp(min=1e-30)
        strongest = max((line.strength for line in self.lines), default=1.0)
        return {
            "caption": self.caption,
            "has_geometry": self.has_geometry,
            "inliers": self.inliers,
            "candidates": self.candidates,
            "null": list(self.scale.null),
            "lines": [
                [
                    *_fractions(line.query, sizes[0]),
                    *_fractions(line.match, sizes[1]),
                    round(line.strength / strongest, 4),
                ]
                for line in self.lines
            ],
            "sizes": [list(size) for size in sizes],
            "views": [list(view.scaled(1 / w, 1 / h)) for view, (w, h) in zip(views, sizes, strict=True)],
            "shapes": [list(shape) for shape in shapes],
            "shares": [float(f"{share:.3g}") for share in shares.flatten().tolist()],
        }


def _fractions(point: Point, size: tuple[int, int]) -> tuple[float, float]:
    return round(point[0] / size[0], 4), round(point[1] / size[1], 4)


def lines_sheet(matches: Sequence[MatchLines | None], *, width: int = 1000) -> Image:
    """The lines of several matches, two beside one another, or as many as the width takes."""
    tiles = [each.tile() for each in matches if each is not None]
    if not tiles:
        raise InputError("there is no match whose image can be shown, so there are no lines")
    beside = max(2, width // 480)
    rows = [tiles[start : start + beside] for start in range(0, len(tiles), beside)]
    return grid(rows, tile_size=max(480, width // beside - 16))


def lines_of(evidence: Evidence, rank: int, *, k: int = 20) -> MatchLines:
    """The lines between a query and one of its matches, see `Matches.lines`."""
    if k < 1:
        raise InputError(f"k must be at least 1 line, got {k}")
    ranking, finder = evidence.ranking, evidence.ranking.retriever.lines
    match, query = ranking.at_rank(rank), finder.query_places(evidence)
    (answer,) = finder.match_places(evidence, (rank,))
    found = find_lines(query, answer, metric=finder.reader.metric)
    least = finder.scale.null[2]
    shown = found.strongest(k, inliers=found.inliers > least)
    sizes = ranking.query.size, read_image(match.item).size
    views = [ranking.retriever.encoder.transform.view(*size) for size in sizes]
    ours = [middle_of(cell, views[0], found.query_shape) for cell in shown.query.tolist()]
    theirs = [middle_of(cell, views[1], found.match_shape) for cell in shown.match.tolist()]
    drawn = tuple(Line(*each) for each in zip(ours, theirs, shown.strength.tolist(), strict=True))
    return MatchLines(match, drawn, found.inliers, len(found), finder.scale, found, evidence, sizes)


class LineFinder:
    """The places of a retriever's images, and the scale of its gallery's lines; one belongs to each retriever."""

    def __init__(self, retriever: Retriever, layer: str = "auto") -> None:
        self._retriever, self._wanted = retriever, layer

    @cached_property
    def reader(self) -> PlaceReader:
        """The reader of places; made when lines are asked for, as a gallery's encoder may be unknown."""
        return PlaceReader(self._retriever.inference, self._retriever.gallery.metric)

    @cached_property
    def layer(self) -> str:
        """The layer that fine maps are read from; from now on encodings bring them."""
        gallery, kept = self._retriever.gallery, self._kept
        if kept is None and gallery.spec.fine_shape is not None:
            raise InputError(f"{gallery.folder} keeps fine maps of another layer than {self._wanted!r}")
        return self._retriever.inference.fine.read(self._wanted if kept is None else kept.layer)

    @property
    def _kept(self) -> LineScale | None:
        """The scale that the gallery keeps, unless another layer was named."""
        kept = self._retriever.gallery.manifest.lines
        return kept if kept is not None and self._wanted in ("auto", kept.layer) else None

    @cached_property
    def scale(self) -> LineScale:
        """The scale of lines: kept with the gallery, or measured on some of its images now."""
        kept = self._kept
        return kept if kept is not None and kept.is_measured else self.measured()

    def keep(self) -> LineScale:
        """Measure the scale now, and keep it with the gallery."""
        self.__dict__["scale"] = scale = self.measured(is_said=False)
        self._retriever.gallery.keep_lines(scale)
        return scale

    def measured(self, most: int = SAMPLE, *, is_said: bool = True) -> LineScale:
        """The scale of images spread evenly over the gallery; those whose files are gone are passed over."""
        gallery, layer = self._retriever.gallery, self.layer
        ids = gallery.ids[np.unique(np.linspace(0, len(gallery) - 1, min(most, len(gallery))).round().astype(int))]
        records = gallery.records(ids)
        if gallery.spec.fine_shape is None:
            records = [record for record in records if gallery.file(record).is_file()]
        if not records:
            raise InputError(f"none of the images of {gallery.folder} is where it was, so lines cannot be measured")
        numbers = np.array([record.id for record in records], np.uint64)
        if gallery.spec.fine_shape is not None:
            fine, maps = torch.from_numpy(gallery.fine_maps(numbers)), torch.from_numpy(gallery.maps(numbers))
        else:
            encoding = self._retriever.inference.encode_images([gallery.item(record) for record in records])
            assert encoding.fine is not None
            fine, maps = encoding.fine.cpu(), encoding.feature_map
        if is_said and len(gallery) > 1:  # of one image nothing can be measured
            remark(
                "what lines are measured against is not kept with the gallery: measured on "
                f"{counted(len(records), 'image')} of it now; `distcam index calibrate --lines` keeps it",
                stacklevel=5,
            )
        weights = gallery_weights(gallery, self._retriever.encoder, records, shape=(maps.shape[-2], maps.shape[-1]))
        response = folded(self._retriever.inference, maps, None if weights is None else torch.stack(weights)).map
        files = [gallery.item(record) for record in records]
        return self.reader.measure(files, fine, response, gallery.embeddings(numbers), layer=layer)

    def query_places(self, evidence: Evidence) -> Places:
        """The places of the query, whose fine map comes from its own forward pass if lines were asked for then."""
        query, layer, scale = evidence.ranking.query, self.layer, self.scale
        fine = query.encoding.fine
        if fine is None:
            if query.source is None:
                raise InputError(f"{query.name} has no image: lines need one")
            fine = self._retriever.inference.encode_images([query.source]).fine
        assert fine is not None, layer
        size = query.known_size if query.source is None else query.size
        image = image_in_view(self._retriever.encoder.transform, size)
        response = evidence.query_response.map[0]
        return Places.of(fine[0].cpu(), response, torch.tensor(scale.mean), image=image)

    def match_places(self, evidence: Evidence, ranks: Sequence[int]) -> list[Places]:
        """The places of some matches: from the gallery, or of the matched images, which are encoded once."""
        ranking, _, scale = evidence.ranking, self.layer, self.scale
        fine, response = ranking.fine_maps[[rank - 1 for rank in ranks]], evidence.match_response(tuple(ranks))
        files = [ranking.at_rank(rank).item for rank in ranks]
        return self.reader.places(files, fine, response, torch.tensor(scale.mean))


def sorted_by_lines(matches: Matches, verify: int | str, *, fusion: Fusion | None = None) -> Matches:
    """The same matches, the first of which are sorted anew by the mean of two probabilities of "the same".

    One is calibrated on the similarity, one on the number of lines that agree. Matches whose images are gone stay where
    they are, with a remark; those behind the first K too.
    """
    name, most = parse_verify(verify)
    head = matches.matches[:most]
    if len(head) < 2:
        return matches
    try:
        counts = inliers_of(matches, len(head), name)
    except (ImageError, InputError) as error:
        if name != "lines" and isinstance(error, InputError):
            raise  # a matcher that is not at hand
        remark(f"{matches.query.name}: not verified by {name}: {error}", stacklevel=4)
        return matches
    retriever = matches.retriever
    kept = retriever.gallery.manifest.verification
    fusion = fusion or (USUAL_FUSION if kept is None or name != "lines" else kept.fusion)
    same = fusion([match.similarity for match in head], counts, retriever.lines.scale)
    order = np.argsort(-same, kind="stable").tolist()
    judged = [replace(head[place], inliers=counts[place], same=float(same[place])) for place in order]
    ranked = [replace(match, rank=rank) for rank, match in enumerate([*judged, *matches.matches[most:]], start=1)]
    return matches.reordered(ranked, [*order, *range(len(head), len(matches))], verify=f"{name}:{most}")


def inliers_of(matches: Ranking, count: int, name: str = "lines") -> list[int]:
    """How many places of the query lie alike on each of the first matches."""
    finder = matches.retriever.lines
    if name != "lines":
        return count_alike(name, matches.query.image, [match.item for match in matches.matches[:count]])
    evidence = Evidence(matches, "metric")
    query, answers = finder.query_places(evidence), finder.match_places(evidence, range(1, count + 1))
    return count_alike(name, query, answers, metric=finder.reader.metric)
