"""Where a match comes from: Dist-CAM maps on the query and on its references, ready to look at, save, or measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..encoders.heads import Identity
from ..errors import ImageError, InputError
from ..explain import Weighting, contrast, dist_cam, fold, match_sensitivity
from ..explain.drawing.rendering import contour, draw_box
from ..explain.inputs import NEEDS_MEAN
from ..explain.regions import region_mask
from ..files import replacing
from ..images import Box, read_image
from ..index.filters.tree import Eq
from .masking import gallery_weights
from .matches import Match, Matches

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..explain.drawing.overlay import Look
    from ..index import Gallery
    from ..index.storage.segments import Record
    from .retriever import Retriever

__all__ = ["Explanation", "Reference", "Side", "explain"]

Side = Literal["metric", "backbone"]
SIGNED = frozenset({"dot", "dot_centered", "gradcam_cos"})  # weightings whose negative values speak against the match


@dataclass(frozen=True)
class Reference:
    """What a query is compared with: a gallery image (`match` is set) or a class prototype (it is None)."""

    name: str
    label: str | None
    distance: float
    match: Match | None = None


@dataclass(frozen=True)
class Explanation:
    """Raw Dist-CAM maps of one query, one per reference, in the resolution of the encoder's last feature map.

    Attributes:
        query_maps: Float "n h w", raw: neither rectified nor normalised, so maps of one query share one scale.
        references: the n references, in the order of the maps.
        versus: what each of them is set against in a contrast ("why A and not B"), else None.
        is_exact: False when a non-linear head could only be unfolded to first order.
        sensitivity: Spearman correlation of the first map with the map against a random gallery image; 1 means that the
            map does not depend on the match at all. None when the gallery holds no further image.
    """

    matches: Matches
    references: tuple[Reference, ...]
    query_maps: Tensor
    weighting: Weighting
    space: Side
    is_exact: bool
    sensitivity: float | None
    versus: Reference | None
    _against: str | int = field(repr=False)
    _versus: str | int | None = field(repr=False)
    _options: dict[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.references)

    @cached_property
    def reference_maps(self) -> Tensor | None:
        """Float "n h w": the maps on the gallery images, with query and match in exchanged roles; None for prototypes.

        For `dist` these are the query's own channel weights laid over the match (D is symmetric); for `dot` they sum to
        the same similarity. Feature maps that the gallery stores are used as they are; otherwise the n gallery images
        are encoded once, together.
        """
        matched = [reference.match.rank - 1 for reference in self.references if reference.match is not None]
        if not matched:
            return None
        response, _ = match_response(self.matches, matched, self.space)
        encoding = self.matches.query.encoding
        query = (encoding.embedding if self.space == "metric" else encoding.pooled).cpu()
        query = query.expand(len(matched), 1, -1)
        if self._versus is None:
            return dist_cam(response, query, **self._options)[:, 0]
        _, opposite = _references(self.matches, self._versus, self.space)
        return contrast(response, query, opposite.expand(len(matched), 1, -1), **self._options)[:, 0]

    def weighted(self, weighting: Weighting) -> Explanation:
        """The same references, explained by another weighting."""
        return self if weighting == self.weighting else self._again(weighting=weighting)

    def against(self, against: str | int) -> Explanation:
        """The same weighting, against other references and without a contrast: see `Matches.explain`."""
        return self._again(against=against)

    def _again(self, *, weighting: Weighting | None = None, against: str | int | None = None) -> Explanation:
        return explain(
            self.matches,
            against=self._against if against is None else against,
            versus=self._versus if against is None else None,
            space=self.space,
            weighting=weighting or self.weighting,
            tau=self._options["tau"],
            norm=self._options["norm"],
        )

    @property
    def is_signed(self) -> bool:
        """True if negative values of the maps speak against the reference, so that 0 is the middle of the scale."""
        return self.weighting in SIGNED or self.versus is not None

    @property
    def marked_query(self) -> Image:
        """The query picture, with the outline of the region that was searched for, if any."""
        query = self.matches.query
        if query.region is None:
            return query.image
        if isinstance(query.region, Box):
            return draw_box(query.image, query.region)
        mask = region_mask(query.region, query.image.size).astype(float)
        return contour(query.image, mask)

    @property
    def query_view(self) -> Box:
        """The rectangle of the query picture (in its pixels) that the encoder saw and the maps cover."""
        return self.matches.retriever.encoder.transform.view(*self.matches.query.size)

    def view_of(self, image: Image) -> Box:
        """The rectangle of a picture, in its pixels, that the encoder sees."""
        return self.matches.retriever.encoder.transform.view(*image.size)

    def nearest_member(self, index: int) -> Record | None:
        """Of a prototype the gallery image that is nearest to it and of its class; None for a match."""
        return self._members[index]

    @cached_property
    def _members(self) -> tuple[Record | None, ...]:
        return tuple(_nearest_member(self.matches.retriever.gallery, reference) for reference in self.references)

    def member_image(self, index: int) -> Image | None:
        """The picture of `nearest_member`; None if there is none, or its file is gone or damaged."""
        member = self.nearest_member(index)
        try:
            return None if member is None else read_image(self.matches.retriever.gallery.file(member))
        except ImageError:
            return None

    def reference_image(self, index: int) -> Image | None:
        """The picture of a matched gallery image; None for a prototype or a file that is gone or damaged."""
        match = self.references[index].match
        try:
            return read_image(match.file) if match is not None else None
        except ImageError:
            return None

    def show(self, look: Look | None = None) -> Image:
        """The query, its references and the maps on both, as one picture; `look` says on which scale and how drawn."""
        from .report import panel_of

        return panel_of(self, look)

    def save(self, path: str | PathLike[str], look: Look | None = None) -> Path:
        """Write the explanation: `.png`/`.jpg` a panel, `.npz` the raw arrays, `.html` an interactive report.

        The report has its own switches for scale and opacity; `look` is for the panel.

        Raises:
            InputError: any other ending.
        """
        from .report import write_report

        path = Path(path)
        if path.suffix.lower() == ".html":
            return write_report(path, [self])
        if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".npz"}:
            raise InputError(f"{path.name}: an explanation is saved as .png, .jpg, .npz or .html")
        with replacing(path) as aside:
            if path.suffix.lower() == ".npz":
                np.savez_compressed(aside, allow_pickle=False, **self.to_arrays())
            else:
                self.show(look).save(aside)
        return path

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Raw maps, reference names and the views as plain arrays."""
        arrays = {
            "query_maps": self.query_maps.numpy(),
            "references": np.array([reference.name for reference in self.references]),
            "distances": np.array([reference.distance for reference in self.references]),
            "query_view": np.array(self.query_view),
        }
        if self.versus is not None:
            arrays["versus"] = np.array(self.versus.name)
        if self.matches.query.weights is not None:
            arrays["region_weights"] = self.matches.query.weights.cpu().numpy()
        return arrays if self.reference_maps is None else arrays | {"reference_maps": self.reference_maps.numpy()}


