"""The routes that search and explain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from pydantic import BaseModel, FiniteFloat

from ...encoders import Encoding
from ...images import Box
from ...retrieval import Matches, Retriever
from ...retrieval.matches import Query as PictureQuery
from ...retrieval.stored import BareVector
from .. import schemas
from ..answers import explanation_answer, search_answer, shown_path, upright_size
from ..api_error import ApiError
from ..batching import Done
from ..service import Service
from ..uploads import UPLOAD_TYPES, upload_suffix

__all__ = ["PICTURE_FORM", "Serving", "json_answer", "no_image", "require_image", "router", "service_of", "unless_gone"]

T = TypeVar("T")

router = APIRouter(prefix="/api/v1")


async def service_of(request: Request) -> Service:
    """The service of the application; async, because FastAPI would send anything else to a thread."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]
PICTURE_FORM: dict[str, Any] = {  # lets generated clients send what is accepted
    "requestBody": {
        "content": {"multipart/form-data": {"encoding": {"image": {"contentType": ", ".join(UPLOAD_TYPES)}}}}
    }
}


def json_answer(answer: BaseModel, status: int = 200) -> Response:
    """An answer that was checked when it was made, and need not be checked again."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


class SearchOptions(BaseModel):
    """What may be asked along with a picture."""

    model_config = {"extra": "forbid"}

    k: schemas.K = 10
    where: schemas.Text | None = None
    left: FiniteFloat | None = None
    top: FiniteFloat | None = None
    right: FiniteFloat | None = None
    bottom: FiniteFloat | None = None
    reject: bool = False
    max_distance: FiniteFloat | None = None

    @property
    def box(self) -> Box | None:
        """The region searched for.

        Raises:
            ApiError: 422, some edges are given and others are not.
        """
        edges = (self.left, self.top, self.right, self.bottom)
        given = [edge for edge in edges if edge is not None]
        if given and len(given) < 4:
            raise ApiError(422, "a region needs all of left, top, right and bottom", reason="input")
        return Box(*given) if given else None


@router.post(
    "/search",
    response_model=schemas.SearchAnswer,
    responses=schemas.refusals(409, 415),
    openapi_extra=PICTURE_FORM,
    summary="The images nearest to a picture that is sent",
)
async def search(
    request: Request, service: Serving, options: Annotated[SearchOptions, Query()], image: Annotated[UploadFile, File()]
) -> Response:
    """Nearest first; the token of the answer lets `/explain` say why, for a while."""
    start = time.perf_counter()
    box, data = options.box, await image.read()
    upload_suffix(data)
    read = await unless_gone(request, service.encode(data))
    size, done = read.size, read.done

    def answer(retriever: Retriever) -> Response:
        before = time.perf_counter()
        query = PictureQuery("the picture", None, done.result, known_size=size)
        matches = _ranked(retriever, query, box, options)
        token = service.queries.put(done.result, size)
        now = time.perf_counter()
        said = schemas.QueryAnswer(token=token, id=None, name=query.name, size=size, box=box)
        timings = _timings(read.decode_s, done, search=now - before, total=now - start)
        return json_answer(search_answer(matches, said, timings))

    return await service.read(answer, step="search")


@router.post(
    "/search/stored",
    response_model=schemas.SearchAnswer,
    responses=schemas.refusals(404, 409),
    summary="The images nearest to one of the gallery",
)
async def search_stored(service: Serving, asked: schemas.StoredRequest) -> Response:
    """Without a forward pass, unless a region of a gallery without stored maps is asked for."""
    start = time.perf_counter()

    def answer(retriever: Retriever) -> Response:
        query = _stored(retriever, asked.id)
        box = None if asked.box is None else Box(*asked.box)
        matches = _ranked(retriever, query, box, asked, without=None if asked.include_self else asked.id)
        now = time.perf_counter()
        said = schemas.QueryAnswer(
            token=None, id=asked.id, name=shown_path(query.name), size=query.known_size, box=asked.box
        )
        return json_answer(search_answer(matches, said, _timings(0.0, None, search=now - start, total=now - start)))

    return await service.read(answer, step="search")


@router.post(
    "/search/vector",
    response_model=schemas.SearchAnswer,
    responses=schemas.refusals(),
    summary="The images nearest to an embedding",
)
async def search_vector(service: Serving, asked: schemas.VectorRequest) -> Response:
    """There is no picture, so this cannot be explained."""
    start = time.perf_counter()

    def answer(retriever: Retriever) -> Response:
        query = PictureQuery("a vector", None, BareVector(torch.tensor([asked.vector], dtype=torch.float32)))
        matches = _ranked(retriever, query, None, asked)
        now = time.perf_counter()
        said = schemas.QueryAnswer(token=None, id=None, name=query.name, size=None, box=None)
        return json_answer(search_answer(matches, said, _timings(0.0, None, search=now - start, total=now - start)))

    return await service.read(answer, step="search")


@router.post(
    "/explain",
    response_model=schemas.ExplanationAnswer,
    responses=schemas.refusals(404, 409, 410),
    summary="Where in the pictures a similarity lies",
)
async def explain(service: Serving, asked: schemas.ExplainRequest) -> Response:
    """Dist-CAM maps of a query and its matches, raw: they are coloured and enlarged by whoever shows them."""
    if (asked.token is None) == (asked.id is None):
        raise ApiError(422, "name the query either by `token` or by `id`", reason="input")
    kept = None if asked.token is None else service.queries.get(asked.token)

    def answer(retriever: Retriever) -> Response:
        if kept is not None:
            query = PictureQuery("the picture", None, kept.encoding, known_size=kept.size)
        else:
            assert asked.id is not None
            query = _stored(retriever, asked.id)
        box = None if asked.box is None else Box(*asked.box)
        matches = _ranked(retriever, query, box, asked, without=None if asked.include_self else asked.id)
        explanation = matches.explain(
            against=asked.against,
            versus=asked.versus,
            weighting=asked.weighting,
            space=asked.space,
            tau=asked.tau,
        )
        return json_answer(explanation_answer(explanation, both_sides=asked.both_sides))

    return await service.read(answer, step="explain")


def _stored(retriever: Retriever, image: int) -> PictureQuery:
    """An image of the gallery as a query.

    Raises:
        ApiError: 404, there is no such image.
    """
    require_image(retriever, image)
    return retriever.stored(image, known_size=upright_size(retriever.gallery.file(image)))


def require_image(retriever: Retriever, image: int) -> None:
    """Make sure that the gallery holds an image.

    Raises:
        ApiError: 404, it does not.
    """
    ids = retriever.gallery.ids
    place = int(np.searchsorted(ids, np.uint64(image)))
    if place == len(ids) or int(ids[place]) != image:
        raise no_image(image)


def no_image(image: int) -> ApiError:
    """The answer to an id that is not there."""
    return ApiError(404, f"there is no image {image}; it may have been removed", reason="id")


def _ranked(
    retriever: Retriever, query: PictureQuery, box: Box | None, asked: Any, *, without: int | None = None
) -> Matches:
    """The ranking that a request asks for."""
    if box is not None:
        query = retriever.focused(query, box)
    reject, max_distance = getattr(asked, "reject", False), getattr(asked, "max_distance", None)
    (matches,) = retriever.rank(
        [query], k=asked.k, where=asked.where, reject=reject, max_distance=max_distance, without=without
    )
    return matches


def _timings(decode: float, done: Done[Encoding] | None, *, search: float, total: float) -> schemas.Timings:
    queue, encode = (0.0, 0.0) if done is None else (done.queue_s, done.work_s)
    parts = {"decode": decode, "queue": queue, "encode": encode, "search": search, "total": total}
    return schemas.Timings(**{name: round(1000 * seconds, 3) for name, seconds in parts.items()})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What some work returns; it is given up when the client hangs up meanwhile."""
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
