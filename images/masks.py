"""Masks of pictures: one file each, read as boolean arrays, and folders of them beside folders of pictures."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, InputError
from .loading import MAX_PIXELS, read_image

__all__ = ["MaskFolder", "read_class_numbers", "read_mask"]


def read_mask(source: str | os.PathLike[str], *, category: int | None = None) -> Bool[NDArray[Any], "height width"]:
    """A picture as a mask: everything that is not black; or, with `category`, the pixels that hold this number.

    Numbers are those of palette and 8-bit grey pictures, as segmentation masks have them.

    Raises:
        ImageError: the file is no usable image; or it holds colours, and a number was asked for.
    """
    if category is None:
        return np.asarray(np.asarray(read_image(source)).any(-1))
    return np.asarray(read_class_numbers(source) == category)


def read_class_numbers(source: str | os.PathLike[str]) -> UInt8[NDArray[Any], "height width"]:
    """The numbers in a mask of classes, as they are: a PNG with a palette or in grey, one byte per pixel or less.

    Raises:
        ImageError: not a readable PNG, too large, or one whose pixels are colours.
    """
    try:
        with Image.open(source, formats=("PNG",)) as image:
            if image.mode not in ("1", "L", "P"):
                raise ImageError(source, f"expected a mask of class numbers (palette or 8-bit grey), got {image.mode}")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(source, f"{image.width}x{image.height} pixels exceed the limit of {MAX_PIXELS:,}")
            return np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(source, f"not a readable mask in PNG ({error})") from error


@dataclass(frozen=True)
class MaskFolder:
    """The masks of pictures: for `cat/1.jpg` the file `FOLDER/cat/1.png`, for a path outside the root `FOLDER/1.png`.

    Attributes:
        folder: where they lie.
        category: the number that marks the object in the masks; None for everything that is not black.
    """

    folder: Path
    category: int | None = None

    @classmethod
    def given(cls, folder: MaskFolder | str | os.PathLike[str], category: int | None = None) -> MaskFolder:
        """The folder that a user names, as an absolute path.

        Raises:
            InputError: it is not there, or a class's number is not one.
        """
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
        """Where the mask of the picture with this path is expected."""
        plain = Path(path)
        is_outside = plain.is_absolute() or ".." in plain.parts
        return (self.folder / (plain.name if is_outside else plain)).with_suffix(".png")

    def digest(self, path: str | os.PathLike[str]) -> str | None:
        """The first 16 hexadecimal digits of the SHA-256 of a picture's mask file; None if there is none.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            return hashlib.sha256(self.file(path).read_bytes()).hexdigest()[:16]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ImageError(path, f"its mask cannot be read: {(error.strerror or str(error)).lower()}") from error

    def read(self, path: str | os.PathLike[str], size: tuple[int, int]) -> Bool[NDArray[Any], "height width"] | None:
        """The mask of a picture of `size` (width, height); None if there is none. It may be empty.

        Raises:
            ImageError: it is no usable mask, or not of that size.
        """
        file = self.file(path)
        if not file.is_file():
            return None
        try:
            mask = read_mask(file, category=self.category)
        except ImageError as error:
            raise ImageError(path, f"its mask {file}: {error.reason}") from error
        if mask.shape != (size[1], size[0]):
            raise ImageError(path, f"has {size[0]}x{size[1]} pixels, its mask {file} {mask.shape[1]}x{mask.shape[0]}")
        return mask
