"""Re-identification data: one record per image, the protocol, and tables and folders of identities."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import InputError
from ..images import ImageRecord, Listing, list_images
from ..images.splits import SPLIT_COLUMN, flags_of, split_column, split_name
from ..images.tables import LABEL_NAMES, look_alike
from ..remarks import remark

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
}


@dataclass(frozen=True)
class ReidProtocol:
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
        for name, choices in get_type_hints(type(self)).items():
            if get_origin(choices) is Literal and getattr(self, name) not in get_args(choices):
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
        junk, distractors = ("{" + ", ".join(map(str, own)) + "}" for own in (self.junk, self.distractors))
        dropped = "ignored" if self.distractor_policy == "ignore" else "count as wrong"
        return [
            f"same camera: {same[self.same_camera]}",
            f"junk: {junk} ignored",
            f"distractors: {distractors} {dropped}",
            f"queries without a match: {skipped[self.no_match]}",
            f"missing camera: {missing[self.missing_camera]}",
            "ties: wrong answers come first; step AP takes the precision behind the whole tie",
            f"false alarms (DIR@FAR): {alarms[self.false_alarms]}",
        ]


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
    protocol: ReidProtocol
    known: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    has_common_identities: bool = True

    def __post_init__(self) -> None:
        if not self.images:
            found = f"{self.root}: no image of the {self.format} format found"
            if self.ignored:
                found += f"; {len(self.ignored):,} files were passed over, such as {self.ignored[0]}"
            raise InputError(f"{found}{_NAMES.get(self.format, '')}")

    def __len__(self) -> int:
        return len(self.images)

    def of(self, *roles: Role) -> tuple[ReidImage, ...]:
        """The images of some roles; InputError names those that exist."""
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
        """The set without some images, such as those that cannot be read; InputError if none is left."""
        return replace(self, images=tuple(image for image in self.images if image.path not in paths))


_IDENTITY, _CAMERA, _ROLE = ("identity", "label", "pid"), ("camera", "camid", "photo_id"), ("role", "split")
_CAMERA_LIKE = (
    *("cam", "camid", "cameraid", "cameraname", "cameranumber"),
    *("camname", "camnr", "camno", "cameratrap", "station"),
)
_ROLE_LIKE = ("role", "split", "subset", "partition", "set", "phase", "part", "usage", "mode")
_ROLE_NAMES: dict[str, Role] = {role: role for role in get_args(Role)} | {"val": "test"}
Columns = Mapping[str, str | None]  # by what they hold
T = TypeVar("T")


def usable(lines: Iterable[T], read: Callable[[T], ReidImage]) -> list[ReidImage]:
    """The images of the lines that say who is on one; the others are remarked on, or refused if there is no image."""
    images, problems = list[ReidImage](), list[str]()
    for line in lines:
        try:
            images.append(read(line))
        except InputError as error:
            problems.append(str(error))
    if problems and not images:
        raise InputError(problems[0])
    if problems:
        remark(f"{len(problems):,} lines cannot be used and are left out, the first: {problems[0]}")
    return images


def read_csv(
    table: Path, *, identity: str | None = None, camera: str | None = None, role: str | None = None
) -> ReidData:
    """A table with `path`, an identity, and perhaps a camera and a role; all other columns are kept.

    Roles are train, query, gallery, and test (`val`, `validation`): query and gallery at once. Without a column of
    roles every image is `test`. What stands in the camera's column is what a query must not be answered from, so a
    photograph's number does as well as a camera's; an empty cell is an unknown camera. `identity`, `camera` and `role`
    name columns that are called otherwise than usual.
    """
    listing = list_images(table, labels="column")
    names = (*listing.column_names, *(("label",) if listing.has_labels else ()))
    columns = {
        "identity": _column(table, names, identity, _IDENTITY, required=True),
        "camera": _column(table, names, camera, _CAMERA),
        "role": _column(table, names, role, _ROLE) or split_column([each.columns for each in listing], names),
    }
    if columns["camera"] is None and (like := look_alike(listing.column_names, _CAMERA_LIKE)) is not None:
        remark(f"{table}: no column is taken as the camera; `--option camera={like}` takes {like!r}")
    if columns["role"] is None and (like := look_alike(listing.column_names, _ROLE_LIKE)) is not None:
        cells = {record.columns[like].strip() for record in listing} - {""}
        if cells and all((split_name(cell) or cell.lower()) in _ROLE_NAMES for cell in cells):
            message = f"{table}: no column is taken as the role, so every image is query and gallery at once"
            remark(f"{message}; `--option role={like}` takes {like!r}")
    notes = [f"{name}: column {column!r}" for name, column in columns.items() if column is not None]
    return _listed("csv", table, listing, columns, notes)


def read_folder(root: Path) -> ReidData:
    """Folders of splits, each with a folder for every identity, as `train` and `index build` read them; no cameras.

    The splits are the roles: `train`, `query`, `gallery`, and `test` (`val`), which is query and gallery at once.
    """
    listing, columns = list_images(root, labels="split"), {"identity": "label", "camera": None, "role": SPLIT_COLUMN}
    roles = sorted({record.columns[SPLIT_COLUMN] for record in listing})
    notes = [f"roles from the folders of the splits: {', '.join(roles)}; identities from the folders in them"]
    return _listed("folder", root, listing, columns, notes)


def _listed(form: FormatName, source: Path, listing: Listing, columns: Columns, notes: list[str]) -> ReidData:
    images = usable(listing, lambda record: _table_image(source, record, columns))
    images.sort(key=lambda image: list(_ROLE_NAMES.values()).index(image.role))  # stable: else as listed
    if columns["camera"] is None:
        notes.append("no cameras: choose same_camera=keep, or missing_camera=distinct")
    return ReidData(form, listing.root, tuple(images), ReidProtocol(), notes=tuple(notes))


def _table_image(table: Path, record: ImageRecord, columns: Columns) -> ReidImage:
    path, cells = record.path, {**record.columns, **({} if record.label is None else {"label": record.label})}

    def cell(name: str) -> str:
        column = columns[name]
        return "" if column is None else cells.get(column, "").strip()

    if not cell("identity"):
        raise InputError(f"{table}: {path} has no {columns['identity']}; every image needs an identity")
    role = split_name(cell("role")) or cell("role").lower()
    if role in ("", "test", "val"):  # `is_query` and `is_gallery` say more of test images, and who has neither trains
        said = flags_of(cells, table)
        query, gallery = said.get("is_query"), said.get("is_gallery")
        if query or gallery:
            role = "test" if query and gallery else "query" if query else "gallery"
        else:
            role = role or ("train" if said else "test")
    if role not in _ROLE_NAMES:
        raise InputError(f"{table}: {path} has the role {role!r}; there are {', '.join(_ROLE_NAMES)}")
    others = {name: value for name, value in cells.items() if name not in columns.values()}
    return ReidImage(path, cell("identity"), cell("camera") or None, _ROLE_NAMES[role], columns=others)


def _column(
    table: Path, names: tuple[str, ...], asked: str | None, usual: tuple[str, ...], *, required: bool = False
) -> str | None:
    if asked is not None and asked not in names:
        raise InputError(f"{table}: no column {asked!r}; there are {', '.join(names)}")
    known = {name.lower(): name for name in reversed(names)}
    found = asked or next((known[name] for name in usual if name in known), None)
    if found is None and required:
        similar = look_alike(names, LABEL_NAMES)
        hint = f"; `--option identity={similar}` takes that one" if similar else ""
        raise InputError(f"{table}: expected a column {' or '.join(usual)}; there are {', '.join(names)}{hint}")
    return found
