"""The work hidden in formats made of boxes: packets of a JPEG 2000, coded frames behind an AVIF's one image."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import ImageError

_MAX_PACKETS = 4_000_000  # of a JPEG 2000: tiles × components × resolutions × precincts × layers
_MAX_TILE_PARTS = 65_536
_MAX_FRAMES = 32  # of one coded item of an AVIF; one is shown, layered ones hold up to four
_MAX_BOXES, _MAX_ITEMS, _MAX_UNITS = 1_000, 5_000, 20_000
_INSIDE = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"meta"}


def too_much(name: str, what: str, limit: int) -> ImageError:
    """The refusal of a file whose count exceeds a limit."""
    return ImageError(name, f"{what}, the limit is {limit:,}: decoding it could take very long; save it anew")


def require_bounded_jpeg2000(stream: BinaryIO, name: str) -> None:
    """Count the packets that a codestream's headers promise."""
    stream.seek(0)
    if stream.read(4) == b"\xff\x4f\xff\x51":
        start: int | None = 0
    else:
        end = stream.seek(0, os.SEEK_END)
        start = next((start for kind, start, _ in _boxes(stream, 0, end) if kind == b"jp2c"), None)
    if start is None:
        return  # Pillow says what is missing
    stream.seek(start)
    size: tuple[int, int, int, int, int] | None = None  # width, height, of a tile, components
    worst = (1, 0, 15)  # layers, decompositions, smallest exponent of a precinct
    parts = 0
    while len(head := stream.read(2)) == 2 and head[0] == 0xFF:
        marker = head[1]
        if marker in (0x4F, 0x93):  # start of the codestream; start of data, of which SOT has said the length
            continue
        length = int.from_bytes(stream.read(2))
        segment = stream.read(max(0, length - 2))
        if marker == 0x51 and len(segment) >= 36:
            across, down, left, top, tile_across, tile_down = struct.unpack_from(">IIIIII", segment, 2)
            size = (across - left, down - top, tile_across, tile_down, int.from_bytes(segment[34:36]))
        elif marker in (0x52, 0x53) and size is not None:
            worst = _worse(worst, segment, is_default=marker == 0x52, has_wide_index=size[4] > 256)
        elif marker == 0x90 and len(segment) >= 8:
            parts += 1
            start, length = stream.tell() - 12, int.from_bytes(segment[2:6])
            while len(head := stream.read(4)) == 4 and head[0] == 0xFF and head[1] != 0x93:  # its own coding style
                own = stream.read(max(0, int.from_bytes(head[2:]) - 2))
                if head[1] in (0x52, 0x53) and size is not None:
                    worst = _worse(worst, own, is_default=head[1] == 0x52, has_wide_index=size[4] > 256)
            if length < 14:  # the last
                break
            stream.seek(start + length)
        elif marker == 0xD9:
            break
        if parts > _MAX_TILE_PARTS:
            raise too_much(name, f"a JPEG 2000 of more than {_MAX_TILE_PARTS:,} tile-parts", _MAX_TILE_PARTS)
    if size is not None and (packets := _packets(size, worst)) > _MAX_PACKETS:
        raise too_much(name, f"a JPEG 2000 of {packets:,} packets", _MAX_PACKETS)


def _worse(
    worst: tuple[int, int, int], segment: bytes, *, is_default: bool, has_wide_index: bool
) -> tuple[int, int, int]:
    """The worst coding style seen, with one more (COD, COC)."""
    layers, levels, precinct = worst
    if is_default:
        style, at = (segment or b"\0")[0], 5
        layers = max(layers, int.from_bytes(segment[2:4]))
    else:
        at = 3 if has_wide_index else 2
        style = segment[at - 1] if len(segment) >= at else 0
    if len(segment) <= at:
        return worst
    if style & 1:
        for sizes in segment[at + 5 :]:
            precinct = min(precinct, sizes & 15, sizes >> 4)
    return layers, max(levels, min(segment[at], 32)), precinct


