"""Answers of classifiers to one manifest: figures, tables, and the file that holds them.

One HDF5 file holds

    attribute `results`       JSON: format, source, and for each method its classifier and encoder
    episodes/                 the manifest as `EpisodeManifest.write` writes it, with its own hash
    answers/<i>/prediction    winning way of each query, int16 (E, M)
    answers/<i>/margin        true logit minus the best other, float32 (E, M)

with a Fletcher-32 checksum on every array of answers. `source` says how to find images and encoder again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..datasets.episodes import EpisodeManifest
from ..errors import InputError, ShapeError
from ..files import read_hdf5, write_hdf5
from ..images.inline import data_frame, fragment
from ..metrics.intervals import Intervals, intervals, required_episodes
from ..remarks import counted

FORMAT = "distcam-fewshot-results/1"
NO_JACKKNIFE = "class jackknife: does not exist, some class is in every episode; nothing is known of other classes"


@dataclass(frozen=True, eq=False, repr=False)
class EpisodeResult:
    """Answers of a classifier, query by query; every figure below follows from them without the network.

    Attributes:
        episodes: the manifest that was run.
        classifier: name, settings, and `setting`: inductive or transductive.
        prediction: winning way of each query, in 0…N−1, (E, M). A tie is lost: where the true way's logit is no larger
            than another's, up to rounding, that other way wins.
        margin: logit of the true way minus the best other logit, (E, M), in the classifier's unit; 0 is a tie, and
            wrong as everything below.
        encoder: what made the features, for instance an encoder's `short_name`.
    """

    episodes: EpisodeManifest
    classifier: dict[str, Any]
    prediction: NDArray[np.int16]
    margin: NDArray[np.float32]
    encoder: str = ""

    def __post_init__(self) -> None:
        expected = self.episodes.query.shape
        if self.prediction.shape != expected or self.margin.shape != expected:
            raise ShapeError(
                f"expected prediction and margin of shape {expected}, one per query of the manifest, "
                f"got {self.prediction.shape} and {self.margin.shape}"
            )
        if self.prediction.min() < 0 or self.prediction.max() >= self.episodes.n_way:
            raise InputError(f"predictions must be ways in 0…{self.episodes.n_way - 1}")

    @property
    def is_transductive(self) -> bool:
        """True if answers may depend on other queries or other test data."""
        return bool(self.classifier["setting"] == "transductive")

    @property
    def described(self) -> str:
        """The classifier's name and setting, and the encoder."""
        return f"{self.classifier['name']} ({self.classifier['setting']})" + f", {self.encoder}" * bool(self.encoder)

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right answers in each episode, (E,), in [0, 1]."""
        share: NDArray[np.float64] = (self.prediction == self.episodes.target).mean(1, dtype=np.float64)
        return share

    @property
    def mean_accuracy(self) -> float:
        """Mean over episodes, in [0, 1]."""
        return float(self.accuracy.mean())

    def intervals(self, *, seed: int = 0) -> Intervals:
        """Usual, bootstrap and class-jackknife interval of the mean accuracy; `seed` is the bootstrap's."""
        return intervals(self.accuracy, self.episodes.ways, seed=seed)

    def required_episodes(self, *, half_width: float) -> int:
        """Episodes after which the usual interval would be at most ±`half_width` (0.002: ±0.2 points)."""
        return required_episodes(float(self.accuracy.std(ddof=1)), half_width=half_width)

    def per_class_accuracy(self) -> dict[str, float]:
        """Share of right answers among all queries of each class; NaN for a class without queries."""
        share = np.diag(self.confusion())
        return dict(zip(self.episodes.class_names.tolist(), share.tolist(), strict=True))

    def meetings(self) -> NDArray[np.int64]:
        """Number of queries of class i in episodes that held class j, (C, C)."""
        n_classes, ways = len(self.episodes.class_names), self.episodes.ways
        asked = (self.episodes.target[:, :, None] == np.arange(self.episodes.n_way)).sum(1)
        pair = ways[:, :, None] * n_classes + ways[:, None, :]
        weight = np.broadcast_to(asked[:, :, None], pair.shape)
        count = np.bincount(pair.ravel(), weights=weight.ravel(), minlength=n_classes**2)
        return count.astype(np.int64).reshape(n_classes, n_classes)

    def confusion(self) -> Float[np.ndarray, "c c"]:
        """Share of the queries of class i that class j won, among those asked while j was there; NaN if they never met.

        Rows are true classes, columns winning ones, both in the order of `episodes.class_names`. Counting by meetings
        makes pairs comparable although episodes draw them unequally often; the rows do not sum to 1. The diagonal is
        the per-class accuracy.
        """
        n_classes = len(self.episodes.class_names)
        query_class = self.episodes.class_of[self.episodes.query]
        winner = np.take_along_axis(self.episodes.ways, self.prediction.astype(np.int64), axis=1)
        won = np.bincount((query_class * n_classes + winner).ravel(), minlength=n_classes**2)
        with np.errstate(invalid="ignore"):
            return won.reshape(n_classes, n_classes) / self.meetings()

    def hardest_pairs(self, n: int = 10) -> list[tuple[str, str, float]]:
        """The n off-diagonal entries of `confusion` that are largest: (true class, winning class, share)."""
        share = np.nan_to_num(self.confusion(), nan=-1.0)
        np.fill_diagonal(share, -1.0)
        order = np.argsort(-share, axis=None, kind="stable")[:n]
        names = self.episodes.class_names.tolist()
        pairs = [divmod(int(i), len(names)) for i in order if share.flat[i] >= 0]
        return [(names[i], names[j], float(share[i, j])) for i, j in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Settings, mean accuracy and intervals, JSON-able."""
        return {
            "episodes": self.episodes.describe(),
            "classifier": self.classifier,
            "encoder": self.encoder,
            "accuracy": self.mean_accuracy,
            "intervals": intervals_to_dict(self.intervals()),
        }

    def to_pandas(self) -> Any:
        """The answers as a DataFrame, a row for each query: episode, image, true and winning class, margin.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        episodes = self.episodes
        winner = np.take_along_axis(episodes.ways, self.prediction.astype(np.int64), axis=1).ravel()
        queries, classes = episodes.query.ravel(), episodes.class_names
        columns = {
            "method": self.classifier["name"],
            "episode": np.repeat(np.arange(episodes.n_episodes), episodes.query.shape[1]),
            "image": episodes.names[queries],
            "label": classes[episodes.class_of[queries]],
            "prediction": classes[winner],
            "margin": self.margin.ravel(),
            "is_right": (self.prediction == episodes.target).ravel(),
        }
        return data_frame(columns)

    def __repr__(self) -> str:
        return f"EpisodeResult({self.described}: {', '.join(self._row()[1:3])})"

    def _row(self) -> list[str]:
        """Method, accuracy and intervals as text, in percent."""
        found = self.intervals()
        ends = [f"{100 * each.low:.2f} … {100 * each.high:.2f}" for each in found]
        return [self.described, f"{100 * self.mean_accuracy:.2f}", *ends]

    def _repr_html_(self) -> str:
        """HTML for a notebook: accuracy and intervals."""
        return ResultFile((self,))._repr_html_()

    def table(self) -> str:
        """The result as plain text, in percent: what was run, how, and the three intervals with their questions."""
        return "\n".join([self.episodes.summary, self.described, *interval_lines(self.intervals(), "accuracy")])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write answers and manifest as one HDF5 file, a `ResultFile` of one method."""
        ResultFile((self,)).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EpisodeResult:
        """Read the result of a file that holds one method; InputError if it is missing, other, or of several."""
        return ResultFile.load(path)[None]


@dataclass(frozen=True, eq=False, repr=False)
class ResultFile:
    """Results of several classifiers on the same episodes, each with a name of its own.

    Attributes:
        results: one per classifier, all of one manifest.
        source: how they came about, JSON-able: data, encoder, weights; for the reader and for reports.

    Raises:
        InputError: no result, different manifests, or a name twice.
    """

    results: tuple[EpisodeResult, ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("a result file needs at least one result")
        if len({result.episodes.content_hash for result in self.results}) != 1:
            raise InputError("the results of one file must be of one manifest")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"every method once, got {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The methods' names."""
        return tuple(str(result.classifier["name"]) for result in self.results)

    @property
    def episodes(self) -> EpisodeManifest:
        """The manifest that all results share."""
        return self.results[0].episodes

    def __iter__(self) -> Iterator[EpisodeResult]:
        return iter(self.results)

    def __getitem__(self, name: str | None) -> EpisodeResult:
        """A result by its method's name; None means the only one."""
        if name is None and len(self.results) == 1:
            return self.results[0]
        if name not in self.names:
            asked = "say which method is meant" if name is None else f"no method {name!r} here"
            raise InputError(f"{asked}; there are {', '.join(self.names)}")
        return self.results[self.names.index(name)]

    def to_pandas(self) -> Any:
        """The answers of all methods as a DataFrame, below one another; see `EpisodeResult.to_pandas`."""
        frames = [result.to_pandas() for result in self.results]
        import pandas

        return pandas.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        return f"ResultFile({counted(len(self.results), 'method')}: {', '.join(self.names)}; {self.episodes.summary})"

    def _repr_html_(self) -> str:
        """HTML for a notebook: accuracy and intervals of every method."""
        found = self.results[0].intervals()
        headings = ["", "accuracy, %", *(f"{each.kind} interval" for each in found)]
        rows = [result._row() for result in self.results]
        notes = [f"{each.kind}: {each.question}" for each in found]
        return fragment(self.episodes.summary, table=(headings, rows), notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """Source, episodes, and every result, JSON-able."""
        return {"source": dict(self.source), "results": [result.to_dict() for result in self.results]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one HDF5 file; it appears complete or not at all."""
        write_hdf5(path, self._write)

    def _write(self, file: h5py.File) -> None:
        methods = [{"classifier": result.classifier, "encoder": result.encoder} for result in self.results]
        file.attrs["results"] = json.dumps({"format": FORMAT, "source": dict(self.source), "methods": methods})
        self.episodes.write(file.create_group("episodes"))
        for number, result in enumerate(self.results):
            group = file.create_group(f"answers/{number}")
            for name, answers in (("prediction", result.prediction), ("margin", result.margin)):
                group.create_dataset(name, data=answers, compression="gzip", shuffle=True, fletcher32=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultFile:
        """Read results; InputError if the file is missing, of another format, or contradicts its hash or itself."""
        return read_hdf5(path, "a few-shot result", cls._read)

    @classmethod
    def _read(cls, file: h5py.File) -> ResultFile:
        header = json.loads(file.attrs["results"])
        if header["format"] != FORMAT:
            raise InputError(f"few-shot results have format {header['format']!r}, this version reads {FORMAT!r}")
        episodes = EpisodeManifest.read(file["episodes"])
        results = []
        for number, method in enumerate(header["methods"]):
            if method["classifier"]["setting"] not in ("inductive", "transductive"):
                raise InputError(f"method {number} does not say whether it is inductive or transductive")
            arrays = (file[f"answers/{number}/{name}"] for name in ("prediction", "margin"))
            prediction, margin = (array[()] for array in arrays)
            if prediction.dtype != np.int16 or margin.dtype != np.float32:
                raise InputError(f"method {number}: answers are of types {prediction.dtype} and {margin.dtype}")
            result = EpisodeResult(episodes, method["classifier"], prediction, margin, method["encoder"])
            is_right = prediction == episodes.target
            contradicts = np.where(is_right, margin < 0, margin > 0) | ~np.isfinite(margin)
            if contradicts.any():
                episode, query = np.argwhere(contradicts)[0]
                raise InputError(
                    f"{result.classifier['name']}: episode {episode}, query {query}: answer and margin contradict each "
                    "other; the file was changed after it was written"
                )
            results.append(result)
        return cls(tuple(results), header["source"])


def load_result(reference: str) -> EpisodeResult:
    """One result: `results.h5` if it holds one method only, else `results.h5:METHOD`; InputError if there is none."""
    path, colon, method = reference.rpartition(":")
    if Path(reference).exists() or not colon or not Path(path).exists():
        path, method = reference, ""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected results.h5 or results.h5:METHOD")
    try:
        return ResultFile.load(path)[method or None]
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error


def intervals_to_dict(found: Intervals) -> dict[str, Any]:
    """Ends and question of each interval by its kind, JSON-able."""
    return {each.kind: {"low": each.low, "high": each.high, "question": each.question} for each in found}


def interval_lines(found: Intervals, what: str) -> list[str]:
    """The mean and its intervals in percent, a line each."""
    width = max(len(each.kind) for each in found)
    lines = [f"{what} {100 * found.usual.mean:.2f} ± {100 * found.usual.half_width:.2f}"]
    lines += [f"  {one.kind:{width}}  {100 * one.low:6.2f} … {100 * one.high:6.2f}  {one.question}" for one in found]
    if found.class_jackknife is None:
        lines.append(f"  {NO_JACKKNIFE}")
    return lines
