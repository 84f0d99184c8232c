"""Where pair maps of synthetic walkers lie: on clothes and bag, which tell people apart, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..datasets.reid_records import ReidData, ReidImage
from ..encoders import Encoder, Encoding
from ..explain import dist_cam, fold
from ..explain.methods.correspondence import correspondence
from ..synthetic.walkers import WalkerSet
from ..training.recipes.evaluator import energy_in_raster

__all__ = ["pair_energy"]


def pair_energy(
    encoder: Encoder,
    walkers: WalkerSet,
    encoding: Encoding,
    paths: Sequence[str],
    *,
    parts: Mapping[str, Sequence[str]],
    most: int = 200,
) -> dict[str, float]:
    """Share of the pair maps' energy on groups of parts, mean over the queries that show the group, in [0, 1].

    Each query meets the first gallery image of its identity by another camera, and the maps are drawn on the query: the
    positive shares of the cosine, and Dist-CAM. Beside them the class-agnostic map, which knows nothing of the match,
    and chance, which is the group's share of the picture.

    Args:
        encoder: that made the encoding.
        walkers: a set with masks.
        encoding: of queries and gallery.
        paths: of its images.
        parts: names of parts (see `distcam.synthetic.bodies.PARTS`) by the name of their group.
        most: how many queries are looked at.

    Raises:
        InputError: there are no masks, or no such part.
    """
    row = {path: number for number, path in enumerate(paths)}
    pairs = _pairs(walkers.data, most)
    maps: dict[str, list[Tensor]] = {"shares": [], "dist_cam": [], "caam": []}
    for query, match in pairs:
        pair = Encoding.cat([encoding[row[query.path]], encoding[row[match.path]]]).to("cpu")
        response = fold(pair.feature_map.float(), pooling=encoder.pooling, head=encoder.head).map.cpu()
        maps["shares"].append(correspondence(response[0], response[1]).on_query().clamp(min=0))
        maps["dist_cam"].append(dist_cam(response[:1], pair.embedding[1:].float()[None])[0, 0])
        maps["caam"].append(pair.feature_map[0].float().sum(0))
    found: dict[str, float] = {}
    for group, names in parts.items():
        rasters = [torch.from_numpy(walkers.mask(query.path, *names)).float() for query, _ in pairs]
        shown = [number for number, raster in enumerate(rasters) if raster.any()]
        if not shown:
            continue
        raster = torch.stack([rasters[number] for number in shown])
        for name, each in maps.items():
            energy, _ = energy_in_raster(torch.stack([each[number] for number in shown]), raster)
            found[f"energy on {group}: {name}"] = float(energy.mean())
        found[f"energy on {group}: chance"] = float(raster.mean())
    return found


def _pairs(data: ReidData, most: int) -> list[tuple[ReidImage, ReidImage]]:
    """Queries and the first gallery image of their identity by another camera, where there is one."""
    found = []
    for query in data.queries:
        theirs = (image for image in data.gallery if image.identity == query.identity and image.camera != query.camera)
        match = next(theirs, None)
        if match is not None:
            found.append((query, match))
    return found[:most]
