"""`read_image` against files as the world makes them: every file here is made by its test."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from distcam.errors import ImageError, InputError
from distcam.images import MAX_PIXELS, MIN_SIDE, as_rgb, image_size, read_image


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def photograph(width: int = 48, height: int = 40) -> Image.Image:
    """A smooth picture without any symmetry, so that lossy formats keep it and every turn shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * x * y], axis=-1).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"") -> bytes:
    """A PNG with any claimed size; `data` are its rows (RGB, 8 bits)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tagged(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF of Pillow's with the value of one inline tag replaced."""
    changed = bytearray(tiff)
    (start,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", tiff, start)[0], 12):
        if struct.unpack_from("<H", tiff, entry)[0] == tag:
            struct.pack_into("<I", changed, entry + 8, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def pixels(source: Any) -> np.ndarray:
    return np.asarray(read_image(source), dtype=int)


def refusal(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    return caught.value.reason


# --- orientation ------------------------------------------------------------------------------------------------------

TURNS = {  # what turns an upright picture into the stored one
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_stored_turned_comes_back_upright_once(format_name: str, orientation: int) -> None:
    upright = photograph()
    turn = TURNS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[274] = orientation

    image = read_image(encoded(stored, format_name, exif=exif, quality=95))

    assert image.size == upright.size
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(upright)).mean() < 6
    assert ImageOps.exif_transpose(image).size == image.size  # nothing is left for a second reader to turn
    assert image.info == {}


@pytest.mark.parametrize("orientation", [0, 9, 99, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    assert read_image(encoded(photograph(), "JPEG", exif=exif)).size == (48, 40)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_found_in_either_byte_order_and_integer_width(order: str, kind: int) -> None:
    value = struct.pack(order + "HI"[kind - 3], 6).ljust(4, b"\0")
    exif = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IHHHI", 8, 1, 274, kind, 1) + value
    assert read_image(encoded(photograph(), "JPEG", exif=b"Exif\0\0" + exif)).size == (40, 48)


def test_damaged_exif_is_ignored_in_silence() -> None:
    exif = Image.Exif()
    exif[271], exif[274], exif[282] = "a maker with a name longer than four bytes", 6, 72.0
    block = exif.tobytes()
    for length in range(7, len(block)):  # warnings are errors here, and a JPEG without density makes Pillow read EXIF
        jpeg = encoded(photograph(), "JPEG", exif=block[:length])
        app0 = jpeg.index(b"\xff\xe0")
        assert read_image(jpeg[:app0] + jpeg[app0 + 18 :]).size in ((48, 40), (40, 48))


@pytest.mark.parametrize("text", ["", "\nexif\n 5\nzz", "\nexif\n 5\nabc", "\nexif\n 8\n49492a0008000000"])
def test_damaged_exif_in_the_text_of_a_png_is_ignored_as_well(text: str) -> None:
    png = encoded(photograph(), "PNG")
    block = chunk(b"tEXt", b"Raw profile type exif\0" + text.encode())
    assert read_image(png[:33] + block + png[33:]).size == (48, 40)


# --- modes ------------------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
RAMP_8 = np.rint(RAMP / 257).astype(int)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(encoded(Image.fromarray(RAMP), "PNG"), id="png"),
        pytest.param(encoded(Image.fromarray(RAMP), "TIFF"), id="tiff little-endian"),
        pytest.param(encoded(Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()), "TIFF"), id="tiff big"),
        pytest.param(encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), id="tiff int32"),
        pytest.param(b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes(), id="pgm"),
        pytest.param(encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), id="tiff float"),
    ],
)
def test_deep_grey_is_scaled_to_the_full_range_and_not_saturated(file: bytes) -> None:
    levels = pixels(file)
    assert (levels[..., 0] == levels[..., 2]).all()
    np.testing.assert_array_equal(levels[..., 0], RAMP_8)


def test_eight_bits_stored_in_sixteen_come_back_exactly() -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey * 257), "PNG"))[..., 0], grey)


