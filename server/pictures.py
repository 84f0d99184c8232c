"""Pictures that come in from strangers, and pictures that go out: always decoded here, never passed on as they are."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from ..errors import ImageError
from ..images import image_size, read_image
from .refusals import Refusal

__all__ = ["UPLOAD_TYPES", "etag_of", "is_there", "thumbnail", "upload_suffix", "upright_size"]

UPLOAD_TYPES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


def upload_suffix(data: bytes) -> str:
    """`.jpg`, `.png` or `.webp` by content; names and headers are what the client likes them to be. Only these three
    decoders ever see what strangers send.

    Raises:
        Refusal: 415, it is none of these.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    what = "nothing" if not data else "something else"
    raise Refusal(415, f"expected a picture as JPEG, PNG or WebP, got {what}", reason="type")


def thumbnail(file: Path, *, side: int) -> bytes:
    """A gallery picture as JPEG without metadata, upright, its longer side at most `side` pixels.

    Raises:
        Refusal: 404, the file is gone or no picture any more.
    """
    try:
        picture = read_image(file)
    except ImageError as error:
        raise Refusal(404, "the picture of this image is gone", reason="gone") from error
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def is_there(file: Path) -> bool:
    """Whether a gallery picture is where it was; also for names that no disk takes, as imported addresses may be."""
    try:
        return file.is_file()
    except OSError:
        return False


def etag_of(file: Path, *, side: int) -> str | None:
    """What changes when a thumbnail would; None when the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    state = f"{file}\0{status.st_mtime_ns}\0{status.st_size}\0{side}"
    return f'"{hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32]}"'


def upright_size(file: Path) -> tuple[int, int] | None:
    """Width and height of a gallery picture, from its header; None when it is gone."""
    try:
        return image_size(file)
    except ImageError:
        return None
