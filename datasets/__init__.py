"""Labelled images by data set: retrieval, few-shot and re-identification benchmarks, masks, and folders of one's own.

Nothing is downloaded. Names load on first use, so that the command line starts without what it does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .episodes import EpisodeManifest
    from .few_shot import ArrayImages, FewShotData, FileImages, Images, Split
    from .registry import DATA_SETS, open_data, read_data
    from .reid_records import ReidData, ReidImage
    from .retrieval import Dataset, DatasetRecord, dataset_layouts, load_dataset

_HOME = {
    "DATA_SETS": "registry",
    "ArrayImages": "few_shot",
    "Dataset": "retrieval",
    "DatasetRecord": "retrieval",
    "EpisodeManifest": "episodes",
    "FewShotData": "few_shot",
    "FileImages": "few_shot",
    "Images": "few_shot",
    "ReidData": "reid_records",
    "ReidImage": "reid_records",
    "Split": "few_shot",
    "dataset_layouts": "retrieval",
    "load_dataset": "retrieval",
    "open_data": "registry",
    "read_data": "registry",
}

__all__ = [
    "DATA_SETS",
    "ArrayImages",
    "Dataset",
    "DatasetRecord",
    "EpisodeManifest",
    "FewShotData",
    "FileImages",
    "Images",
    "ReidData",
    "ReidImage",
    "Split",
    "dataset_layouts",
    "load_dataset",
    "open_data",
    "read_data",
]

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
