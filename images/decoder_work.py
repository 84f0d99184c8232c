"""Work that a file would make its decoder do, counted in its headers before anything is decoded.

The number of pixels does not bound the work: a JPEG may hold any number of scans over the same pixels, a PNG may be cut
into a million chunks, a TIFF may point a thousand tags at the same megabytes. Each count here walks over headers alone
and gives up at its limit, so that counting cannot be made long either. Every limit is far above what encoders write.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO, Final

from ..errors import ImageError
from .decoder_work_boxes import require_bounded_avif, require_bounded_jpeg2000, too_much

MAX_SCANS: Final = 100  # of a JPEG; encoders write 1 to about 14
_MAX_SEGMENTS = 2_000  # of a JPEG; one of 64 KiB each, they make 125 MiB of metadata
_MAX_JUNK = 65_536  # bytes of a JPEG that belong to nothing
_FREE_CHUNKS, _CHUNK_BYTES = 10_000, 1024  # of PNG and WebP: so many, and one more for every so many bytes
_MAX_GIF_BLOCKS = 4_000  # before the first frame; 255 bytes of comments or XMP each
_MAX_TAGS, _MAX_STRIPS = 4_096, 65_536  # of a TIFF directory; strips or tiles of its image
_MAX_SLOW_BYTES = 8 << 20  # of a run-length BMP, which Pillow decodes in Python
_MAX_SLOW_SAMPLES = 16_000_000  # of a PPM that Pillow decodes in Python
_MAX_PPM_HEAD = 65_536
_MAX_COMMENTS = 1_000  # of a PPM in plain text; Pillow copies all that follows for each
_MAX_TEXT = 1 << 20  # of a PNG's text once unpacked; Pillow refuses the whole file beyond that

_SEQUENTIAL, _PROGRESSIVE = {0xC0, 0xC1, 0xC9}, {0xC2, 0xCA}
_FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# One 0xff, not a run of them: a regular expression that looks for runs takes time with the square of their length.
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # but for restarts, which are part of a scan
_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_ORIENTATION_TEXT = b"Raw profile type exif\0"
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
_SAMPLE_FORMATS = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}


def require_bounded(format_name: str, stream: BinaryIO, name: str) -> None:
    """Make sure that decoding a file takes time and memory in proportion to its pixels; the stream is left anywhere."""
    check = _CHECKS.get(format_name)
    if check is not None:
        stream.seek(0)
        check(stream, name)


def _require_bounded_jpeg(stream: BinaryIO, name: str) -> None:
    """Count the segments before the first scan, and all scans where there may be several over the same pixels."""
    stream.seek(2)
    components, junk = 0, 0
    is_progressive = False
    for _ in range(_MAX_SEGMENTS):
        marker, skipped = _next_marker(stream)
        junk += skipped
        if marker is None or junk > _MAX_JUNK:
            raise ImageError(name, "damaged: no image data where the JPEG's headers end")
        if marker == 0xD9:
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        payload = max(0, int.from_bytes(stream.read(2)) - 2)
        if marker in _FRAME_HEADERS:
            if marker not in _SEQUENTIAL | _PROGRESSIVE:
                raise ImageError(name, "a lossless or hierarchical JPEG, which is not read; save it as PNG")
            head = stream.read(min(payload, 6)).ljust(6, b"\0")
            is_progressive, components = marker in _PROGRESSIVE, head[5]
            stream.seek(payload - min(payload, 6), os.SEEK_CUR)
        elif marker == 0xDA:
            in_scan = (stream.read(1) or b"\0")[0]
            if is_progressive or in_scan < components:
                stream.seek(payload - 1, os.SEEK_CUR)
                _count_scans(stream.read(), name)
            return
        else:
            stream.seek(payload, os.SEEK_CUR)
    raise too_much(name, f"more than {_MAX_SEGMENTS:,} segments in a JPEG's header", _MAX_SEGMENTS)


def _next_marker(stream: BinaryIO) -> tuple[int | None, int]:
    """The second byte of the next marker, and how many bytes before it belong to nothing."""
    two = stream.read(2)
    if len(two) == 2 and two[0] == 0xFF and two[1] not in (0, 0xFF):
        return two[1], 0
    rest = two + stream.read(_MAX_JUNK)
    found = _MARKER.search(rest)
    if found is None:
        return None, len(rest)
    stream.seek(found.end() - len(rest), os.SEEK_CUR)
    return found[1][0], found.end() - 2


def _count_scans(data: bytes, name: str) -> None:
    """Count from behind the first scan's header to the end of the image."""
    scans, at = 1, 0
    for _ in range(_MAX_SEGMENTS):
        found = _SCAN_MARKER.search(data, at)
        if found is None or found[1] == b"\xd9":
            return
        at = found.end()
        if found[1] not in (b"\x01", b"\xd8"):
            at += max(2, int.from_bytes(data[at : at + 2]))
        scans += found[1] == b"\xda"
        if scans > MAX_SCANS:
            raise too_much(name, f"a JPEG of more than {MAX_SCANS} scans", MAX_SCANS)
    raise too_much(name, f"more than {_MAX_SEGMENTS:,} segments between a JPEG's scans", _MAX_SEGMENTS)


