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
from ..explain import Weighting, dist_cam, fold, match_sensitivity
from ..explain.inputs import NEEDS_MEAN
from ..images import Box, read_image
from .matches import Match, Matches

if TYPE_CHECKING:
    from PIL.Image import Image

    from .retriever import Retriever

__all__ = ["Explanation", "Reference", "Side", "explain"]

Side = Literal["metric", "backbone"]


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
    _against: str = field(repr=False)
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
        matched = [reference.match for reference in self.references if reference.match is not None]
        if not matched:
            return None
        retriever = self.matches.retriever
        response, _ = _response(retriever, self.matches.feature_maps, self.space)
        encoding = self.matches.query.encoding
        query = (encoding.embedding if self.space == "metric" else encoding.pooled).cpu()
        return dist_cam(response, query.expand(len(matched), 1, -1), **self._options)[:, 0]

    def weighted(self, weighting: Weighting) -> Explanation:
        """The same references, explained by another weighting."""
        return self if weighting == self.weighting else self._again(weighting=weighting)

    def against(self, against: str) -> Explanation:
        """The same weighting, against other references: "match", "prototype", or a class label."""
        return self._again(against=against)

    def _again(self, *, weighting: Weighting | None = None, against: str | None = None) -> Explanation:
        return explain(
            self.matches,
            against=against or self._against,
            space=self.space,
            weighting=weighting or self.weighting,
            tau=self._options["tau"],
            norm=self._options["norm"],
        )

    @property
    def query_view(self) -> Box:
        """The rectangle of the query picture (in its pixels) that the encoder saw and the maps cover."""
        return self.view_of(self.matches.query.image)

    def view_of(self, image: Image) -> Box:
        """The rectangle of a picture, in its pixels, that the encoder sees."""
        return self.matches.retriever.encoder.transform.view(*image.size)

    def reference_image(self, index: int) -> Image | None:
        """The picture of a matched gallery image; None for a prototype or a file that is gone or damaged."""
        match = self.references[index].match
        try:
            return read_image(match.file) if match is not None else None
        except ImageError:
            return None

    def show(self) -> Image:
        """The query, its references and the maps on both, as one picture."""
        from .report import panel_of

        return panel_of(self)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the explanation: `.png`/`.jpg` a panel, `.npz` the raw arrays, `.html` an interactive report.

        Raises:
            InputError: any other ending.
        """
        from .report import write_report

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".html":
            return write_report(path, [self])
        aside = path.with_name(f".partial.{path.name}")
        if path.suffix.lower() in {".png", ".jpg", ".jpeg"}:
            self.show().save(aside)
        elif path.suffix.lower() == ".npz":
            np.savez_compressed(aside, allow_pickle=False, **self.to_arrays())
        else:
            raise InputError(f"{path.name}: an explanation is saved as .png, .jpg, .npz or .html")
        return aside.replace(path)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Raw maps, reference names and the views as plain arrays."""
        arrays = {
            "query_maps": self.query_maps.numpy(),
            "references": np.array([reference.name for reference in self.references]),
            "distances": np.array([reference.distance for reference in self.references]),
            "query_view": np.array(self.query_view),
        }
        return arrays if self.reference_maps is None else arrays | {"reference_maps": self.reference_maps.numpy()}


def explain(matches: Matches, *, against: str, space: Side, **options: Any) -> Explanation:
    """Dist-CAM of one query against its matches, its nearest prototype, or a named class; see `Matches.explain`."""
    if space not in ("metric", "backbone"):
        raise InputError(f"space must be 'metric' or 'backbone', got {space!r}")
    retriever = matches.retriever
    options |= {"metric": retriever.gallery.metric, "mean": _mean(retriever, options["weighting"], space)}
    references, vectors = _references(matches, against, space)
    stranger = _stranger(matches, space)
    response, is_exact = _response(retriever, matches.query.encoding.feature_map, space)
    maps = dist_cam(response, torch.cat([vectors, stranger])[None], **options)[0]
    query_maps = maps[: len(references)]
    return Explanation(
        matches=matches,
        references=references,
        query_maps=query_maps,
        weighting=options["weighting"],
        space=space,
        is_exact=is_exact,
        sensitivity=float(match_sensitivity(maps[[0, -1]])) if len(stranger) else None,
        _against=against,
        _options=options,
    )


def _references(matches: Matches, against: str, space: Side) -> tuple[tuple[Reference, ...], Tensor]:
    """What is compared with, and its vectors "n d" in the space of the map."""
    gallery = matches.retriever.gallery
    if against == "match":
        if not len(matches):
            raise InputError(f"{matches.query.name} has no match to explain: the gallery or the filter is empty")
        rows = gallery.embeddings(matches.ids) if space == "metric" else gallery.pooled(matches.ids)
        return tuple(Reference(m.path, m.label, m.distance, m) for m in matches), torch.from_numpy(rows)
    distances = matches.retriever.prototype_distances(matches.query.encoding)
    if not distances:
        raise InputError(f"{gallery.folder} has no labels, so it has no class prototypes; explain against 'match'")
    label = next(iter(distances)) if against == "prototype" else against
    store = gallery.prototypes
    vector = store.embedding(label) if space == "metric" else store.pooled(label)
    return (Reference(f"prototype of {label}", label, distances[label]),), torch.from_numpy(vector)[None]


def _stranger(matches: Matches, space: Side) -> Tensor:
    """The vector "1 d" of a gallery image outside the ranking, the same for the same query; "0 d" if there is none."""
    gallery = matches.retriever.gallery
    ids, ranked = gallery.ids, {match.id for match in matches}
    start = len(ids) // 2
    candidates = (int(ids[(start + step) % len(ids)]) for step in range(min(len(ids), len(ranked) + 1)))
    chosen = [next(candidate for candidate in candidates if candidate not in ranked)] if len(ids) > len(ranked) else []
    vectors = gallery.embeddings(chosen) if space == "metric" else gallery.pooled(chosen)
    return torch.from_numpy(vectors)


def _response(retriever: Retriever, feature_maps: Tensor, space: Side) -> tuple[Tensor, bool]:
    """The map "n d h w" whose spatial mean is what is compared, on the CPU, and whether that is exact."""
    encoder = retriever.inference.encoder
    head = encoder.head if space == "metric" else Identity()
    folded = fold(feature_maps.float(), pooling=encoder.pooling, head=head)
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