def test_white_is_zero_in_a_16_bit_tiff_that_says_so() -> None:
    file = tagged(encoded(Image.fromarray(RAMP), "TIFF"), 262, 0)
    np.testing.assert_array_equal(pixels(file)[..., 0], 255 - RAMP_8)


@pytest.mark.parametrize("offset", [-1, 1])
def test_integers_without_a_known_range_are_refused(offset: int) -> None:
    file = encoded(Image.fromarray(RAMP.astype(np.int32) + offset), "TIFF")
    assert "integer values outside 0…65535" in refusal(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01, 255.0])
def test_floats_outside_zero_to_one_are_refused(value: float) -> None:
    values = np.full((16, 16), 0.5, np.float32)
    values[3, 4] = value
    assert "float values outside [0, 1]" in refusal(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "PA"])
def test_transparent_pixels_show_the_background_and_not_what_hides_there(mode: str) -> None:
    hidden = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    hidden.paste((0, 0, 0, 255), (0, 0, 8, 16))
    file = encoded(hidden.convert(mode), "TIFF" if mode == "PA" else "PNG")

    np.testing.assert_array_equal(pixels(file)[:, 8:], np.full((16, 8, 3), 255))
    np.testing.assert_array_equal(pixels(file)[:, :8], np.zeros((16, 8, 3)))
    assert read_image(file, background=(10, 20, 30)).getpixel((12, 3)) == (10, 20, 30)


def test_half_transparent_pixels_are_mixed() -> None:
    file = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert pixels(file)[0, 0].tolist() == [127, 127, 127]  # (1 - 128/255) * 255


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_the_colour_a_png_declares_transparent_is_background(mode: str) -> None:
    black = {"P": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    file = encoded(Image.new(mode, (8, 8)), "PNG", transparency=black)
    assert pixels(file).min() == 255


def test_an_opaque_palette_keeps_its_colours() -> None:
    image = photograph().quantize(32)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.fromarray(np.tri(16, dtype=bool))
    np.testing.assert_array_equal(pixels(encoded(image, "PNG"))[..., 1], np.tri(16) * 255)


def test_ycbcr_and_lab_tiffs_become_rgb() -> None:
    ycbcr = photograph().convert("YCbCr")
    assert np.abs(pixels(encoded(ycbcr, "TIFF")) - np.asarray(photograph())).max() <= 3
    grey = pixels(encoded(Image.new("LAB", (16, 16), (128, 128, 128)), "TIFF"))[0, 0]
    assert np.abs(grey - 119).max() <= 1  # L* = 50


@pytest.mark.parametrize("has_marker", [True, False], ids=["with Adobe's marker", "without"])
def test_a_cmyk_jpeg_is_not_negative(has_marker: bool) -> None:
    ink = photograph().convert("CMYK")
    jpeg = encoded(ink, "JPEG", quality=95)
    marker = jpeg.find(b"\xff\xee\x00\x0eAdobe")
    assert marker > 0
    if not has_marker:
        jpeg = jpeg[:marker] + jpeg[marker + 16 :]
    assert np.abs(pixels(jpeg) - np.asarray(photograph())).mean() < 6


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_read(format_name: str) -> None:
    red, blue = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    file = encoded(red, format_name, save_all=True, append_images=[blue])
    assert np.abs(pixels(file) - [255, 0, 0]).max() <= 2


def test_as_rgb_returns_an_opaque_rgb_image_itself() -> None:
    image = photograph()
    assert as_rgb(image) is image
    with pytest.raises(ImageError, match=r"<image>: float values outside"):
        as_rgb(Image.new("F", (9, 9), 7.0))


# --- sources ----------------------------------------------------------------------------------------------------------


def test_path_text_bytes_and_streams_give_the_same_image(tmp_path: Path) -> None:
    data = encoded(photograph(), "PNG")
    file = tmp_path / "a.jpg"  # the content decides, not the suffix
    file.write_bytes(data)
    stream = io.BytesIO(data)
    stream.seek(7)
    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        for source in (file, str(file), data, stream, pipe):
            np.testing.assert_array_equal(pixels(source), np.asarray(photograph()))
    assert not stream.closed


def test_every_missing_or_odd_file_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "missing.png") == "no such file"
    assert refusal(tmp_path) == "a folder"
    assert refusal(tmp_path / "empty.png") == "empty, 0 bytes"
    assert refusal(tmp_path / "pipe.png") == "not a regular file"
    assert re.fullmatch(r"damaged: .*embedded null (byte|character).*", refusal("nul\0byte.png"))  # in Python's words
    (tmp_path / "secret.png").write_bytes(encoded(photograph(), "PNG"))
    (tmp_path / "secret.png").chmod(0)
    if os.access(tmp_path / "secret.png", os.R_OK):  # an administrator may read everything
        denied = PermissionError(13, "Permission denied")
        monkeypatch.setattr("distcam.images.loading.open", lambda *_: (_ for _ in ()).throw(denied), raising=False)
    assert refusal(tmp_path / "secret.png") == "cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (np.zeros((9, 9, 3), np.uint8), "numpy.ndarray"),
        (None, "None"),
        (3, "int"),
        (photograph(), "PIL.Image.Image"),
        (io.StringIO("text"), "_io.StringIO"),
    ],
    ids=["array", "None", "number", "Pillow image", "text file"],
)
def test_what_cannot_be_read_from_is_refused_with_what_can(source: Any, kind: str) -> None:
    with pytest.raises(InputError, match=rf"a path, bytes, a binary file, or, .* a Pillow image .*; got {kind}$"):
        read_image(source)


