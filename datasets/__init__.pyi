from .episodes import EpisodeManifest
from .few_shot import ArrayImages, FewShotData, FileImages, Images, Split
from .layouts import DatasetRecord
from .registry import DATA_SETS, open_data, read_data
from .reid_records import ReidData, ReidImage
from .retrieval import Dataset, dataset_layouts, load_dataset

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
