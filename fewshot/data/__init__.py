"""Few-shot data sets: named items with labels in the parts base, val and novel, and which split that is.

data = open_data("omniglot:vinyals@data/omniglot")
novel = data["novel"]
novel.names, novel.labels, novel.split_hash, novel.images[0]
"""

from ...lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
