"""Requests and answers of the API; the OpenAPI schema is made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from ..explain.weightings import Mean, Weighting
from ..index.rejection import Rejection

MAX_K = 100
MAX_ID = (1 << 63) - 1

K = Annotated[int, Field(ge=1, le=MAX_K, description="How many matches.")]
ImageId = Annotated[int, Field(ge=0, le=MAX_ID)]
Text = Annotated[str, StringConstraints(max_length=2000)]
Box4 = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
ReferenceName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=300),
    Field(description="`match`, `prototype`, `rank:3`, or `label:cat`."),
]


class AnswerModel(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(BaseModel):
    """A request; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ErrorAnswer(AnswerModel):
    """One sentence."""

    detail: str


class WeightingAnswer(AnswerModel):
    """A weighting of a map's channels."""

    name: str
    description: str
    is_signed: bool


class Limits(AnswerModel):
    """Limits of a request."""

    image_bytes: int
    pixels: int
    k: int


class GalleryAnswer(AnswerModel):
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
    has_text: bool
    fetches_urls: bool
    weightings: Sequence[WeightingAnswer]
    rejection: Rejection | None
    limits: Limits


class LabelCount(AnswerModel):
    """A class and its size."""

    label: str
    images: int


class LabelsAnswer(AnswerModel):
    """Classes in alphabetical order; `total` counts those that fit, shown or not."""

    labels: Sequence[LabelCount]
    total: int


class PrototypesAnswer(AnswerModel):
    """Class prototypes in alphabetical order."""

    prototypes: Sequence[LabelCount]
    total: int


class ImageAnswer(AnswerModel):
    """One image of the gallery."""

    id: int
    path: str
    label: str | None
    columns: Mapping[str, str]
    has_picture: bool


class ImagesAnswer(AnswerModel):
    """Images in the order of ids; `total` counts those that fit."""

    images: Sequence[ImageAnswer]
    total: int


class AtlasAnswer(AnswerModel):
    """The gallery in two dimensions; points (x, y) and outlier scores are float32, little-endian, in base64.

    A column has a `name`, its `values`, and as `codes` for each image the number of its own (−1: none), as int32.
    """

    name: str
    axes: str
    ids: Sequence[int]
    points: str
    paths: Sequence[str]
    columns: Sequence[Mapping[str, str | Sequence[str]]]
    outliers: str | None


class HealthAnswer(AnswerModel):
    """The server is up."""

    status: Literal["ok"]
    images: int
    generation: int


class _RankingRequest(Request):
    k: K = 10
    where: Text | None = None
    verify: Annotated[int, Field(ge=0, le=100, description="Sort so many of the first matches anew by lines.")] = 0


Url = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Words = Annotated[
    str | None, StringConstraints(min_length=1, max_length=1000), Field(description="A text, if `has_text`.")
]


class _Worded(Request):
    text: Words = None
    text_weight: Annotated[
        float, Field(gt=0, lt=1, description="Of the text, where it is joined with an image; ignored without one.")
    ] = 0.5


class SearchRequest(_RankingRequest):
    """Options of every search."""

    reject: bool = False
    max_distance: FiniteFloat | None = None


class StoredRequest(SearchRequest, _Worded):
    """Search for the images nearest to one of the gallery's; `text` is joined with it."""

    id: ImageId
    box: Box4 | None = None
    include_self: bool = False


class VectorRequest(SearchRequest):
    """Search for the images nearest to an embedding, raw as the encoder gives it."""

    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536)]


class SearchOptions(SearchRequest, _Worded):
    """Search with an uploaded image, one behind a URL, a text, or both joined; all four edges make a region."""

    url: Annotated[Url | None, Field(description="Of http or https, at a public address; if `fetches_urls`.")] = None
    left: FiniteFloat | None = None
    top: FiniteFloat | None = None
    right: FiniteFloat | None = None
    bottom: FiniteFloat | None = None

    @property
    def edges(self) -> list[float]:
        """Those that are given."""
        return [edge for edge in (self.left, self.top, self.right, self.bottom) if edge is not None]


