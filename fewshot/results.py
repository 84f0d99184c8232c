"""Results on disk: the answers of one or more classifiers to one manifest, and where they came from.

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
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..datasets.episodes import EpisodeManifest
from ..errors import InputError
from ..files import read_hdf5, write_hdf5
from .evaluation import EpisodeResult

__all__ = ["FORMAT", "ResultFile", "load_result"]

FORMAT = "distcam-fewshot-results/1"


@dataclass(frozen=True, eq=False)
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
            for name in ("prediction", "margin"):
                group.create_dataset(
                    name, data=getattr(result, name), compression="gzip", shuffle=True, fletcher32=True
                )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultFile:
        """Read results and check them: the format, the manifest's hash, shapes, ranges, and margins against answers.

        Raises:
            InputError: the file is missing, of another format, or changed since it was written.
        """
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
            _check_answers(result)
            results.append(result)
        return cls(tuple(results), header["source"])


def load_result(reference: str) -> EpisodeResult:
    """One result: `results.h5` if it holds one method only, else `results.h5:METHOD`.

    Raises:
        InputError: there is no such file or method.
    """
    path, colon, method = reference.rpartition(":")
    if Path(reference).exists() or not colon or not Path(path).exists():
        path, method = reference, ""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected results.h5 or results.h5:METHOD")
    try:
        return ResultFile.load(path)[method or None]
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error


def _check_answers(result: EpisodeResult) -> None:
    """A right answer has a margin of at least 0, a wrong one of at most 0: both arrays tell the same story."""
    is_right = result.prediction == result.episodes.target
    contradicts = np.where(is_right, result.margin < 0, result.margin > 0) | ~np.isfinite(result.margin)
    if contradicts.any():
        episode, query = np.argwhere(contradicts)[0]
        raise InputError(
            f"{result.classifier['name']}: episode {episode}, query {query}: answer and margin contradict each other; "
            "the file was changed after it was written"
        )
