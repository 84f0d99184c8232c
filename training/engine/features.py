"""Features of a frozen backbone for the training images, computed once: a linear probe trains in seconds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from ...encoders import Encoder, Encoding
from ...encoders.heads import GAP
from ...encoders.layers import evaluating
from ...encoders.readouts import making_maps
from ...remarks import remark
from .step import BatchSource, Objective

MOST_BYTES = 2 * 1024**3  # of maps that are kept; more are computed in every epoch


@torch.no_grad()
def features_of_frozen(
    encoder: Encoder,
    batches: BatchSource,
    objective: Objective,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Encoding | None:
    """The encodings of all training images in order, their maps of one place where vectors are all that terms read.

    They are computed in the same batches whenever a run begins or is resumed, so that it has the same bits. None where
    a term reads more than the map or images differ from epoch to epoch, and with a remark if it takes more than 2 GiB.
    """
    read = {term.reads for name, term in objective.terms.items() if objective.weights[name]}
    unchanged = None if "images" in read else getattr(batches, "unchanged", lambda: None)()
    if unchanged is None:
        return None
    n_images, images_in_order = unchanged
    needs_map = "map" in read or not isinstance(encoder.pooling, GAP)
    device, found = next(encoder.parameters()).device, list[Encoding]()
    for images in images_in_order:
        with evaluating(encoder), autocast(), making_maps(needs_map):  # a neck's statistics are of the steps alone
            encoding: Encoding = encoder(images.to(device, memory_format=torch.channels_last))
        if not needs_map:
            encoding = replace(encoding, feature_map=encoding.pooled[..., None, None], constant=None)
        found.append(encoding.changed(lambda part: part.float().cpu()))
        size = 4 * n_images * sum(part[0].numel() for part in encoding.parts())
        if size > MOST_BYTES:
            remark(
                f"the maps of {n_images:,} images take {size / 2**30:.1f} GiB, so they are not kept but computed in "
                "every epoch; losses that look at vectors alone need no map"
            )
            return None
    return Encoding.cat(found)
