"""From whatever a decoder made of a file to upright 8-bit RGB: modes, depths, transparency, orientation."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_rgb(
    image: Image.Image, *, background: tuple[int, int, int] = (255, 255, 255), name: str = "<image>"
) -> Image.Image:
    """Any Pillow image as mode "RGB" under the rules of `read_image`; an opaque RGB image comes back as it is.

    Raises:
        ImageError: the numbers of an integer or float image have no known range; `name` stands for the file.
    """
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)  # `Image.convert` would saturate 16 bits and blacken [0, 1]
        low, high = values.min(), values.max()
        if image.mode == "F":
            if not (low >= 0 and high <= 1):  # written so that NaN is refused too
                raise ImageError(name, f"float values outside [0, 1] ({low:g} to {high:g}); scale them or save 8 bits")
            return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
        if low < 0 or high > 65535:
            raise ImageError(name, f"integer values outside 0…65535 ({low} to {high}); save 8 or 16 bits")
        tags = getattr(image, "tag_v2", {})
        peak = (1 << tags.get(258, (16,))[0]) - 1 if image.mode != "I" else 65535  # tag 258: BitsPerSample
        levels = (values.astype(np.uint32) * 255 + peak // 2) // peak
        if tags.get(262) == 0:  # PhotometricInterpretation "white is zero", which Pillow leaves alone for 16 bits
            levels = 255 - levels
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(layers, mask=layers)
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def bare(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, without the metadata that would let a second reader turn it again."""
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if upright is image and type(image) is not Image.Image:
        upright = image.copy()  # lets go of the decoder and of the file's bytes
    upright.info = {}
    return upright


def stored_orientation(info: dict[str | tuple[int, int], Any]) -> int:
    """The orientation (tag 274) in the first directory of an EXIF block, 1 where there is none or it is damaged."""
    block = info.get("exif") or b""
    if profile := info.get("Raw profile type exif"):  # ImageMagick's PNGs: a name, a length, then hexadecimal lines
        try:
            block = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return 1
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == 274 and kind in (3, 4):  # SHORT by the standard, LONG by some writers
                return int(struct.unpack_from(order + "HI"[kind - 3], block, entry + 8)[0])
    except struct.error:
        pass
    return 1
