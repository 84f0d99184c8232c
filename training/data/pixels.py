"""Every image of a training set is decoded once before the first step: kept, if there is room, or read again later.

So a file that cannot be read is known before training and not in the middle of an epoch: it is left out and named, all
of them at once. One that breaks afterwards ends the run with its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ImageError, InputError
from ...files import content_digest
from ...images import Transform, read_image
from ...remarks import Skipped, counted, remark

__all__ = ["MEMORY_LIMIT", "Cache", "Decoded", "InFiles", "InMemory", "Pixels", "decode", "say_left_out"]

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that cache="auto" keeps in memory
_SHOWN = 10  # left-out images that a remark names

Cache = Literal["auto", "memory", "none"]


class Pixels(Protocol):
    """Images by number, as a transform makes them."""

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Some of them; ImageError names a file that cannot be read any more."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images that are decoded."""

    pixels: UInt8[Tensor, "n 3 h w"]

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Some of them."""
        return self.pixels[index]


@dataclass(frozen=True, eq=False)
class InFiles:
    """Images that are read whenever they are needed."""

    files: Sequence[Path]
    transform: Transform

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Some of them, decoded now."""
        return torch.stack([self.transform(read_image(self.files[i])) for i in index.tolist()])


class Decoded(NamedTuple):
    """What decoding some files came to.

    Attributes:
        pixels: of the images that can be read.
        kept: their places among the files.
        digests: of their contents, as `content_digest` makes them.
        failed: place and reason of each of the others.
    """

    pixels: Pixels
    kept: tuple[int, ...]
    digests: NDArray[np.int64]
    failed: tuple[tuple[int, str], ...] = ()


def decode(
    files: Sequence[Path], transform: Transform, *, cache: Cache, progress: Callable[[int, int], None] | None = None
) -> Decoded:
    """Decode every file once, by several threads; the pixels are kept in memory if the cache says so.

    Args:
        files: in the order that the pixels will have.
        transform: what makes an image the network's input.
        cache: "memory" or "none", or "auto": memory up to 2 GiB.
        progress: called with (images decoded, images in all).
    """
    needed = len(files) * 3 * transform.height * transform.width
    is_lazy = cache == "none" or (cache == "auto" and needed > MEMORY_LIMIT)
    rows = 0 if is_lazy else len(files)
    pixels = torch.empty(rows, 3, transform.height, transform.width, dtype=torch.uint8)
    kept: list[int] = []
    digests: list[int] = []
    failed: list[tuple[int, str]] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        try:
            looks = threads.map(lambda file: _look(file, transform, keep=not is_lazy), files)
            for number, found in enumerate(looks):
                if isinstance(found, ImageError):
                    failed.append((number, found.reason))
                else:
                    image, digest = found
                    if image is not None:
                        pixels[len(kept)] = image
                    kept.append(number)
                    digests.append(digest)
                if progress is not None:
                    progress(number + 1, len(files))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    held: Pixels = InFiles([files[i] for i in kept], transform) if is_lazy else InMemory(pixels[: len(kept)])
    return Decoded(held, tuple(kept), np.array(digests, np.int64), tuple(failed))


def _look(file: Path, transform: Transform, *, keep: bool) -> tuple[Tensor | None, int] | ImageError:
    """The image, if it is to be kept, and the digest of the file; or what is wrong with it."""
    try:
        image = read_image(file)
        digest = content_digest(file.read_bytes())
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(file, f"cannot be read: {error.strerror}")
    return transform(image) if keep else None, digest


def say_left_out(skipped: Sequence[Skipped], *, of: int, strict: bool = False) -> None:
    """Remark on images that cannot be read, all of them at once; nothing if there are none.

    Raises:
        InputError: with `strict`; or no image is left.
    """
    if not skipped:
        return
    shown = "; ".join(f"{item.path} ({item.reason})" for item in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    if len(skipped) == of:
        raise InputError(f"none of {counted(of, 'image')} can be read: {shown}{more}")
    are = "is" if len(skipped) == 1 else "are"
    remark(f"{len(skipped)} of {counted(of, 'image')} cannot be read and {are} left out: {shown}{more}", strict=strict)
