"""Synthetic walkers in the layout of Market-1501: a re-identification data set from a seed, free to share.

Hard on purpose: cameras disagree about colours, people turn and are occluded, some differ from a look-alike in one item
only, boxes of nobody (0) and of half a body (-1) lie in the gallery. Each image also has a mask of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..datasets.reid_benchmarks import read_market
from ..datasets.reid_records import ReidData
from ..errors import InputError
from ..images.geometry import Box
from ..progress import Progress
from .bodies import OBSTACLES, PARTS, draw_pedestrian
from .pedestrians import ITEMS, Camera, Moment, Walker
from .scene_set import new_folder, read_rows, save_numbers, write_rows

_TRAIN, _QUERY, _GALLERY = "bounding_box_train", "query", "bounding_box_test"
_COLUMNS = ("path", "identity", "camera", "facing", "obstacle", "look_alike", "differs_in")
_PART_COLUMNS = ("path", "part", "x1", "y1", "x2", "y2", "pixels")
_OCCLUDED, _ACCOMPANIED = 0.22, 0.12  # shares of images with something, or somebody, in the way
_PALETTE = (0, 0, 0, 236, 196, 166, 120, 80, 50, 60, 130, 220, 60, 170, 90, 240, 240, 240, 220, 60, 60, 130, 130, 130)


@dataclass(frozen=True)
class WalkerSet:
    """A folder of walkers: Market-1501's three folders, `walkers.csv`, `parts.csv`, and `masks/` if asked for."""

    folder: Path

    @classmethod
    def read(cls, folder: str | Path) -> WalkerSet:
        """The set that `write_walkers` left in the folder; InputError if it holds none."""
        root = Path(folder)
        if not (root / "walkers.csv").is_file():
            raise InputError(f"{root} holds no walkers.csv; write a set with `distcam reid walkers`")
        return cls(root)

    @property
    def data(self) -> ReidData:
        """The set as any other of Market's layout."""
        return read_market(self.folder)

    def rows(self) -> list[dict[str, str]]:
        """One row per image: path, identity, camera, facing, obstacle, and whose look-alike it shows in what."""
        return read_rows(self.folder / "walkers.csv")

    def part_rows(self) -> list[dict[str, str]]:
        """One row per image and visible part: its box in pixel edges, right and bottom exclusive, and its area."""
        return read_rows(self.folder / "parts.csv")

    def mask(self, path: str, *parts: str) -> UInt8[np.ndarray, "h w"]:
        """The part of each pixel of an image (see `PARTS`), or with names 1 where one of these parts is seen, else 0.

        InputError if the set was written without masks, or a part does not exist.
        """
        file = self.mask_file(path)
        if not file.is_file():
            raise InputError(f"{file} does not exist; write the set with masks")
        with Image.open(file) as image:
            numbers = np.asarray(image, dtype=np.uint8)
        for part in parts:
            if part not in PARTS:
                raise InputError(f"no part {part!r}; there are {', '.join(PARTS)}")
        return np.isin(numbers, [PARTS.index(part) for part in parts]).astype(np.uint8) if parts else numbers

    def mask_file(self, path: str) -> Path:
        """Path of an image's mask, if masks were written."""
        return (self.folder / "masks" / path).with_suffix(".png")


class _Person(NamedTuple):
    number: int
    walker: Walker
    look_alike: int | None
    differs_in: str


class _Shot(NamedTuple):
    folder: str
    identity: int
    camera: int
    box: int
    person: _Person | None
    key: tuple[int, ...]


def write_walkers(
    folder: str | Path,
    *,
    identities: int = 100,
    cameras: int = 4,
    images_per_camera: int = 3,
    look_alikes: float = 0.4,
    distractors: float = 0.2,
    junk: float = 0.2,
    size: tuple[int, int] = (128, 64),
    masks: bool = True,
    quality: int = 90,
    seed: int = 0,
    progress: Progress | None = None,
) -> WalkerSet:
    """A new folder of walkers; it appears under its name when it is complete.

    Half of the identities are for training, the others have one query per camera and the rest in the gallery. The same
    seed gives the same images.

    Args:
        folder: must not exist yet, or be empty.
        identities: how many people, training included.
        cameras: how many cameras; everybody is seen by two or more.
        images_per_camera: images of a person by each camera that sees them; 2 or more.
        look_alikes: share of people who differ from another in one item only (bag, trousers, …), in [0, 1].
        distractors: boxes of nobody or of strangers (identity 0), as a share of the gallery.
        junk: boxes of half a body (identity -1), likewise.
        size: (height, width) in pixels.
        masks: also write `masks/…png`, palette images whose values are places in `PARTS`.
        quality: of the JPEG files, 1 to 95.
        seed: another seed gives other people and other cameras.
        progress: called with (images written, images in all).

    Raises:
        InputError: an argument is out of range, or the folder is taken.
    """
    root = Path(folder)
    if not 4 <= identities <= 9999 or not 2 <= cameras <= 9:
        raise InputError(f"expected 4 to 9999 identities and 2 to 9 cameras, got {identities} and {cameras}")
    shares = (look_alikes, distractors, junk)
    if images_per_camera < 2 or not all(0 <= share <= 1 for share in shares):
        expected = "2 or more images per camera and shares in [0, 1]"
        raise InputError(f"expected {expected}, got {images_per_camera}, {shares}")
    if min(size) < 16 or not 1 <= quality <= 95 or seed < 0:
        expected = "a size from 16, a quality from 1 to 95, a seed from 0"
        raise InputError(f"expected {expected}; got {size}, {quality}, {seed}")
    people = _people(identities, look_alikes, np.random.default_rng([seed, 1]))
    shots = list(_shots(people, cameras, images_per_camera, (distractors, junk), seed))
    views = [Camera.draw(np.random.default_rng([seed, 2, number]), number=number) for number in range(cameras)]
    rows: list[tuple[Any, ...]] = []
    parts: list[tuple[Any, ...]] = []
    with new_folder(root, otherwise=" or remove it") as partial:
        for name in (_TRAIN, _QUERY, _GALLERY):
            (partial / name).mkdir()
        for number, shot in enumerate(shots, 1):
            name = "-1" if shot.identity < 0 else f"{shot.identity:04d}"
            path = f"{shot.folder}/{name}_c{shot.camera + 1}s1_{number:06d}_{shot.box:02d}.jpg"
            image, mask, row = _draw(shot, views[shot.camera], size)
            image.save(partial / path, format="JPEG", quality=quality)
            if masks:
                save_numbers(mask, (partial / "masks" / path).with_suffix(".png"), bytes(_PALETTE), compress_level=1)
            rows.append((path, *row))
            for part in np.flatnonzero(np.bincount(mask.ravel(), minlength=len(PARTS))[1:]) + 1:
                seen = mask == part
                parts.append((path, PARTS[part], *Box.around(seen), int(seen.sum())))
            if progress is not None:
                progress(number, len(shots))
        write_rows(partial / "walkers.csv", _COLUMNS, rows)
        write_rows(partial / "parts.csv", _PART_COLUMNS, parts)
    return WalkerSet(root)


