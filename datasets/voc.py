"""Masks written in the layout of PASCAL VOC, which every tool reads; each file appears whole or not at all.

FOLDER/SegmentationClass/NAME.png       palette images: 0 background, c + 1 class c, 255 void
FOLDER/ImageSets/Segmentation/SPLIT.txt NAME per line, written last
FOLDER/JPEGImages/NAME.jpg              the images, if asked for
FOLDER/classes.txt                      the classes' names, by number from 1 on
FOLDER/settings.json                    what the masks were made with
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import replacing
from ..images.masks import VOID, Mask


def palette() -> list[int]:
    """VOC's 256 colours as 768 numbers: the bits of a class's number spread over red, green and blue.

    >>> palette()[:12]
    [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    """
    colours = []
    for number in range(256):
        bits = [(number >> place) & 1 for place in range(8)]
        for channel in range(3):
            own = [bits[place] for place in range(channel, 8, 3)]
            colours.append(sum(bit << (7 - k) for k, bit in enumerate(own)))
    return colours


def palette_image(mask: Mask) -> Image.Image:
    """The mask as an image in VOC's colours, whose pixels are the class numbers."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(palette())
    return image


def overlay_mask(image: Image.Image, mask: Mask, *, opacity: float = 0.55) -> Image.Image:
    """The image with the classes in VOC's colours laid over it; the background stays clear, void is white."""
    colours = np.asarray(palette_image(mask).convert("RGB"), dtype=float)
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    share = np.where(mask > 0, opacity, 0.0)[:, :, None]
    return Image.fromarray(np.rint(pixels * (1 - share) + colours * share).astype(np.uint8))


class VocFolder:
    """A folder that masks are written to, one by one; a run that was stopped goes on where it was.

    Args:
        folder: new, empty, or one that was begun with the same settings.
        class_names: of the foreground.
        settings: what the masks are made with, as JSON can hold it.

    Raises:
        InputError: the folder holds something else, or masks made with other settings.
    """

    def __init__(
        self, folder: str | Path, class_names: Sequence[str], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        own = {"classes": list(self.class_names), **(settings or {})}
        note = self.folder / "settings.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; choose a folder for the masks")
        if note.is_file():
            try:
                before = json.loads(note.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != json.loads(json.dumps(own)):
                made = f"masks made with other settings (see {note.name})"
                raise InputError(f"{note.parent} holds {made}; remove it or choose another")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is taken by something else; choose another folder for the masks")
        self._write("classes.txt", "".join(f"{name}\n" for name in self.class_names).encode())
        self._write("settings.json", (json.dumps(own, indent=2) + "\n").encode())

    @property
    def masks(self) -> Path:
        """Folder of the masks."""
        return self.folder / "SegmentationClass"

    def mask_file(self, name: str) -> Path:
        """Path of an image's mask."""
        return self.masks / f"{name}.png"

    def has(self, name: str) -> bool:
        """True if the image's mask is written already."""
        return self.mask_file(name).is_file()

    def write(self, name: str, mask: Mask, *, image: Path | None = None) -> None:
        """Write one mask, and copy its image if there is one; InputError for a number that is no class."""
        wrong = mask[(mask > len(self.class_names)) & (mask != VOID)]
        if wrong.size:
            raise InputError(f"{name}: the mask holds {wrong[0]}; expected 0 to {len(self.class_names)}, or {VOID}")
        if image is not None:
            target = self.folder / "JPEGImages" / f"{name}{image.suffix.lower()}"
            with replacing(target) as aside:
                shutil.copyfile(image, aside)
        buffer = io.BytesIO()
        palette_image(mask).save(buffer, "PNG", optimize=True)
        self._write(f"SegmentationClass/{name}.png", buffer.getvalue())

    def read(self, name: str) -> Mask:
        """A mask that was written."""
        with Image.open(self.mask_file(name)) as image:
            return np.asarray(image).astype(np.uint8, copy=True)

    def finish(self, split: str, names: Sequence[str]) -> None:
        """Write the list of a split; InputError where one of its masks is missing."""
        missing = next((name for name in names if not self.has(name)), None)
        if missing is not None:
            raise InputError(f"{self.folder} has no mask of {missing}, so the list of {split} would be wrong")
        self._write(f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in names).encode())

    def _write(self, path: str, data: bytes) -> None:
        with replacing(self.folder / path) as aside:
            aside.write_bytes(data)
