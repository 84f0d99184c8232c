"""The decisions in a re-identification score (`ReidProtocol`): checked against the labels, kept in the result.

The same distances give a mAP that differs by eight points between what is called "the Market protocol".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..datasets.reid_records import Identity, ReidData, ReidImage, ReidProtocol
from ..errors import InputError, ShapeError
from ..images.labelling import is_placeholder, remark_on_twins
from ..metrics.ranking import Groups
from ..remarks import remark

Flags = NDArray[np.bool_]
Sides = tuple[NDArray[np.intp], NDArray[np.intp]]  # codes of queries and of the gallery
MISSING = -1  # code of an unknown camera, here and in integer labels; in text labels it is the empty string


def changed_protocol(protocol: ReidProtocol, changes: str) -> ReidProtocol:
    """A protocol with some decisions changed by a text such as `same_camera=keep,distractors=0+7`.

    Raises:
        InputError: no such decision (the message names the nearest), or no such choice.

    >>> changed_protocol(Protocol(), "no_match=zero,junk=").junk
    ()
    """
    names = tuple(protocol.to_dict())
    values: dict[str, Any] = {}
    for change in filter(None, (part.strip() for part in changes.split(","))):
        name, equals, value = (part.strip() for part in change.partition("="))
        if name not in names or not equals:
            near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise InputError(f"expected NAME=VALUE, got {change!r}; nearest is {near}, there are {', '.join(names)}")
        listed = tuple(int(one) if one.lstrip("-").isdigit() else one for one in value.split("+") if one)
        values[name] = listed if name in ("junk", "distractors") else value
    return replace(protocol, **values)


@dataclass(frozen=True, eq=False)
class Labels:
    """Identity of each image, and where known its camera and its name; integers or text.

    A negative integer or an empty text is an unknown camera. `images` (paths, or any unique names) matter when queries
    and gallery share images: a query never meets its own image.

    >>> len(Labels([7, 7, 9], cameras=[0, 1, 1]))
    3
    """

    identities: ArrayLike
    cameras: ArrayLike | None = None
    images: ArrayLike | None = None

    def __post_init__(self) -> None:
        for name in ("identities", "cameras", "images"):
            if getattr(self, name) is None:
                continue
            array = np.asarray(getattr(self, name))
            if array.ndim != 1:
                raise ShapeError(f"{name}: expected one value per image (one dimension), got shape {array.shape}")
            if array.dtype == object and all(isinstance(value, str) for value in array):
                array = array.astype(str)
            if array.size and array.dtype.kind not in "iuU":
                raise InputError(f"{name}: expected integers or text, got {array.dtype}; convert them first")
            object.__setattr__(self, name, array if array.size else array.astype(np.int64))
        for name in ("cameras", "images"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self):
                raise ShapeError(f"{name}: expected {len(self)} values, one per identity, got {len(value)}")

    def __len__(self) -> int:
        return len(np.asarray(self.identities))


def labels_of(images: Iterable[ReidImage]) -> Labels:
    """Identities, cameras and names of images, as an evaluation takes them.

    >>> labels_of([ReidImage("a.jpg", 7, 0, "query"), ReidImage("b.jpg", 9, None, "query")]).cameras.tolist()
    [0, -1]
    """
    listed = list(images)
    has_names = any(isinstance(image.camera, str) for image in listed)
    unknown: Identity = "" if has_names else -1
    cameras = [unknown if image.camera is None else image.camera for image in listed]
    known = list(map(str, cameras)) if has_names else cameras
    return Labels([image.identity for image in listed], known, [image.path for image in listed])


class Matching:
    """The protocol applied to the labels: right answers of each query, and images it must not meet.

    `columns` are the gallery images in use (without junk), ordered by camera so that those of one camera are
    neighbours; all else about the gallery follows this order. What can be wrong with labels is refused here.
    """

    def __init__(self, query: Labels, gallery: Labels, *, protocol: ReidProtocol) -> None:
        identity, names = _codes(query.identities, gallery.identities, name="identities")
        junk, distractor = _nobody(identity[0], names, protocol)
        camera, self.camera_names = _camera_codes(query, gallery, protocol=protocol)
        ignored = junk | distractor if protocol.distractor_policy == "ignore" else junk
        columns = np.flatnonzero(~ignored[identity[1]])
        if not len(query) or not columns.size:
            raise InputError(f"nothing to compare: {len(query)} queries, {columns.size} gallery images that count")
        self.protocol, self.columns = protocol, columns[np.argsort(camera[1][columns], kind="stable")]
        self.query_camera, self.gallery_camera = camera[0], camera[1][self.columns]
        self.gallery_identity = identity[1][self.columns]
        self.is_distractor = distractor[self.gallery_identity]
        asked = np.isin(self.gallery_identity, identity[0])
        self.counts = {
            "queries": len(query),
            "gallery": len(gallery),
            "gallery_junk": int(junk[identity[1]].sum()),
            "gallery_distractors": int(distractor[identity[1]].sum()),
            "gallery_without_query": int((~asked & ~self.is_distractor).sum()),
            "gallery_used": int(columns.size),
            "cameras": len(self.camera_names),
            "missing_cameras": int((camera[0] == MISSING).sum() + (camera[1] == MISSING).sum()),
        }
        self._same_identity = Groups.of(identity[0], self.gallery_identity)
        self._same_camera = Groups.of(camera[0], self.gallery_camera)
        self._same_image: Groups | None = None
        if query.images is not None and gallery.images is not None:
            (asking, answering), _ = _codes(query.images, gallery.images, name="images")
            self._same_image = Groups.of(asking, answering[self.columns])

    def relations(self, query: int) -> Sides:
        """Columns that are right answers to this query, and columns it must not meet; all others are wrong answers."""
        same = self._same_identity[query]
        camera = self.query_camera[query]
        own_camera = (self.gallery_camera[same] == camera) & (camera != MISSING)
        rule = self.protocol.same_camera
        if rule == "keep" or camera == MISSING:
            matches, ignored = same, same[:0]
        else:
            matches = same[~own_camera]
            ignored = same[own_camera] if rule == "drop_matches" else self._same_camera[query]
        if self._same_image is None:
            return matches, ignored
        itself = self._same_image[query]
        return np.setdiff1d(matches, itself), np.union1d(ignored, itself)


def _codes(query: ArrayLike, gallery: ArrayLike, *, name: str) -> tuple[Sides, NDArray[Any]]:
    """Integer codes of both sides over one list of names."""
    first, second = np.asarray(query), np.asarray(gallery)
    kinds = {"text" if side.dtype.kind == "U" else "integers" for side in (first, second) if side.size}
    if len(kinds) > 1:
        raise InputError(f"{name}: queries and gallery must both be integers or both text, got one of each")
    if not first.size or not second.size:
        raise InputError(f"nothing to compare: {first.size} queries, {second.size} gallery images")
    names, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    return (codes[: first.size], codes[first.size :]), names


def _nobody(query: NDArray[np.intp], names: NDArray[Any], protocol: ReidProtocol) -> tuple[Flags, Flags]:
    """The names that are junk and those that are distractors; text labels hold the same identities as text."""
    junk, distractor = (
        np.isin(names.astype(str), [str(identity) for identity in declared])
        for declared in (protocol.junk, protocol.distractors)
    )
    strange = names[(names < 0) & ~(junk | distractor)] if names.dtype.kind != "U" else names[:0]
    if strange.size:
        remedy = "declare it in the protocol, as junk (ignored) or distractor (wrong)"
        raise InputError(f"identity {strange[0]} is negative: {remedy}")
    for kind, declared in (("junk", junk), ("a distractor", distractor)):
        if (bad := np.flatnonzero(declared[query])).size:
            raise InputError(
                f"query {bad[0]} has identity {names[query[bad[0]]]}, which the protocol declares {kind}: "
                f"take {bad.size} such queries out, or change the protocol"
            )
    return junk, distractor


def _camera_codes(query: Labels, gallery: Labels, *, protocol: ReidProtocol) -> tuple[Sides, list[Identity]]:
    """Camera codes of both sides, `MISSING` where unknown, and the cameras' names."""
    sides = []
    for side, labels in (("query", query), ("gallery", gallery)):
        cameras = None if labels.cameras is None else np.asarray(labels.cameras)
        missing = np.ones(len(labels), bool)
        if cameras is not None:
            missing = cameras == "" if cameras.dtype.kind == "U" else cameras < 0
        if missing.any() and protocol.missing_camera == "refuse" and protocol.same_camera != "keep":
            raise InputError(
                f"{int(missing.sum())} of {len(labels)} {side} images have no camera: give cameras, or choose a "
                "protocol with missing_camera='distinct' or same_camera='keep'"
            )
        sides.append((cameras, missing))
    known = [cameras[~missing] for cameras, missing in sides if cameras is not None and not missing.all()]
    if len({array.dtype.kind == "U" for array in known}) > 1:
        raise InputError("cameras: queries and gallery must both be integers or both text, got one of each")
    names = np.unique(np.concatenate(known)) if known else np.empty(0, np.int64)
    codes = []
    for cameras, missing in sides:
        code = np.full(missing.size, MISSING, np.intp)
        if cameras is not None:
            code[~missing] = np.searchsorted(names, cameras[~missing])
        codes.append(code)
    return (codes[0], codes[1]), names.tolist()