def _count_chunks(stream: BinaryIO, name: str, *, start: int, head: struct.Struct, tail: int) -> None:
    size = stream.seek(0, os.SEEK_END)
    limit = _FREE_CHUNKS + size // _CHUNK_BYTES
    at = start
    for _ in range(limit):
        stream.seek(at)
        if len(header := stream.read(8)) < 8:
            return
        first, second = head.unpack(header)
        length, kind = (first, second) if isinstance(first, int) else (second, first)
        if kind == b"IEND":
            return
        at += 8 + length + tail + (length & 1 if not tail else 0)
    raise too_much(name, f"a file of {size:,} bytes in more than {limit:,} chunks", limit)


def without_text(stream: BinaryIO) -> BinaryIO:
    """A PNG without its text and colour profile, which nobody reads here and which may be of any size once unpacked.

    The one text that matters is kept: ImageMagick's EXIF block, for its orientation.
    """
    stream.seek(8)
    at, texts, is_oriented = 8, [], False
    while len(header := stream.read(8)) == 8 and header[4:] != b"IEND":
        length, end = int.from_bytes(header[:4]), at + 12 + int.from_bytes(header[:4])
        if header[4:] in _TEXT:
            payload = stream.read(min(length, 2 * _MAX_TEXT))
            if not is_oriented and payload.startswith(_ORIENTATION_TEXT) and _is_short(header[4:], payload):
                is_oriented = True
            else:
                texts.append((at, end))
        at = stream.seek(end)
    if sum(end - start for start, end in texts) <= 512:  # cannot unpack to more than half of what Pillow takes
        stream.seek(0)
        return stream
    stream.seek(0)
    data, kept, at = stream.read(), [], 0
    for start, end in texts:
        kept.append(data[at:start])
        at = end
    return io.BytesIO(b"".join([*kept, data[at:]]))


def _is_short(kind: bytes, payload: bytes) -> bool:
    if kind != b"zTXt":
        return kind == b"tEXt" and len(payload) <= _MAX_TEXT
    try:
        return len(zlib.decompressobj().decompress(payload[len(_ORIENTATION_TEXT) + 1 :], _MAX_TEXT)) < _MAX_TEXT
    except zlib.error:
        return False


def gif_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Width and height of a GIF's canvas, enlarged to hold the first frame; Pillow does the same, but warns."""
    stream.seek(0)
    header = stream.read(13).ljust(13, b"\0")
    width, height = struct.unpack_from("<HH", header, 6)
    stream.seek(3 << (header[10] & 7) + 1 if header[10] & 128 else 0, os.SEEK_CUR)  # the palette
    blocks = 0
    while (mark := stream.read(1)) not in (b"", b";"):
        if mark == b"," and len(frame := stream.read(8)) == 8:
            left, top, across, down = struct.unpack("<HHHH", frame)
            return max(width, left + across), max(height, top + down)
        blocks += 1
        if mark == b"!":  # an extension: one byte that names it, then blocks that start with their length
            stream.read(1)
            while length := int.from_bytes(stream.read(1)):
                stream.seek(length, os.SEEK_CUR)
                blocks += 1
                if blocks > _MAX_GIF_BLOCKS:
                    break
        if blocks > _MAX_GIF_BLOCKS:
            raise too_much(name, f"more than {_MAX_GIF_BLOCKS:,} blocks before a GIF's first frame", _MAX_GIF_BLOCKS)
    return width, height


