"""The similarity of two images divided among places and body parts without remainder, and Dist-CAM on both.

The *shares* divide the cosine itself, also behind an affine head; their sums over parts (stripes, or the user's masks)
add up to it. *Dist-CAM* shows where each image has the channels in which the two are close, and adds up to nothing.

Source: [Dist-CAM] Eq. 4–6; Stylianou, Souvenir and Pless 2019 for the decomposition, here behind a folded head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..encoders import Encoder, Encoding, Inference
from ..errors import InputError, ShapeError
from ..explain import Tile, Weighting, dist_cam, fold, grid
from ..explain.drawing.panels import DrawStyle, map_tiles
from ..explain.methods.correspondence import Correspondence, correspondence
from ..images import Box, read_image

if TYPE_CHECKING:
    from ..synthetic.walkers import WalkerSet

Part = tuple[float, float] | np.ndarray[Any, Any]

BODY_PARTS: Mapping[str, Part] = {"head": (0.0, 0.17), "torso": (0.17, 0.5), "legs": (0.5, 0.88), "feet": (0.88, 1.0)}
"""Stripes of an upright person's image, as fractions of its height from the top."""
STRIPES: Mapping[str, Part] = {"top": (0.0, 0.25), "upper": (0.25, 0.5), "lower": (0.5, 0.75), "bottom": (0.75, 1.0)}
"""Stripes of an image of anything else, animals and vehicles among them."""

ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class PartShare:
    """Contribution of a part to the similarity: as a place on the probe, and as a place on the match.

    Each of the two columns adds up to the similarity over all parts.
    """

    name: str
    on_probe: float
    on_match: float


