"""Explanation of matches: Dist-CAM maps on the query and on its references, as arrays, a panel, or a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..encoders.regions import region_mask
from ..errors import ImageError, InputError
from ..explain import WEIGHTINGS, Norm, Weighting, contrast, dist_cam, match_sensitivity, rectify
from ..explain.drawing.page import Thumbnails, numbers, write_html
from ..explain.drawing.panels import MISSING, DrawStyle, Tile, below, map_panel
from ..explain.drawing.rendering import contour, draw_box
from ..explain.inputs import NEEDS_MEAN, WORDS
from ..files import replacing
from ..images import Box, read_image
from ..index.filters.tree import Eq
from .evidence import Evidence, Reference, Space
from .lines import MatchLines, lines_of, lines_sheet
from .ranking import Ranking

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..index.storage.segments import Record

SIGNED = frozenset({"dot", "dot_centered", "gradcam_cos"})  # weightings whose negative values speak against the match


@dataclass(frozen=True, eq=False)
class Explanation:
    """Raw Dist-CAM maps of one query, one per reference, in the resolution of the encoder's last feature map.

    Response maps and vectors are kept, so other weightings and references cost a matrix product.

    Attributes:
        matches: the ranking that is explained.
        references: the n references, in the order of the maps.
        weighting: how channels are weighted.
        versus: what each of them is set against in a contrast ("why A and not B"), else None.
        query_maps: Float "n h w", raw: neither rectified nor normalised, so maps of one query share one scale. A text
            has "n 1 1"; its `reference_maps` show where it is answered.
        sensitivity: Spearman correlation of the first map with the map against an unrelated gallery image; 1 means that
            the map does not depend on the match at all. None when the gallery holds no further image, or of a text.
    """

    references: tuple[Reference, ...]
    weighting: Weighting
    versus: Reference | None
    query_maps: Tensor = field(init=False)
    sensitivity: float | None = field(init=False)
    _evidence: Evidence = field(repr=False)
    _vectors: Tensor = field(repr=False)
    _opposite: Tensor | None = field(repr=False)
    _tau: float = field(repr=False)
    _norm: Norm = field(repr=False)

    def __post_init__(self) -> None:
        has_image = self.matches.query.has_image
        unrelated = self._evidence.unrelated if has_image else self._vectors[:0]
        maps = self._maps(self._evidence.query_response.map, torch.cat([self._vectors, unrelated])[None])[0]
        sensitivity = float(match_sensitivity(maps[[0, -1]])) if len(unrelated) else None
        object.__setattr__(self, "query_maps", maps[: len(self.references)])
        object.__setattr__(self, "sensitivity", sensitivity)

    def _maps(self, response: Tensor, vectors: Tensor) -> Tensor:
        """Maps "b n h w" of responses "b d h w" for vectors "b n d"."""
        options: dict[str, Any] = {
            "metric": self.matches.retriever.gallery.metric,
            "weighting": self.weighting,
            "tau": self._tau,
            "norm": self._norm,
            "mean": self._evidence.mean(self.weighting),
        }
        if self._opposite is None:
            return dist_cam(response, vectors, **options)
        return contrast(response, vectors, self._opposite.expand(len(response), 1, -1), **options)

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
        """False when a non-linear head could only be unfolded to first order."""
        return self._evidence.query_response.is_exact

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
        return self._maps(self._evidence.match_response(ranks), query)[:, 0]

    def weighted(self, weighting: Weighting) -> Explanation:
        """The same references, explained by another weighting."""
        return self if weighting == self.weighting else replace(self, weighting=weighting)

    def against(self, against: str | int) -> Explanation:
        """The same weighting, against other references and without a contrast: see `Matches.explain`."""
        references, vectors = self._evidence.references(against)
        return replace(self, references=references, versus=None, _vectors=vectors, _opposite=None)

    @property
    def is_signed(self) -> bool:
        """True if negative values of the maps speak against the reference, so that 0 is the middle of the scale."""
        return self.weighting in SIGNED or self.versus is not None

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
        return None if member is None else _image_of(self.matches.retriever.gallery.file(member))

    def reference_image(self, index: int) -> Image | None:
        """A matched gallery image; None for a prototype or a file that is gone or damaged."""
        match = self.references[index].match
        return None if match is None else _image_of(match.file)

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
            return None if match is None else lines_of(self.matches, match.rank)
        except ImageError:
            return None

    def show(self, look: DrawStyle | None = None, *, lines: bool = False) -> Image:
        """The query, its references and the maps on both, as one image; `look` says on which scale and how drawn.

        With `lines` the places that answer one another stand below, for each match.
        """
        if lines:
            return below(self.show(look), lines_sheet([self.lines(index) for index in range(len(self))]))
        look = look or (DrawStyle() if self.versus is None else DrawStyle(colours="blue-orange"))
        has_middle = look.colours == "blue-orange"

        def shown(maps: Tensor) -> Tensor:  # of signed maps what speaks for the match, unless the colours have a middle
            return rectify(maps) if self.is_signed and not has_middle else maps

        answers = self.found_reference_maps
        images = [self.reference_image(index) for index in range(len(self))]
        against = "against it" if self.versus is None else f"for {self.versus.short_name}"
        return map_panel(
            Tile(self.marked_query, title="query", caption=self.matches.query.short_name),
            [self._tile(index, image) for index, image in enumerate(images)],
            shown(self.query_maps) if self.matches.query.has_image else None,
            None if answers is None else shown(answers),
            view=self.query_view,
            views=[None if image is None else self.view_of(image) for image in images],
            look=look,
            ends=(against, "for it") if has_middle else ("low", "high"),
        )

    def _tile(self, index: int, image: Image | None) -> Tile:
        """A reference with its image: of a prototype its nearest member, grey where there is none."""
        reference = self.references[index]
        caption = f"similarity {self.matches.retriever.similarity(reference.distance):.3f}"
        if self.versus is not None:
            caption += f", rather than {self.versus.short_name}"
        if reference.match is not None:
            title = f"{reference.match.rank} · {reference.label or '–'}"
            return Tile(image or MISSING, title=title, caption=caption if image else f"{caption}, image not found")
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
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".html":
            return write_report(path, [self], lines=lines)
        if kind not in {".png", ".jpg", ".jpeg", ".npz"}:
            raise InputError(f"{path.name}: an explanation is saved as .png, .jpg, .npz or .html")
        with replacing(path) as aside:
            if kind == ".npz":
                np.savez_compressed(aside, allow_pickle=False, **self.to_arrays())
            else:
                self.show(look, lines=lines).save(aside)
        return path

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Raw maps, reference names and the views as plain arrays."""
        arrays = {
            "query_maps": self.query_maps.numpy(),
            "references": np.array([reference.name for reference in self.references]),
            "distances": np.array([reference.distance for reference in self.references]),
            "query_view": np.array(self.query_view),
        }
        if self.versus is not None:
            arrays["versus"] = np.array(self.versus.name)
        if self.matches.query.weights is not None:
            arrays["region_weights"] = self.matches.query.weights.cpu().numpy()
        return arrays if self.reference_maps is None else arrays | {"reference_maps": self.reference_maps.numpy()}


