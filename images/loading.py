"""Reading image files nobody vouches for: one door, one result (upright 8-bit RGB), one error."""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

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
from ..remarks import DistcamWarning, remark
from .decoder_work import gif_size, require_bounded, stored_orientation, tiff_kind, without_text
from .geometry import Box, Fitting, as_rgb, bare, turned
from .items import MIN_SIDE, crop, split_item

MAX_PIXELS: Final = 64_000_000  # under Pillow's own limit; a 48-megapixel phone photograph passes
_REDUCIBLE = 4  # a JPEG of so many times the limit is read at a half or a quarter of its size

# What a folder walk looks at. HEIC is among them so that it is refused with a reason, not silently left out.
# fmt: off
IMAGE_SUFFIXES: Final = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
# fmt: on

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_OPTIONAL_FORMATS = ("HEIF",)  # of pillow-heif

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
_HEIC = "HEIC, which needs pillow-heif: pip install 'distcam[heic]'"
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown (pixel mode|compression|data organization|raw mode)|cannot handle"
    r"|not available|samples per pixel|unable to determine|support not installed",
    re.IGNORECASE,
)
_CONVERT = "save it as an 8-bit PNG or JPEG"
_registering = threading.Lock()


class _Limit:
    """The value of `set_pixel_limit`, for all threads."""

    pixels = MAX_PIXELS


def pixel_limit() -> int:
    """Width times height above which `read_image` refuses a file, or reduces a JPEG, unless told otherwise."""
    return _Limit.pixels


