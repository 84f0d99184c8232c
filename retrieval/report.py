"""One self-contained HTML file, or one picture: each query, its matches, and the maps on both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import new as new_image
from torch import Tensor

from ..errors import ImageError, InputError
from ..explain import WEIGHTINGS, Weighting, rectify
from ..explain.drawing.colours import colour_table
from ..explain.drawing.overlay import Look, map_tiles, scaled
from ..explain.drawing.panels import Tile, panel
from ..explain.drawing.rendering import to_data_uri
from ..explain.inputs import NEEDS_MEAN
from ..files import write_text
from ..images import Box
from .explanation import SIGNED

if TYPE_CHECKING:
    from PIL.Image import Image

    from .explanation import Explanation, Reference

__all__ = ["panel_of", "write_report"]

THUMBNAIL = 320  # longest side in pixels of a picture in the report
WORDS: dict[Weighting, str] = {
    "dist": "Dist-CAM: where the query shows channels whose strength is close to the reference's.",
    "dist*s": "Dist-CAM of the channels that the reference has.",
    "dist*excess": "Dist-CAM of the channels that the reference has more of than the gallery's mean.",
    "log_ratio": "How many times more of a channel the reference has than the gallery's mean.",
    "dot": "What each place adds to the dot product with the reference.",
    "dot_centered": "What each place adds to what sets the reference apart from the gallery's mean.",
    "gradcam_cos": "The gradient of the cosine; it vanishes as the match gets better.",
    "caam": "The class-agnostic map: the same for every reference, to compare with.",
}
GREY, GREY_SIZE = (214, 217, 222), (96, 96)  # stands for a picture that does not exist
DIGITS = 4  # significant digits of a map's values in the report


def write_report(
    path: str | PathLike[str],
    explanations: Sequence[Explanation],
    *,
    title: str = "Which of these is this, and why",
    notes: Sequence[str] = (),
    labels: Sequence[str | None] | None = None,
) -> Path:
    """Write explanations as one HTML file that needs nothing else: no network, no server, no further file.

    Every query is shown with its references, the maps on both pictures, and the map against its nearest prototype.
    The page switches between weightings, scales and opacities. Maps are stored raw and coloured in the browser.

    Args:
        path: the file to write; an existing one is replaced.
        explanations: one per query.
        title: the page's heading.
        notes: lines under the heading, as plain text.
        labels: the true class of each query, to mark matches as same or other; None where it is not known.

    Raises:
        InputError: no explanation, or as many labels as there are not explanations.
    """
    if not explanations:
        raise InputError("a report needs at least one explanation")
    if labels is not None and len(labels) != len(explanations):
        raise InputError(f"expected {len(explanations)} labels, one per explanation, got {len(labels)}")
    known = [None] * len(explanations) if labels is None else labels
    pictures: dict[str, str] = {}
    data = {
        "title": title,
        "notes": list(notes),
        "weightings": {name: WORDS[name] for name in _weightings(explanations[0])},
        "signed": [name for name in WEIGHTINGS if name in SIGNED or any(each.versus for each in explanations)],
        "has_unseen": any(_has_unseen(each) for each in explanations),
        "colour_map": bytes(colour_table("inferno").tobytes()).hex(),
        "signed_colour_map": bytes(colour_table("blue-orange").tobytes()).hex(),
        "queries": [_query_data(each, label, pictures) for each, label in zip(explanations, known, strict=True)],
        "images": pictures,
    }
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    # "</script>" in a file name must not end the data block.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return write_text(path, template.replace("__DATA__", text))


def panel_of(explanation: Explanation, look: Look | None = None) -> Image:
    """The query, its references and the maps on both, as one picture."""
    look = look or default_look(explanation)
    query, indices = explanation.marked_query, range(len(explanation))
    maps = _shown(explanation.query_maps, explanation, look)
    views = [explanation.query_view for _ in indices]
    seen = map_tiles([query for _ in indices], maps, views=views, look=look)
    images = [explanation.reference_image(index) for index in indices]
    answers = _maps_on_matches(explanation)
    low, high = scaled(maps, look)[1][0] if look.scale == "shared" or len(explanation) == 1 else (None, None)
    return panel(
        Tile(query, title="query", caption=Path(explanation.matches.query.name).name),
        [_reference_tile(explanation, index, image) for index, image in enumerate(images)],
        seen,
        [] if answers is None else _answer_tiles(explanation, images, _shown(answers, explanation, look), look),
        colours=look.colours if look.style == "overlay" else None,
        ends=_words(look, explanation) if low is None else (f"{low:.3g}", f"{high:.3g}"),
    )


def default_look(explanation: Explanation) -> Look:
    """Sequential colours; for a contrast those with a middle."""
    return Look() if explanation.versus is None else Look(colours="blue-orange")


def _words(look: Look, explanation: Explanation) -> tuple[str, str]:
    if look.colours != "blue-orange":
        return "low", "high"
    return ("against it", "for it") if explanation.versus is None else (f"for {_short(explanation.versus)}", "for it")


def _short(reference: Reference) -> str:
    """A match by its rank, a prototype by its class."""
    return f"match {reference.match.rank}" if reference.match else str(reference.label)


def _answer_tiles(explanation: Explanation, images: Sequence[Image | None], maps: Tensor, look: Look) -> list[Tile]:
    """The maps on the gallery images; grey where there is no picture."""
    tiles = [Tile(new_image("RGB", GREY_SIZE, GREY)) for _ in images]
    there = [index for index, image in enumerate(images) if image is not None]
    found = [image for image in images if image is not None]
    drawn = map_tiles(found, maps[there], views=[explanation.view_of(image) for image in found], look=look)
    for index, tile in zip(there, drawn, strict=True):
        tiles[index] = tile
    return tiles


def _reference_tile(explanation: Explanation, index: int, image: Image | None) -> Tile:
    """The gallery image; grey for a prototype and for a picture that is gone."""
    reference = explanation.references[index]
    title = f"{reference.match.rank} · {reference.label or '–'}" if reference.match else reference.name
    similarity = explanation.matches.retriever.similarity(reference.distance)
    caption = f"similarity {similarity:.3f}"
    if explanation.versus is not None:
        caption += f", rather than {_short(explanation.versus)}"
    if reference.match is None and (member := explanation.member_image(index)) is not None:
        return Tile(member, title=title, caption=f"{caption}; its nearest member")
    if image is None:
        missing = "" if reference.match is None else ", picture not found"
        return Tile(new_image("RGB", GREY_SIZE, GREY), title=title, caption=caption + missing)
    return Tile(image, title=title, caption=caption)


def _shown(maps: Tensor, explanation: Explanation, look: Look) -> Tensor:
    """Of signed maps what speaks for the match, unless the colours have a middle."""
    return rectify(maps) if explanation.is_signed and look.colours != "blue-orange" else maps


def _weightings(explanation: Explanation) -> list[Weighting]:
    """The explanation's own weighting first, then all others that this space can answer."""
    gallery = explanation.matches.retriever.gallery
    has_mean = explanation.space == "metric" or gallery.spec.embedding_is_pooled
    return [
        explanation.weighting,
        *(w for w in WEIGHTINGS if w != explanation.weighting and (has_mean or w not in NEEDS_MEAN)),
    ]


