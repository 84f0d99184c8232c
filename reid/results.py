"""The result of a re-identification evaluation: numbers that never travel without the protocol behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..datasets.reid_records import Identity, ReidProtocol
from ..images.inline import data_frame
from .verification import Identification, Verification

_SHOWN_RANKS = (1, 5, 10, 20)
MOST_CAMERAS = 24  # that a table shows


@dataclass(frozen=True)
class CameraPair:
    """Queries from one camera against the gallery images of one camera only.

    Attributes:
        query_camera, gallery_camera: the cameras.
        n_queries: queries with a match from that gallery camera; the means below are over these.
        rank_1, map_step: as in `ReidEvaluation`, in [0, 1].
    """

    query_camera: Identity
    gallery_camera: Identity
    n_queries: int
    rank_1: float
    map_step: float


@dataclass(frozen=True, eq=False)
class QueryResults:
    """One value per query, in the order given; where a query has no match: 0, and NaN for `match_distance`.

    Attributes:
        n_matches: matches left in the gallery.
        first_rank: rank of the first match.
        ap_step, ap_trapezoid, inverse_penalty: see `metrics.ranking.RankMeasures` (step: `average_precision`).
        match_distance: distance of the nearest match.
        wrong_distance: distance of the nearest wrong answer, NaN if there is none.
    """

    n_matches: NDArray[np.intp]
    first_rank: NDArray[np.intp]
    ap_step: NDArray[np.float64]
    ap_trapezoid: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]
    match_distance: NDArray[np.float64]
    wrong_distance: NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class ReidEvaluation:
    """Scores of one evaluation with their protocol; all rates in [0, 1].

    `print` it for a table, `to_dict` it for JSON. There is no bare "mAP": `map_step` is what most papers report since
    2018, `map_trapezoid` what the original Market-1501 code reports, up to 2.7 points lower on the same distances.

    Attributes:
        protocol: the decisions.
        metric: which distance was ranked by.
        counts: how many queries, gallery images, junk, distractors, pairs ignored, …
        cmc: chance that a match is within the first 1, 2, … answers; never decreases.
        map_step, map_trapezoid: mean average precision, two definitions.
        minp: mean inverse negative penalty: how early the last match comes.
        single_gallery_shot: expected CMC when each identity shows one random image (None unless asked for).
        camera_pairs: rank-1 and mAP for each query and gallery camera.
        verification: ROC, TAR@FAR, equal error rate (None without both kinds of pairs, or unless asked for).
        identification: DIR@FAR (None without probes of both kinds, or unless asked for).
        per_query: the values behind the means.
    """

    protocol: ReidProtocol
    metric: str
    counts: dict[str, int]
    cmc: NDArray[np.float64]
    map_step: float
    map_trapezoid: float
    minp: float
    single_gallery_shot: NDArray[np.float64] | None
    camera_pairs: tuple[CameraPair, ...]
    verification: Verification | None
    identification: Identification | None
    per_query: QueryResults = field(repr=False)

    def __post_init__(self) -> None:
        for part in (self, self.per_query, self.verification):
            for name in () if part is None else (one.name for one in fields(part)):
                if isinstance(value := getattr(part, name), np.ndarray):
                    value.flags.writeable = False

    def rank(self, k: int) -> float:
        """CMC@k; ranks beyond those computed raise IndexError."""
        if not 1 <= k <= self.cmc.size:
            raise IndexError(f"CMC was computed for ranks 1 to {self.cmc.size}, asked for {k}")
        return float(self.cmc[k - 1])

    def point_lines(self, kind: Literal["TAR", "DIR"]) -> list[str]:
        """A line for each operating point of verification (TAR) or identification (DIR), none without them."""
        lines, measured = [], self.verification if kind == "TAR" else self.identification
        for point in measured.operating_points if measured else ():
            where = "no threshold is strict enough" if point.threshold is None else f"up to {point.threshold:.4g}"
            note = "" if point.is_resolved else " (too few impostors to resolve this rate)"
            lines.append(f"{kind}@FAR {point.target:g}: {_percent(point.true_accept_rate)} ({where}){note}")
        return lines

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Everything as numbers, text, lists and dictionaries; NaN becomes None. Values per query only on request."""
        result = asdict(self) | {"protocol": self.protocol.to_dict()}
        return {name: _jsonable(value) for name, value in result.items() if per_query or name != "per_query"}

    def to_pandas(self) -> Any:
        """The measures behind the means as a DataFrame, a row for each query in the order given.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame({one.name: getattr(self.per_query, one.name) for one in fields(self.per_query)})

    def __repr__(self) -> str:
        scores = f"rank-1 {_percent(self.rank(1))}, mAP (step) {_percent(self.map_step)}"
        return f"Evaluation({scores} %; {self.counts['queries']:,} queries)"

    def __str__(self) -> str:
        """A plain-text table: scores in percent, what was counted, and every decision."""
        counts = self.counts
        scores = {f"rank-{k}": self.rank(k) for k in _SHOWN_RANKS if k <= self.cmc.size}
        scores |= {"mAP (step)": self.map_step, "mAP (trapezoid)": self.map_trapezoid, "mINP": self.minp}
        lines = [*_table([list(scores), [_percent(value) for value in scores.values()]]), ""]
        if self.single_gallery_shot is not None:
            shot = [f"rank-{k} {_percent(self.single_gallery_shot[k - 1])}" for k in _SHOWN_RANKS if k <= self.cmc.size]
            lines += ["single gallery shot (expected): " + ", ".join(shot)]
        if self.verification:
            verification = self.verification
            lines += [
                f"same or not, {verification.n_genuine} genuine and {verification.n_impostor} impostor pairs: equal "
                f"error {_percent(verification.equal_error_rate)} at {verification.equal_error_threshold:.4g}",
                *(f"  {line}" for line in self.point_lines("TAR")),
            ]
        if self.identification:
            known, unknown = self.identification.n_mated, self.identification.n_unmated
            lines += [
                f"who, if anyone, {known} known and {unknown} unknown probes:",
                *(f"  {line}" for line in self.point_lines("DIR")),
            ]
        columns, rows = camera_grid(self.camera_pairs)
        if len(rows) > MOST_CAMERAS:
            lines.append(f"{len(rows)} query cameras: no table camera by camera (see `to_dict`)")
        elif rows:
            body = [
                [str(row), *("-" if p is None else f"{_percent(p.rank_1)}/{_percent(p.map_step)}" for p in pairs)]
                for row, pairs in rows
            ]
            lines.append("rank-1/mAP (step), query camera by gallery camera:")
            lines += _table([["", *map(str, columns)], *body])
        lines += [
            f"queries: {counts['queries']}, of which {counts['queries_without_match']} without a match; gallery: "
            f"{counts['gallery_used']} of {counts['gallery']} used, {counts['gallery_junk']} junk, "
            f"{counts['gallery_distractors']} distractors, {counts['gallery_without_query']} of other identities "
            f"without a query; {counts['pairs_ignored']} pairs ignored; {counts['missing_cameras']} images without a "
            "camera",
            f"distance: {self.metric}",
        ]
        return "\n".join(lines + self.protocol.describe())


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def camera_grid(pairs: Sequence[CameraPair]) -> tuple[list[Identity], list[tuple[Identity, list[CameraPair | None]]]]:
    """Gallery cameras in order, and each query camera with its pair for every one of them."""
    columns = sorted({pair.gallery_camera for pair in pairs}, key=lambda camera: (isinstance(camera, str), camera))
    cells = {(pair.query_camera, pair.gallery_camera): pair for pair in pairs}
    rows = dict.fromkeys(pair.query_camera for pair in pairs)
    return columns, [(row, [cells.get((row, column)) for column in columns]) for row in rows]


def _jsonable(value: Any) -> Any:
    """The same value without NumPy and without NaN."""
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_jsonable(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
