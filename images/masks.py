"""Masks of images: one file each, read as boolean arrays, and folders of them beside folders of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, InputError
from ..metrics.segmentation import VOID, Mask
from .joining import Join, beside
from .loading import IMAGE_SUFFIXES, pixel_limit, read_image

__all__ = ["VOID", "Mask", "MaskFolder", "read_class_numbers", "read_mask", "wrong_size"]


def read_mask(source: str | os.PathLike[str], *, category: int | None = None) -> Bool[NDArray[Any], "height width"]:
    """An image as a mask: everything that is not black; or, with `category`, the pixels that hold this number."""
    if category is None:
        return np.asarray(np.asarray(read_image(source)).any(-1))
    return np.asarray(read_class_numbers(source) == category)


def read_class_numbers(source: str | os.PathLike[str]) -> UInt8[NDArray[Any], "height width"]:
    """The numbers in a mask of classes, as they are: a PNG with a palette or in grey, one byte per pixel or less."""
    try:
        with Image.open(source, formats=("PNG",)) as image:
            if image.mode not in ("1", "L", "P"):
                raise ImageError(source, f"expected a mask of class numbers (palette or 8-bit grey), got {image.mode}")
            if image.width * image.height > pixel_limit():
                raise ImageError(source, f"{image.width}x{image.height} pixels exceed the limit of {pixel_limit():,}")
            return np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(source, f"not a readable mask in PNG ({error})") from error


@dataclass(frozen=True)
class MaskFolder:
    """The masks of images: for `cat/1.jpg` the file `FOLDER/cat/1.png`, for a path outside the root `FOLDER/1.png`."""

    folder: Path
    category: int | None = None  # the number that marks the object; None for everything that is not black

    @classmethod
    def given(cls, folder: MaskFolder | str | os.PathLike[str], category: int | None = None) -> MaskFolder:
        """The folder that a user names, as an absolute path."""
        if isinstance(folder, MaskFolder):
            if category is not None:
                raise InputError("the number of the class belongs to the MaskFolder; give it there")
            return cls.given(folder.folder, folder.category)
        path = Path(folder).absolute()
        if not path.is_dir():
            raise InputError(f"expected a folder of masks, and {path} is none")
        if category is not None and not 0 <= category <= 255:
            raise InputError(f"the number of a class in a mask is one from 0 to 255, got {category}")
        return cls(path, category)

    def file(self, path: str | os.PathLike[str]) -> Path:
        """Expected place of the mask of the image with this path."""
        return beside(self.folder, path)

    def join(self, paths: Iterable[str]) -> Join:
        """Fit of the masks and the images with these paths; masks of further images are not missed."""
        join = Join()
        for path in paths:
            file = self.file(path)
            wanted = os.fspath(file.relative_to(self.folder))
            join.add(path, wanted if file.is_file() else None, wanted=wanted)
        masks = (file for file in sorted(self.folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES)
        return join.fit((os.fspath(file.relative_to(self.folder)) for file in masks), is_there=lambda _: True)

    def digest(self, path: str | os.PathLike[str]) -> str | None:
        """The first 16 hexadecimal digits of the SHA-256 of an image's mask file; None if there is none."""
        try:
            return hashlib.sha256(self.file(path).read_bytes()).hexdigest()[:16]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ImageError(path, f"its mask cannot be read: {(error.strerror or str(error)).lower()}") from error

    def read(self, path: str | os.PathLike[str], size: tuple[int, int]) -> Bool[NDArray[Any], "height width"] | None:
        """The mask of an image of `size` (width, height); None if there is none. It may be empty."""
        file = self.file(path)
        if not file.is_file():
            return None
        try:
            mask = read_mask(file, category=self.category)
        except ImageError as error:
            raise ImageError(path, f"its mask {file}: {error.reason}") from error
        if (problem := wrong_size(file, (mask.shape[1], mask.shape[0]), size)) is not None:
            raise ImageError(path, problem)
        return mask

    def saliency(self, path: str | os.PathLike[str], size: tuple[int, int]) -> UInt8[NDArray[Any], "height width"]:
        """The saliency map, in grey levels, of an image of `size` (width, height), in the place of its mask.

        ImageError: there is none, it cannot be read, or it has another size.
        """
        file = self.file(path)
        levels = np.asarray(read_image(file).convert("L"))
        if (problem := wrong_size(file, (levels.shape[1], levels.shape[0]), size)) is not None:
            raise ImageError(path, problem.replace("its mask", "its saliency map"))
        return levels


def wrong_size(file: str | os.PathLike[str], mask: tuple[int, int], image: tuple[int, int]) -> str | None:
    """The fault of a mask of one (width, height) for an image of another; None if they are the same."""
    if mask == image:
        return None
    message = f"has {image[0]}x{image[1]} pixels, its mask {file} {mask[0]}x{mask[1]}"
    if mask == (image[1], image[0]):
        return f"{message}: width and height are exchanged, as for a mask of a photograph that EXIF turns upright"
    return message if mask[0] * image[1] == mask[1] * image[0] else f"{message}, which has other proportions"
