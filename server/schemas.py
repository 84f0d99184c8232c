"""Requests and answers of the API; the OpenAPI schema is made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from ..explain.weightings import Mean, Weighting
from ..index.rejection import Rejection

MAX_K = 100
MAX_ID = (1 << 63) - 1
MAX_FILTER = 2000

K = Annotated[int, Field(ge=1, le=MAX_K, description="How many matches.")]
ImageId = Annotated[int, Field(ge=0, le=MAX_ID)]
Text = Annotated[str, StringConstraints(max_length=MAX_FILTER)]
Box4 = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
Reference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=300),
    Field(description="`match`, `prototype`, `rank:3`, or `label:cat`."),
]


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(BaseModel):
    """A request; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ErrorAnswer(Answer):
    """One sentence."""

    detail: str


class WeightingAnswer(Answer):
    """A weighting of a map's channels."""

    name: str
    description: str
    is_signed: bool


class Limits(Answer):
    """Limits of a request."""

    image_bytes: int
    pixels: int
    k: int


class GalleryAnswer(Answer):
    """Contents of the gallery, and abilities of the server."""

    name: str
    images: int
    classes: int
    metric: Literal["cosine", "l2", "l1", "dot"]
    columns: Sequence[str]
    encoder: str
    fingerprint: str
    writable: bool
    stores_maps: bool
    weightings: Sequence[WeightingAnswer]
    rejection: Rejection | None
    limits: Limits


class LabelCount(Answer):
    """A class and its size."""

    label: str
    images: int


class LabelsAnswer(Answer):
    """Classes in alphabetical order; `total` counts those that fit, shown or not."""

    labels: Sequence[LabelCount]
    total: int


class PrototypesAnswer(Answer):
    """Class prototypes in alphabetical order."""

    prototypes: Sequence[LabelCount]
    total: int


class ImageAnswer(Answer):
    """One image of the gallery."""

    id: int
    path: str
    label: str | None
    columns: Mapping[str, str]
    has_picture: bool


class ImagesAnswer(Answer):
    """Images in the order of ids; `total` counts those that fit."""

    images: Sequence[ImageAnswer]
    total: int


class HealthAnswer(Answer):
    """The server is up."""

    status: Literal["ok"]
    images: int
    generation: int


class _RankingRequest(Request):
    k: K = 10
    where: Text | None = None


class SearchRequest(_RankingRequest):
    """Options of every search."""

    reject: bool = False
    max_distance: FiniteFloat | None = None


class StoredRequest(SearchRequest):
    """Search for the images nearest to one of the gallery's."""

    id: ImageId
    box: Box4 | None = None
    include_self: bool = False


class VectorRequest(SearchRequest):
    """Search for the images nearest to an embedding, raw as the encoder gives it."""

    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536)]


class SearchOptions(SearchRequest):
    """Search with an uploaded image; all four edges make a region."""

    left: FiniteFloat | None = None
    top: FiniteFloat | None = None
    right: FiniteFloat | None = None
    bottom: FiniteFloat | None = None

    @property
    def edges(self) -> list[float]:
        """Those that are given."""
        return [edge for edge in (self.left, self.top, self.right, self.bottom) if edge is not None]


class QueryAnswer(Answer):
    """The query; for a while, `token` names an uploaded one for `/explain`."""

    token: str | None
    id: int | None
    name: str
    size: tuple[int, int] | None
    box: Box4 | None


class MatchAnswer(ImageAnswer):
    """One image of the ranking."""

    rank: int
    distance: float
    similarity: float
    is_accepted: bool | None


class NearestPrototype(Answer):
    """A class, and how far its prototype is."""

    label: str
    distance: float
    similarity: float


class Timings(Answer):
    """Milliseconds."""

    decode: float
    queue: float
    encode: float
    search: float
    total: float


class SearchAnswer(Answer):
    """The ranking."""

    query: QueryAnswer
    metric: str
    matches: Sequence[MatchAnswer]
    prototypes: Sequence[NearestPrototype]
    max_distance: float | None
    is_known: bool | None
    timings_ms: Timings


class ExplainRequest(_RankingRequest):
    """Explain a query, named by the token of a search or by the id of an image; it is ranked anew."""

    token: Annotated[str, StringConstraints(max_length=100)] | None = None
    id: ImageId | None = None
    box: Box4 | None = None
    against: Reference = "match"
    versus: Reference | None = None
    weighting: Annotated[
        Weighting | None, Field(description="Left out: the gallery's own choice, else root_ratio.")
    ] = None
    mean: Annotated[Mean, Field(description="What of the gallery `root_ratio` takes off.")] = "auto"
    space: Literal["metric", "backbone"] = "metric"
    tau: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    detail: Annotated[
        Literal["plain", "fine", "finer"],
        Field(description="More places; for queries by `id`, a token keeps no image."),
    ] = "plain"
    both_sides: bool = True
    include_self: bool = False


class MapAnswer(Answer):
    """A raw map, row by row; all maps of one answer share one scale."""

    rows: int
    columns: int
    values: Sequence[float]


class ExplainedQuery(Answer):
    """Size of the query, and its rectangle (left, top, right, bottom) under the maps; null when its file is gone."""

    size: tuple[int, int] | None
    view: Box4 | None


class ReferenceAnswer(Answer):
    """A reference that the query is compared with, and the maps on both sides."""

    name: str
    label: str | None
    distance: float
    rank: int | None
    id: int | None
    query_map: MapAnswer
    dist_map: Annotated[MapAnswer | None, Field(description="Dist-CAM on the query, beside another weighting.")]
    match_map: MapAnswer | None
    match_size: tuple[int, int] | None
    match_view: Box4 | None


class ExplanationAnswer(Answer):
    """The maps of a query, one for each reference."""

    weighting: str
    is_signed: Annotated[bool, Field(description="Drawn with 0 in the middle: below speaks against the reference.")]
    is_rectified: Annotated[bool, Field(description="Drawn from 0 up.")]
    is_exact: bool
    sensitivity: float | None
    words: Annotated[Sequence[str], Field(description="What the maps show, and how far they depend on the match.")]
    versus: str | None
    query: ExplainedQuery
    references: Sequence[ReferenceAnswer]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route can give, besides those that every route can."""
    every = (400, 403, 413, 422, 429, 503)
    return {status: {"model": ErrorAnswer} for status in sorted({*every, *statuses})}
