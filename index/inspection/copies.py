"""Copies: files with the same bytes, images that are the same but for size and compression, and crops of one another.

The index proposes each image's nearest; `looks` decides, against pairs of distant neighbours of the same gallery. Where
the files are gone the vectors decide: a copy is far nearer than nearest neighbours in this gallery are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...images.items import split_item
from ...remarks import remark
from .calibration import shares_wrong, smallest_p, tail_p
from .findings import SharedPart
from .neighbours import Neighbours
from .pixel_copies import GreyCopies, Overlaps, Pairs

if TYPE_CHECKING:
    from ...progress import Progress
    from ..reader import GalleryReader
    from ..storage.segments import Record

PROPOSED = 4  # nearest that are looked at; a crop of 40 % of an image is among them in 95 of 100 cases
_NULL_IMAGES, _NULL_RANKS = 2000, (5, 7)


class Copy(NamedTuple):
    """A pair of copies: places of the image and of its copy, kind, expected share of wrong ones, part of the first."""

    first: int
    second: int
    kind: str
    share_wrong: float
    part: SharedPart | None = None


def equal_files(*galleries: GalleryReader) -> list[list[int]]:
    """Places of images with the same bytes and box, those of a second gallery counted on from the first."""
    found: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    start = 0
    for gallery in galleries:
        snapshot = gallery.snapshot
        for path, place in snapshot.places_by_path().items():  # read with what `file_state` says
            digest = snapshot.file_state(place)[0]
            if any(digest):  # imported vectors may have no file
                found[digest, str(split_item(path)[1])].append(start + place)
        start += len(snapshot)
    return [places for places in found.values() if len(places) > 1]


class CopyPairs(NamedTuple):
    """Pairs of places that the index proposes, and pairs that hardly are copies; a second gallery's are counted on."""

    pairs: Pairs
    null: Pairs
    galleries: tuple[GalleryReader, ...]

    @classmethod
    def of(cls, gallery: GalleryReader, own: Neighbours, other: tuple[GalleryReader, Neighbours] | None) -> CopyPairs:
        """Those within a gallery, or between it and another whose neighbours in it are given."""
        asked, start = (own, 0) if other is None else (other[1], len(own))
        rows = np.repeat(np.arange(len(asked), dtype=np.int64) + start, PROPOSED)
        near = asked.places[:, :PROPOSED].reshape(-1).astype(np.int64)
        pairs = np.unique(np.sort(np.stack([near, rows], 1)[near >= 0], axis=1), axis=0)
        some = np.random.default_rng(0).permutation(len(own))[:_NULL_IMAGES].astype(np.int64)
        null = np.concatenate([np.stack([some, own.places[some, rank]], 1) for rank in _NULL_RANKS])
        galleries = (gallery,) if other is None else (gallery, other[0])
        return cls(pairs, null[null[:, 1] >= 0], galleries)

    def seen(self, rate: float, progress: Progress | None) -> list[Copy] | None:
        """The copies among them by a look at the images; None where most files are gone, or too few for a null."""
        files = [gallery.item(record) for gallery in self.galleries for record in gallery.records(gallery.ids)]
        if len(self.null) < 40 or not any(
            Path(split_item(file)[0]).is_file() for file in files[:: max(1, len(files) // 100)]
        ):
            return None
        looks = GreyCopies.of(files, progress)
        if missing := int((looks.aspect == 0).sum()):
            first = files[int(looks.aspect.argmin())]
            remark(f"{missing:,} of {len(files):,} images cannot be read and are not looked at, the first: {first}")
        pairs, null = (each[(looks.aspect[each] > 0).all(1)] for each in (self.pairs, self.null))
        both = np.concatenate([pairs, pairs[:, ::-1]])
        found, usual = Overlaps.of(looks, both, progress), Overlaps.of(looks, null)
        same = shares_wrong(tail_p(found.whole[: len(pairs)], usual.whole))
        is_near = same <= rate
        chosen = zip(pairs[is_near].tolist(), same[is_near].tolist(), strict=True)
        copies = [Copy(first, second, "near", share) for (first, second), share in chosen]
        crop = shares_wrong(tail_p(found.part - found.whole, usual.part - usual.whole))
        crop[np.tile(is_near, 2)] = 1.0
        for at in np.flatnonzero(crop <= rate):
            part = SharedPart(*found.place[at].tolist())
            copies.append(Copy(int(both[at, 0]), int(both[at, 1]), "crop", float(crop[at]), part))
        return copies


def near_by_vectors(own: Neighbours, asked: Neighbours, rate: float, *, start: int = 0) -> list[Copy]:
    """Pairs far nearer than nearest neighbours of this gallery are, each measured by how dense its neighbourhood is."""
    usual = np.log(np.maximum(own.farthest, 1e-12))
    logs, bulk = (np.log(np.maximum(each.distances[:, 0], 1e-7)) - usual[each.places[:, 0]] for each in (asked, own))
    share = shares_wrong(smallest_p(logs.astype(np.float64), bulk.astype(np.float64)))
    found = np.flatnonzero(share <= rate)
    ends = np.sort(np.stack([asked.places[found, 0], found + start], 1), axis=1)
    pairs = {(a, b): value for (a, b), value in zip(ends.tolist(), share[found].tolist(), strict=True)}
    return [Copy(a, b, "near", value) for (a, b), value in pairs.items()]


class Group(NamedTuple):
    """Images that are copies of one another: of one gallery the largest file first, of two those of the first gallery.

    Of a crop the image that shows more comes first. `own` of the images are of the first gallery, see `Finding`.
    """

    records: tuple[Record, ...]
    own: tuple[bool, ...]
    kind: str
    share_wrong: float
    part: SharedPart | None = None


def grouped(galleries: tuple[GalleryReader, ...], equal: list[list[int]], copies: list[Copy]) -> Iterator[Group]:
    """Copies of copies in one group; of crops one for each pair of groups."""
    start = len(galleries[0])
    count = sum(len(gallery) for gallery in galleries)

    def size_of(place: int) -> tuple[int, int, int]:
        own = place < start
        size = galleries[not own].snapshot.file_state(place - start * (not own))[1]
        return int(not own), -size, place

    def group_of(places: Sequence[int], kind: str, share: float, part: SharedPart | None = None) -> Group:
        own = [place < start for place in places]
        of = [galleries[not mine].snapshot for mine in own]
        local = [place - start * (not mine) for place, mine in zip(places, own, strict=True)]
        records = [each.records(each.ids[[place]])[0] for each, place in zip(of, local, strict=True)]
        return Group(tuple(records), tuple(own), kind, share, part)

    near = [copy for copy in copies if copy.kind == "near"]
    exact = [(group[0], place) for group in equal for place in group[1:]]
    edges = np.array([*exact, *((copy.first, copy.second) for copy in near)], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
    member = connected_components(graph, directed=False)[1].tolist()
    share: dict[int, float] = {}
    for copy in near:
        number = member[copy.first]
        share[number] = max(share.get(number, 0.0), copy.share_wrong)
    groups: dict[int, list[int]] = defaultdict(list)
    for place in np.unique(edges).tolist():
        groups[member[place]].append(place)
    same = {frozenset(places) for places in equal}
    for number, places in groups.items():
        is_exact = frozenset(places) in same
        share_wrong = 0.0 if is_exact else share.get(number, 0.0)
        yield group_of(sorted(places, key=size_of), "exact" if is_exact else "near", share_wrong)
    said: set[tuple[int, int]] = set()
    for copy in sorted((copy for copy in copies if copy.kind == "crop"), key=lambda copy: copy.share_wrong):
        pair = member[copy.first], member[copy.second]
        if pair[0] != pair[1] and not said & {pair, pair[::-1]}:
            said.add(pair)
            yield group_of((copy.first, copy.second), "crop", copy.share_wrong, copy.part)
