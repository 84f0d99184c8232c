from .episodes import EpisodeManifest as EpisodeManifest
from .few_shot import ArrayImages as ArrayImages
from .few_shot import FewShotData as FewShotData
from .few_shot import FileImages as FileImages
from .few_shot import Split as Split
from .few_shot import SplitImages as SplitImages
from .layouts import DatasetRecord as DatasetRecord
from .registry import DATA_SETS as DATA_SETS
from .registry import open_data as open_data
from .registry import read_data as read_data
from .reid_records import ReidData as ReidData
from .reid_records import ReidImage as ReidImage
from .retrieval import Dataset as Dataset
from .retrieval import dataset_layouts as dataset_layouts
from .retrieval import load_dataset as load_dataset

# names until 0.2
Images = SplitImages
