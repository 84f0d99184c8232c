"""The routes that show what is in the gallery."""

from __future__ import annotations

import hashlib
import io
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from PIL import Image

from ...errors import ImageError
from ...images import read_image
from ...retrieval import Retriever
from .. import schemas
from ..answers import gallery_answer, image_answer
from ..api_error import ApiError
from .search import Serving, json_answer, require_image

router = APIRouter(prefix="/api/v1")
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=schemas.MAX_ID)]
Prefix = Annotated[str, Query(max_length=300)]
Id = Annotated[int, Path(ge=0, le=schemas.MAX_ID)]


@router.get(
    "/gallery", response_model=schemas.GalleryAnswer, responses=schemas.refusals(), summary="What is in the gallery"
)
async def gallery(service: Serving) -> Response:
    """Show numbers, settings, and what can be asked for."""
    return json_answer(await service.read(lambda retriever: gallery_answer(retriever, service.settings)))


@router.get("/labels", response_model=schemas.LabelsAnswer, responses=schemas.refusals(), summary="The classes")
async def labels(service: Serving, prefix: Prefix = "", limit: Limit = 100) -> Response:
    """List classes in alphabetical order, those that start with `prefix`, whatever its case."""
    counts = await service.read(lambda retriever: _counts(retriever, prefix))
    return json_answer(schemas.LabelsAnswer(labels=counts[:limit], total=len(counts)))


@router.get(
    "/prototypes",
    response_model=schemas.PrototypesAnswer,
    responses=schemas.refusals(),
    summary="The class prototypes",
)
async def prototypes(service: Serving, prefix: Prefix = "", limit: Limit = 1000) -> Response:
    """List the names for `against: "label:…"`."""
    counts = await service.read(lambda retriever: _counts(retriever, prefix))
    return json_answer(schemas.PrototypesAnswer(prototypes=counts[:limit], total=len(counts)))


@router.get("/images", response_model=schemas.ImagesAnswer, responses=schemas.refusals(), summary="The images")
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


@router.get("/images/{id}", response_model=schemas.ImageAnswer, responses=schemas.refusals(404), summary="One image")
async def image(service: Serving, id: Id) -> Response:
    """Show an image's path, label and columns."""

    def answer(retriever: Retriever) -> schemas.ImageAnswer:
        require_image(retriever, id)
        return image_answer(retriever.gallery, retriever.gallery.records([id])[0])

    return json_answer(await service.read(answer))


@router.get(
    "/images/{id}/picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "Not changed"}, **schemas.refusals(404)},
    summary="An image's thumbnail",
)
async def picture(
    service: Serving,
    id: Id,
    side: Annotated[int, Query(ge=16, le=2048)] = 320,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A JPEG made by the server, upright and without metadata; `side` is its longer side at most."""

    def answer(retriever: Retriever) -> Response:
        require_image(retriever, id)
        file = retriever.gallery.file(id)
        try:
            status = file.stat()
            state = f"{file}\0{status.st_mtime_ns}\0{status.st_size}\0{side}"
            etag = f'"{hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]}"'
            headers = {"Cache-Control": "private, no-cache", "ETag": etag}
            if if_none_match == etag:
                return Response(status_code=304, headers=headers)
            image = read_image(file)
        except (OSError, ImageError) as error:
            raise ApiError(404, "the file of this image is gone", reason="gone") from error
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return Response(stream.getvalue(), headers=headers, media_type="image/jpeg")

    return await service.read(answer, step="thumbnail")


def _counts(retriever: Retriever, prefix: str) -> list[schemas.LabelCount]:
    store = retriever.gallery.prototypes
    wanted = prefix.casefold()
    counted = zip(store.labels, store.counts.tolist(), strict=True)
    return [
        schemas.LabelCount(label=label, images=images)
        for label, images in counted
        if label.casefold().startswith(wanted)
    ]
