"""One record per re-identification image, and a data set as a list of them; formats differ only in how it is filled."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError

SameCamera = Literal["drop_matches", "drop_all", "keep"]
DistractorPolicy = Literal["wrong", "ignore"]
NoMatch = Literal["skip", "zero", "refuse"]
MissingCamera = Literal["refuse", "distinct"]
FalseAlarms = Literal["left_out", "unmated"]
Identity = int | str
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
class Protocol:
    """The decisions behind a re-identification score; the default is the rule of the Market-1501 evaluation.

    Attributes:
        same_camera: `"drop_matches"` ignores gallery images of the query's identity from the query's camera (the usual
            rule); `"drop_all"` ignores every gallery image from the query's camera; `"keep"` ignores none.
        junk: identities that are no identity: their gallery images are neither right nor wrong, they are not there.
        distractors: identities of which two images are not the same one, such as Market's 0. They are never a match.
        distractor_policy: distractors count as `"wrong"` answers, or are `"ignore"`d like junk.
        no_match: a query without any match left in the gallery is left out of CMC, mAP and mINP (`"skip"`), scores
            nothing in them (`"zero"`), or is an error (`"refuse"`).
        missing_camera: an image without a camera is an error (`"refuse"`) or shares its camera with no other image
            (`"distinct"`). With `same_camera="keep"` no camera is needed.
        false_alarms: the probes whose alarm is false, for DIR@FAR: every query with its own identity taken out of the
            gallery (`"left_out"`), or only the queries without a match (`"unmated"`).

    >>> Protocol(junk=(-1,), distractors=(0,)).same_camera
    'drop_matches'
    """

    same_camera: SameCamera = "drop_matches"
    junk: tuple[Identity, ...] = (-1,)
    distractors: tuple[Identity, ...] = ()
    distractor_policy: DistractorPolicy = "wrong"
    no_match: NoMatch = "skip"
    missing_camera: MissingCamera = "refuse"
    false_alarms: FalseAlarms = "left_out"

    def __post_init__(self) -> None:
        allowed = {
            "same_camera": SameCamera,
            "distractor_policy": DistractorPolicy,
            "no_match": NoMatch,
            "missing_camera": MissingCamera,
            "false_alarms": FalseAlarms,
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        for name in ("junk", "distractors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if both := set(map(str, self.junk)) & set(map(str, self.distractors)):
            raise InputError(f"identities {sorted(both)} are declared both junk and distractors; choose one")

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self) | {"junk": list(self.junk), "distractors": list(self.distractors)}

    def describe(self) -> list[str]:
        """One plain line per decision."""
        same = {
            "drop_matches": "gallery images of the query's identity and camera are ignored",
            "drop_all": "every gallery image from the query's camera is ignored",
            "keep": "kept, cameras play no part",
        }
        skipped = {"skip": "left out of CMC, mAP and mINP", "zero": "count as 0", "refuse": "refused"}
        alarms = {"left_out": "every query, its identity left out", "unmated": "queries without a match"}
        missing = {"refuse": "refused", "distinct": "a camera of its own"}
        dropped = "ignored" if self.distractor_policy == "ignore" else "count as wrong"
        return [
            f"same camera: {same[self.same_camera]}",
            f"junk: {_listed(self.junk)} ignored",
            f"distractors: {_listed(self.distractors)} {dropped}",
            f"queries without a match: {skipped[self.no_match]}",
            f"missing camera: {missing[self.missing_camera]}",
            "ties: wrong answers come first; step AP takes the precision behind the whole tie",
            f"false alarms (DIR@FAR): {alarms[self.false_alarms]}",
        ]


def _listed(identities: tuple[Identity, ...]) -> str:
    return "{" + ", ".join(map(str, identities)) + "}"


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
        """Path of an image."""
        return self.root / image.path

    def without(self, paths: Container[str]) -> ReidData:
        """The set without some images, such as those that cannot be read.

        Raises:
            InputError: none is left.
        """
        return replace(self, images=tuple(image for image in self.images if image.path not in paths))
