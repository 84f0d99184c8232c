"""Explanation of matches: Dist-CAM maps on the query and on its references, as arrays, a panel, or a report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..encoders.regions import region_mask
from ..errors import ImageError
from ..explain import Mean, Norm, Surroundings, Weighting, contrast, dist_cam, match_sensitivity, ratio_maps, rectify
from ..explain.drawing.figures import figure_of
from ..explain.drawing.page import save_drawing
from ..explain.drawing.panels import MISSING, DrawStyle, below, map_panel, map_rows
from ..explain.drawing.rendering import contour, draw_box
from ..explain.methods.dist_cam import WeightOptions
from ..explain.weightings import DEPENDS, RECTIFIED, SIGNED, WORDS
from ..images import Box
from ..images.inline import SHOWN, Tile, fragment, more
from ..index.filters.tree import Eq
from ..remarks import counted
from .evidence import Evidence, Reference, Space
from .lines import MatchLines, lines_of, lines_sheet
from .ranking import Ranking, image_of
from .report import photograph_of, write_report

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..index.storage.segments import Record


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Raw Dist-CAM maps of one query, one per reference, in the resolution of the encoder's last feature map.

    Response maps and vectors are kept, so other weightings and references cost a matrix product.

    Attributes:
        matches: the ranking that is explained.
        references: the n references, in the order of the maps.
        weighting: how channels are weighted.
        versus: what each of them is set against in a contrast ("why A and not B"), else None.
        mean: what of the gallery `root_ratio` takes off, see `Surroundings.settings`.
        query_maps: Float "n h w", raw: neither rectified nor normalised, so maps of one query share one scale. A text
            has "n 1 1"; its `reference_maps` show where it is answered.
        sensitivity: Spearman correlation of the first map with the map against an unrelated gallery image; 1 means that
            the map does not depend on the match at all. None when the gallery holds no further image, of an empty map,
            or of a text.
    """

    references: tuple[Reference, ...]
    weighting: Weighting
    mean: Mean
    versus: Reference | None
    query_maps: Tensor = field(init=False)
    sensitivity: float | None = field(init=False)
    _basis: str = field(init=False, repr=False)  # what the maps were set apart from, in words
    _evidence: Evidence = field(repr=False)
    _vectors: Tensor = field(repr=False)
    _opposite: Tensor | None = field(repr=False)
    _tau: float = field(repr=False)
    _norm: Norm = field(repr=False)

    def __post_init__(self) -> None:
        unrelated = self._evidence.unrelated if self.matches.query.has_image else self._vectors[:0]
        vectors, is_class = torch.cat([self._vectors, unrelated])[None], self.references[0].match is None
        maps, basis = self._maps(self._evidence.query_response.map, vectors, is_class=is_class)
        depends = len(unrelated) and maps[0, 0].amin() < maps[0, 0].amax()  # an empty map depends on nothing
        compared = maps[0, [0, -1]].flatten(1)  # but for margins and what lies outside of a region, 0 in every map
        sensitivity = float(match_sensitivity(compared[:, None, (compared != 0).any(0)])) if depends else None
        object.__setattr__(self, "query_maps", maps[0, : len(self.references)])
        object.__setattr__(self, "sensitivity", sensitivity)
        object.__setattr__(self, "_basis", basis)

    def _maps(self, response: Tensor, vectors: Tensor, *, is_class: bool) -> tuple[Tensor, str]:
        """Maps "b n h w" of responses "b d h w" for vectors "b n d", and what they were set apart from, in words."""
        metric, surroundings = self.matches.retriever.gallery.metric, self._evidence.surroundings
        options: dict[str, Any] = {"metric": metric, "weighting": self.weighting, "tau": self._tau, "norm": self._norm}
        if self.weighting == "root_ratio":
            if self._opposite is None:
                found = ratio_maps(response, vectors, surroundings, metric=metric, mean=self.mean, is_class=is_class)
                return found.maps, found.words(len(self.references))
            setting = Surroundings.first(surroundings, self.mean, is_class=is_class)
            options |= {"weighting": setting.weighting, "mean": setting.mean, "magnitude": setting.magnitude}
        else:
            options["mean"] = self._evidence.mean(self.weighting)
        if self._opposite is None:
            return dist_cam(response, vectors, **options), ""
        return contrast(response, vectors, self._opposite.expand(len(response), 1, -1), **options), ""

    def __len__(self) -> int:
        return len(self.references)

    @property
    def matches(self) -> Ranking:
        """The ranking that is explained."""
        return self._evidence.ranking

    @property
    def space(self) -> Space:
        """The space that is explained."""
        return self._evidence.space

    @property
    def is_exact(self) -> bool:
        """False when what lies behind the pooling is not linear and could only be unfolded to first order."""
        return self._evidence.query_response.is_exact

    @cached_property
    def unexplained(self) -> tuple[float, ...] | None:
        """Of each reference's cosine that share which no place of the query explains; None for maps that are all of it.

        Of a class token or an attention pooling (see `Encoding.constant`) it is what start, MLPs and other tokens give,
        which counts at every place alike. Negative where that speaks against the reference.
        """
        constant = self._evidence.query_response.constant
        if constant is None or self.matches.retriever.gallery.metric != "cosine":
            return None
        shares = (self._vectors @ constant[0]) / (self._vectors @ self._evidence.query_vector[0])
        return tuple(torch.nan_to_num(shares).tolist())

    @cached_property
    def reference_maps(self) -> Tensor | None:
        """Float "n h w": the maps on the gallery images, with query and match in exchanged roles; None for prototypes.

        For `dist` these are the query's own channel weights laid over the match (D is symmetric); for `dot` they sum to
        the same similarity. Feature maps that the gallery stores are used as they are; otherwise the n gallery images
        are encoded once, together.
        """
        ranks = tuple(reference.match.rank for reference in self.references if reference.match is not None)
        if not ranks:
            return None
        query = self._evidence.query_vector.expand(len(ranks), 1, -1)
        return self._maps(self._evidence.match_response(ranks), query, is_class=False)[0][:, 0]

    @cached_property
    def dist_maps(self) -> Tensor | None:
        """Float "n h w": Dist-CAM of the same references, to set beside another weighting; None where it is shown."""
        if self.weighting == "dist" or self.versus is not None or not self.matches.query.has_image:
            return None
        options: WeightOptions = {"metric": self.matches.retriever.gallery.metric, "tau": self._tau, "norm": self._norm}
        return dist_cam(self._evidence.query_response.map, self._vectors[None], **options)[0]

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences on what the maps show, what they are set apart from, and how far they depend on the match."""
        blue, orange = self.ends
        shows = WORDS[self.weighting] if self.versus is None else f"Orange places speak {orange}, blue ones {blue}."
        said = [shows]
        if self._basis:
            said.append(f"{self._basis[0].upper()}{self._basis[1:]}.")
        if self.matches.query.has_image and self.versus is None:
            pairs = zip(self.references, self.query_maps, strict=True)
            if empty := [each.short_name for each, own in pairs if own.max() <= 0]:
                said.append(f"No place speaks for {', '.join(empty)} by this weighting.")
        if self.sensitivity is not None:
            means = next(text for least, text in DEPENDS.items() if self.sensitivity >= least)
            said.append(f"{means} (rank correlation {self.sensitivity:.2f}).")
        if self.unexplained is not None:
            share = 1 - self.unexplained[0]
            said.append(
                f"{share:.0%} of the similarity to {self.references[0].short_name} is read directly from places; the "
                "rest, of the class token, MLPs and other tokens, counts at every place alike."
            )
        choice = self.matches.retriever.gallery.map_choice
        if choice is not None and (choice.weighting, choice.mean) == (self.weighting, self.mean):
            said.append(f"Measured on this gallery: {choice}.")
        said += self._evidence.remarks([each.match.rank for each in self.references if each.match])
        if not self.is_exact:
            said.append("What lies behind the pooling is not linear: the maps hold to first order.")
        return tuple(said)

    def weighted(self, weighting: Weighting) -> Explanation:
        """The same references, explained by another weighting."""
        return self if weighting == self.weighting else replace(self, weighting=weighting)

    def against(self, against: str | int) -> Explanation:
        """The same weighting, against other references and without a contrast: see `Matches.explain`."""
        references, vectors = self._evidence.references(against)
        return replace(self, references=references, versus=None, _vectors=vectors, _opposite=None)

    @property
    def is_signed(self) -> bool:
        """True if the maps are drawn with 0 in the middle of the scale: what is below speaks against the reference."""
        return self.weighting in SIGNED or self.versus is not None

    @property
    def ends(self) -> tuple[str, str]:
        """What the two ends of a scale with a middle stand for, blue and orange; of a contrast both sides by name."""
        if self.versus is None:
            return "against it", "for it"
        own = self.references[0].short_name if len(self) == 1 else "the match"
        return f"for {self.versus.short_name}", f"for {own}"

    @property
    def marked_query(self) -> Image:
        """The query image, with the outline of the region that was searched for, if any."""
        query = self.matches.query
        if query.region is None:
            return query.image
        if isinstance(query.region, Box):
            return draw_box(query.image, query.region)
        return contour(query.image, region_mask(query.region, query.image.size).astype(float))

    @property
    def query_view(self) -> Box:
        """The rectangle of the query image (in its pixels) that the encoder saw and the maps cover."""
        return self.matches.retriever.encoder.transform.view(*self.matches.query.size)

    def view_of(self, image: Image) -> Box:
        """The rectangle of an image, in its pixels, that the encoder sees."""
        return self.matches.retriever.encoder.transform.view(*image.size)

    def nearest_member(self, index: int) -> Record | None:
        """Of a prototype the gallery image that is nearest to it and of its class; None for a match."""
        reference, gallery = self.references[index], self.matches.retriever.gallery
        if reference.match is not None or reference.label is None:
            return None
        prototype = gallery.prototypes.embedding(reference.label)
        (hits,) = gallery.search(prototype[None], 1, where=Eq("label", reference.label))
        return next(iter(gallery.records(hits.ids)), None)

    def member_image(self, index: int) -> Image | None:
        """The image of `nearest_member`; None if there is none, or its file is gone or damaged."""
        member = self.nearest_member(index)
        return None if member is None else image_of(self.matches.retriever.gallery.item(member))

    def reference_image(self, index: int) -> Image | None:
        """A matched gallery image; None for a prototype or a file that is gone or damaged."""
        return None if (match := self.references[index].match) is None else image_of(match.item)

    @property
    def found_reference_maps(self) -> Tensor | None:
        """The `reference_maps`; None as well where a file is gone or damaged since it was encoded."""
        try:
            return self.reference_maps if self.matches.has_feature_maps else None
        except ImageError:
            return None

    def lines(self, index: int) -> MatchLines | None:
        """The lines to a matched gallery image; None for a prototype, or where an image is gone or damaged."""
        match = self.references[index].match
        try:
            return None if match is None else lines_of(self._evidence.plain, match.rank)
        except ImageError:
            return None

    def show(self, look: DrawStyle | None = None, *, lines: bool = False) -> Image:
        """The query, its references and the maps on both, as one image; `look` says on which scale and how drawn.

        With `lines` the places that answer one another stand below, for each match.
        """
        panel = map_panel(self._rows(look), self.words)
        return below(panel, lines_sheet(list(map(self.lines, range(len(self)))), width=panel.width)) if lines else panel

    def figure(self, look: DrawStyle | None = None) -> Any:
        """The same as a figure of matplotlib, with an axis for each image and map.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return figure_of(self._rows(look), self.words)

    def _repr_html_(self) -> str:
        """HTML for a notebook: the first references, the maps on both sides, and the words."""
        shown, rest = [row[: SHOWN + 1] for row in self._rows(None)], more(len(self), "references")
        return fragment(repr(self), shown, notes=[*self.words, *rest])

    def __repr__(self) -> str:
        versus = "" if self.versus is None else f" rather than {self.versus.short_name}"
        against = f"{counted(len(self), 'reference')}{versus}"
        return f"Explanation({self.matches.query.short_name!r}, {against}, {self.weighting})"

    def _rows(self, look: DrawStyle | None) -> list[list[Tile | None]]:
        """The tiles of `show`."""
        look = look or (DrawStyle() if self.versus is None else DrawStyle(colours="blue-orange"))
        has_middle = look.colours == "blue-orange"
        maps, answers = self.query_maps if self.matches.query.has_image else None, self.found_reference_maps
        if (self.is_signed or self.weighting in RECTIFIED) and not has_middle:  # what speaks for the match
            maps, answers = (None if each is None else rectify(each) for each in (maps, answers))
        images = [self.reference_image(index) for index in range(len(self))]
        return map_rows(
            Tile(self.marked_query, title="query", caption=self.matches.query.short_name),
            [self._tile(index, image) for index, image in enumerate(images)],
            maps,
            answers,
            view=self.query_view,
            views=[None if image is None else self.view_of(image) for image in images],
            look=look,
            ends=self.ends if has_middle else ("low", "high"),
            beside=self.dist_maps,
        )

    def _tile(self, index: int, image: Image | None) -> Tile:
        """A reference with its image: of a prototype its nearest member, grey where there is none."""
        reference = self.references[index]
        caption = f"similarity {self._evidence.figures(reference)}"
        if self.versus is not None:
            caption += f", rather than {self.versus.short_name}"
        if reference.match is not None:
            title = f"{reference.match.rank} · {reference.label or '–'}"
            found = caption if image else f"{caption}, image not found"
            return Tile(image or MISSING, title=title, caption=found, within=photograph_of(reference.match))
        member = self.member_image(index)
        return Tile(
            member or MISSING, title=reference.name, caption=f"{caption}; its nearest member" if member else caption
        )

    def save(self, path: str | PathLike[str], look: DrawStyle | None = None, *, lines: bool = False) -> Path:
        """Write the explanation: `.png`/`.jpg` a panel, `.npz` the raw arrays, `.html` an interactive report.

        The report has its own switches for scale and opacity; `look` is for the panel.

        Raises:
            InputError: any other ending.
        """
        if Path(path).suffix.lower() == ".html":
            return write_report(path, [self], lines=lines)
        what = "an explanation is saved as .png, .jpg, .npz or .html"
        return save_drawing(path, what, lambda: self.show(look, lines=lines), self.to_arrays)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Raw maps, with Dist-CAM beside them, the words, reference names and views as plain arrays."""
        arrays = {
            "query_maps": self.query_maps.numpy(),
            "references": np.array([reference.name for reference in self.references]),
            "distances": np.array([reference.distance for reference in self.references]),
            "query_view": np.array(self.query_view),
            "weighting": np.array(self.weighting),
            "words": np.array(self.words),
            **({} if self.unexplained is None else {"unexplained": np.array(self.unexplained)}),
            "sensitivity": np.array(np.nan if self.sensitivity is None else self.sensitivity),
        }
        if self.dist_maps is not None:
            arrays["dist_cam_maps"] = self.dist_maps.numpy()
        if self.versus is not None:
            arrays["versus"] = np.array(self.versus.name)
        if self.matches.query.weights is not None:
            arrays["region_weights"] = self.matches.query.weights.cpu().numpy()
        return arrays if self.reference_maps is None else arrays | {"reference_maps": self.reference_maps.numpy()}