def _people(identities: int, look_alikes: float, generator: np.random.Generator) -> list[_Person]:
    """Everybody, numbered from 1; look-alikes are neighbours, and on the same side of training and test."""
    walkers = [Walker.draw(generator) for _ in range(identities)]
    pairs = round(identities * look_alikes / 2)
    starts = [start for start in range(0, identities - 1, 2) if start + 1 != identities // 2]
    people = [_Person(number, walker, None, "") for number, walker in enumerate(walkers, 1)]
    for order, start in enumerate(generator.permutation(starts)[:pairs].tolist()):
        item = ITEMS[order % 2] if order % 4 < 2 else ITEMS[int(generator.integers(len(ITEMS)))]  # bag, trousers, any
        first = people[start]
        people[start] = first._replace(look_alike=start + 2, differs_in=item)
        people[start + 1] = _Person(start + 2, first.walker.changed(item, generator), start + 1, item)
    return people


def _shots(
    people: list[_Person], cameras: int, per_camera: int, shares: tuple[float, float], seed: int
) -> Iterator[_Shot]:
    in_gallery = 0
    for person in people:
        generator = np.random.default_rng([seed, 3, person.number])
        seen_by = generator.permutation(cameras)[: int(generator.integers(2, cameras + 1))]
        for camera in sorted(seen_by.tolist()):
            for number in range(per_camera):
                is_query = number == 0
                folder = _TRAIN if 2 * person.number <= len(people) else _QUERY if is_query else _GALLERY
                in_gallery += folder == _GALLERY
                key = (seed, 4, person.number, camera, number)
                yield _Shot(folder, person.number, camera, 0 if folder == _QUERY else number + 1, person, key)
    tested = people[len(people) // 2 :]
    for kind, (identity, share) in enumerate(zip((0, -1), shares, strict=True), 5):
        for number in range(round(share * in_gallery)):
            generator = np.random.default_rng([seed, kind, number])
            camera, who = int(generator.integers(cameras)), tested[int(generator.integers(len(tested)))]
            stranger = None
            if generator.random() < 0.6:  # somebody like a person of the test, but not that person: two items differ
                stranger = who
                for item in generator.permutation(ITEMS)[:2].tolist():
                    stranger = stranger._replace(walker=stranger.walker.changed(item, generator))
            yield _Shot(_GALLERY, identity, camera, 1, stranger if identity == 0 else who, (seed, kind, number, 1))


def _draw(
    shot: _Shot, camera: Camera, size: tuple[int, int]
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"], tuple[Any, ...]]:
    generator = np.random.default_rng(shot.key)
    moment = (Moment.cut_off if shot.identity == -1 else Moment.draw)(camera, generator)
    chance, beside = generator.random(2)
    obstacle = OBSTACLES[int(generator.integers(len(OBSTACLES)))] if chance < _OCCLUDED else "none"
    others: tuple[tuple[Walker, Moment], ...] = ()
    if beside < _ACCOMPANIED:
        side = 1.0 if beside < _ACCOMPANIED / 2 else 0.0
        at = Moment.draw(camera, generator)._replace(middle=side + float(generator.uniform(-0.12, 0.12)))
        others = ((Walker.draw(generator), at),)
    person = shot.person
    walker = None if person is None else person.walker
    around: dict[str, Any] = {"others": others, "obstacle": obstacle, "size": size}
    image, mask = draw_pedestrian(walker, camera, moment, **around, generator=generator)
    twin = ("", "") if person is None or shot.identity < 1 else (person.look_alike or "", person.differs_in)
    return image, mask, (shot.identity, shot.camera, moment.facing, obstacle, *twin)
