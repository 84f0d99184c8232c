"""The evidence behind the maps of a ranking: response maps, vectors of references, and the masks of regions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..encoders import Encoder, Inference
from ..encoders.encoding import Response, fold
from ..encoders.fine import SAYS, Detail, WithoutMargins, with_detail
from ..encoders.heads import IdentityHead
from ..encoders.inference import Encodes
from ..encoders.regions import MaskPooling, weights_of
from ..errors import ImageError, InputError
from ..explain import Surroundings
from ..explain.places import share_of_view
from ..explain.weightings import NEEDS_MEAN
from ..images import image_size
from ..images.masks import read_mask
from ..index.storage.segments import MASK_COLUMN, NO_MASK
from .ranking import Match, Ranking, TextEncoding

if TYPE_CHECKING:
    from ..index import Gallery, PrototypeStore, Record
    from .retriever import Retriever

Space = Literal["metric", "backbone"]
LITTLE = 0.6  # of the network's input: where an image covers less, its map is that of a closer look


@dataclass(frozen=True)
class Reference:
    """A reference that a query is compared with: a gallery image (`match` is set) or a class prototype (it is None)."""

    name: str
    label: str | None
    distance: float
    match: Match | None = None

    @property
    def short_name(self) -> str:
        """A match by its rank, a prototype by its class."""
        return f"match {self.match.rank}" if self.match else str(self.label)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The response maps of a ranking's query and matches in one space, and the vectors that explain them."""

    ranking: Ranking
    space: Space
    detail: Detail = "plain"
    _matched: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.detail in SAYS and self.ranking.query.weights is not None:
            raise InputError("a region of the query is explained in plain detail only; leave `detail` out")
        if self.space not in ("metric", "backbone"):
            raise InputError(f"space must be 'metric' or 'backbone', got {self.space!r}")

    @cached_property
    def plain(self) -> Evidence:
        """The evidence of the pass that ranks, which lines are read from."""
        is_plain = self.space == "metric" and self.detail == "plain"
        return self if is_plain else Evidence(self.ranking, "metric")

    @cached_property
    def query_response(self) -> Response:
        """The query's response map "1 d h w"; of a region query 0 outside the region."""
        query = self.ranking.query
        encoding = query.encoding
        if self.detail in SAYS and isinstance(encoding, TextEncoding):
            raise InputError("a text is explained on its matches, where detail is plain; leave `detail` out")
        if (detail := "finer" if self.looks_closer else self.detail) in SAYS:
            inference = self.ranking.retriever.detailed(detail)
            pixels = inference.read(query.image) if query.enlarged is None or detail == "fine" else query.enlarged
            detailed = inference(pixels[None])
            return self._folded(detailed.feature_map, None, detailed.constant)
        if not isinstance(encoding, TextEncoding):
            return self._folded(encoding.feature_map, query.weights, encoding.constant)
        vector = self.query_vector[..., None, None]
        if encoding.image is None:  # a map of one place
            return Response(vector, is_exact=True)
        folded = self._folded(encoding.feature_map, query.weights)
        return Response(encoding.joined(folded.map), folded.is_exact)

    def match_response(self, ranks: tuple[int, ...]) -> Tensor:
        """The response maps "n d h w" of these matches; of a gallery that pools under masks 0 outside of them."""
        if ranks not in self._matched:
            source = self.ranking.retriever
            matches = [self.ranking.at_rank(rank) for rank in ranks]
            maps = self._maps_of(matches)
            shape = (maps.shape[-2], maps.shape[-1])
            weights = gallery_weights(source.gallery, source.encoder, matches, shape=shape)
            self._matched[ranks] = self._folded(maps, None if weights is None else torch.stack(weights)).map
        return self._matched[ranks]

    def _folded(self, feature_maps: Tensor, weights: Tensor | None, constant: Tensor | None = None) -> Response:
        """The map "n d h w", on the CPU, whose spatial mean is what is compared."""
        return folded(self.ranking.retriever.inference, feature_maps, weights, space=self.space, constant=constant)

    def _maps_of(self, matches: Sequence[Match]) -> Tensor:
        """The feature maps of matches; where some are of a closer look, the others are spread over as many cells."""
        source, rows = self.ranking.retriever, [match.rank - 1 for match in matches]
        if self.detail in SAYS:
            return source.detailed(self.detail).encode_images([match.item for match in matches]).feature_map
        closer = [place for place, match in enumerate(matches) if match.rank in self.closer_ranks]
        if not closer:
            return self.ranking.feature_maps[rows]
        found = source.detailed("finer").encode_images([matches[place].item for place in closer]).feature_map.cpu()
        if len(closer) == len(matches):
            return found
        maps = self.ranking.feature_maps[rows].to(found)
        down, across = (_spread(*sides) for sides in zip(maps.shape[2:], found.shape[2:], strict=True))
        maps = down.to(maps) @ maps @ across.T.to(maps)
        maps[closer] = found
        return maps

    @cached_property
    def looks_closer(self) -> bool:
        """True if `auto` takes the query's map from a closer look: at an elongated image, as a whole."""
        query, retriever = self.ranking.query, self.ranking.retriever
        if self.detail != "auto" or query.weights is not None or isinstance(query.encoding, TextEncoding):
            return False
        is_at_hand = query.source is not None or query.enlarged is not None
        return is_at_hand and self.share < LITTLE and retriever.detailed.leaves_margins_out

    @cached_property
    def closer_ranks(self) -> frozenset[int]:
        """The matches whose maps `auto` takes from a closer look."""
        source, transform, found = self.ranking.retriever, self.ranking.retriever.encoder.transform, []
        has_margins = self.detail == "auto" and transform.fit == "pad"  # else no file need be looked into
        for match in self.ranking.matches if has_margins else ():
            with suppress(ImageError):  # the file is gone
                found += [match.rank] * (share_of_view(transform, image_size(match.item)) < LITTLE)
        return frozenset(found if found and source.detailed.leaves_margins_out else ())

    @cached_property
    def share(self) -> float:
        """How much of the network's input the query's image takes; 1 where that is not known."""
        query = self.ranking.query
        with suppress(ImageError, InputError):  # the file is gone, or there was no image
            is_file = isinstance(query.source, str | os.PathLike)
            size = image_size(query.source) if is_file else query.size if query.has_image else None
            return share_of_view(self.ranking.retriever.encoder.transform, size)
        return 1.0

    def remarks(self, ranks: Sequence[int]) -> list[str]:
        """What detail shows on the query and on these matches; where margins take much and it is plain, that too."""
        if self.detail in SAYS:
            return [SAYS[self.detail]]
        closer = ["the query"] * self.looks_closer
        if matches := len(self.closer_ranks.intersection(ranks)):
            closer.append("1 match" if matches == 1 else f"{matches} matches")
        said = [
            f"Looked at closer, without margins, which take much of what the network sees: {' and '.join(closer)}. "
            "The vector of such a look differs a little from the one that ranks."
        ] * bool(closer)
        if self.share < LITTLE and not self.looks_closer and self.ranking.query.weights is None:
            more = "detail finer looks closer" if self.detail == "plain" else "no closer look at it is possible here"
            said.append(f"The image takes {self.share:.0%} of what the network sees, the rest is margin; {more}.")
        return said

    @cached_property
    def query_vector(self) -> Tensor:
        """The query's vector "1 d"."""
        encoding = self.ranking.query.encoding
        return (encoding.embedding if self.space == "metric" else encoding.pooled).cpu()

    @cached_property
    def unrelated(self) -> Tensor:
        """The vector "1 d" of a gallery image that is not ranked, least similar of 16 over the gallery; or "0 d"."""
        ids = np.setdiff1d(self.ranking.retriever.gallery.ids, [match.id for match in self.ranking])
        spread = np.unique(np.linspace(0, len(ids) - 1, min(16, len(ids))).astype(int))
        vectors = self._vectors(ids[spread].tolist())
        similar = torch.nn.functional.cosine_similarity(vectors, self.query_vector.to(vectors), dim=-1)
        return vectors[similar.argsort(stable=True)[:1]]

    def mean(self, weighting: str) -> Tensor | None:
        """The gallery's mean vector for the weightings that want it."""
        if weighting not in NEEDS_MEAN:
            return None
        if not self.has_mean:
            raise InputError(
                f"{weighting!r} needs the gallery's mean in the space that ranks; it is not kept for space='backbone', "
                "and of one image there is none"
            )
        return torch.from_numpy(self.ranking.retriever.gallery.prototypes.mean_embedding())

    @cached_property
    def surroundings(self) -> Surroundings | None:
        """What `root_ratio` may take off; None where the gallery keeps no statistics of the space."""
        if not self.has_mean:
            return None
        gallery = self.ranking.retriever.gallery
        return surroundings_of(gallery.prototypes, gallery.background)

    @property
    def has_mean(self) -> bool:
        """True if the gallery keeps its mean vector in this space; that of one image says nothing of others."""
        gallery = self.ranking.retriever.gallery
        return len(gallery) > 1 and (self.space == "metric" or gallery.spec.embedding_is_pooled)

    def references(self, against: str | int) -> tuple[tuple[Reference, ...], Tensor]:
        """The references that `against` names, see `Matches.explain`, and their vectors "n d"."""
        ranking, gallery = self.ranking, self.ranking.retriever.gallery
        rank = against if isinstance(against, int) else None
        if isinstance(against, str) and against.startswith("rank:"):
            if not against[5:].isdecimal():
                raise InputError(
                    f"expected a rank such as rank:3, got {against!r}; a class of that name is 'label:{against}'"
                )
            rank = int(against[5:])
        if against == "match" or rank is not None:
            if not len(ranking):
                raise InputError(f"{ranking.query.name} has no match to explain: the gallery or the filter is empty")
            chosen = ranking.matches if rank is None else (ranking.at_rank(rank),)
            found = tuple(Reference(match.path, match.label, match.distance, match) for match in chosen)
            return found, self._vectors([match.id for match in chosen])
        if not ranking.query.has_image:
            raise InputError(
                "a text is explained on its matches, of which a prototype is none; explain against 'match'"
            )
        distances = ranking.retriever.prototype_distances(ranking.query.encoding)
        if not distances:
            raise InputError(f"{gallery.folder} has no labels, so it has no class prototypes; explain against 'match'")
        if against != "prototype":
            label = str(against).removeprefix("label:")
        elif ranking.prototype is None:
            raise InputError(f"no class of {gallery.folder} has an image that fits the filter {ranking.where!r}")
        else:
            label = ranking.prototype[0]
        store = gallery.prototypes
        vector = store.embedding(label) if self.space == "metric" else store.pooled(label)
        return (Reference(f"prototype of {label}", label, distances[label]),), torch.from_numpy(vector)[None]

    def figures(self, reference: Reference) -> str:
        """The similarity of a reference, and how many places lie alike if lines verified the match."""
        similarity = f"{self.ranking.retriever.similarity(reference.distance):.3f}"
        alike = None if reference.match is None else reference.match.inliers
        return similarity if alike is None else f"{similarity} · {alike} alike"

    def _vectors(self, ids: list[int]) -> Tensor:
        """The stored vectors "n d" of gallery images."""
        gallery, rows = self.ranking.retriever.gallery, np.array(ids, dtype=np.uint64)
        return torch.from_numpy(gallery.embeddings(rows) if self.space == "metric" else gallery.pooled(rows))