def _nearest_member(gallery: Gallery, reference: Reference) -> Record | None:
    if reference.match is not None or reference.label is None:
        return None
    prototype = gallery.prototypes.embedding(reference.label)
    (hits,) = gallery.search(prototype[None], 1, where=Eq("label", reference.label))
    return next(iter(gallery.records(hits.ids)), None)


def explain(
    matches: Matches, *, against: str | int, versus: str | int | None = None, space: Side, **options: Any
) -> Explanation:
    """Dist-CAM of one query against matches, a prototype, or a named class; see `Matches.explain`."""
    if space not in ("metric", "backbone"):
        raise InputError(f"space must be 'metric' or 'backbone', got {space!r}")
    retriever = matches.retriever
    options |= {"metric": retriever.gallery.metric, "mean": _mean(retriever, options["weighting"], space)}
    references, vectors = _references(matches, against, space)
    opposite = None if versus is None else _opposite(matches, versus, space)
    stranger = _stranger(matches, space)
    response, is_exact = query_response(matches, space)
    asked = torch.cat([vectors, stranger])[None]
    if opposite is None:
        maps = dist_cam(response, asked, **options)[0]
    else:
        maps = contrast(response, asked, opposite[1][None], **options)[0]
    return Explanation(
        matches=matches,
        references=references,
        query_maps=maps[: len(references)],
        weighting=options["weighting"],
        space=space,
        is_exact=is_exact,
        sensitivity=float(match_sensitivity(maps[[0, -1]])) if len(stranger) else None,
        versus=None if opposite is None else opposite[0],
        _against=against,
        _versus=versus,
        _options=options,
    )