def test_the_error_names_the_file_printably() -> None:
    with pytest.raises(ImageError, match=r"^<bytes>: empty") as caught:
        read_image(b"")
    assert caught.value.path == "<bytes>"
    with pytest.raises(ImageError) as caught:
        read_image("/missing/\udcff.png")
    assert str(caught.value).encode() == rb"/missing/\udcff.png: no such file"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just some text", "got a file that starts with b'just some te'"),
        (b"  <svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<!DOCTYPE html><title>404</title>", "a web page; the download probably failed"),
        (b"\xef\xbb\xbf<!doctype html><title>404</title>", "a web page; the download probably failed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install 'distcam[heic]'"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pip install 'distcam[heic]'"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def test_heic_is_read_once_a_decoder_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._mode, self._size = "RGB", (9, 9)
            self.tile = [ImageFile._Tile("raw", (0, 0, 9, 9), 24, "RGB")]

    monkeypatch.setitem(Image.OPEN, "HEIF", (Decoder, lambda prefix: prefix[4:12] == b"ftypheic"))
    assert pixels(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\x07" * 243).max() == 7


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"])
def test_half_a_file_is_refused(format_name: str) -> None:
    file = encoded(photograph(), format_name)
    assert "damaged" in refusal(file[: len(file) // 2])


def test_a_png_with_a_wrong_checksum_is_refused() -> None:
    file = bytearray(encoded(photograph(), "PNG"))
    file[file.index(b"IDAT") + 6] ^= 1
    assert "damaged" in refusal(bytes(file))


@pytest.mark.parametrize("kind", ["zTXt", "iCCP"])
def test_a_compressed_comment_or_profile_of_any_size_is_passed_over(kind: str) -> None:
    comment = chunk(kind.encode(), b"comment\0\0" + zlib.compress(bytes(2 << 20)))
    assert pixels(png(16, 16, comment, data=bytes(16 * 49))).max() == 0


def gif_whose_frame_exceeds_its_screen(width: int, height: int) -> bytes:
    gif = bytearray(encoded(Image.new("P", (20, 20)), "GIF"))
    struct.pack_into("<HH", gif, gif.index(b",", 13 + 3 * 2) + 5, width, height)
    return bytes(gif)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(png(10_000, 10_000), id="png between Pillow's warning and its error"),
        pytest.param(png(30_000, 30_000), id="png beyond Pillow's error"),
        pytest.param(png(2**31 - 1, 2**31 - 1), id="png at its format's limit"),
        pytest.param(gif_whose_frame_exceeds_its_screen(12_000, 10_000), id="gif"),
        pytest.param(b"P6 10000 10000 255\n", id="ppm"),
        pytest.param(tagged(tagged(encoded(photograph(), "TIFF"), 256, 10_000), 257, 10_000), id="tiff"),
    ],
)
def test_bombs_are_refused_by_their_header_without_a_warning(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        assert f"exceed the limit of {MAX_PIXELS:,}" in refusal(bomb)  # warnings are errors here
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_the_pixel_limit_and_the_smallest_side_are_inclusive() -> None:
    file = encoded(photograph(48, 40), "PNG")
    assert read_image(file, max_pixels=48 * 40).size == (48, 40)
    with pytest.raises(ImageError, match="48x40 pixels exceed the limit of 1,919"):
        read_image(file, max_pixels=48 * 40 - 1)
    assert read_image(encoded(photograph(MIN_SIDE, 100), "PNG")).size == (MIN_SIDE, 100)
    assert f"at least {MIN_SIDE}" in refusal(encoded(photograph(100, MIN_SIDE - 1), "PNG"))


def samples() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[271], exif[274] = "a maker with a name", 6
    image, grey = photograph(), Image.fromarray(RAMP)
    return {
        **{name: encoded(image, name, exif=exif) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")},
        **{name: encoded(image, name) for name in ("GIF", "BMP", "PPM", "JPEG2000")},
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "16 bits": encoded(grey, "TIFF"),
        "palette": encoded(image.quantize(8), "PNG", transparency=3),
    }


@pytest.mark.parametrize("name", samples())
def test_damage_of_any_kind_gives_an_image_or_an_image_error(name: str) -> None:
    whole, chance = samples()[name], random.Random(0)
    for _ in range(120):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(5) if damaged else 0):
            damaged[chance.randrange(min(len(damaged), chance.choice([64, len(whole)])))] = chance.randrange(256)
        try:
            image = read_image(bytes(damaged))
        except ImageError:
            continue
        assert image.mode == "RGB"
        assert min(image.size) >= MIN_SIDE


# --- side effects -----------------------------------------------------------------------------------------------------


def test_threads_may_read_good_and_bad_files_together_and_nothing_global_changes() -> None:
    filters, limit, formats = list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(Image.OPEN)
    good, bomb, half = encoded(photograph(), "JPEG"), png(10_000, 10_000), encoded(photograph(), "TIFF")[:-3000]

    def read(data: bytes) -> object:
        try:
            return read_image(data).size
        except ImageError as refused:
            return refused.reason.split()[0]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, [good, bomb, half] * 40))

    assert results == [(48, 40), "10000x10000", "damaged:"] * 40
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(Image.OPEN)) == (filters, limit, formats)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_the_file_is_closed_whatever_happens(tmp_path: Path) -> None:
    def count_open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encoded(photograph(), "PNG"))
    bad.write_bytes(encoded(photograph(), "PNG")[:-200])
    before = count_open_files()
    read_image(good)
    refusal(bad)
    assert count_open_files() == before


def test_running_out_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("distcam.images.loading.as_rgb", exhausted)
    with pytest.raises(MemoryError):
        read_image(encoded(photograph(), "PNG"))


def test_reading_and_listing_do_not_import_torch() -> None:
    code = "import sys, distcam.images as i; i.read_image, i.list_images, i.Box; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_heic_is_read_where_its_decoder_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pip install 'distcam[heic]'")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photograph(96, 64)).save(buffer)
    assert read_image(buffer.getvalue()).size == image_size(buffer.getvalue()) == (96, 64)
