from .dataset import ArrayImages, FewShotData, FileImages, Images, Split
from .specs import DATA_SETS, open_data

__all__ = ["DATA_SETS", "ArrayImages", "FewShotData", "FileImages", "Images", "Split", "open_data"]