def _image_of(file: Path) -> Image | None:
    try:
        return read_image(file)
    except ImageError:
        return None


def write_report(
    path: str | PathLike[str],
    explanations: Sequence[Explanation],
    *,
    title: str = "Which of these is this, and why",
    notes: Sequence[str] = (),
    labels: Sequence[str | None] | None = None,
    lines: bool = False,
) -> Path:
    """Write explanations as one HTML file that needs nothing else: no network, no server, no further file.

    Every query is shown with its references, the maps on both images, and the map against its nearest prototype.
    The page switches between weightings, scales and opacities. Maps are stored raw and coloured in the browser.

    Args:
        path: the file to write; an existing one is replaced.
        explanations: one per query.
        title: the page's heading.
        notes: lines under the heading, as plain text.
        labels: the true class of each query, to mark matches as same or other; None where it is not known.
        lines: show as well which place of the query answers which place of each match.

    Raises:
        InputError: no explanation, or as many labels as there are not explanations.
    """
    if not explanations:
        raise InputError("a report needs at least one explanation")
    if labels is not None and len(labels) != len(explanations):
        raise InputError(f"expected {len(explanations)} labels, one per explanation, got {len(labels)}")
    first = explanations[0]
    others = (each for each in WEIGHTINGS if each != first.weighting)
    weightings = [first.weighting, *(w for w in others if first._evidence.has_mean or w not in NEEDS_MEAN)]
    images = Thumbnails(first.view_of)
    queries = [
        _query_data(each, weightings, images) | {"label": label}
        for each, label in zip(explanations, labels or [None] * len(explanations), strict=True)
    ]
    for query, each in zip(queries, explanations, strict=True) if lines else ():
        query["lines"] = [_lines_data(each, index) for index in range(len(each))]
    data = {
        "weightings": {name: WORDS[name] for name in weightings},
        "signed": [name for name in WEIGHTINGS if name in SIGNED or any(each.versus for each in explanations)],
        "queries": queries,
        "images": images,
    }
    return write_html(path, "report.html", package=__package__, title=title, notes=notes, data=data, lines=lines)