class QueryAnswer(AnswerModel):
    """The query; for a while, `token` names an uploaded one for `/explain`."""

    token: str | None
    id: int | None
    name: str
    size: tuple[int, int] | None
    box: Box4 | None


class WholeImageAnswer(AnswerModel):
    """The photograph that a box was cut from, in pixels of the upright file; `cut` is the box with its margin."""

    size: tuple[int, int]
    box: Box4
    cut: Box4


class MatchAnswer(ImageAnswer):
    """One image of the ranking; `photograph` of a box whose file is there."""

    rank: int
    distance: float
    similarity: float
    is_accepted: bool | None
    inliers: int | None
    photograph: WholeImageAnswer | None


class NearestPrototype(AnswerModel):
    """A class, and how far its prototype is."""

    label: str
    distance: float
    similarity: float


class Timings(AnswerModel):
    """Milliseconds."""

    decode: float
    queue: float
    encode: float
    search: float
    total: float


class SearchAnswer(AnswerModel):
    """The ranking."""

    query: QueryAnswer
    metric: str
    matches: Sequence[MatchAnswer]
    prototypes: Sequence[NearestPrototype]
    max_distance: float | None
    is_known: bool | None
    timings_ms: Timings


class _Named(_RankingRequest):
    token: Annotated[str, StringConstraints(max_length=100)] | None = None
    id: ImageId | None = None
    box: Box4 | None = None
    include_self: bool = False
    other: ImageId | None = None  # of a pair: this image alone is ranked, in place of a filter


class ExplainRequest(_Named, _Worded):
    """Explain a query, named by the token of a search, by the id of an image or by its text; it is ranked anew."""

    against: ReferenceName = "match"
    versus: ReferenceName | None = None
    weighting: Annotated[
        Weighting | None, Field(description="Left out: the gallery's own choice, else root_ratio.")
    ] = None
    mean: Annotated[Mean, Field(description="What of the gallery `root_ratio` takes off.")] = "auto"
    space: Literal["metric", "backbone"] = "metric"
    tau: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    detail: Annotated[
        Literal["auto", "plain", "fine", "finer"],
        Field(description="More places: auto of elongated images, fine of queries by `id`, as a token keeps no image."),
    ] = "auto"
    both_sides: bool = True


class LinesRequest(_Named):
    """Ask which place of a query answers which of one match; the query is named as for an explanation."""

    rank: Annotated[int, Field(ge=1, le=MAX_K)] = 1
    lines: Annotated[int, Field(ge=1, le=100)] = 20


class LinesAnswer(AnswerModel):
    """Lines [x, y, x, y, strength] between query and match, in fractions of width and height, strongest first.

    `inliers` of `candidates` follow one similarity transform; `null` is how many do so on unrelated images of the
    gallery (median, 90 %, 99 %). `shares` divides the similarity among the positions of both maps, in fractions of the
    largest: rows and columns of the query's map (`shapes`), then of the match's, each spread over its view.
    """

    caption: str
    has_geometry: bool
    inliers: int
    candidates: int
    null: tuple[int, int, int]
    lines: Sequence[tuple[float, float, float, float, float]]
    sizes: Sequence[tuple[int, int]]
    views: Sequence[Box4]
    shapes: Sequence[tuple[int, int]]
    shares: Sequence[float]


class MapAnswer(AnswerModel):
    """A raw map, row by row; all maps of one answer share one scale."""

    rows: int
    columns: int
    values: Sequence[float]


class ExplainedQuery(AnswerModel):
    """Size of the query, and its rectangle (left, top, right, bottom) under the maps; null when its file is gone."""

    size: tuple[int, int] | None
    view: Box4 | None


class ReferenceAnswer(AnswerModel):
    """A reference that the query is compared with, and the maps on both sides."""

    name: str
    label: str | None
    distance: float
    rank: int | None
    id: int | None
    unexplained: Annotated[float | None, Field(description="Share of the cosine that no place explains.")]
    query_map: MapAnswer
    dist_map: Annotated[MapAnswer | None, Field(description="Dist-CAM on the query, beside another weighting.")]
    match_map: MapAnswer | None
    match_size: tuple[int, int] | None
    match_view: Box4 | None


class ExplanationAnswer(AnswerModel):
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