def _query_data(explanation: Explanation, label: str | None, pictures: dict[str, str]) -> dict[str, Any]:
    query = explanation.matches.query
    image = explanation.marked_query
    own = f"query {len(pictures)}"
    pictures[own] = _thumbnail(image)
    variants = {weighting: explanation.weighted(weighting) for weighting in _weightings(explanation)}
    on_matches = _maps_on_matches(explanation)
    answers = {} if on_matches is None else {name: each.reference_maps for name, each in variants.items()}
    references = [_reference_data(variants, answers, index, pictures) for index in range(len(explanation))]
    if explanation.references[0].match is not None and explanation.matches.prototype is not None:
        prototypes = {weighting: each.against("prototype") for weighting, each in variants.items()}
        references.insert(0, _reference_data(prototypes, {}, 0, pictures))
    return {
        "name": Path(query.name).name,
        "label": label,
        "note": " · ".join(_notes(explanation)) or None,
        "image": own,
        "view": _fractions(explanation.query_view, image),
        "shape": list(explanation.query_maps.shape[-2:]),
        "references": references,
    }


def _notes(explanation: Explanation) -> list[str]:
    """What is to be known about a query's maps, as short phrases."""
    notes = []
    if explanation.versus is not None:
        notes.append(f"shown is what speaks for each reference rather than for {explanation.versus.name}")
    if explanation.matches.query.region is not None:
        notes.append("only the region marked on the query was searched for")
    if explanation.sensitivity is not None:
        notes.append(f"{explanation.weighting}: {_sensitivity(explanation.sensitivity)}")
    return notes