def _packets(size: tuple[int, int, int, int, int], worst: tuple[int, int, int]) -> int:
    width, height, tile_across, tile_down, components = size
    layers, levels, precinct = worst
    if min(width, height, tile_across, tile_down) <= 0:
        return 0
    tiles = -(-width // tile_across) * -(-height // tile_down)
    across, down = min(width, tile_across), min(height, tile_down)
    precincts = 0
    for level in range(levels + 1):
        at_level = (max(1, across >> level), max(1, down >> level))
        precincts += math.prod(-(-side >> precinct) if side > 1 << precinct else 1 for side in at_level)
    return tiles * components * precincts * layers


def require_bounded_avif(stream: BinaryIO, name: str) -> None:
    """Count the frames behind each coded item and behind a sequence's first sample: only the last of them is shown."""
    end = stream.seek(0, os.SEEK_END)
    boxes = list(_boxes(stream, 0, end))
    if len(boxes) >= _MAX_BOXES:
        raise too_much(name, f"an AVIF of {_MAX_BOXES:,} boxes or more", _MAX_BOXES)
    data = next((start for kind, start, _ in boxes if kind == b"idat"), 0)
    frames, units = 0, 0
    for extents in [*_items(stream, boxes, data), *_first_samples(stream, boxes)]:
        frames = 0
        for start, length in extents:
            for is_frame in _units(stream, start, min(start + length, end) if length else end):
                units, frames = units + 1, frames + is_frame
                if frames > _MAX_FRAMES:
                    raise too_much(name, f"an AVIF with more than {_MAX_FRAMES} frames behind one image", _MAX_FRAMES)
                if units > _MAX_UNITS:
                    raise too_much(name, f"an AVIF of more than {_MAX_UNITS:,} coded units", _MAX_UNITS)


def _boxes(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of all boxes, those inside of containers too, up to a limit."""
    waiting, seen = [(start, end)], 0
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end and seen < _MAX_BOXES:
            stream.seek(at)
            length, kind = struct.unpack(">I4s", stream.read(8).ljust(8, b"\0"))
            inside = at + 8
            if length == 1:
                length, inside = int.from_bytes(stream.read(8)), at + 16
            after = at + length if length else end
            if after < inside:
                break
            seen += 1
            yield kind, inside, min(after, end)
            if kind in _INSIDE:
                waiting.append((inside + (4 if kind == b"meta" else 0), min(after, end)))
            at = after


def _items(stream: BinaryIO, boxes: list[tuple[bytes, int, int]], data: int) -> Iterator[list[tuple[int, int]]]:
    """Offset and length of the extents of each item (`iloc`); length 0 is "to the end"."""
    for kind, start, end in boxes:
        if kind != b"iloc":
            continue
        stream.seek(start)
        reader, is_over = io.BytesIO(stream.read(min(end - start, 1 << 20))), False

        def take(width: int, reader: io.BytesIO = reader) -> int:
            nonlocal is_over
            piece = reader.read(width)
            is_over |= len(piece) < width
            return int.from_bytes(piece)

        version = take(4) >> 24
        sizes = take(2)
        offset, length, base, index = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0
        for _ in range(min(take(2 if version < 2 else 4), _MAX_ITEMS)):
            take(2 if version < 2 else 4)
            method = take(2) & 15 if version else 0
            take(2)
            origin = take(base) + (data if method == 1 else 0)
            extents = []
            for _ in range(min(take(2), _MAX_ITEMS)):
                take(index)
                extents.append((origin + take(offset), take(length)))
            if is_over:
                return
            yield extents


def _first_samples(stream: BinaryIO, boxes: list[tuple[bytes, int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Place of the first sample of each track of a sequence (`stco`, `co64`); to the end, which is safe."""
    for kind, start, end in boxes:
        if kind in (b"stco", b"co64") and end - start >= 12:
            stream.seek(start + 8)
            first = int.from_bytes(stream.read(4 if kind == b"stco" else 8))
            sizes = next((s for k, s, e in boxes if k == b"stsz" and e - s >= 16), None)
            length = 0
            if sizes is not None:
                stream.seek(sizes + 4)
                same, _, own = struct.unpack(">III", stream.read(12))
                length = same or own
            yield [(first, length)]


def _units(stream: BinaryIO, start: int, end: int) -> Iterator[bool]:
    """For each unit of an AV1 stream (OBU), whether it is a frame's header or a whole frame."""
    at = start
    while at < end:
        stream.seek(at)
        head = stream.read(10)
        if not head or head[0] & 0x80:
            return
        used, kind = (2 if head[0] & 4 else 1), head[0] >> 3 & 15
        yield kind in (3, 6)
        if not head[0] & 2:  # without a size: the last
            return
        length = shift = 0
        for byte in head[used:]:
            used += 1
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        at += used + length