def _references(matches: Matches, against: str | int, space: Side) -> tuple[tuple[Reference, ...], Tensor]:
    """What is compared with, and its vectors "n d" in the space of the map."""
    gallery = matches.retriever.gallery
    rank = _rank(against)
    if against == "match" or rank is not None:
        if not len(matches):
            raise InputError(f"{matches.query.name} has no match to explain: the gallery or the filter is empty")
        chosen = tuple(matches) if rank is None else (matches.at_rank(rank),)
        ids = np.array([match.id for match in chosen], dtype=np.uint64)
        rows = gallery.embeddings(ids) if space == "metric" else gallery.pooled(ids)
        return tuple(Reference(m.path, m.label, m.distance, m) for m in chosen), torch.from_numpy(rows)
    distances = matches.retriever.prototype_distances(matches.query.encoding)
    if not distances:
        raise InputError(f"{gallery.folder} has no labels, so it has no class prototypes; explain against 'match'")
    if against == "prototype":
        if matches.prototype is None:
            raise InputError(f"no class of {gallery.folder} has an image that fits the filter {matches.where!r}")
        label = matches.prototype[0]
    else:
        label = str(against).removeprefix("label:")
    store = gallery.prototypes
    vector = store.embedding(label) if space == "metric" else store.pooled(label)
    return (Reference(f"prototype of {label}", label, distances[label]),), torch.from_numpy(vector)[None]


def _opposite(matches: Matches, versus: str | int, space: Side) -> tuple[Reference, Tensor]:
    """The one reference that a contrast is set against, and its vector "1 d"."""
    if versus == "match":
        raise InputError("versus='match' would be all matches; name one by its rank, such as versus=2 or 'rank:2'")
    references, vectors = _references(matches, versus, space)
    return references[0], vectors


def _rank(name: str | int) -> int | None:
    """The rank that 3 or "rank:3" stands for; None for any other name."""
    if isinstance(name, int):
        return name
    digits = name.removeprefix("rank:")
    if digits == name:
        return None
    if not digits.isdecimal():
        raise InputError(f"expected a rank such as rank:3, got {name!r}; a class of that name is 'label:{name}'")
    return int(digits)


def _stranger(matches: Matches, space: Side) -> Tensor:
    """The vector "1 d" of a gallery image outside the ranking, the same for the same query; "0 d" if there is none."""
    gallery = matches.retriever.gallery
    ids, ranked = gallery.ids, {match.id for match in matches}
    start = len(ids) // 2
    candidates = (int(ids[(start + step) % len(ids)]) for step in range(min(len(ids), len(ranked) + 1)))
    chosen = [next(candidate for candidate in candidates if candidate not in ranked)] if len(ids) > len(ranked) else []
    vectors = gallery.embeddings(chosen) if space == "metric" else gallery.pooled(chosen)
    return torch.from_numpy(vectors)


def query_response(matches: Matches, space: Side) -> tuple[Tensor, bool]:
    """The query's response map "1 d h w"; of a region query 0 outside the region."""
    query = matches.query
    return response_of(matches.retriever, query.encoding.feature_map, space, weights=query.weights)


def match_response(matches: Matches, places: list[int], space: Side) -> tuple[Tensor, bool]:
    """The response maps of some matches, counted from 0; of a gallery that pools under masks 0 outside of them."""
    retriever, maps = matches.retriever, matches.feature_maps[places]
    shape = (maps.shape[-2], maps.shape[-1])
    weights = gallery_weights(retriever.gallery, retriever.encoder, [matches[place] for place in places], shape)
    return response_of(retriever, maps, space, weights=weights)


def response_of(
    retriever: Retriever, feature_maps: Tensor, space: Side, *, weights: Tensor | None = None
) -> tuple[Tensor, bool]:
    """The map "n d h w" whose spatial mean is what is compared, on the CPU, and whether that is exact."""
    encoder = retriever.inference.encoder
    head = encoder.head if space == "metric" else Identity()
    feature_maps = feature_maps.to(retriever.inference.device, torch.float32)
    folded = fold(feature_maps, pooling=encoder.pooling, head=head, weights=weights)
    return folded.map.cpu(), folded.is_exact


def _mean(retriever: Retriever, weighting: str, space: Side) -> Tensor | None:
    """The gallery's mean vector for the weightings that want it."""
    if weighting not in NEEDS_MEAN:
        return None
    if space == "backbone" and not retriever.gallery.spec.embedding_is_pooled:
        raise InputError(
            f"{weighting!r} needs the gallery's mean in the space that ranks; it is not kept for space='backbone'"
        )
    return torch.from_numpy(retriever.gallery.prototypes.mean_embedding())
