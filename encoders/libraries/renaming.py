"""Names of older files as a library's own loading gives them to its networks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn


def renamed_by_library(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that timm or transformers would give them for this network; else as they are."""
    home = type(network).__module__
    found: Any = None
    with suppress(Exception):  # whatever a file provokes that is another network's
        if home.startswith("timm."):
            found = sys.modules[home].checkpoint_filter_fn(dict(tensors), network)
        elif home.startswith("transformers."):
            loading: Any = type(network)
            told = {"config": network.config, "state_dict": dict(tensors), "output_loading_info": True}
            loaded, report = loading.from_pretrained(None, **told)
            found = None if report["missing_keys"] or report["mismatched_keys"] else loaded.state_dict()
    return dict(found or tensors)
