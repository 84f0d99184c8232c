from .dataset import (
    ArrayImages as ArrayImages,
    FewShotData as FewShotData,
    FileImages as FileImages,
    Images as Images,
    Split as Split,
)
from .specs import DATA_SETS as DATA_SETS, open_data as open_data
