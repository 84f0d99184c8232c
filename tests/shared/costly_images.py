"""Files that are costly to decode, for tests of the decoder and of the server."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def picture(width: int = 48, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * x * y], axis=-1).astype(np.uint8))


def with_scans(count: int, *, progressive: bool = True) -> bytes:
    """A JPEG whose last scan is there `count` times more."""
    jpeg = encoded("JPEG", progressive=True) if progressive else sequential_in_three_scans()
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * count + jpeg[end:]


def sequential_in_three_scans() -> bytes:
    """A baseline JPEG of one scan for each component, all of them black."""
    quantise = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    frame = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03" + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    table = b"\x00\x15%c" + b"\x01" + bytes(15) + b"\x00"
    tables = b"".join(b"\xff\xc4\x00\x14" + bytes([kind]) + b"\x01" + bytes(15) + b"\x00" for kind in (0, 0x10))
    assert len(table)
    scan = b"".join(b"\xff\xda\x00\x08\x01" + bytes([part, 0, 0, 63, 0]) + b"\x00" for part in (1, 2, 3))
    return b"\xff\xd8" + quantise + frame + tables + scan + b"\xff\xd9"