class Detailed:
    """The inferences of a retriever whose feature maps have more rows and columns, made when they are asked for."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._made: dict[Detail, Inference] = {}

    def __call__(self, detail: Detail) -> Inference:
        """An inference like the retriever's, see `with_detail`."""
        if detail not in self._made:
            retriever = self._retriever
            encoder, precision = with_detail(retriever.encoder, detail), retriever.gallery.manifest.encoder.precision
            self._made[detail] = Inference(encoder, device=retriever.inference.device, precision=precision or "auto")
        return self._made[detail]

    @cached_property
    def leaves_margins_out(self) -> bool:
        """True if "finer" does not show the network the margins of elongated images, which it then costs little for."""
        try:
            return isinstance(self("finer").encoder.backbone, WithoutMargins)
        except InputError:
            return False


def _spread(cells: int, onto: int) -> Float[Tensor, "onto cells"]:
    """The share of each of so many cells in each of others on the same length: means stay as they are."""
    return torch.eye(cells).repeat_interleave(onto, 0).reshape(onto, cells, cells).mean(1)


def folded(
    inference: Encodes,
    feature_maps: Tensor,
    weights: Tensor | None,
    *,
    space: Space = "metric",
    constant: Tensor | None = None,
) -> Response:
    """The map "n d h w", on the CPU, whose spatial mean is what is compared in a space."""
    head = inference.encoder.head if space == "metric" else IdentityHead()
    feature_maps = feature_maps.to(inference.device, torch.float32)
    response = fold(feature_maps, pooling=inference.encoder.pooling, head=head, weights=weights, constant=constant)
    is_exact = response.is_exact and inference.encoder.is_read_exactly
    return Response(response.map.cpu(), is_exact, None if response.constant is None else response.constant.cpu())


