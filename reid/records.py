"""One record per re-identification image, and a data set as a list of them; formats differ only in how it is filled."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ..errors import InputError
from .policies import Identity, Labels, Protocol

__all__ = ["FormatName", "ReidData", "ReidImage", "Role"]

Role = Literal["train", "query", "gallery", "test", "multi_query"]
"""`test` is query and gallery at once (no query meets its own image); `multi_query` are further views of queries."""
FormatName = Literal["market", "duke", "msmt17", "cuhk03", "veri", "vehicleid", "csv", "folder"]
_SCHEME = "; a name begins with identity and camera, as 0002_c1s1_000451_03.jpg does, cameras from 1 on"
_NAMES: dict[FormatName, str] = {
    **dict.fromkeys(
        ("market", "duke", "veri", "cuhk03"), f"{_SCHEME}. Or give a CSV with path, identity, camera, role"
    ),
    "msmt17": "; its lists name images such as 0001/0001_019_07_0303morning_0020_1.jpg, and an identity",
    "vehicleid": "; its lists name an image and an identity",
    "csv": "",
    "folder": "",
}


@dataclass(frozen=True)
class ReidImage:
    """One image: who is on it, who took it, and what it is for.

    Attributes:
        path: posix, relative to the data set's root where it lies under it.
        identity: a number, or a name; what counts as junk or distractor is the protocol's business.
        camera: counted from 0, or a name; None where it is not known.
        role: see `Role`.
        sequence: recording of that camera, where the format names one.
        time: frame number or time of day as the format writes it.
        columns: whatever else is known.
    """

    path: str
    identity: Identity
    camera: Identity | None
    role: Role
    sequence: str | None = None
    time: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReidData:
    """A re-identification data set: its images in a fixed order, and the protocol its format is evaluated under.

    Attributes:
        format: which reader made it.
        root: folder that relative paths refer to.
        images: sorted by role, then as the format lists them.
        protocol: the format's usual evaluation.
        known: images the published set has, by name of a count (see `Audit`); empty where nothing is known.
        notes: choices that the reader made and that a reader of numbers should know.
        ignored: files that look like images but are not part of the set.
        has_common_identities: False where train and test number their identities independently.
    """

    format: FormatName
    root: Path
    images: tuple[ReidImage, ...]
    protocol: Protocol
    known: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    has_common_identities: bool = True

    def __post_init__(self) -> None:
        if not self.images:
            passed = (
                f"; {len(self.ignored):,} files were passed over, such as {self.ignored[0]}" if self.ignored else ""
            )
            raise InputError(f"{self.root}: no image of the {self.format} format found{passed}{_NAMES[self.format]}")

    def __len__(self) -> int:
        return len(self.images)

    def of(self, *roles: Role) -> tuple[ReidImage, ...]:
        """The images of some roles.

        Raises:
            InputError: no such role exists.
        """
        for role in roles:
            if role not in get_args(Role):
                raise InputError(f"role must be one of {get_args(Role)}, got {role!r}")
        return tuple(image for image in self.images if image.role in roles)

    @property
    def queries(self) -> tuple[ReidImage, ...]:
        """The images that ask."""
        return self.of("query", "test")

    @property
    def gallery(self) -> tuple[ReidImage, ...]:
        """The images that answer, junk included."""
        return self.of("gallery", "test")

    def file(self, image: ReidImage) -> Path:
        """Where an image lies."""
        return self.root / image.path

    def without(self, paths: Container[str]) -> ReidData:
        """The set without some images, such as those that cannot be read.

        Raises:
            InputError: none is left.
        """
        return replace(self, images=tuple(image for image in self.images if image.path not in paths))


def labels_of(images: Iterable[ReidImage]) -> Labels:
    """What an evaluation needs to know about images.

    >>> labels_of([ReidImage("a.jpg", 7, 0, "query"), ReidImage("b.jpg", 9, None, "query")]).cameras.tolist()
    [0, -1]
    """
    listed = list(images)
    cameras = [image.camera for image in listed]
    has_names = any(isinstance(camera, str) for camera in cameras)
    unknown: Identity = "" if has_names else -1
    known = [unknown if camera is None else camera for camera in cameras]
    return Labels(
        [image.identity for image in listed],
        cameras=[str(camera) for camera in known] if has_names else known,
        images=[image.path for image in listed],
    )
