"""Reading image files nobody vouches for: one door, one result (upright 8-bit RGB), one error."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

import numpy as np
from PIL import (
    AvifImagePlugin,  # noqa: F401  (importing a plugin registers its decoder)
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import ImageError, InputError

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "MIN_SIDE", "as_rgb", "image_size", "orientation_of", "read_image"]

MAX_PIXELS: Final = 64_000_000  # under Pillow's own limit; a 48-megapixel phone photograph passes
MIN_SIDE: Final = 8  # spacers and tracking pixels of web crawls are smaller, the thumbnails of CIFAR and MNIST are not

# What a folder walk looks at. HEIC is among them so that it is refused with a reason, not silently left out.
# fmt: off
IMAGE_SUFFIXES: Final = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
# fmt: on

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_OPTIONAL_FORMATS = ("HEIF",)  # taken when somebody registered a decoder with Pillow, as pillow-heif does

_FOREIGN = (
    (b"%!PS", "PostScript, which would have to be executed; convert it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, which would have to be executed; convert it to PNG"),
    (b"%PDF", "a PDF document; export its pages as PNG"),
    (b"<svg", "an SVG drawing; convert it to PNG"),
    (b"<?xml", "XML, perhaps an SVG drawing; convert it to PNG"),
    (b"<html", "a web page; the download probably failed"),
    (b"<!doctype html", "a web page; the download probably failed"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the image with `git lfs pull`"),
    (b"\xff\x0a", "JPEG XL; convert it to PNG"),
    (b"\0\0\0\x0cjxl ", "JPEG XL; convert it to PNG"),
)
_HEIC = "HEIC, which needs `pip install pillow-heif` and a call of `pillow_heif.register_heif_opener()`"
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """An image file as an upright, loaded, 8-bit image of mode "RGB" without metadata.

    | the file | the rule |
    |---|---|
    | EXIF orientation 1 to 8 | applied; any other value is ignored, and so is an orientation that only XMP claims |
    | transparency (alpha, palette entry, PNG's tRNS) | composited on `background` |
    | palette, 1-bit, grey, YCbCr, LAB, CMYK | converted as Pillow does; colour profiles are not applied |
    | CMYK JPEG | taken as inverted, with or without Adobe's marker, as browsers do |
    | 16-bit grey | divided by 257 and rounded, never saturated (12-bit TIFF: the same share of its range) |
    | 32-bit integers | as 16-bit when all lie in 0…65535, otherwise refused |
    | floats | multiplied by 255 and rounded when all are finite and in [0, 1], otherwise refused |
    | animation (GIF, WebP, APNG), several pages or views (TIFF, MPO) | the first |
    | wrong suffix | the content decides |
    | more than `max_pixels`, or a side under `MIN_SIDE` pixels | refused before anything is decoded |
    | truncated, damaged, empty, a folder, a device, missing, unreadable | refused |
    | SVG, EPS, PDF, and every format outside the allow list | refused; nothing external is ever started |
    | HEIC | refused with a hint, read once pillow-heif's decoder is registered |

    Nothing global is touched, so any number of threads may call this. No warning about an image's size or its EXIF is
    issued. (Pillow may still remark on nonsense in the tags of a TIFF or APNG, and libtiff on standard error; where
    warnings are errors, such a file is refused.)
    A `MemoryError` is not turned into an `ImageError`: `max_pixels` bounds what a file can ask for, so running out of
    memory says something about the machine, and skipping good images for it would hide that.

    Args:
        source: a path, the file's bytes, or a binary stream, which is read from its beginning and left open.
        max_pixels: width times height above which a file is refused; beyond 89 million, Pillow's warnings may return.
        background: what shows through transparent pixels, (red, green, blue) from 0 to 255.

    Raises:
        ImageError: the file is no usable image; `reason` says why.
        InputError: the source is nothing to read from, such as an array.
    """
    _require_source(source)
    name = _name(source)
    with _readable(name), _stream(source) as stream:
        opened = _open(stream, max_pixels, name)
        _check_size(opened.size, max_pixels, name)
        opened.load()
        orientation = 1 if opened.format == "TIFF" else _orientation(opened.info)  # Pillow turns TIFFs by itself
        return _bare(as_rgb(opened, background=background, name=name), orientation)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns whatever Pillow and the disk raise into an `ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # WebP's decoder compares with Pillow's own, larger limit
        raise ImageError(name, str(error)) from error
    except OSError as error:
        raise ImageError(name, _os_reason(error)) from error
    except Exception as error:  # decoders raise whatever they like: SyntaxError, struct.error, KeyError, …
        raise ImageError(name, f"damaged: {error or type(error).__name__}") from error


def image_size(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[int, int]:
    """Width and height of the image that `read_image` makes of a file, from its header; nothing is decoded.

    No limit applies, and what lies behind the header may still be damaged.

    Raises:
        ImageError: the header is none of an image that `read_image` knows.
        InputError: the source is nothing to read from, such as an array.
    """
    _require_source(source)
    name = _name(source)
    with _readable(name), _stream(source) as stream:
        opened = _open(stream, sys.maxsize, name)
        orientation = 1 if opened.format == "TIFF" else _orientation(opened.info)
        return opened.size if orientation < 5 or orientation > 8 else (opened.height, opened.width)


def orientation_of(source: str | os.PathLike[str] | bytes | BinaryIO) -> int:
    """EXIF's orientation that `read_image` applies to a file, 1 to 8, from its header; 1 is upright.

    Raises:
        ImageError, InputError: as `image_size`.
    """
    _require_source(source)
    name = _name(source)
    with _readable(name), _stream(source) as stream:
        opened = _open(stream, sys.maxsize, name)
        found = 1 if opened.format == "TIFF" else _orientation(opened.info)
        return found if found in _UPRIGHT else 1


def as_rgb(
    image: Image.Image, *, background: tuple[int, int, int] = (255, 255, 255), name: str = "<image>"
) -> Image.Image:
    """Any Pillow image as mode "RGB" under the rules of `read_image`; an opaque RGB image comes back as it is.

    Raises:
        ImageError: the numbers of an integer or float image have no known range; `name` stands for the file.
    """
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_grey_levels(image, name)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(layers, mask=layers)
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_levels(image: Image.Image, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Grey levels 0…255 of an integer or float image; `Image.convert` would saturate 16 bits and blacken [0, 1]."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # written so that NaN is refused too
            raise ImageError(name, f"float values outside [0, 1] ({low:g} to {high:g}); scale them or save 8 bits")
        return np.asarray(np.rint(values * 255), np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(name, f"integer values outside 0…65535 ({low} to {high}); save 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    peak = (1 << tags.get(258, (16,))[0]) - 1 if image.mode != "I" else 65535  # tag 258: BitsPerSample
    levels = (values.astype(np.uint32) * 255 + peak // 2) // peak
    if tags.get(262) == 0:  # PhotometricInterpretation "white is zero", which Pillow leaves alone for 16 bits
        levels = 255 - levels
    return levels.astype(np.uint8)


class _Jpeg(JpegImageFile):
    """The base image of a JPEG, MPO, or gain-map file, without Pillow's EXIF reader, which warns about damage."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def _open(stream: BinaryIO, max_pixels: int, name: str) -> Image.Image:
    """The undecoded image. `Image.open` is avoided: it warns about sizes, and warnings cannot be caught per thread."""
    prefix = stream.read(32)
    if not prefix:
        raise ImageError(name, "empty, 0 bytes")
    failure: Exception | None = None
    for format_name in (*_FORMATS, *_OPTIONAL_FORMATS):
        factory, accepts = Image.OPEN.get(format_name, (None, None))
        if factory is None or accepts is None or accepts(prefix[:16]) is not True:
            continue
        if format_name == "GIF":
            _check_size(_gif_size(stream), max_pixels, name)
        if format_name == "TIFF":
            _check_tiff(stream, name)
        stream.seek(0)
        try:
            return (_Jpeg if format_name == "JPEG" else factory)(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how a decoder says: not mine after all
            failure = failure or error
    if prefix[4:8] == b"ftyp" and prefix[8:10] in (b"he", b"mi", b"ms"):
        raise ImageError(name, _HEIC)
    if failure is not None:
        raise failure
    start = prefix.lstrip().lower()
    kind = next((kind for magic, kind in _FOREIGN if start.startswith(magic.lower())), None)
    raise ImageError(
        name, f"expected one of {', '.join(_FORMATS)}; got " + (kind or f"a file that starts with {prefix[:12]!r}")
    )


def _gif_size(stream: BinaryIO) -> tuple[int, int]:
    """Width and height of the canvas, enlarged to hold the first frame; Pillow does the same, but warns."""
    stream.seek(0)
    header = stream.read(13).ljust(13, b"\0")
    width, height = struct.unpack_from("<HH", header, 6)
    stream.seek(3 << (header[10] & 7) + 1 if header[10] & 128 else 0, os.SEEK_CUR)  # the palette
    while (mark := stream.read(1)) not in (b"", b";"):
        if mark == b"," and len(frame := stream.read(8)) == 8:
            left, top, across, down = struct.unpack("<HHHH", frame)
            return max(width, left + across), max(height, top + down)
        if mark == b"!":  # an extension: one byte that names it, then blocks that start with their length
            stream.read(1)
            while length := int.from_bytes(stream.read(1)):
                stream.seek(length, os.SEEK_CUR)
    return width, height


def _check_tiff(stream: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose first directory reaches beyond the file, as truncation leaves it; Pillow would warn."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(16)
    order, is_big = "<>"[header[:1] == b"M"], header[2:4] in (b"+\0", b"\0+")
    number, inline, start = ("Q", 8, 8) if is_big else ("I", 4, 4)
    try:
        stream.seek(min(struct.unpack_from(order + number, header, start)[0], size))
        (count,) = struct.unpack(order + "HQ"[is_big], stream.read(8 if is_big else 2))
        entry = struct.Struct(f"{order}HH{number}{number}")
        directory = stream.read(min(count * entry.size + inline, size))
        for at in range(0, count * entry.size, entry.size):
            tag, kind, values, offset = entry.unpack_from(directory, at)
            length = values * _TIFF_BYTES.get(kind, 0)
            if length > inline and offset + length > size:
                raise ImageError(name, f"damaged: tag {tag} of the TIFF directory lies outside the file")
        struct.unpack_from(order + number, directory, count * entry.size)  # where the next directory is, or 0
    except struct.error:
        raise ImageError(name, "damaged: the TIFF directory lies outside the file") from None


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            name, f"{width}x{height} pixels exceed the limit of {max_pixels:,}; shrink it or raise max_pixels"
        )
    if min(size) < MIN_SIDE:
        raise ImageError(name, f"{width}x{height} pixels; the shorter side must have at least {MIN_SIDE}")


def _bare(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, without the metadata that would let a second reader turn it again."""
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if upright is image and type(image) is not Image.Image:
        upright = image.copy()  # lets go of the decoder and of the file's bytes
    upright.info = {}
    return upright


def _orientation(info: dict[str | tuple[int, int], Any]) -> int:
    """The orientation (tag 274) in the first directory of an EXIF block, 1 where there is none or it is damaged."""
    block = info.get("exif", b"")
    if profile := info.get("Raw profile type exif"):  # ImageMagick's PNGs: a name, a length, then hexadecimal lines
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
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


def _require_source(source: object) -> None:
    is_binary = hasattr(source, "read") and hasattr(source, "seekable") and not isinstance(source, io.TextIOBase)
    if not is_binary and not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
        raise InputError(
            "expected an image as a path, bytes, a binary file, or, where it is to be encoded, a Pillow image "
            f"(Image.fromarray makes one of an array); got {'None' if source is None else kind}"
        )


@contextmanager
def _stream(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        mode = os.stat(source).st_mode  # noqa: PTH116  (pathlib costs a twentieth of a small image)
        if not stat.S_ISREG(mode):  # a pipe would block for ever, /dev/zero never ends
            raise ImageError(_name(source), "a folder" if stat.S_ISDIR(mode) else "not a regular file")
        with open(source, "rb") as stream:  # noqa: PTH123
            yield stream
    elif source.seekable():
        source.seek(0)
        yield source
    else:
        yield io.BytesIO(source.read())


def _name(source: object) -> str:
    """What messages call the source; bytes of a file name that are no UTF-8 are escaped, so that it can be printed."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<stream>")
    return str(name).encode("utf-8", "backslashreplace").decode() if isinstance(name, str) else "<stream>"


def _os_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if error.errno is not None:
        return f"cannot be read: {cast(str, error.strerror)}"
    return f"damaged: {error}"  # Pillow's decoders raise OSError without a number