def set_pixel_limit(pixels: int) -> None:
    """Change the limit for everything that reads images in this process, as `--max-pixels` does on the command line.

    Raises:
        InputError: it is smaller than the smallest image.
    """
    if pixels < MIN_SIDE * MIN_SIDE:
        raise InputError(f"expected max_pixels of at least {MIN_SIDE * MIN_SIDE}, got {pixels}")
    _Limit.pixels = pixels


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    max_pixels: int | None = None,
    whole: bool = False,
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
    | JPEG of more than `max_pixels`, up to four times as many | reduced to a half or a quarter, with a remark |
    | more than `max_pixels`, or a side under `MIN_SIDE` pixels | refused before anything is decoded |
    | more work than pixels are worth: scans, chunks, tags (`decoder_work.py`) | refused before anything is decoded |
    | text and colour profile of a PNG, however large | passed over |
    | modes and compressions that Pillow does not know, such as five channels | refused for what they are |
    | truncated, damaged, empty, a folder, a device, missing, unreadable | refused |
    | SVG, EPS, PDF, and every format outside the allow list | refused; nothing external is ever started |
    | HEIC | read where pillow-heif is installed, else refused with a hint |

    Nothing global is touched (but for pillow-heif's decoder, registered with the first HEIC), so any number of threads
    may call this. No warning about an image's size or its EXIF is issued; Pillow may still remark on nonsense in the
    tags of a TIFF or APNG, and where warnings are errors, such a file is refused. A `MemoryError` is not turned into an
    `ImageError`: `max_pixels` bounds what a file can ask for, so running out of memory is a matter of the machine.

    Args:
        source: a path, the file's bytes, or a binary stream, which is read from its beginning and left open; of an item
            such as `photo.jpg#xywh=10,20,30,40` the box is cut out.
        max_pixels: width times height above which a file is refused or reduced; `pixel_limit()` if left out. Beyond 89
            million, Pillow's warnings may return.
        whole: refuse a JPEG above the limit instead of reducing it, for callers that have places in its pixels.
        background: what shows through transparent pixels, (red, green, blue) from 0 to 255.

    Raises:
        ImageError: the file is no usable image; `reason` says why.
        InputError: the source is nothing to read from, such as an array.
    """
    return _decoded(source, max_pixels, whole=whole, background=background)[0]


def read_levels(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    fitting: Fitting,
    *,
    max_pixels: int | None = None,
    whole: bool = False,
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, int]]:
    """Pixels of an image file at a network's size, (3, height, width), with the upright image's width and height.

    As `fitting.levels(read_image(…))`, but that a JPEG is decoded at the size that `fitting.reduction` allows.
    """
    image, size, box = _decoded(source, max_pixels, whole=whole, fitting=fitting)
    return fitting.levels(image, size, box), size


def _decoded(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    max_pixels: int | None,
    *,
    whole: bool,
    background: tuple[int, int, int] = (255, 255, 255),
    fitting: Fitting | None = None,
) -> tuple[Image.Image, tuple[int, int], Box]:
    """The image, perhaps a reduced copy; the size that it stands for; and the rectangle of all of it in the copy."""
    limit = pixel_limit() if max_pixels is None else max_pixels
    with _reading(source) as (stream, name):
        opened = _open(stream, limit, name)
        width, height = full = opened.size
        orientation = 1 if opened.format == "TIFF" else stored_orientation(opened.info)  # Pillow turns TIFFs by itself
        orientation = orientation if 1 <= orientation <= 8 else 1
        part, times = _box_of(source), 1
        if not whole and opened.format == "JPEG" and limit < width * height <= _REDUCIBLE * limit:
            # the decoder leaves out the finest detail, where all of it would be too much
            scale = next(scale for scale in (2, 4, 8) if -(-width // scale) * -(-height // scale) <= limit)
            opened.draft(None, (width // scale, height // scale))
            remark(
                f"a JPEG of more than {limit:,} pixels ({width}x{height}) was read at 1/{scale} of its size; "
                f"--max-pixels {width * height} (in Python set_pixel_limit) reads it whole"
            )
            width, height = opened.size
        elif fitting is not None and part is None and opened.format == "JPEG":
            times = fitting.reduction(width, height) if orientation < 5 else fitting.reduction(height, width)
        _check_size((width, height), limit, name)
        if times > 1:
            opened.draft(None, (width // times, height // times))
        opened.load()
        box = turned(Box(0, 0, width / times, height / times), orientation, opened.size)
        upright = bare(as_rgb(opened, background=background, name=name), orientation)
        if part is not None:
            cut = crop(upright, part.scaled(max(upright.size) / max(full)), name=name)
            return cut, cut.size, Box(0, 0, *cut.size)
        return upright, (width, height) if orientation < 5 else (height, width), box


def _box_of(source: object) -> Box | None:
    return split_item(source)[1] if isinstance(source, (str, os.PathLike)) else None


@contextmanager
def _reading(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The stream of a source and its name; an `ImageError` for whatever Pillow and the disk raise."""
    is_binary = hasattr(source, "read") and hasattr(source, "seekable") and not isinstance(source, io.TextIOBase)
    if not is_binary and not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
        raise InputError(
            "expected an image as a path, bytes, a binary file, or, where it is to be encoded, a Pillow image "
            f"(Image.fromarray makes one of an array); got {'None' if source is None else kind}"
        )
    name = _name(source)
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            yield io.BytesIO(source), name
        elif isinstance(source, (str, os.PathLike)):
            source = split_item(source)[0]
            mode = os.stat(source).st_mode  # noqa: PTH116  (pathlib costs a twentieth of a small image)
            if not stat.S_ISREG(mode):  # a pipe would block for ever, /dev/zero never ends
                raise ImageError(name, "a folder" if stat.S_ISDIR(mode) else "not a regular file")
            with open(source, "rb") as stream:  # noqa: PTH123
                yield stream, name
        elif source.seekable():
            source.seek(0)
            yield source, name
        else:
            yield io.BytesIO(source.read()), name
    except (ImageError, MemoryError, DistcamWarning):
        raise
    except Image.DecompressionBombError as error:  # WebP's decoder compares with Pillow's own, larger limit
        raise ImageError(name, f"too large: {error}") from error
    except OSError as error:
        if error.errno is None:  # of Pillow's decoders
            reason = _decoder_reason(error)
        else:
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise ImageError(name, reason) from error
    except Exception as error:  # decoders raise whatever they like: SyntaxError, struct.error, KeyError, …
        raise ImageError(name, _decoder_reason(error)) from error


def _decoder_reason(error: Exception) -> str:
    what = str(error) or type(error).__name__
    if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(what):
        return f"not supported ({what}); {_CONVERT}"
    return f"too large ({what})" if "too large" in what else f"damaged: {what}"


def image_size(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[int, int]:
    """Width and height of the image that `read_image` makes of a file, from its header; nothing is decoded.

    No limit applies: a JPEG above it has the file's own size here. What lies behind the header may still be damaged.

    Raises:
        ImageError: the header is none of an image that `read_image` knows.
        InputError: the source is nothing to read from, such as an array.
    """
    size, box = size_and_orientation(source)[0], _box_of(source)
    if box is None:
        return size
    part = box.clipped(*size)
    return round(part.width), round(part.height)


def size_and_orientation(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[tuple[int, int], int]:
    """Width and height of the upright image, and EXIF's orientation of the stored one, 1 to 8, as `image_size`."""
    with _reading(source) as (stream, name):
        opened = _open(stream, sys.maxsize, name)
        found = 1 if opened.format == "TIFF" else stored_orientation(opened.info)
        orientation = found if 1 <= found <= 8 else 1
        return (opened.size if orientation < 5 else (opened.height, opened.width)), orientation


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
    is_heic = prefix[4:8] == b"ftyp" and prefix[8:10] in (b"he", b"mi", b"ms")
    if is_heic:
        with _registering, suppress(ImportError):
            if "HEIF" not in Image.OPEN:
                from pillow_heif import register_heif_opener

                register_heif_opener()
    for format_name in (*_FORMATS, *_OPTIONAL_FORMATS):
        factory, accepts = Image.OPEN.get(format_name, (None, None))
        if factory is None or accepts is None or accepts(prefix[:16]) is not True:
            continue
        require_bounded(format_name, stream, name)
        if format_name == "GIF":
            _check_size(gif_size(stream, name), max_pixels, name)
        content = without_text(stream) if format_name == "PNG" else stream
        content.seek(0)
        try:
            return (_Jpeg if format_name == "JPEG" else factory)(content, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # how a decoder says: not mine after all
            if format_name == "TIFF" and (isinstance(error.__cause__, KeyError) or _UNSUPPORTED.search(str(error))):
                raise ImageError(name, f"not supported: a TIFF of {tiff_kind(stream, name)}; {_CONVERT}") from error
            failure = failure or error
    if is_heic:
        raise ImageError(name, _HEIC)
    if failure is not None:
        raise failure
    start = prefix.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    kind = next((kind for magic, kind in _FOREIGN if start.startswith(magic.lower())), None)
    raise ImageError(
        name, f"expected one of {', '.join(_FORMATS)}; got " + (kind or f"a file that starts with {prefix[:12]!r}")
    )


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width}x{height} pixels exceed the limit of {max_pixels:,}; shrink it, or read it with --max-pixels "
            f"{width * height} (in Python max_pixels)",
        )
    if min(size) < MIN_SIDE:
        raise ImageError(name, f"{width}x{height} pixels; the shorter side must have at least {MIN_SIDE}")


def _name(source: object) -> str:
    """Name of the source in messages; bytes of a file name that are no UTF-8 are escaped, so that it can be printed."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<stream>")
    return str(name).encode("utf-8", "backslashreplace").decode() if isinstance(name, str) else "<stream>"