def _require_bounded_bmp(stream: BinaryIO, name: str) -> None:
    header = stream.read(34).ljust(34, b"\0")
    size = stream.seek(0, os.SEEK_END)
    is_run_length = int.from_bytes(header[14:18], "little") >= 40 and header[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    if is_run_length and size > _MAX_SLOW_BYTES:
        raise too_much(name, f"a run-length encoded BMP of {size:,} bytes", _MAX_SLOW_BYTES)


def _require_bounded_ppm(stream: BinaryIO, name: str) -> None:
    head = stream.read(_MAX_PPM_HEAD)
    words = re.sub(rb"#[^\r\n]*", b"", head).split(None, 4)
    numbers = [int(word) for word in words[1:4] if word.isdigit() and len(word) <= 10]
    kind = head[:2]
    if len(numbers) < (2 if kind in (b"P1", b"P4") else 3):
        if len(head) == _MAX_PPM_HEAD:
            raise ImageError(name, f"damaged: no size in the first {_MAX_PPM_HEAD:,} bytes of a PPM")
        return
    is_plain = kind in (b"P1", b"P2", b"P3")
    is_quick = kind == b"P4" or numbers[-1] == 255 or (kind == b"P5" and numbers[-1] == 65535)
    comments = 0
    stream.seek(0)
    while is_plain and comments <= _MAX_COMMENTS and (block := stream.read(1 << 20)):
        comments += block.count(b"#")
    if comments > _MAX_COMMENTS:
        raise too_much(name, f"a PPM in plain text with more than {_MAX_COMMENTS:,} comments", _MAX_COMMENTS)
    samples = numbers[0] * numbers[1] * (3 if kind in (b"P3", b"P6") else 1)
    if kind[:1] == b"P" and kind[1:].isdigit() and (is_plain or not is_quick) and samples > _MAX_SLOW_SAMPLES:
        what = "in plain text" if is_plain else f"up to {numbers[-1]}"
        raise too_much(name, f"a PPM of {samples:,} samples {what}", _MAX_SLOW_SAMPLES)


def _require_bounded_tiff(stream: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose first directory reaches beyond the file, as truncation leaves it, or claims it repeatedly."""
    size = stream.seek(0, os.SEEK_END)
    claimed = 0
    for tag, kind, values, offset, inline in _tiff_entries(stream, name):
        length = values * _TIFF_BYTES.get(kind, 0)
        if length > inline:
            claimed += length
            if offset + length > size:
                raise ImageError(name, f"damaged: tag {tag} of the TIFF directory lies outside the file")
        if tag in (273, 324) and values > _MAX_STRIPS:
            raise too_much(name, f"a TIFF of {values:,} strips or tiles", _MAX_STRIPS)
    if claimed > size + _MAX_JUNK:
        raise ImageError(name, f"damaged: the TIFF directory claims {claimed:,} bytes of a file of {size:,}")


def _tiff_entries(stream: BinaryIO, name: str) -> list[tuple[int, int, int, int, int]]:
    """Tag, type, number of values, value or offset, and bytes that fit in place, of each entry of the directory."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(16)
    order, is_big = "<>"[header[:1] == b"M"], header[2:4] in (b"+\0", b"\0+")
    number, inline, start = ("Q", 8, 8) if is_big else ("I", 4, 4)
    try:
        stream.seek(min(struct.unpack_from(order + number, header, start)[0], size))
        (count,) = struct.unpack(order + "HQ"[is_big], stream.read(8 if is_big else 2))
        if count > _MAX_TAGS:
            raise too_much(name, f"a TIFF directory of {count:,} entries", _MAX_TAGS)
        entry = struct.Struct(f"{order}HH{number}{number}")
        directory = stream.read(count * entry.size + inline)
        struct.unpack_from(order + number, directory, count * entry.size)  # where the next directory is, or 0
        return [(*entry.unpack_from(directory, at), inline) for at in range(0, count * entry.size, entry.size)]
    except struct.error:
        raise ImageError(name, "damaged: the TIFF directory lies outside the file") from None


def tiff_kind(stream: BinaryIO, name: str) -> str:
    """Contents of a TIFF, in words such as "5 samples a pixel, 8-bit unsigned integers"."""
    stream.seek(0)
    order = "<>"[stream.read(2) == b"MM"]
    found: dict[int, list[int]] = {}
    for tag, kind, values, offset, inline in _tiff_entries(stream, name):
        if tag in (258, 259, 277, 284, 317, 339) and kind in (3, 4) and 0 < values <= 64:
            width = _TIFF_BYTES[kind]
            if values * width <= inline:
                raw = struct.pack(order + ("Q" if inline == 8 else "I"), offset)
            else:
                stream.seek(offset)
                raw = stream.read(values * width)
            found[tag] = list(struct.unpack_from(f"{order}{values}{'HI'[kind - 3]}", raw.ljust(values * width, b"\0")))
    samples = found.get(277, [1])[0]
    bits = "/".join(map(str, sorted(set(found.get(258, [1])))))
    formats = found.get(339, [1])
    named = _SAMPLE_FORMATS.get(formats[0], "values of an undefined type")
    compression = found.get(259, [1])[0]
    packed = "" if compression in (1, 5, 8, 32773, 32946) else f", compression {compression}"
    return f"{samples} sample{'' if samples == 1 else 's'} a pixel, {bits}-bit {named}{packed}"


_CHECKS: Mapping[str, Callable[[BinaryIO, str], object]] = {
    "JPEG": _require_bounded_jpeg,
    "PNG": partial(_count_chunks, start=8, head=struct.Struct(">I4s"), tail=4),
    "WEBP": partial(_count_chunks, start=12, head=struct.Struct("<4sI"), tail=0),
    "GIF": gif_size,
    "BMP": _require_bounded_bmp,
    "PPM": _require_bounded_ppm,
    "TIFF": _require_bounded_tiff,
    "JPEG2000": require_bounded_jpeg2000,
    "AVIF": require_bounded_avif,
}


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
