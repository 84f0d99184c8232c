"""The routes that show the gallery, and those that add and remove images, which only whoever has the token may."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Header, Path, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from PIL import Image
from pydantic import StringConstraints, TypeAdapter, ValidationError

from ...errors import ImageError
from ...files import Storage
from ...images import read_image
from ...retrieval import Retriever
from .. import schemas
from ..answers import atlas_answer, gallery_answer, image_answer
from ..refusals import ApiError, has_bearer, refusals
from ..uploads import upload_suffix
from .search import IMAGE_FORM, Serving, json_answer, require_image, unless_gone

router = APIRouter(prefix="/api/v1", responses=refusals())
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=schemas.MAX_ID)]
Prefix = Annotated[str, Query(max_length=300)]
Id = Annotated[int, Path(ge=0, le=schemas.MAX_ID)]
# No control characters, line ends, or what makes later text run backwards.
_UNPRINTABLE = "\\x00-\\x1f\\x7f-\\x9f\u2028-\u202e\u2066-\u2069"
_Printable = StringConstraints(min_length=1, max_length=200, pattern=f"^[^{_UNPRINTABLE}]+$")
Label = Annotated[str, _Printable]
_COLUMNS = TypeAdapter(dict[Annotated[str, _Printable], Annotated[str, _Printable]])
_MOST_COLUMNS = 32


@router.get("/gallery", response_model=schemas.GalleryAnswer, summary="What is in the gallery")
async def gallery(service: Serving) -> Response:
    """Show numbers, settings, and what can be asked for."""
    return json_answer(await service.read(lambda retriever: gallery_answer(retriever, service.settings)))


@router.get("/labels", response_model=schemas.LabelsAnswer, summary="The classes")
async def labels(service: Serving, prefix: Prefix = "", limit: Limit = 100) -> Response:
    """List classes in alphabetical order, those that start with `prefix`, whatever its case."""
    counts = await service.read(lambda retriever: _counts(retriever, prefix))
    return json_answer(schemas.LabelsAnswer(labels=counts[:limit], total=len(counts)))


@router.get("/prototypes", response_model=schemas.PrototypesAnswer, summary="The class prototypes")
async def prototypes(service: Serving, prefix: Prefix = "", limit: Limit = 1000) -> Response:
    """List the names for `against: "label:…"`."""
    counts = await service.read(lambda retriever: _counts(retriever, prefix))
    return json_answer(schemas.PrototypesAnswer(prototypes=counts[:limit], total=len(counts)))


@router.get("/images", response_model=schemas.ImagesAnswer, summary="The images")
async def images(
    service: Serving, offset: Offset = 0, limit: Limit = 100, where: Annotated[schemas.Text | None, Query()] = None
) -> Response:
    """List images in the order of their ids, those that a filter keeps."""

    def answer(retriever: Retriever) -> schemas.ImagesAnswer:
        gallery = retriever.gallery
        ids = gallery.ids if where is None else gallery.ids_where(where)
        some = gallery.records(ids[offset : offset + limit])
        return schemas.ImagesAnswer(images=[image_answer(gallery, record) for record in some], total=len(ids))

    return json_answer(await service.read(answer))


@router.get("/images/{id}", response_model=schemas.ImageAnswer, responses=refusals(404), summary="One image")
async def image(service: Serving, id: Id) -> Response:
    """Show an image's path, label and columns."""

    def answer(retriever: Retriever) -> schemas.ImageAnswer:
        require_image(retriever, id)
        return image_answer(retriever.gallery, retriever.gallery.records([id])[0])

    return json_answer(await service.read(answer))


@router.get(
    "/images/{id}/picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "Not changed"}, **refusals(404)},
    summary="An image's thumbnail",
)
async def picture(
    service: Serving,
    id: Id,
    side: Annotated[int, Query(ge=16, le=2048)] = 320,
    whole: bool = False,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A JPEG made by the server, upright and without metadata, `side` its longer side at most.

    Of a box it is the crop, with `whole` the photograph.
    """

    def answer(retriever: Retriever) -> Response:
        require_image(retriever, id)
        file = retriever.gallery.file(id)
        item = file if whole else retriever.gallery.item(id)
        try:
            status = file.stat()
            state = f"{item}\0{status.st_mtime_ns}\0{status.st_size}\0{side}"
            etag = f'"{hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]}"'
            headers = {"Cache-Control": "private, no-cache", "ETag": etag}
            if if_none_match == etag:
                return Response(status_code=304, headers=headers)
            image = read_image(item)
        except (OSError, ImageError) as error:
            raise ApiError(404, "the file of this image is gone", reason="gone") from error
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return Response(stream.getvalue(), headers=headers, media_type="image/jpeg")

    return await service.read(answer, step="thumbnail")


@router.get("/atlas", response_model=schemas.AtlasAnswer, summary="The gallery in two dimensions")
async def atlas(service: Serving, outliers: bool = False) -> Response:
    """Principal components of all images; `outliers` adds the distance of each to its fifth nearest other one."""

    def answer(retriever: Retriever) -> Response:
        manifest = retriever.gallery.manifest
        state = (manifest.gallery_id, manifest.generation, outliers)
        if service.atlas is None or service.atlas[0] != state:  # kept until the gallery changes
            service.atlas = state, atlas_answer(retriever.gallery, outliers=outliers).model_dump_json()
        return Response(service.atlas[1], media_type="application/json")

    return await service.read(answer)


def _counts(retriever: Retriever, prefix: str) -> list[schemas.LabelCount]:
    store = retriever.gallery.prototypes
    wanted = prefix.casefold()
    counted = zip(store.labels, store.counts.tolist(), strict=True)
    return [
        schemas.LabelCount(label=label, images=images)
        for label, images in counted
        if label.casefold().startswith(wanted)
    ]


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


writing = APIRouter(prefix="/api/v1", route_class=WritingRoute, dependencies=[Depends(HTTPBearer(auto_error=False))])


@writing.post(
    "/images",
    response_model=schemas.ImageAnswer,
    status_code=201,
    responses=refusals(401, 403, 409, 415),
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
    wanted = 'columns: expected a JSON object of short printable strings, such as {"camera": "3"}'
    try:
        said = _COLUMNS.validate_python(json.loads(columns))
    except (ValueError, RecursionError, ValidationError) as error:
        raise ApiError(422, wanted, reason="input") from error
    if len(said) > _MOST_COLUMNS or said.keys() & {"path", "label"}:
        raise ApiError(422, f"columns: at most {_MOST_COLUMNS}, and none of them called path or label", reason="input")
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
        return service.live.add(file, done.result, label=label, columns=said)

    async with service.changing:
        service.has_changed = True
        new = await service.in_thread(change)

    def answer(retriever: Retriever) -> schemas.ImageAnswer:
        gallery = retriever.gallery
        return image_answer(gallery, gallery.records([new])[0])

    response = json_answer(await service.read(answer), 201)
    response.headers["Location"] = f"/api/v1/images/{new}"
    return response


@writing.delete(
    "/images/{id}",
    status_code=204,
    response_class=Response,
    responses=refusals(401, 403, 404),
    summary="Remove an image",
)
async def remove(service: Serving, id: Annotated[int, Path(ge=0, le=schemas.MAX_ID)]) -> Response:
    """It leaves the gallery, and no answer shows it any more; its file stays where it is."""
    async with service.changing:
        if not await service.in_thread(lambda: service.live.remove(id)):
            raise ApiError(404, f"there is no image {id}; it may have been removed", reason="id")
        service.has_changed = True
    return Response(status_code=204)
