"""Answers of the API, made of results of the library."""

from __future__ import annotations

from itertools import islice
from pathlib import Path, PurePosixPath

from torch import Tensor

from ..deadlines import check_deadline
from ..errors import ImageError
from ..explain.weightings import RECOMMENDED, RECTIFIED, SIGNED, WEIGHTINGS, WORDS
from ..files import is_file
from ..images import Box, image_size
from ..images.items import split_item, whole_pixels
from ..index import Gallery, Record
from ..retrieval import Explanation, Match, Matches, Reference, Retriever
from ..retrieval.atlas import atlas_data
from . import schemas
from .settings import ServerSettings

_SHOWN_PROTOTYPES = 10
_OF_MATCHES = schemas.MatchAnswer.model_fields.keys() - {"path", "has_picture", "photograph"}
_OF_EXPLANATIONS = ("weighting", "is_signed", "is_exact", "sensitivity", "words")


def gallery_answer(retriever: Retriever, settings: ServerSettings) -> schemas.GalleryAnswer:
    """Contents and abilities of the gallery; the weighting that explains if none is named comes first."""
    gallery = retriever.gallery
    usual = RECOMMENDED if gallery.map_choice is None else gallery.map_choice.weighting
    return schemas.GalleryAnswer(
        name=gallery.folder.name,
        images=len(gallery),
        classes=len(gallery.prototypes),
        metric=gallery.metric,
        columns=gallery.column_names,
        encoder=gallery.manifest.encoder.short_name,
        fingerprint=gallery.manifest.encoder.fingerprint,
        writable=settings.is_writable,
        stores_maps=gallery.spec.map_shape is not None,
        has_text=getattr(retriever.encoder, "text", None) is not None,
        fetches_urls=settings.urls,
        weightings=[
            schemas.WeightingAnswer(name=name, description=WORDS[name], is_signed=name in SIGNED)
            for name in sorted(WEIGHTINGS, key=lambda name: name != usual)
        ],
        rejection=gallery.manifest.rejection,
        limits=schemas.Limits(image_bytes=settings.max_upload_bytes, pixels=settings.max_pixels, k=schemas.MAX_K),
    )


def shown_path(path: str) -> str:
    """A stored path for clients: of one outside the gallery's root only the end, not where this machine keeps it.

    >>> shown_path("cat/1.jpg"), shown_path("/home/ada/photographs/cat/1.jpg")
    ('cat/1.jpg', '…/cat/1.jpg')
    """
    parts = PurePosixPath(path)
    return f"…/{'/'.join(parts.parts[-2:])}" if parts.is_absolute() else path


def image_answer(gallery: Gallery, record: Record) -> schemas.ImageAnswer:
    """One image."""
    return schemas.ImageAnswer(
        id=record.id,
        path=shown_path(record.path),
        label=record.label,
        columns=record.columns,
        has_picture=is_file(gallery.file(record)),
    )


def atlas_answer(gallery: Gallery, *, outliers: bool) -> schemas.AtlasAnswer:
    """The gallery in two dimensions."""
    atlas = gallery.atlas(outliers=outliers, progress=lambda *_: check_deadline())
    data = atlas_data(gallery, atlas)
    return schemas.AtlasAnswer(**{**data, "paths": [shown_path(path) for path in data["paths"]]})


def search_answer(matches: Matches, query: schemas.QueryAnswer, timings: schemas.Timings) -> schemas.SearchAnswer:
    """A ranking."""
    retriever = matches.retriever
    distances = retriever.prototype_distances(matches.query.encoding)
    return schemas.SearchAnswer(
        query=query,
        metric=matches.metric,
        matches=[
            schemas.MatchAnswer(
                **{name: getattr(match, name) for name in _OF_MATCHES},
                path=shown_path(match.path),
                has_picture=is_file(match.file),
                photograph=_photograph(match),
            )
            for match in matches
        ],
        prototypes=[
            schemas.NearestPrototype(label=label, distance=distance, similarity=retriever.similarity(distance))
            for label, distance in islice(distances.items(), _SHOWN_PROTOTYPES)
        ],
        max_distance=matches.max_distance,
        is_known=matches.is_known,
        timings_ms=timings,
    )


def _photograph(match: Match) -> schemas.WholeImageAnswer | None:
    cut = split_item(match.item)[1]
    size = None if cut is None else upright_size(match.file)
    if cut is None or match.box is None or size is None:
        return None
    return schemas.WholeImageAnswer(size=size, box=match.box, cut=whole_pixels(cut.clipped(*size)))


def explanation_answer(explanation: Explanation, *, both_sides: bool) -> schemas.ExplanationAnswer:
    """Maps of a query and, where asked for and to be had, of its matches."""
    matches = explanation.matches
    has_other_side = both_sides and explanation.references[0].match is not None and matches.has_feature_maps
    others, beside = explanation.reference_maps if has_other_side else None, explanation.dist_maps
    size = matches.query.known_size
    return schemas.ExplanationAnswer(
        **{name: getattr(explanation, name) for name in _OF_EXPLANATIONS},
        is_rectified=explanation.weighting in RECTIFIED and not explanation.is_signed,
        versus=None if explanation.versus is None else _name(explanation.versus),
        query=schemas.ExplainedQuery(size=size, view=_view(explanation, size)),
        references=[_reference(explanation, index, others, beside) for index in range(len(explanation))],
    )


def _reference(
    explanation: Explanation, index: int, others: Tensor | None, beside: Tensor | None
) -> schemas.ReferenceAnswer:
    reference = explanation.references[index]
    match = reference.match
    size = None if match is None else upright_size(match.item)
    return schemas.ReferenceAnswer(
        name=_name(reference),
        label=reference.label,
        distance=reference.distance,
        rank=None if match is None else match.rank,
        id=None if match is None else match.id,
        unexplained=None if explanation.unexplained is None else explanation.unexplained[index],
        query_map=_map(explanation.query_maps[index]),
        dist_map=None if beside is None else _map(beside[index]),
        match_map=None if others is None else _map(others[index]),
        match_size=size,
        match_view=_view(explanation, size),
    )


def _name(reference: Reference) -> str:
    return reference.name if reference.match is None else shown_path(reference.name)


def _map(values: Tensor) -> schemas.MapAnswer:
    rows, columns = values.shape
    return schemas.MapAnswer(rows=rows, columns=columns, values=values.flatten().tolist())


def _view(explanation: Explanation, size: tuple[int, int] | None) -> Box | None:
    transform = explanation.matches.retriever.encoder.transform
    return None if size is None else Box(*map(float, transform.view(*size)))


def upright_size(file: Path) -> tuple[int, int] | None:
    """Width and height of a gallery image, from its header; None when it is gone."""
    try:
        return image_size(file)
    except ImageError:
        return None
