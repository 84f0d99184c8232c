"""The report: many explanations as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..explain.drawing.page import Thumbnails, numbers, write_html
from ..explain.drawing.rendering import Photograph
from ..explain.weightings import NEEDS_MEAN, RECOMMENDED, RECTIFIED, SIGNED, WEIGHTINGS, Weighting
from ..images import image_size, split_item
from ..images.items import whole_pixels
from .ranking import Match, image_of

if TYPE_CHECKING:
    from torch import Tensor

    from .explanation import Explanation


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

    Every query is shown with its references, the maps on both images, Dist-CAM beside the map on the query, and the map
    against its nearest prototype.
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
    unfit = frozenset() if first._evidence.has_mean else NEEDS_MEAN - {RECOMMENDED}
    unfit |= {"caam"} if first.versus else set()  # the same for both sides
    weightings = [first.weighting, *(w for w in others if w not in unfit)]
    images = Thumbnails(first.view_of)
    queries = [
        _query_data(each, weightings, images) | {"label": label}
        for each, label in zip(explanations, labels or [None] * len(explanations), strict=True)
    ]
    for query, each in zip(queries, explanations, strict=True) if lines else ():
        query["lines"] = [_lines_data(each, index, images) for index in range(len(each))]
    data = {
        "weightings": weightings,
        "rectified": sorted(RECTIFIED),
        "beside": all(each.versus is None for each in explanations),  # Dist-CAM; a contrast has none
        "signed": [name for name in WEIGHTINGS if name in SIGNED or any(each.versus for each in explanations)],
        "queries": queries,
        "ends": first.ends,
        "images": images,
    }
    return write_html(path, "report.html", package=__package__, title=title, notes=notes, data=data, lines=lines)


def _lines_data(explanation: Explanation, index: int, images: Thumbnails) -> dict[str, Any]:
    """The lines of one reference with its title, and the name under which the report holds its image."""
    reference, found = explanation.references[index], explanation.lines(index)
    title = f"{reference.match.rank} · {reference.label or '–'}" if reference.match else reference.name
    if found is None:
        return {"title": title, "image": None, "caption": "no lines: there is no image, or no longer one"}
    name, crop = f"gallery {found.match.id}", explanation.reference_image(index)
    if found.match.box is not None and crop is not None:  # lines join places of the crop
        name = images.add(f"crop {found.match.id}", crop)
    return {"title": title, "image": name, **found.to_dict()}


def _query_data(explanation: Explanation, weightings: Sequence[Weighting], images: Thumbnails) -> dict[str, Any]:
    """A query with its references under every weighting."""
    query = explanation.matches.query
    variants = [explanation.weighted(weighting) for weighting in weightings]
    answers = {each.weighting: each.found_reference_maps for each in variants}
    references = [_reference_data(variants, answers, index, images) for index in range(len(explanation))]
    is_ranking = explanation.references[0].match is not None and explanation.versus is None and query.has_image
    if is_ranking and explanation.matches.prototype is not None:  # a contrast has none: its colours name two sides
        against = explanation.against("prototype")
        by_weighting = [against.weighted(weighting) for weighting in weightings]
        references.insert(0, _reference_data(by_weighting, {}, 0, images))
    notes = []
    if query.region is not None:
        notes.append("Only the region marked on the query was searched for.")
    if any(match.inliers is not None for match in explanation.matches.matches):
        notes.append("The first matches are sorted anew, by how many places lie alike as well as by the similarity.")
    return {
        "name": query.short_name,
        "note": " ".join(notes) or None,
        "words": {each.weighting: " ".join(each.words) for each in variants},
        "image": images.add(f"query {len(images)}", explanation.marked_query),
        "shape": list(explanation.query_maps.shape[-2:]),
        "references": references,
    }


def _reference_data(
    variants: Sequence[Explanation], answers: Mapping[Weighting, Tensor | None], index: int, images: Thumbnails
) -> dict[str, Any]:
    """One reference under every weighting: the maps on the query, and on the match where they can be had."""
    explanation = variants[0]
    reference, member = explanation.references[index], explanation.nearest_member(index)
    match, name = reference.match, reference.name
    image, number = explanation.reference_image(index), f"gallery {match.id}" if match else ""
    if member is not None:
        image, number = explanation.member_image(index), f"member {member.id}"
        name = f"the member nearest to it: {member.path}"
    maps = {name: each[index] for name, each in answers.items() if each is not None}
    return {
        "title": f"{match.rank} · {reference.label or '–'}" if match else f"prototype · {reference.label}",
        "label": reference.label,
        "name": name,
        "similarity": explanation._evidence.figures(reference),
        "image": None if image is None else images.add(number, image, photograph_of(match)),
        "query_maps": {each.weighting: numbers(each.query_maps[index]) for each in variants}
        if explanation.matches.query.has_image
        else None,
        "maps": {name: numbers(each) for name, each in maps.items()} or None,
        "shape": list(next(iter(maps.values())).shape) if maps else None,
    }


def photograph_of(match: Match | None) -> Photograph | None:
    """The whole photograph of a match that is a box of it; None for a whole image or a file that is gone."""
    place = None if match is None else split_item(match.item)[1]
    whole = None if match is None or place is None else image_of(match.file)
    if match is None or match.box is None or place is None or whole is None:
        return None
    scale = max(whole.size) / max(image_size(match.file))
    return Photograph(whole, whole_pixels(place.scaled(scale).clipped(*whole.size)), match.box.scaled(scale))
