"""The routes that search and explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from pydantic import BaseModel

from ...errors import InputError
from ...images import Box
from ...retrieval import Matches, Retriever
from ...retrieval.queries import text_queries, with_text
from ...retrieval.ranking import BareVector
from ...retrieval.ranking import Query as ImageQuery
from .. import schemas
from ..answers import explanation_answer, search_answer, shown_path, upright_size
from ..refusals import ApiError, refusals
from ..service import EncodedUpload, Service
from ..uploads import UPLOAD_TYPES, upload_suffix

T = TypeVar("T")

router = APIRouter(prefix="/api/v1")


async def service_of(request: Request) -> Service:
    """The service of the application; async, because FastAPI would send anything else to a thread."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
IMAGE_FORM: dict[str, Any] = {  # lets generated clients send what is accepted
    "requestBody": {
        "content": {"multipart/form-data": {"encoding": {"image": {"contentType": ", ".join(UPLOAD_TYPES)}}}}
    }
}


def json_answer(answer: BaseModel, status: int = 200) -> Response:
    """An answer that was checked when it was made, and need not be checked again."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


@router.post(
    "/search",
    response_model=schemas.SearchAnswer,
    responses=refusals(409, 415),
    openapi_extra=IMAGE_FORM,
    summary="The images nearest to an image that is sent",
)
async def search(
    request: Request,
    service: Serving,
    asked: Annotated[schemas.SearchOptions, Query()],
    image: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """Rank the images, nearest first; for a while, the token of the answer lets `/explain` say why.

    `text` alone, with an empty form, ranks by the words; with an image, by the mean of the two unit vectors.
    """
    start = time.perf_counter()
    if 0 < len(asked.edges) < 4:
        raise ApiError(422, "a region needs all of left, top, right and bottom", reason="input")
    upload: EncodedUpload | None = None
    if image is not None and asked.url is not None:
        raise ApiError(422, "send an image or its `url`, not both", reason="input")
    if asked.url is not None:
        data = await unless_gone(request, service.fetch(asked.url))
    elif image is not None:
        data = await image.read()
    if image is not None or asked.url is not None:
        upload_suffix(data)
        upload = await unless_gone(request, service.encode(data))

    def answer(retriever: Retriever) -> Response:
        if upload is None:
            return _Ranking(retriever, None, asked).answer(start)
        query = ImageQuery(asked.url or "the image", None, upload.done.result, known_size=upload.size)
        ranking, made = _Ranking(retriever, query, asked), upload.done.result
        token = service.queries.put(made, upload.size, enlarged=upload.enlarged)
        return ranking.answer(start, upload=upload, token=token)

    return await service.read(answer, step="search")


@router.post(
    "/fetch",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in UPLOAD_TYPES}}, **refusals(415)},
    summary="The image behind a URL",
)
async def fetch(request: Request, service: Serving, url: Annotated[schemas.Url, Query()]) -> Response:
    """Fetch a JPEG, PNG or WebP as it is, for a page that shows what it searches with."""
    data = await unless_gone(request, service.fetch(url))
    suffix = upload_suffix(data)
    return Response(data, media_type=next(kind for kind, usual in UPLOAD_TYPES.items() if usual == suffix))


@router.post(
    "/search/stored",
    response_model=schemas.SearchAnswer,
    responses=refusals(404, 409),
    summary="The images nearest to one of the gallery",
)
async def search_stored(service: Serving, asked: schemas.StoredRequest) -> Response:
    """Rank without a forward pass, unless a region of a gallery without stored maps is asked for."""
    start = time.perf_counter()
    ranking = service.read(lambda known: _Ranking(known, _stored(known, asked.id), asked).answer(start), step="search")
    return await ranking


@router.post(
    "/search/vector",
    response_model=schemas.SearchAnswer,
    responses=refusals(),
    summary="The images nearest to an embedding",
)
async def search_vector(service: Serving, asked: schemas.VectorRequest) -> Response:
    """Rank without an image, so that nothing can be explained."""
    start = time.perf_counter()
    query = ImageQuery("a vector", None, BareVector(torch.tensor([asked.vector], dtype=torch.float32)))
    return await service.read(lambda retriever: _Ranking(retriever, query, asked).answer(start), step="search")


@router.post(
    "/explain",
    response_model=schemas.ExplanationAnswer,
    responses=refusals(404, 409, 410),
    summary="Where in the images a similarity lies",
)
async def explain(service: Serving, asked: schemas.ExplainRequest) -> Response:
    """Maps of a query and its matches, raw: they are coloured and enlarged by whoever shows them."""
    query_of = _named(service, asked)

    def answer(retriever: Retriever) -> Response:
        query = query_of(retriever)
        options = asked.model_dump(include={"against", "versus", "weighting", "mean", "space", "tau", "detail"})
        explanation = _Ranking(retriever, query, asked).matches.explain(**options)
        return json_answer(explanation_answer(explanation, both_sides=asked.both_sides))

    return await service.read(answer, step="explain")


@router.post(
    "/lines",
    response_model=schemas.LinesAnswer,
    responses=refusals(404, 409, 410),
    summary="Which place of the query answers which place of a match",
)
async def lines(service: Serving, asked: schemas.LinesRequest) -> Response:
    """Lines between a query and one match: they show likeness, not identity."""
    query_of = _named(service, asked)

    def answer(retriever: Retriever) -> Response:
        found = _Ranking(retriever, query_of(retriever), asked).matches.lines(asked.rank, asked.lines)
        return json_answer(schemas.LinesAnswer(**found.to_dict()))

    return await service.read(answer, step="explain")


def _named(
    service: Service, asked: schemas.ExplainRequest | schemas.LinesRequest
) -> Callable[[Retriever], ImageQuery | None]:
    """The query that a request names by the token of a search or by the id of an image; None if by a text alone."""
    by_text = isinstance(asked, schemas.ExplainRequest) and asked.text is not None
    if (asked.token is None) == (asked.id is None) and (asked.token is not None or not by_text):
        names = "`token` or by `id`" + (", or by its `text`" if isinstance(asked, schemas.ExplainRequest) else "")
        raise ApiError(422, f"name the query either by {names}", reason="input")
    cached = None if asked.token is None else service.queries.get(asked.token)

    def query_of(retriever: Retriever) -> ImageQuery | None:
        if cached is not None:
            size, pixels = cached.size, cached.enlarged
            return ImageQuery("the image", None, cached.encoding, known_size=size, enlarged=pixels)
        return None if asked.id is None else _stored(retriever, asked.id)

    return query_of


class _Ranking:
    """The ranking that a request asks for; each kind of them has some of the options."""

    def __init__(self, retriever: Retriever, query: ImageQuery | None, asked: Any) -> None:
        self._start = time.perf_counter()
        box = getattr(asked, "box", None) or getattr(asked, "edges", None)
        self._box = Box(*box) if box else None
        self._stored: int | None = getattr(asked, "id", None)
        text = getattr(asked, "text", None)
        if query is not None:
            query = query if self._box is None else retriever.focused(query, self._box)
            query = with_text(retriever, query, text=text, text_weight=getattr(asked, "text_weight", 0.5))
        elif text is None or box:
            raise ApiError(422, "send an image, or a `text` without a region, or both", reason="input")
        else:
            (query,) = text_queries(retriever.inference, [text])
        if (other := getattr(asked, "other", None)) is not None:
            self.matches = _beside(retriever, query, other, asked)
            return
        (self.matches,) = retriever.rank(
            [query],
            k=asked.k,
            where=asked.where,
            reject=getattr(asked, "reject", False),
            max_distance=getattr(asked, "max_distance", None),
            verify=getattr(asked, "verify", 0),
            without=None if getattr(asked, "include_self", False) else self._stored,
        )

    def answer(self, start: float, *, upload: EncodedUpload | None = None, token: str | None = None) -> Response:
        """The matches, and where the time since `start` went."""
        now, query = time.perf_counter(), self.matches.query
        seconds = {"decode": 0.0, "queue": 0.0, "encode": 0.0, "search": now - self._start, "total": now - start}
        if upload is not None:
            seconds |= {"decode": upload.decode_s, "queue": upload.done.queue_s, "encode": upload.done.work_s}
        timings = schemas.Timings(**{name: round(1000 * each, 3) for name, each in seconds.items()})
        name = query.name if self._stored is None else shown_path(query.name)
        said = schemas.QueryAnswer(token=token, id=self._stored, name=name, size=query.known_size, box=self._box)
        return json_answer(search_answer(self.matches, said, timings))


def _beside(retriever: Retriever, query: ImageQuery, other: int, asked: Any) -> Matches:
    """The query of a request beside the other image of a pair."""
    if asked.where is not None:
        raise ApiError(422, "`other` names the one image to rank; leave `where` out", reason="input")
    require_image(retriever, other)
    if other == asked.id:
        raise InputError(f"image {other} is asked for beside itself; name another one")
    return retriever.against(query, other)


def _stored(retriever: Retriever, image: int) -> ImageQuery:
    """An image of the gallery as a query."""
    require_image(retriever, image)
    return retriever.stored(image, known_size=upright_size(retriever.gallery.item(image)))


def require_image(retriever: Retriever, image: int) -> None:
    """Make sure that the gallery holds an image."""
    ids = retriever.gallery.ids
    place = int(np.searchsorted(ids, np.uint64(image)))
    if place == len(ids) or int(ids[place]) != image:
        raise ApiError(404, f"there is no image {image}; it may have been removed", reason="id")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and give it up when the client hangs up meanwhile."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(503, "the client has hung up", reason="gone")
        return await working
    finally:
        for task in (working, watching):
            task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
