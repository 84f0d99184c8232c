"""Few-shot data sets: named items with labels in the parts base, val and novel, and which split that is.

data = open_data("omniglot:vinyals@data/omniglot")
novel = data["novel"]
novel.names, novel.labels, novel.split_hash, novel.images[0]
"""

from __future__ import annotations

from .few_shot import ArrayImages, FewShotData, FileImages, Images, Split
from .specs import DATA_SETS, open_data

__all__ = ["DATA_SETS", "ArrayImages", "FewShotData", "FileImages", "Images", "Split", "open_data"]
