"""The routes that add and remove images; only whoever has the token may."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import StringConstraints, TypeAdapter, ValidationError

from ...files import Storage
from ...retrieval import Retriever
from .. import schemas
from ..access import has_bearer
from ..answers import image_answer
from ..api_error import ApiError
from ..live_gallery import NewImage
from ..uploads import upload_suffix
from .search import IMAGE_FORM, Serving, json_answer, unless_gone

# No control characters, line ends, or what makes later text run backwards.
_UNPRINTABLE = "\\x00-\\x1f\\x7f-\\x9f\u2028-\u202e\u2066-\u2069"
_Printable = StringConstraints(min_length=1, max_length=200, pattern=f"^[^{_UNPRINTABLE}]+$")
Label = Annotated[str, _Printable]
_COLUMNS = TypeAdapter(dict[Annotated[str, _Printable], Annotated[str, _Printable]])
_MOST_COLUMNS = 32


class WritingRoute(APIRoute):
    """Looks at the token before anything of the request's body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the check."""
        handle = super().get_route_handler()

        async def authorised(request: Request) -> Response:
            token = request.app.state.service.settings.token
            if token is None:
                raise ApiError(403, "this server only reads; start it with --writable", reason="read-only")
            if not has_bearer(request.headers, token):
                wanted = "this needs the header `Authorization: Bearer TOKEN` with the server's token"
                raise ApiError(401, wanted, reason="token")
            return await handle(request)

        return authorised


router = APIRouter(prefix="/api/v1", route_class=WritingRoute, dependencies=[Depends(HTTPBearer(auto_error=False))])


@router.post(
    "/images",
    response_model=schemas.ImageAnswer,
    status_code=201,
    responses=schemas.refusals(401, 403, 409, 415),
    openapi_extra=IMAGE_FORM,
    summary="Add an image",
)
async def add(
    request: Request,
    service: Serving,
    image: Annotated[UploadFile, File()],
    columns: Annotated[str, Form(max_length=20_000, description='A JSON object of strings: `{"camera": "3"}`.')] = "{}",
    label: Annotated[Label | None, Query()] = None,
) -> Response:
    """The image is kept as it was sent, under a name made of its contents; 409 if the gallery has it already."""
    said = _columns(columns)
    data = await image.read()
    suffix = upload_suffix(data)
    done = (await unless_gone(request, service.encode(data))).done
    digest = hashlib.sha256(data).hexdigest()
    folder = service.settings.uploads_folder / digest[:2]
    file = folder / f"{digest}{suffix}"

    def change() -> int:
        storage = Storage()
        if not file.is_file():
            storage.make_folder(folder)
            storage.write(file, data)
        return service.live.add(NewImage(file, label, said), done.result)

    async with service.changing:
        service.has_changed = True
        new = await service.in_thread(change)

    def answer(retriever: Retriever) -> schemas.ImageAnswer:
        gallery = retriever.gallery
        return image_answer(gallery, gallery.records([new])[0])

    response = json_answer(await service.read(answer), 201)
    response.headers["Location"] = f"/api/v1/images/{new}"
    return response


@router.delete(
    "/images/{id}",
    status_code=204,
    response_class=Response,
    responses=schemas.refusals(401, 403, 404),
    summary="Remove an image",
)
async def remove(service: Serving, id: Annotated[int, Path(ge=0, le=schemas.MAX_ID)]) -> Response:
    """It leaves the gallery, and no answer shows it any more; its file stays where it is."""
    async with service.changing:
        if not await service.in_thread(lambda: service.live.remove(id)):
            raise ApiError(404, f"there is no image {id}; it may have been removed", reason="id")
        service.has_changed = True
    return Response(status_code=204)


def _columns(text: str) -> dict[str, str]:
    """The user's columns of a new image."""
    try:
        columns = _COLUMNS.validate_python(json.loads(text))
    except (ValueError, RecursionError, ValidationError) as error:
        wanted = 'columns: expected a JSON object of short printable strings, such as {"camera": "3"}'
        raise ApiError(422, wanted, reason="input") from error
    if len(columns) > _MOST_COLUMNS or columns.keys() & {"path", "label"}:
        raise ApiError(422, f"columns: at most {_MOST_COLUMNS}, and none of them called path or label", reason="input")
    return columns
