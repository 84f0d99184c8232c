"""Explanations as FiftyOne samples, with the maps as heat maps over the photographs; needs the package fiftyone."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import MissingExtraError
from ..explain import rectify
from ..explain.drawing.panels import DrawStyle, scaled
from ..explain.drawing.rendering import on_image
from ..explain.weightings import RECTIFIED
from ..images import Box, image_size
from ..images.items import split_item

if TYPE_CHECKING:
    from PIL.Image import Image

    from .explanation import Explanation

_SIDE = 256  # longest side of a heat map, which FiftyOne stretches over the image


def fiftyone_samples(explanation: Explanation) -> list[Any]:
    """The query, if it is a file, and the matched images as `fiftyone.Sample`, for `dataset.add_samples`.

    A match holds `rank`, `distance`, `query`, its label as the classification `ground_truth`, and `evidence`, a
    `fiftyone.Heatmap` over the whole photograph, also where the gallery's item is a box of it. The query holds one
    heat map for each reference: `evidence_1`, … Each map is scaled to [0, 1]; places that the
    encoder did not see, and those that speak against a match, are 0. Images that are gone are left out.

    Raises:
        MissingExtraError: fiftyone is not installed.
    """
    try:
        import fiftyone as fo
    except ImportError as error:
        raise MissingExtraError("samples need FiftyOne: pip install 'distcam[fiftyone]'") from error
    query, samples = explanation.matches.query, []
    if query.has_image and isinstance(query.source, str | os.PathLike):
        own = _unit(explanation, explanation.query_maps)
        place = partial(_heat_map, item=os.fspath(query.source), image=query.image, view=explanation.query_view)
        maps = {f"evidence_{number}": place(each) for number, each in enumerate(own, 1)}
        samples.append(fo.Sample(filepath=str(Path(split_item(query.source)[0]).absolute()), tags=["query"], **maps))
    answers = explanation.found_reference_maps
    heat = None if answers is None else _unit(explanation, answers)
    for index, reference in enumerate(explanation.references):
        match, image = reference.match, explanation.reference_image(index)
        if match is None or image is None:
            continue
        fields = {"rank": match.rank, "distance": match.distance, "query": query.name}
        if match.label is not None:
            fields["ground_truth"] = fo.Classification(label=match.label)
        if heat is not None:
            view = explanation.view_of(image)
            fields["evidence"] = _heat_map(heat[index], item=os.fspath(match.item), image=image, view=view)
        samples.append(fo.Sample(filepath=str(Path(match.file).absolute()), tags=["match"], **fields))
    return samples


def _unit(explanation: Explanation, maps: Tensor) -> Tensor:
    is_rectified = explanation.is_signed or explanation.weighting in RECTIFIED
    return scaled(rectify(maps) if is_rectified else maps, DrawStyle())[0]


def _heat_map(heat: Tensor, *, item: str, image: Image, view: Box) -> Any:
    """A map over the photograph of an item; `view` is in pixels of the item's image."""
    import fiftyone as fo

    file, box = split_item(item)
    size = image_size(file)
    whole = Box(0, 0, *size) if box is None else box
    to_file, to_map = whole.width / image.width, min(1.0, _SIDE / max(size))
    edges = view.scaled(to_file)
    covered = Box(edges.left + whole.left, edges.top + whole.top, edges.right + whole.left, edges.bottom + whole.top)
    width, height = (max(1, round(side * to_map)) for side in size)
    values, is_seen = on_image(heat, (width, height), covered.scaled(to_map))
    return fo.Heatmap(map=np.where(is_seen, values, 0).astype(np.float32), range=[0, 1])