def _lines_data(explanation: Explanation, index: int) -> dict[str, Any]:
    """The lines of one reference with its title, and the name under which the report holds its image."""
    reference, found = explanation.references[index], explanation.lines(index)
    title = f"{reference.match.rank} · {reference.label or '–'}" if reference.match else reference.name
    if found is None:
        return {"title": title, "image": None, "caption": "no lines: there is no image, or no longer one"}
    return {"title": title, "image": f"gallery {found.match.id}", **found.to_dict()}


def _query_data(explanation: Explanation, weightings: Sequence[Weighting], images: Thumbnails) -> dict[str, Any]:
    """A query with its references under every weighting."""
    query = explanation.matches.query
    variants = [explanation.weighted(weighting) for weighting in weightings]
    references = [_reference_data(variants, index, images) for index in range(len(explanation))]
    if explanation.references[0].match and query.has_image and explanation.matches.prototype is not None:
        against = explanation.against("prototype")
        references.insert(0, _reference_data([against.weighted(weighting) for weighting in weightings], 0, images))
    notes = []
    if explanation.versus is not None:
        notes.append(f"shown is what speaks for each reference rather than for {explanation.versus.name}")
    if query.region is not None:
        notes.append("only the region marked on the query was searched for")
    if explanation.sensitivity is not None:
        words = {0.95: "hardly depends", 0.75: "depends a little", 0.4: "depends in part"}
        means = next((text for least, text in words.items() if explanation.sensitivity >= least), "depends")
        correlation = f"rank correlation {explanation.sensitivity:.2f} with the one against an unrelated image"
        notes.append(f"{explanation.weighting}: the map {means} on the match ({correlation})")
    return {
        "name": query.short_name,
        "note": " · ".join(notes) or None,
        "image": images.add(f"query {len(images)}", explanation.marked_query),
        "shape": list(explanation.query_maps.shape[-2:]),
        "references": references,
    }


def _reference_data(variants: Sequence[Explanation], index: int, images: Thumbnails) -> dict[str, Any]:
    """One reference under every weighting: the maps on the query, and on the match where they can be had."""
    explanation = variants[0]
    reference, member = explanation.references[index], explanation.nearest_member(index)
    match, name = reference.match, reference.name
    image, number = explanation.reference_image(index), match.id if match else None
    if member is not None:
        image, number = _image_of(explanation.matches.retriever.gallery.file(member)), member.id
        name = f"the member nearest to it: {member.path}"
    answers = {each.weighting: each.found_reference_maps for each in variants}
    maps = {name: each[index] for name, each in answers.items() if each is not None}
    return {
        "title": f"{match.rank} · {reference.label or '–'}" if match else f"prototype · {reference.label}",
        "label": reference.label,
        "name": name,
        "similarity": f"{explanation.matches.retriever.similarity(reference.distance):.3f}",
        "image": None if image is None else images.add(f"gallery {number}", image),
        "query_maps": {each.weighting: numbers(each.query_maps[index]) for each in variants}
        if explanation.matches.query.has_image
        else None,
        "maps": {name: numbers(each) for name, each in maps.items()} or None,
        "shape": list(next(iter(maps.values())).shape) if maps else None,
    }
