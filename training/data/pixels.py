"""Pixels of a training set, decoded once before the first step, so that unreadable files are known before training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ImageError, InputError
from ...files import content_digest
from ...images import Transform, read_image
from ...progress import Progress
from ...remarks import Skipped, counted, remark

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that cache="auto" keeps in memory
_SHOWN = 10  # left-out images that a remark names

Cache = Literal["auto", "memory", "none"]


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Images by number, as a transform makes them: decoded already, or read whenever they are needed."""

    in_memory: UInt8[Tensor, "n 3 h w"] | None
    files: Sequence[Path]
    transform: Transform

    def read(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Some of them; ImageError names a file that cannot be read any more."""
        if self.in_memory is not None:
            return self.in_memory[index]
        return torch.stack([self.transform(read_image(self.files[i])) for i in index.tolist()])


class Decoded(NamedTuple):
    """Files, decoded."""

    pixels: PixelSource  # of the images that can be read
    kept: tuple[int, ...]  # their places among the files
    digests: NDArray[np.int64]  # of their contents, see `content_digest`
    failed: tuple[tuple[int, str], ...] = ()  # place and reason of each of the others


def decode(files: Sequence[Path], transform: Transform, *, cache: Cache, progress: Progress | None = None) -> Decoded:
    """Decode every file once, by several threads; the pixels stay in memory if the cache says so ("auto": 2 GiB)."""
    needed = len(files) * 3 * transform.height * transform.width
    is_lazy = cache == "none" or (cache == "auto" and needed > MEMORY_LIMIT)
    rows = 0 if is_lazy else len(files)
    pixels = torch.empty(rows, 3, transform.height, transform.width, dtype=torch.uint8)
    kept: list[int] = []
    digests: list[int] = []
    failed: list[tuple[int, str]] = []

    def look(file: Path) -> tuple[Tensor | None, int] | ImageError:
        """The image, if it is to be kept, and the digest of the file; or what is wrong with it."""
        try:
            image = read_image(file)
            digest = content_digest(file.read_bytes())
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(file, f"cannot be read: {error.strerror}")
        return None if is_lazy else transform(image), digest

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        try:
            for number, found in enumerate(threads.map(look, files)):
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
    held = PixelSource(None if is_lazy else pixels[: len(kept)], [files[i] for i in kept], transform)
    return Decoded(held, tuple(kept), np.array(digests, np.int64), tuple(failed))


def say_left_out(skipped: Sequence[Skipped], *, of: int, strict: bool = False) -> None:
    """Remark on images that cannot be read, all of them at once; nothing if there are none."""
    if not skipped:
        return
    shown = "; ".join(f"{item.path} ({item.reason})" for item in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    if len(skipped) == of:
        raise InputError(f"none of {counted(of, 'image')} can be read: {shown}{more}")
    are = "is" if len(skipped) == 1 else "are"
    remark(f"{len(skipped)} of {counted(of, 'image')} cannot be read and {are} left out: {shown}{more}", strict=strict)