def _sensitivity(value: float) -> str:
    """What the rank correlation with the map against an unrelated image means."""
    means = (
        "hardly depends on the match"
        if value >= 0.95
        else "depends a little on the match"
        if value >= 0.75
        else "depends in part on the match"
        if value >= 0.4
        else "depends on the match"
    )
    return f"the map {means} (rank correlation {value:.2f} with the one against an unrelated image)"


def _has_unseen(explanation: Explanation) -> bool:
    """Whether the encoder saw less than the whole of one of the pictures."""
    images = [explanation.matches.query.image, *map(explanation.reference_image, range(len(explanation)))]
    views = ((explanation.view_of(image), image.size) for image in images if image is not None)
    return any(
        view.left > 0.5 or view.top > 0.5 or view.right < width - 0.5 or view.bottom < height - 0.5
        for view, (width, height) in views
    )


def _reference_data(
    variants: dict[Weighting, Explanation],
    answers: dict[Weighting, Tensor | None],
    index: int,
    pictures: dict[str, str],
) -> dict[str, Any]:
    """One reference under every weighting: the maps on the query, and on the match where `answers` has them."""
    explanation = next(iter(variants.values()))
    reference = explanation.references[index]
    image = explanation.reference_image(index)
    member = explanation.nearest_member(index)
    key = None
    if reference.match is not None and image is not None:
        key = f"gallery {reference.match.id}"
        pictures.setdefault(key, _thumbnail(image))
    elif member is not None and (shown := explanation.member_image(index)) is not None:
        key = f"gallery {member.id}"
        pictures.setdefault(key, _thumbnail(shown))
    similarity = explanation.matches.retriever.similarity(reference.distance)
    maps = {name: each[index] for name, each in answers.items() if each is not None}
    return {
        "title": f"{reference.match.rank} · {reference.label or '–'}"
        if reference.match
        else f"prototype · {reference.label}",
        "label": reference.label,
        "name": reference.name if member is None else f"the member nearest to it: {member.path}",
        "similarity": f"{similarity:.3f}",
        "image": key,
        "view": None if image is None else _fractions(explanation.view_of(image), image),
        "query_maps": {name: _numbers(each.query_maps[index]) for name, each in variants.items()},
        "maps": {name: _numbers(each) for name, each in maps.items()} or None,
        "shape": list(next(iter(maps.values())).shape) if maps else None,
    }


def _maps_on_matches(explanation: Explanation) -> Tensor | None:
    """The maps on the gallery images; None for prototypes, and for pictures that are gone."""
    try:
        return explanation.reference_maps if explanation.matches.has_feature_maps else None
    except ImageError:  # a picture that was damaged since it was encoded
        return None


def _numbers(raw: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in raw.flatten().tolist()]


def _fractions(view: Box, image: Image) -> list[float]:
    scaled = view.scaled(1 / image.width, 1 / image.height)
    return [round(edge, 5) for edge in scaled]


def _thumbnail(image: Image) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return to_data_uri(small, "jpeg")
