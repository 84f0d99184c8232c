"""Files that would make a decoder work for minutes: all made here by hand, refused before they are decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest
from costly_images import encoded, picture, with_scans
from PIL import Image

from distcam.errors import ImageError
from distcam.images import image_size, read_image

# --- JPEG -------------------------------------------------------------------------------------------------------------


def with_segments(count: int, *, between: bool = False) -> bytes:
    jpeg = encoded("JPEG", progressive=between)
    at = jpeg.index(b"\xff\xda") if not between else jpeg.rindex(b"\xff\xda")
    return jpeg[:at] + b"\xff\xfe\x00\x02" * count + jpeg[at:]


def with_junk(byte: bytes, count: int) -> bytes:
    jpeg = encoded("JPEG")
    return jpeg[:2] + byte * count + jpeg[2:]


# --- PNG, WebP, GIF ---------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_in_pieces(data_chunks: int = 1, others: bytes = b"") -> bytes:
    rows = zlib.compress(bytes(48 * (1 + 3 * 48)), 0)
    step = max(1, -(-len(rows) // data_chunks))
    pieces = [rows[at : at + step] for at in range(0, len(rows), step)]
    pieces += [b""] * (data_chunks - len(pieces))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0))
    body = b"".join(chunk(b"IDAT", piece) for piece in pieces)
    return b"\x89PNG\r\n\x1a\n" + header + others + body + chunk(b"IEND")


def webp_in_pieces(count: int) -> bytes:
    webp = encoded("WEBP", exif=b"Exif\0\0II*\0")  # the extended form, which may hold further chunks
    body = webp[12:] + b"JUNK\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif_with_comments(count: int) -> bytes:
    gif = encoded("GIF", picture().quantize(8))
    at = gif.index(b",", 13 + 3 * 8)
    return gif[:at] + b"!\xfe" + b"\x01x" * count + b"\0" + gif[at:]


# --- TIFF -------------------------------------------------------------------------------------------------------------


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF: the directory, then the data; (tag, type, number of values, value or offset)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data


GREY = [(tag, 4, 1, value) for tag, value in {256: 16, 257: 16, 259: 1, 262: 1, 277: 1, 278: 16}.items()]
GREY.append((258, 3, 1, 8))


def tiff_with_tags(count: int, length: int = 1) -> bytes:
    start = 8 + 2 + 12 * (len(GREY) + 2 + count) + 4
    rest = [(40000 + i, 1, length, start if length > 4 else 0) for i in range(count)]
    return tiff([*GREY, (273, 4, 1, start), (279, 4, 1, 256), *rest], bytes(max(256, length)))


def tiff_with_strips(count: int) -> bytes:
    start = 8 + 2 + 12 * (len(GREY) + 2) + 4
    entries = [*GREY, (273, 4, count, start), (279, 4, count, start + 4 * count)]
    return tiff(entries, bytes(8 * count + 256))


# --- The formats of Python loops, and JPEG 2000, AVIF -----------------------------------------------------------------


def run_length_bmp(size: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 48, 48, 1, 8, 1, size, 0, 0, 256, 0)
    palette = bytes(4 * 256)
    rest = b"\x30\x00\x00\x00" * 48 + b"\x00\x01"
    start = 14 + 40 + len(palette)
    return b"BM" + struct.pack("<IHHI", start + size, 0, 0, start) + header + palette + rest.ljust(size, b"\0")


def plain_ppm(width: int, height: int) -> bytes:
    return f"P2 {width} {height} 255\n".encode() + b"7 " * (width * height if width * height < 10_000 else 100)


def jpeg2000(*, layers: int = 1, tile: int = 48, precinct: int | None = None, levels: int = 0, parts: int = 1) -> bytes:
    """The headers of a JPEG 2000 codestream of 4,096×4,096 pixels, or 48×48."""
    side = 4096 if tile == 48 else tile
    size = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, tile if tile != 48 else side, side, 0, 0, 3) + b"\7\1\1" * 3
    style = bytes([0 if precinct is None else 1, 0]) + struct.pack(">H", layers) + bytes([0, levels, 4, 4, 0, 1])
    style += b"" if precinct is None else bytes([precinct * 17]) * (levels + 1)
    segments = [(0x51, size), (0x52, style), (0x5C, b"\x40" + b"\x40" * (1 + 3 * levels))]
    head = b"\xff\x4f" + b"".join(b"\xff%c" % kind + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    part = b"\xff\x90\x00\x0a" + struct.pack(">HIBB", 0, 14, 0, 1) + b"\xff\x93"
    return head + part * parts + b"\xff\xd9"


def avif_with_frames(count: int) -> bytes:
    """A sound AVIF whose coded image is followed by `count` more headers of frames, in the same item."""
    avif = encoded("AVIF")
    iloc = avif.index(b"iloc")
    offset_at = next(
        at for at in range(iloc, iloc + 60) if avif[at : at + 4] == struct.pack(">I", len(avif) - item(avif))
    )
    changed = bytearray(avif + b"\x1a\x01\x00" * count)  # OBU of type 3 with a size of one byte
    struct.pack_into(">I", changed, offset_at + 4, item(avif) + 3 * count)
    mdat = avif.index(b"mdat")
    struct.pack_into(">I", changed, mdat - 4, struct.unpack_from(">I", avif, mdat - 4)[0] + 3 * count)
    return bytes(changed)


def item(avif: bytes) -> int:
    """Bytes of the one coded item, which ends the file."""
    return len(avif) - avif.index(b"mdat") - 4


BOMBS: dict[str, tuple[Callable[[int], bytes], int, int, str]] = {
    # name: (maker, a number that passes, one that does not, what is said)
    "scans of a progressive JPEG": (with_scans, 80, 12_000, "scans"),
    "scans of a sequential JPEG": (lambda n: with_scans(n, progressive=False), 80, 12_000, "scans"),
    "segments before the scan": (with_segments, 500, 200_000, "segments"),
    "segments between scans": (lambda n: with_segments(n, between=True), 500, 200_000, "segments"),
    "padding before a marker": (lambda n: with_junk(b"\xff", n), 500, 5_000_000, "damaged"),
    "junk before a marker": (lambda n: with_junk(b"\xff\x00", n), 500, 5_000_000, "damaged"),
    "data chunks of a PNG": (png_in_pieces, 5_000, 100_000, "chunks"),
    "text chunks of a PNG": (lambda n: png_in_pieces(1, chunk(b"tEXt", b"a\0b") * n), 5_000, 100_000, "chunks"),
    "unknown chunks of a PNG": (lambda n: png_in_pieces(1, chunk(b"juNK") * n), 5_000, 100_000, "chunks"),
    "chunks of a WebP": (webp_in_pieces, 5_000, 100_000, "chunks"),
    "comments of a GIF": (gif_with_comments, 2_000, 1_000_000, "blocks"),
    "tags of a TIFF": (tiff_with_tags, 1_000, 20_000, "entries"),
    "tags that share their data": (lambda n: tiff_with_tags(n, 100_000), 1, 1_000, "claims"),
    "strips of a TIFF": (tiff_with_strips, 16, 200_000, "strips"),
    "bytes of a run-length BMP": (run_length_bmp, 1_000, 9 << 20, "run-length"),
    "comments between samples": (lambda n: b"P3 8 8 255\n" + b"#\n" * n + b"9 " * 192, 500, 100_000, "comments"),
    "comments between bits": (lambda n: b"P1 8 8\n" + b"#\n" * n + b"1" * 64, 500, 100_000, "comments"),
    "samples in plain text": (lambda n: plain_ppm(n, n), 64, 7_000, "samples in plain text"),
}
HEADERS = {
    "layers of a JPEG 2000": (jpeg2000(layers=65_535, levels=32), "packets"),
    "precincts of a JPEG 2000": (jpeg2000(precinct=0, levels=1), "packets"),
    "tile-parts of a JPEG 2000": (jpeg2000(parts=70_000), "tile-parts"),
    "frames behind an AVIF's image": (avif_with_frames(5_000), "frames behind one image"),
    "a head without end": (b"P5 " + b" " * 5_000_000 + b"8 8 255 ", "no size in the first"),
    "a lossless JPEG": (encoded("JPEG").replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
}


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(data)
    return caught.value.reason


@pytest.mark.parametrize("name", BOMBS)
def test_more_work_than_the_pixels_are_worth_is_refused_before_decoding(name: str, monkeypatch) -> None:
    make, few, many, said = BOMBS[name]
    assert read_image(make(few)).mode == "RGB"

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert said in reason(make(many))
    with pytest.raises(ImageError):  # whoever asks for the size alone is not kept busy either
        image_size(make(many))


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_promise_endless_work_are_refused(name: str) -> None:
    data, said = HEADERS[name]
    assert said in reason(data)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True, "quality": 100, "subsampling": 0}),
        ("JPEG", {"quality": 1, "restart_marker_blocks": 1}),
        ("PNG", {"compress_level": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"tiffinfo": {278: 1}}),  # one row to the strip
        ("JPEG2000", {"quality_layers": list(range(60, 0, -1)), "num_resolutions": 6}),
        ("JPEG2000", {"tile_size": (64, 64), "precinct_size": (32, 32), "codeblock_size": (16, 16)}),
        ("AVIF", {"quality": 30}),
    ],
)
def test_what_encoders_write_at_their_extremes_is_read(kind: str, options: dict) -> None:
    assert read_image(encoded(kind, picture(300, 200), **options)).size == (300, 200)


def test_sequences_are_read_by_their_first_frame_however_many_follow() -> None:
    frames = [Image.new("RGB", (16, 16), (i, 2 * i, 0)) for i in range(120)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        data = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
        assert read_image(data).size == (16, 16)


# --- What is not damaged is not called so -----------------------------------------------------------------------------


def tiff_of(bits: int, samples: int, sample_format: int = 1, compression: int = 1) -> bytes:
    extra = [(338, 3, 1, 0)] if samples == 2 else []
    entries = [
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1), *extra,
        (277, 3, 1, samples), (278, 4, 1, 16), (339, 3, 1, sample_format),
    ]  # fmt: skip
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    length = 16 * 16 * samples * bits // 8
    return tiff([*entries, (273, 4, 1, start), (279, 4, 1, length)], bytes(length))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff_of(64, 1, 3), "1 sample a pixel, 64-bit floats"),
        (tiff_of(32, 3, 3), "3 samples a pixel, 32-bit floats"),
        (tiff_of(8, 7), "7 samples a pixel, 8-bit unsigned integers"),
        (tiff_of(16, 1, 5), "16-bit complex integers"),
        (tiff_of(8, 1, compression=34892), "compression 34892"),
    ],
)
def test_a_tiff_that_is_not_supported_is_called_by_what_it_holds(data: bytes, kind: str) -> None:
    said = reason(data)
    assert said.startswith("not supported: a TIFF of")
    assert kind in said
    assert "save it as an 8-bit PNG or JPEG" in said


FRAME = b"\x08\x00\x28\x00\x30\x03"  # of a JPEG: bits, rows, columns, components


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded("JPEG").replace(FRAME, b"\x0c" + FRAME[1:]), id="12-bit JPEG"),
        pytest.param(encoded("JPEG").replace(FRAME, FRAME[:-1] + b"\x02"), id="JPEG of two components"),
        pytest.param(encoded("BMP")[:30] + b"\x09" + encoded("BMP")[31:], id="a BMP's compression"),
    ],
)
def test_what_no_decoder_takes_is_not_called_damaged(data: bytes) -> None:
    assert reason(data).startswith("not supported")


# --- Large JPEGs ------------------------------------------------------------------------------------------------------


def test_a_jpeg_above_the_limit_is_reduced_and_said_to_be() -> None:
    data = encoded("JPEG", picture(400, 300))
    with pytest.warns(UserWarning, match=r"\(400x300\) was read at 1/2 of its size; --max-pixels 120000"):
        assert read_image(data, max_pixels=40_000).size == (200, 150)
    assert image_size(data) == (400, 300)
    assert read_image(data, max_pixels=120_000).size == (400, 300)


def test_callers_with_places_in_its_pixels_get_it_whole_or_not_at_all() -> None:
    data = encoded("JPEG", picture(400, 300))
    with pytest.raises(ImageError, match=r"400x300 pixels exceed the limit of 40,000; .* --max-pixels 120000"):
        read_image(data, max_pixels=40_000, whole=True)


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", 29_999), ("PNG", 40_000)])
def test_far_larger_jpegs_and_other_formats_are_refused(kind: str, limit: int) -> None:
    with pytest.raises(ImageError, match="exceed the limit"):
        read_image(encoded(kind, picture(400, 300)), max_pixels=limit)


def test_the_limit_of_the_process_holds_where_no_other_is_given() -> None:
    from distcam.errors import InputError
    from distcam.images import MAX_PIXELS, pixel_limit, set_pixel_limit

    assert pixel_limit() == MAX_PIXELS
    try:
        set_pixel_limit(2_000)
        assert read_image(encoded("PNG")).size == (48, 40)
        set_pixel_limit(1_919)
        with pytest.raises(ImageError, match="exceed the limit of 1,919"):
            read_image(encoded("PNG"))
        with pytest.raises(InputError, match="at least 64"):
            set_pixel_limit(1)
    finally:
        set_pixel_limit(MAX_PIXELS)
