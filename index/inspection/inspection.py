"""Questions about a gallery's data, answered from the nearest neighbours of all its images, searched once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median

from ...errors import FingerprintMismatchError, InputError
from ...remarks import remark
from .calibration import largest_p, shares_wrong
from .classes import NEAREST, Codes, LabelVotes, Values, distances_to_classes, made_wrong, share_right
from .copies import CopyPairs, Group, equal_files, grouped, near_by_vectors
from .findings import COPIES_RATE, LABELS_RATE, MOST, OUTLIERS_RATE, Finding, Findings, Question
from .neighbours import K, Neighbours

if TYPE_CHECKING:
    from ...progress import Progress
    from ..reader import GalleryReader
    from ..storage.segments import Record

_SAYS = {"exact": "holds the same bytes as", "near": "is the same image as", "crop": "shows a part of"}


class Inspection:
    """One generation of a gallery under inspection; each question is a method, and what several need is computed once.

    Args:
        gallery: with two images at least.
        look: open the images of pairs that may be copies; without, vectors decide, which find fewer and no crops.
        progress: called with the number of images done and in all, once for each pass.
    """

    def __init__(self, gallery: GalleryReader, *, look: bool = True, progress: Progress | None = None) -> None:
        self.gallery, self._look, self._progress = gallery, look, progress
        self.snapshot = gallery.snapshot

    @cached_property
    def neighbours(self) -> Neighbours:
        """The nearest twenty of every image."""
        return Neighbours.of(self.gallery, progress=self._progress)

    # --- Copies -------------------------------------------------------------------------------------------------------

    def duplicates(self, *, rate: float = COPIES_RATE) -> Findings:
        """Groups of equal files and of the same image, resized or recompressed, and crops of one another."""
        groups = self._copies((self.gallery,), rate)
        return self._findings("duplicates", map(self._copy, groups), len(self.snapshot), _copies_note(rate))

    def leaks(self, other: GalleryReader, *, rate: float = COPIES_RATE) -> Findings:
        """Images of another gallery, such as the test set, that this one shows as well, wholly or in part."""
        if other.manifest.encoder.fingerprint != self.gallery.manifest.encoder.fingerprint:
            raise FingerprintMismatchError(
                f"{other.folder} was built with {other.manifest.encoder.short_name}, {self.gallery.folder} with "
                f"{self.gallery.manifest.encoder.short_name}; build one of them again to compare them"
            )
        found = [self._copy(group) for group in self._copies((self.gallery, other), rate)]
        return self._findings("leaks", found, len(other.snapshot), _copies_note(rate), str(other.folder))

    def _copies(self, galleries: tuple[GalleryReader, ...], rate: float) -> list[Group]:
        _check_rate(rate)
        own, asked, other = len(self.snapshot), self.neighbours, None
        equal = equal_files(*galleries)
        if len(galleries) > 1:
            asked = Neighbours.of(self.gallery, of=galleries[1].snapshot, progress=self._progress)
            other = galleries[1], asked
            equal = [places for places in equal if min(places) < own <= max(places)]
        copies = CopyPairs.of(self.gallery, self.neighbours, other).seen(rate, self._progress) if self._look else None
        if copies is None:
            if self._look:
                remark("the images are gone or too few to look at: vectors alone decide, and crops are not found")
            copies = near_by_vectors(self.neighbours, asked, rate, start=0 if other is None else own)
        return sorted(grouped(galleries, equal, copies), key=lambda group: (group.kind != "exact", group.share_wrong))

    def _copy(self, group: Group) -> Finding:
        first, *rest = (record.path for record in group.records)
        says = f"{', '.join(rest)} {_SAYS[group.kind]} {first}"
        return Finding(group.kind, group.records, says, share_wrong=group.share_wrong, part=group.part, own=group.own)

    # --- Labels -------------------------------------------------------------------------------------------------------

    @cached_property
    def labels(self) -> Codes:
        """The class of each image as a code, −1 without one."""
        codes: Codes = self.snapshot.column("label").codes
        if len(np.unique(codes[codes >= 0])) < 2:
            raise InputError(f"{self.gallery.folder} has fewer than two classes; questions about labels need two")
        return codes

    @cached_property
    def votes(self) -> LabelVotes:
        """The neighbours' votes on each label; equal vectors are copies and do not vote."""
        tiny = 1e-6 * np.median(self.neighbours.farthest)
        return LabelVotes.of(self.neighbours, self.labels, self.neighbours.distances <= tiny)

    @cached_property
    def _class_distance(self) -> Values:
        return distances_to_classes(self.snapshot, self.labels, places=np.arange(len(self.snapshot)), codes=self.labels)

    def _ratio(self, places: NDArray[np.int64], distances: Values) -> Values:
        """Logarithm of the distance to a class over that to the nearest images of any class."""
        nearest = self.neighbours.distances[places, min(NEAREST, len(self.snapshot) - 1) - 1]
        far = np.maximum(np.where(np.isfinite(distances), distances, 1e3), 1e-7)
        ratio: Values = np.log(far / np.maximum(nearest, 1e-7))
        return ratio

    @cached_property
    def _label_shares(self) -> Values:
        """Expected share of right labels among each image and all that are outvoted more clearly; 1 for the others."""
        labels, votes = self.labels, self.votes
        places, wrong = made_wrong(labels)
        planted = self._ratio(places, distances_to_classes(self.snapshot, labels, places=places, codes=wrong))
        outvoted = np.flatnonzero((labels >= 0) & (votes.other > votes.own))
        scores = self._ratio(np.arange(len(labels)), self._class_distance)
        share = np.ones(len(labels))
        share[outvoted] = share_right(scores, planted, outvoted)
        return share

    def mislabels(self, *, rate: float = LABELS_RATE) -> Findings:
        """Labels that the neighbours outvote and whose class is far, the clearest first."""
        share = self._label_shares
        found = np.flatnonzero(share <= _check_rate(rate))
        values = self.snapshot.column("label").values
        items = []
        for place in found[np.argsort(share[found] - 1e-3 * self.votes.other[found], kind="stable")].tolist():
            record, winner = self._record(place), int(self.votes.winner[place])
            beside = np.flatnonzero(self.neighbours.values(self.labels)[place] == winner)[0]
            nearest = self._record(int(self.neighbours.places[place, beside]))
            says = f"{record.path} is {record.label}, {self.votes.other[place]:.0%} of the votes say {values[winner]}"
            distance = float(self.neighbours.distances[place, beside])
            items.append(Finding("label", (record, nearest), says, distance, float(share[place]), values[winner]))
        note = f"{rate:.0%} of them are expected to be right, by labels made wrong on purpose"
        return self._findings("mislabels", items, int((self.labels >= 0).sum()), note)

    def outliers(self, *, rate: float = OUTLIERS_RATE) -> Findings:
        """Images far from all of their class, by the distance to its fifth nearest image, and near to no other class.

        Where nothing has a label, all images are one class.
        """
        _check_rate(rate)
        codes = self.snapshot.column("label").codes
        is_labelled = len(np.unique(codes[codes >= 0])) > 1
        fifth = self.neighbours.distances[:, min(NEAREST, len(self.snapshot) - 1) - 1]
        distance = self._class_distance if is_labelled else fifth.astype(np.float64)
        judged = np.flatnonzero(np.isfinite(distance))
        logs = np.log(np.maximum(distance[judged], 1e-7))
        if is_labelled:  # half way between the gallery's scale and the class's own, which few images tell
            logs = logs - 0.5 * _medians(logs, codes[judged])
        share = shares_wrong(largest_p(logs)) if len(logs) > 1 else np.ones(len(logs))
        found = np.flatnonzero(share <= rate)
        if is_labelled:
            is_claimed = (self._label_shares[judged[found]] <= LABELS_RATE) & (self.votes.other[judged[found]] >= 0.5)
        else:
            is_claimed = np.zeros(len(found), bool)
        items = []
        for at in sorted(found[~is_claimed].tolist(), key=lambda at: -logs[at]):
            place = int(judged[at])
            record, nearest = self._record(place), self._record(int(self.neighbours.places[place, 0]))
            says = f"{record.path} is {distance[place]:.3g} away from {record.label or 'its neighbours'}"
            items.append(Finding("outlier", (record, nearest), says, float(distance[place]), float(share[at])))
        note = f"{rate:.0%} of them are expected to be usual, by the nearer half of the images"
        if claimed := int(is_claimed.sum()):
            note += f"; most neighbours of {claimed} more are of another class: see mislabels"
        return self._findings("outliers", items, len(judged), note)

    def hard_negatives(self, *, most: int = MOST) -> Findings:
        """The nearest pairs of two classes whose labels the neighbours do not outvote, nearest first."""
        voters = self.neighbours.values(self.labels)
        sound = (self.labels >= 0) & (self._label_shares > LABELS_RATE)
        others = (voters >= 0) & (voters != self.labels[:, None]) & sound[:, None]
        others &= np.where(self.neighbours.places >= 0, sound[self.neighbours.places], False)
        rows, ranks = np.nonzero(others)
        ends, distances = (
            np.stack([rows, self.neighbours.places[rows, ranks]], 1),
            self.neighbours.distances[rows, ranks],
        )
        order = np.argsort(distances, kind="stable")
        once = np.unique(np.sort(ends[order], axis=1), axis=0, return_index=True)[1]
        items = []
        for at in order[np.sort(once)[:most]].tolist():
            first, second = map(self._record, ends[at].tolist())
            says = f"{first.path} ({first.label}) and {second.path} ({second.label})"
            items.append(Finding("hard negative", (first, second), says, float(distances[at])))
        return self._findings("hard-negatives", items, int(sound.sum()), f"the nearest {most} pairs of two classes")

    def confusions(self, *, most: int = MOST) -> Findings:
        """Pairs of classes by the share of neighbours that are of the other, each with its nearest pair of images."""
        voters, values = self.neighbours.values(self.labels), self.snapshot.column("label").values
        rows, ranks = np.nonzero((voters >= 0) & (self.labels[:, None] >= 0))
        keys = self.labels[rows].astype(np.int64) * len(values) + voters[rows, ranks]
        distances = self.neighbours.distances[rows, ranks]
        order = np.lexsort((distances, keys))
        pairs, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        total = np.bincount(self.labels[rows], minlength=len(values))
        codes = [divmod(int(key), len(values)) for key in pairs]
        share = dict(zip(codes, counts / total[pairs // len(values)], strict=True))
        nearest = dict(zip(share, order[starts].tolist(), strict=True))
        mean = {(a, b): (one + share.get((b, a), 0.0)) / 2 for (a, b), one in share.items()}
        once = [(a, b) for a, b in mean if a < b or (a > b and (b, a) not in mean)]
        items = []
        for a, b in sorted(once, key=lambda pair: -mean[pair])[:most]:
            at = nearest[a, b]
            images = self._record(int(rows[at])), self._record(int(self.neighbours.places[rows[at], ranks[at]]))
            shares = f"{share[a, b]:.0%} and {share.get((b, a), 0.0):.0%}"
            says = f"{values[a]} and {values[b]}: {shares} of their neighbours are of the other"
            items.append(Finding("confusion", images, says, float(distances[at])))
        return self._findings("confusions", items, int((self.labels >= 0).sum()), f"of {K} neighbours of each image")

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _record(self, place: int) -> Record:
        return self.snapshot.records(self.snapshot.ids[[place]])[0]

    def _findings(
        self, question: Question, items: Iterable[Finding], judged: int, note: str, other: str | None = None
    ) -> Findings:
        if not (recall := self.neighbours.recall) >= 1:
            known = "a share that is not known" if np.isnan(recall) else f"{recall:.1%}"
            note += f"; the search finds {known} of the true neighbours"
        return Findings(question, tuple(items), judged, note, other)


def _medians(values: Values, codes: Codes) -> Values:
    """The median of each value's class."""
    classes, number = np.unique(codes, return_inverse=True)
    return np.asarray(median(values, number, np.arange(len(classes))))[number]


def _copies_note(rate: float) -> str:
    said = "of the near ones and of the crops are expected to be none, by pairs of distant neighbours of the gallery"
    return f"{rate:.0%} {said}"


def _check_rate(rate: float) -> float:
    if not 0 < rate < 1:
        raise InputError(f"the expected share of wrong findings must lie in (0, 1), got {rate}")
    return rate