_NAMED = ("csv", "folder")  # elsewhere identities and cameras are numbers
_CROWD = 5  # times as many images as any other identity has, before the number 0 is suspected


def placeholders(data: ReidData, protocol: ReidProtocol) -> dict[str, int]:
    """Identities and cameras that look like "unknown", with how many images have them.

    What the protocol declares junk or a distractor is known to be nobody. The numbers 0 and -1 are individuals in many
    sets; of a table they are listed if -1 is the only negative number, or if 0 has far more images than anybody else.
    """
    declared = {str(name) for name in (*protocol.junk, *protocol.distractors)}
    found = {}
    if data.format in _NAMED:
        counts = Counter(str(image.identity) for image in data.images if str(image.identity) not in declared)
        found = {f"identity {name!r}": n for name, n in counts.items() if is_placeholder(name)}
        most = max((n for name, n in counts.items() if name != "0"), default=0)
        if counts["0"] > _CROWD * most > 0:
            found["identity '0'"] = counts["0"]
    cameras = Counter(str(image.camera) for image in data.images if isinstance(image.camera, str))
    return found | {f"camera {name!r}": n for name, n in cameras.items() if is_placeholder(name)}


def remark_on_placeholders(data: ReidData, protocol: ReidProtocol, *, strict: bool = False) -> None:
    """Say which identities and cameras look like placeholders, and how to leave them out."""
    if data.format in _NAMED:
        people = Counter(str(image.identity) for image in data.images)
        remark_on_twins(people, f"{data.root}, individuals", what="individual", strict=strict)
        cameras = Counter(str(image.camera) for image in data.images if image.camera is not None)
        remark_on_twins(cameras, f"{data.root}, cameras", what="camera", strict=strict)
    found = placeholders(data, protocol)
    if found:
        listed = ", ".join(f"{name} ({n:,} images)" for name, n in list(found.items())[:4])
        names = [name.partition(" ")[2].strip("'") for name in found if name.startswith("identity")]
        remedy = f"; --protocol junk={'+'.join(names)} leaves such identities out" if names else ""
        said = f"{listed} look like placeholders, but count as one individual or one camera each{remedy}"
        remark(said, strict=strict, stacklevel=4)
