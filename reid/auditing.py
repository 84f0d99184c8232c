"""Audit of a re-identification data set, before a number is computed from it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..datasets.reid_records import ReidData, ReidImage
from ..errors import ImageError, InputError
from ..images import read_image
from ..progress import Progress
from ..threads import in_threads
from .policies import placeholders

_SIDES = ("train", "query", "gallery")
_SHOWN, _SHOWN_CAMERAS = 5, 24
_HASH_SIDE, _CHUNK_BITS = 8, 16
_LARGEST_BUCKET = 200  # images that share a quarter of their hash; more are one blank wall after another


class Known(NamedTuple):
    """A count beside the published one."""

    name: str
    found: int
    published: int


class Duplicates(NamedTuple):
    """Images with the same content, or nearly so, and what that breaks."""

    paths: tuple[str, ...]
    has_several_identities: bool
    has_train_and_test: bool


@dataclass(frozen=True)
class Audit:
    """Findings; `print` them for a report, `to_dict` them for JSON.

    Attributes:
        format: of the data set.
        counts: images, identities, junk, … by name.
        known: those counts that were published for this set.
        cameras: images per camera and role.
        few_images: training identities with fewer images than asked for, and how many they have.
        in_train_and_test: identities on both sides, where the format numbers them together.
        without_match: query images whose identity the gallery shows from no camera that counts.
        duplicates: groups of files with the same bytes.
        near_duplicates: pairs that look alike although they should not: two identities, or train and test.
        unreadable: files that are missing or no images, and why.
        ignored: files beside the images whose names say nothing.
        notes: choices the reader made.
        n_opened: files that were opened; 0 when only lists were looked at.
        placeholders: identities and cameras that look like "unknown", and how many images have them.
    """

    format: str
    counts: dict[str, int]
    known: tuple[Known, ...]
    cameras: dict[str, dict[str, int]]
    few_images: dict[str, int]
    in_train_and_test: tuple[str, ...]
    without_match: tuple[str, ...]
    duplicates: tuple[Duplicates, ...]
    near_duplicates: tuple[Duplicates, ...]
    unreadable: dict[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    n_opened: int
    placeholders: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per kind of finding that makes scores wrong or not comparable."""
        differing = [f"{name}: {found:,}, published {known:,}" for name, found, known in self.known if found != known]
        wrong = [group for group in self.duplicates if group.has_several_identities]
        leaks = [group for group in self.duplicates if group.has_train_and_test]
        findings = {
            "files that cannot be read": len(self.unreadable),
            "identities in train and in test": len(self.in_train_and_test),
            "groups of identical files under several identities": len(wrong),
            "groups of identical files in train and in test": len(leaks),
            "pairs that look alike and should not": len(self.near_duplicates),
            "identities or cameras that look like placeholders": len(self.placeholders),
        }
        return (*differing, *(f"{number:,} {what}" for what, number in findings.items() if number))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return asdict(self) | {
            "known": [one._asdict() for one in self.known],
            "duplicates": [one._asdict() for one in self.duplicates],
            "near_duplicates": [one._asdict() for one in self.near_duplicates],
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        """A plain-text report; long lists are cut."""
        published = {one.name: one.published for one in self.known}
        lines = [f"format: {self.format}", *self.notes, ""]
        for name, number in self.counts.items():
            beside = f"   published {published[name]:,}" if name in published else ""
            mark = "" if published.get(name, number) == number else "   DIFFERS"
            lines.append(f"{name:24} {number:>9,}{beside}{mark}")
        roles = list(dict.fromkeys(role for row in self.cameras.values() for role in row))
        lines += ["", f"{'camera':>12}" + "".join(f"{role:>12}" for role in roles) if self.cameras else "no cameras"]
        for camera, row in list(self.cameras.items())[:_SHOWN_CAMERAS]:
            lines.append(f"{camera:>12}" + "".join(f"{row.get(role, 0):>12,}" for role in roles))
        if len(self.cameras) > _SHOWN_CAMERAS:
            lines.append(f"  … and {len(self.cameras) - _SHOWN_CAMERAS:,} more cameras")
        lines += _listed("training identities with few images", [f"{k} ({n})" for k, n in self.few_images.items()])
        lines += _listed("queries without a match in another camera", self.without_match)
        lines += _listed("identities in train and in test", self.in_train_and_test)
        named = [f"{name}: {n:,} images, which count as one" for name, n in self.placeholders.items()]
        lines += _listed("look like placeholders", named)
        lines += _listed("unreadable files", [f"{path}: {why}" for path, why in self.unreadable.items()])
        lines += _listed("identical files", [" = ".join(group.paths) for group in self.duplicates])
        lines += _listed("look alike and should not", [" ~ ".join(group.paths) for group in self.near_duplicates])
        lines += _listed("files that are no images of the set", self.ignored)
        lines += ["", *([f"problem: {problem}" for problem in self.problems] or ["no problem found"])]
        return "\n".join(lines if self.n_opened else [*lines, "no file was opened"])


def audit(
    data: ReidData,
    *,
    least_images: int = 4,
    open_files: bool = True,
    near_bits: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Look at every record, and unless told otherwise at every file, once.

    Args:
        data: what `read_data` returned.
        least_images: a training identity with fewer images is listed; 4 is what identity samplers draw.
        open_files: decode every image and hash its bytes.
        near_bits: also find pairs whose 64-bit difference hashes differ in at most so many bits, 0 to 3; only across
            identities, and across train and test, since neighbouring frames always look alike.
        workers: threads that decode.
        progress: called with (files opened, files in all).

    Raises:
        InputError: an option out of range.
    """
    if near_bits is not None and not (0 <= near_bits <= 3 and open_files):
        raise InputError(f"near_bits must be from 0 to 3 and needs the files to be opened, got {near_bits}")
    if least_images < 1:
        raise InputError(f"least_images must be at least 1, got {least_images}")
    opened_files = list(_opened(data, near_bits is not None, workers, progress)) if open_files else []
    by_content: dict[bytes, list[ReidImage]] = defaultdict(list)
    for look in opened_files:
        if look.problem is None:
            by_content[look.digest].append(look.image)
    cameras: dict[str, dict[str, int]] = {}
    with_camera = [image for image in data.images if image.camera is not None]
    for image in sorted(with_camera, key=lambda image: (isinstance(image.camera, str), image.camera)):
        row = cameras.setdefault(str(image.camera), {})
        row[image.role] = row.get(image.role, 0) + 1
    counts, nobody = _counts(data), {str(name) for name in (*data.protocol.junk, *data.protocol.distractors)}
    per_identity = Counter(image.identity for image in data.of("train") if str(image.identity) not in nobody)
    tested = {image.identity for image in data.of("query", "gallery", "test")}
    common = per_identity.keys() & tested if data.has_common_identities else set()
    return Audit(
        format=data.format,
        counts=counts,
        known=tuple(Known(name, counts.get(name, 0), number) for name, number in data.known.items()),
        cameras=cameras,
        few_images={str(k): n for k, n in sorted(per_identity.items(), key=str) if n < least_images},
        in_train_and_test=tuple(sorted(map(str, common))),
        without_match=_without_match(data),
        duplicates=tuple(_group(images, data) for images in by_content.values() if len(images) > 1),
        near_duplicates=() if near_bits is None else tuple(_near_duplicates(data, opened_files, near_bits)),
        unreadable={look.image.path: look.problem for look in opened_files if look.problem is not None},
        ignored=data.ignored,
        notes=data.notes,
        n_opened=len(opened_files),
        placeholders=placeholders(data, data.protocol),
    )


def _counts(data: ReidData) -> dict[str, int]:
    junk, distractors = ({str(name) for name in names} for names in (data.protocol.junk, data.protocol.distractors))
    counts: dict[str, int] = {}
    for side, images in zip(_SIDES, (data.of("train"), data.queries, data.gallery), strict=True):
        counts[f"{side} images"] = sum(str(image.identity) not in junk for image in images)
        counts[f"{side} identities"] = len({i.identity for i in images if str(i.identity) not in junk | distractors})
    counts["gallery junk"] = sum(str(image.identity) in junk for image in data.gallery)
    counts["gallery distractors"] = sum(str(image.identity) in distractors for image in data.gallery)
    counts["multi-query images"] = len(data.of("multi_query"))
    counts["cameras"] = len({image.camera for image in data.images if image.camera is not None})
    counts["images without a camera"] = sum(image.camera is None for image in data.images)
    return counts


def _without_match(data: ReidData) -> tuple[str, ...]:
    """Queries whose identity appears in the gallery only where the format's protocol does not look."""
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    keeps = data.protocol.same_camera == "keep"
    for image in data.gallery:
        seen[str(image.identity)].add((str(image.camera), image.path))
    lonely = []
    for image in data.queries:
        others = seen[str(image.identity)]
        unknown = keeps or image.camera is None
        if not any(path != image.path and (unknown or camera != str(image.camera)) for camera, path in others):
            lonely.append(image.path)
    return tuple(lonely)


class _Opened(NamedTuple):
    """One opened file: what is wrong with it, or its content's hash and perhaps its look."""

    image: ReidImage
    problem: str | None
    digest: bytes = b""
    look: int = 0


def _opened(data: ReidData, wants_look: bool, workers: int | None, progress: Progress | None) -> Iterator[_Opened]:
    def look(image: ReidImage) -> _Opened:
        try:
            content = data.file(image).read_bytes()
            opened = read_image(content)
        except OSError as error:
            return _Opened(image, error.strerror or str(error))
        except ImageError as error:
            return _Opened(image, error.reason)
        return _Opened(image, None, sha256(content).digest(), difference_hash(opened) if wants_look else 0)

    images = list({image.path: image for image in data.images}.values())
    yield from in_threads(look, images, workers=workers, progress=progress)


def difference_hash(image: Image.Image) -> int:
    """64 bits that say where a tiny grey copy becomes brighter from left to right; alike for images that look alike.

    >>> difference_hash(Image.linear_gradient("L")), difference_hash(Image.linear_gradient("L").rotate(90)) == 2**64 - 1
    (0, True)
    """
    grey = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.int16)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


def _group(images: Sequence[ReidImage], data: ReidData) -> Duplicates:
    trains = {image.role == "train" for image in images}
    names = {(data.has_common_identities or image.role == "train", str(image.identity)) for image in images}
    return Duplicates(tuple(image.path for image in images), len(names) > 1, len(trains) > 1)


def _near_duplicates(data: ReidData, opened_files: Sequence[_Opened], bits: int) -> Iterator[Duplicates]:
    """Hashes that differ in at most 3 of 64 bits share one of their four quarters."""
    good = [look for look in opened_files if look.problem is None]
    hashes = np.array([look.look for look in good], dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    for shift in range(0, 64, _CHUNK_BITS):
        quarter = (hashes >> np.uint64(shift)) & np.uint64(2**_CHUNK_BITS - 1)
        order = np.argsort(quarter, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(quarter[order])) + 1):
            if bucket.size > _LARGEST_BUCKET:
                continue
            for first, second in combinations(bucket.tolist(), 2):
                if (first, second) in seen or (good[first].look ^ good[second].look).bit_count() > bits:
                    continue
                seen.add((first, second))
                pair = _group((good[first].image, good[second].image), data)
                differs = good[first].digest != good[second].digest
                if differs and (pair.has_several_identities or pair.has_train_and_test):
                    yield pair


def _listed(title: str, items: Iterable[str]) -> list[str]:
    listed = list(items)
    more = [f"  … and {len(listed) - _SHOWN:,} more"] if len(listed) > _SHOWN else []
    return [f"{title}: {len(listed):,}", *(f"  {item}" for item in listed[:_SHOWN]), *more] if listed else []