def surroundings_of(store: PrototypeStore, background: NDArray[np.float32] | None) -> Surroundings:
    """The gallery's mean in the space that ranks."""
    return Surroundings(
        mean=torch.from_numpy(store.mean_embedding()),
        magnitude=torch.from_numpy(store.mean_magnitude()),
        border=None if background is None else torch.from_numpy(background),
        images=store.total,
        classes=len(store),
    )


def region_of_file(file: str | os.PathLike[str], *, category: int | None = None) -> Bool[NDArray[Any], "height width"]:
    """A mask file as the region of a query: everything that is not black, or the pixels with a class's number."""
    mask = read_mask(file, category=category)
    if not mask.any():
        what = "nothing but black" if category is None else f"no pixel with the number {category}"
        raise InputError(f"{file}: the mask holds {what}, so there is nothing to search for")
    return mask


def gallery_weights(
    gallery: Gallery, encoder: Encoder, images: Sequence[Record | Match], *, shape: tuple[int, int] | None = None
) -> list[Float[Tensor, "h w"]] | None:
    """The weights under which a gallery pooled these images of its own; None where it pools whole images."""
    masks = gallery.masks
    if masks is None:
        return None
    shape = shape or gallery.spec.map_shape or MaskPooling.of(masks, encoder).shape
    found = [torch.ones(shape) for _ in images]
    for place, image in enumerate(images):
        digest = image.columns.get(MASK_COLUMN, NO_MASK)
        if digest == NO_MASK:
            continue
        if masks.digest(image.path) != digest:
            raise InputError(
                f"{image.path} was pooled under a mask that is not at {masks.file(image.path)} any more, so this side "
                "cannot be explained; put it back, or renew the gallery with `distcam index add`"
            )
        try:
            mask = read_mask(masks.file(image.path), category=masks.category)
        except ImageError as error:
            raise InputError(f"{image.path}: its mask: {error.reason}") from error
        with suppress(InputError):  # nothing of the mask is seen: pooled as a whole
            size = (mask.shape[1], mask.shape[0])
            found[place] = weights_of(mask, size=size, encoder=encoder, shape=shape) if mask.any() else found[place]
    return found