@dataclass(frozen=True, eq=False)
class PairExplanation:
    """The similarity of a probe and a match, explained on both.

    Attributes:
        probe, match: the images.
        correspondence: the cosine divided among all pairs of positions; `total` is the similarity.
        probe_dist_map, match_dist_map: Dist-CAM on either image, raw.
        parts: shares of the parts, in the order given; the last one is what no part covers, if anything.
        is_exact: False if head or readout is not affine and the shares are its first-order approximation.
        views: the rectangles of the two images that the maps cover.
    """

    probe: Image.Image = field(repr=False)
    match: Image.Image = field(repr=False)
    correspondence: Correspondence = field(repr=False)
    probe_dist_map: Float[Tensor, "h w"] = field(repr=False)
    match_dist_map: Float[Tensor, "h w"] = field(repr=False)
    parts: tuple[PartShare, ...]
    is_exact: bool
    views: tuple[Box, Box]

    @property
    def similarity(self) -> float:
        """The cosine of the two embeddings, in [-1, 1]."""
        return self.correspondence.total

    @cached_property
    def probe_shares(self) -> Float[Tensor, "h w"]:
        """Contribution of each place of the probe; the sum is the similarity."""
        return self.correspondence.on_query()

    @cached_property
    def match_shares(self) -> Float[Tensor, "h w"]:
        """Contribution of each place of the match; the sum is the similarity."""
        return self.correspondence.on_match()

    @property
    def residual(self) -> float:
        """The larger error of the two sums over parts: rounding, if the decomposition is complete."""
        sums = (sum(part.on_probe for part in self.parts), sum(part.on_match for part in self.parts))
        return max((total - self.similarity for total in sums), key=abs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the similarity, the parts, the error of their sum, and the best pairs of places."""
        places = [
            {"probe": list(pair.query), "match": list(pair.match), "share": pair.share}
            for pair in self.correspondence.mutual_pairs(5)
        ]
        numbers = {"similarity": self.similarity, "residual": self.residual, "is_exact": self.is_exact}
        return {**numbers, "parts": [asdict(part) for part in self.parts], "corresponding_places": places}

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The four raw maps, by name."""
        names = ("probe_shares", "match_shares", "probe_dist_map", "match_dist_map")
        return {name: getattr(self, name).numpy() for name in names}

    def table(self) -> str:
        """Parts and sums as plain text."""
        width = max(len(part.name) for part in self.parts)
        lines = [f"{'':{width}}  on the probe  on the match"]
        lines += [f"{part.name:{width}}  {part.on_probe:12.4f}  {part.on_match:12.4f}" for part in self.parts]
        note = "" if self.is_exact else " (first order: not all behind the pooling is affine)"
        lines.append(f"similarity {self.similarity:.6f}; the parts' sums differ from it by {self.residual:.1e}{note}")
        return "\n".join(lines)


def explain_pair(
    inference: Inference,
    probe: Any,
    match: Any,
    *,
    parts: Mapping[str, Part] = STRIPES,
    weighting: Weighting = "dist",
    mean: Float[Tensor, " d"] | None = None,
) -> PairExplanation:
    """The cosine of two images, explained on both.

    Args:
        inference: the encoder on its device.
        probe: a path, encoded bytes, or a Pillow image.
        match: the other image.
        parts: by name a stripe (top, bottom) in fractions of the image's height, or a mask over the encoder's view
            with values in [0, 1], rows by columns, at any resolution; parts must not overlap.
        weighting: of the Dist-CAM maps, see `distcam.explain.channel_weights`.
        mean: of the gallery's embeddings, for the weightings that need it.

    Raises:
        InputError: parts that overlap or are no part of an image.
        ImageError: a file that is not a usable image.
    """
    images = [source if isinstance(source, Image.Image) else read_image(source) for source in (probe, match)]
    encoding = inference.encode_images(images)
    encoder = inference.encoder
    folded = fold(encoding.feature_map.float(), pooling=encoder.pooling, head=encoder.head)
    maps = folded.map.cpu()
    vectors = encoding.embedding.float().cpu()
    found = correspondence(maps[0], maps[1], metric="cosine")
    dist = dist_cam(maps, vectors.flip(0)[:, None], metric="cosine", weighting=weighting, mean=mean)[:, 0]
    views = [encoder.transform.view(*image.size) for image in images]
    sides = []
    for shares, view, image in zip((found.on_query(), found.on_match()), views, images, strict=True):
        rows, columns = shares.shape
        weights = part_weights(parts, rows=rows, columns=columns, view=view, height=image.height)
        sides.append({name: float((shares.double() * weight).sum()) for name, weight in weights.items()})
    names = dict.fromkeys([*sides[0], *sides[1]])
    return PairExplanation(
        probe=images[0],
        match=images[1],
        correspondence=found,
        probe_dist_map=dist[0],
        match_dist_map=dist[1],
        parts=tuple(PartShare(name, sides[0].get(name, 0.0), sides[1].get(name, 0.0)) for name in names),
        is_exact=folded.is_exact and encoder.is_read_exactly,
        views=(views[0], views[1]),
    )


def part_weights(
    parts: Mapping[str, Part], *, rows: int, columns: int, view: Box, height: int
) -> dict[str, Float[Tensor, "h w"]]:
    """Share of each position of the map that every part covers, in [0, 1], and `elsewhere` for the rest, if any.

    Parts are stripes in fractions of the image's height, or masks over the view, the part of the image that the map
    covers, in pixels.

    >>> stripes = {"upper": (0.0, 0.625), "lower": (0.625, 1.0)}
    >>> part_weights(stripes, rows=4, columns=1, view=Box(0, 0, 10, 32), height=32)["upper"].flatten().tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    if not parts or ELSEWHERE in parts:
        got = ", ".join(parts) or "none"
        raise InputError(f"expected at least one part, none of them called {ELSEWHERE!r}; got {got}")
    edges = (torch.arange(rows + 1, dtype=torch.float64) / rows * view.height + view.top) / height
    weights = {}
    for name, part in parts.items():
        if isinstance(part, np.ndarray):
            values = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64))
            if values.ndim != 2 or 0 in values.shape:
                raise ShapeError(f"part {name!r}: a mask is (rows, columns), got {tuple(values.shape)}")
            if not ((values >= 0) & (values <= 1)).all():
                raise InputError(f"part {name!r}: a mask holds values in [0, 1]")
            weights[name] = torch.nn.functional.adaptive_avg_pool2d(values[None, None], (rows, columns))[0, 0]
            continue
        top, bottom = part
        if not 0 <= top < bottom <= 1:
            raise InputError(f"part {name!r}: a stripe runs from top to bottom within 0 … 1, got {top} … {bottom}")
        inside = (edges[1:].clamp(max=bottom) - edges[:-1].clamp(min=top)).clamp(min=0) / (edges[1:] - edges[:-1])
        weights[name] = inside[:, None].expand(rows, columns)
    left = 1 - torch.stack(list(weights.values())).sum(0)
    if bool((left < -1e-6).any()):
        raise InputError(f"the parts {', '.join(parts)} overlap, so their shares would not add up; make them disjoint")
    if bool((left > 1e-6).any()):
        weights[ELSEWHERE] = left
    return weights


def pairs_panel(
    pairs: Mapping[str, PairExplanation], *, look: DrawStyle | None = None, tile_size: int = 196
) -> Image.Image:
    """Pairs below one another, each as probe, match, the shares on both, and Dist-CAM on both, with the parts' shares.

    One scale for all shares and one for all Dist-CAM maps, so that a match of the same identity can be compared with
    one of another by eye.

    Args:
        pairs: by title, for instance "same" and "different".
        look: how maps are drawn; its colours are those of the Dist-CAM maps.
        tile_size: of an image in pixels.
    """
    if not pairs:
        raise InputError("a panel needs at least one pair")
    look = look or DrawStyle(scale="shared")
    signed = DrawStyle(style=look.style, scale="shared", colours="blue-orange", opacity=look.opacity, level=look.level)
    shares = _tiles(list(pairs.values()), ("probe_shares", "match_shares"), signed)
    dists = _tiles(list(pairs.values()), ("probe_dist_map", "match_dist_map"), look)
    rows: list[Sequence[Tile | None]] = []
    for number, (title, pair) in enumerate(pairs.items()):
        largest = sorted(pair.parts, key=lambda part: part.on_match, reverse=True)[:2]
        first = [
            Tile(pair.probe, title=f"{title}: probe", caption=f"similarity {pair.similarity:.3f}"),
            Tile(pair.match, title="match", caption=", ".join(f"{part.name} {part.on_match:.2f}" for part in largest)),
        ]
        maps = [*shares[2 * number : 2 * number + 2], *dists[2 * number : 2 * number + 2]]
        titles = ("shares, probe", "shares, match", "Dist-CAM, probe", "Dist-CAM, match")
        rows.append([*first, *(Tile(tile.image, t, tile.caption) for tile, t in zip(maps, titles, strict=True))])
    return grid(rows, tile_size=tile_size)


def _tiles(pairs: Sequence[PairExplanation], names: tuple[str, str], look: DrawStyle) -> list[Tile]:
    """The maps of all pairs on their images: probe and match of the first, of the second, and so on."""
    images = [image for pair in pairs for image in (pair.probe, pair.match)]
    views = [view for pair in pairs for view in pair.views]
    maps = torch.stack([getattr(pair, name) for pair in pairs for name in names])
    return map_tiles(images, maps, views=views, look=look)


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
    and chance, which is the group's share of the image.

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
    from ..training.recipes.evaluator import energy_in_raster  # takes seconds to import

    row = {path: number for number, path in enumerate(paths)}
    pairs = []
    for query in walkers.data.queries:
        mates = (i for i in walkers.data.gallery if i.identity == query.identity and i.camera != query.camera)
        pairs += [(query, mate) for mate in list(mates)[:1]]
    pairs = pairs[:most]
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
