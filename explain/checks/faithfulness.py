"""Faithfulness: what becomes of the score when the pixels that a map calls important vanish, or are all there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...encoders.encoding import Encoding
from ...errors import InputError, ShapeError
from ...metrics.maps import upsample
from ..engine import explain_image
from ..inputs import Metric, refuse_non_finite
from ..layer_runs import undisturbed
from ..targets import Similarity, Target, TargetScore, distances, vector_of
from .imputation import blurred, impute_linearly


class InsertionDeletion(NamedTuple):
    """The score while pixels appear in the map's order (insertion), and while they vanish (deletion)."""

    fractions: Float[Tensor, " s"]  # of the pixels, from 0 to 1
    insertion: Float[Tensor, "b m s"]
    deletion: Float[Tensor, "b m s"]
    insertion_rank: Int[Tensor, "b m s"] | None = None  # of the match in the gallery, 1 the nearest
    deletion_rank: Int[Tensor, "b m s"] | None = None

    @property
    def insertion_area(self) -> Float[Tensor, "b m"]:
        """Area under the insertion curve (trapezoids): larger is better."""
        return torch.trapezoid(self.insertion, self.fractions)

    @property
    def deletion_area(self) -> Float[Tensor, "b m"]:
        """Area under the deletion curve: smaller is better."""
        return torch.trapezoid(self.deletion, self.fractions)

    @property
    def difference(self) -> Float[Tensor, "b m"]:
        """Insertion minus deletion area, in the score's unit: near 0 for a random order, larger is better."""
        return self.insertion_area - self.deletion_area


def insertion_deletion(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b m _h _w"],
    *,
    target: Target,
    steps: int = 20,
    fill: Float[Tensor, "*b c h w"] | None = None,
    gallery: Float[Tensor, "g d"] | None = None,
    matches: Int[Tensor, "b m"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> InsertionDeletion:
    """Insertion and deletion of pixels in the maps' order, measured on what the maps explain.

    Source: Petsiuk et al., RISE, 2018, §4.1 (insertion from a blurred image, 11×11, sigma 5; deletion here likewise).
    """
    if steps < 1:
        raise InputError(f"steps={steps} should be 1 or more")
    fill = blurred(images) if fill is None else fill.expand_as(images)
    ranks = _Ranks.of(target, gallery, matches)
    fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    asked = _Asked(model, images, maps, target, batch_size, seed, ranks)

    def replaced(rows: Tensor, rank: Tensor, share: float, *, by: Tensor, there: Tensor) -> Tensor:
        return torch.where((rank < round(share * rank[0].numel()))[:, None], by[rows], there[rows])

    insertion, insertion_rank = asked.curve(fractions, partial(replaced, by=images, there=fill))
    deletion, deletion_rank = asked.curve(fractions, partial(replaced, by=fill, there=images))
    return InsertionDeletion(fractions, insertion, deletion, insertion_rank, deletion_rank)


class RemoveAndDebias(NamedTuple):
    """ROAD: the score after a share of the pixels was replaced by what their neighbours let one guess."""

    fractions: Float[Tensor, " s"]
    most_relevant_first: Float[Tensor, "b m s"]  # the score after the map's highest pixels went: low is good
    least_relevant_first: Float[Tensor, "b m s"]  # after its lowest went: high is good

    @property
    def combined(self) -> Float[Tensor, "b m"]:
        """(LeRF - MoRF) / 2, the mean over the fractions: 0 for a random order, larger is better."""
        return (self.least_relevant_first - self.most_relevant_first).mean(-1) / 2


def remove_and_debias(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b m _h _w"],
    *,
    target: Target,
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    noise: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
) -> RemoveAndDebias:
    """ROAD, both ways round: pixels are removed in the maps' order and imputed linearly from what is left.

    Imputation takes away what the mere shape of the removed region would tell the network; see `impute_linearly`.

    Source: Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, 2022, §4.
    """
    if not fractions or any(not 0 < share < 1 for share in fractions):
        raise InputError(f"fractions={fractions} should be shares of the pixels, each more than 0 and less than 1")
    shares = torch.tensor(fractions, dtype=torch.float64)
    asked = _Asked(model, images, maps, target, batch_size, seed)
    generator = torch.Generator().manual_seed(seed)

    def remove(rows: Tensor, rank: Tensor, share: float, *, first: bool) -> Tensor:
        n = round(share * rank[0].numel())
        removed = rank < n if first else rank >= rank[0].numel() - n
        return impute_linearly(images[rows], removed, noise=noise, generator=generator)

    most, _ = asked.curve(shares, partial(remove, first=True))
    least, _ = asked.curve(shares, partial(remove, first=False))
    return RemoveAndDebias(shares, most, least)


def pixel_order(maps: Float[Tensor, "*b h w"], *, seed: int = 0) -> Int[Tensor, "*b h w"]:
    """The place of each pixel when they are sorted from the highest value down, 0 first.

    Equal values are put in a random order, the same for the same seed: a constant map has the order of a random one.

    >>> pixel_order(torch.tensor([[0.5, 2.0, -1.0]]))
    tensor([[1, 0, 2]])
    """
    values = maps.detach().flatten(-2)
    shuffle = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(seed)).to(values.device)
    order = shuffle[values[..., shuffle].argsort(stable=True, dim=-1, descending=True)]
    return order.argsort(-1).reshape(maps.shape)


class Faithfulness(NamedTuple):
    """Two measures of how much the score hangs on the pixels that a map puts first; near 0 for a random order."""

    insertion_minus_deletion: Float[Tensor, "b m"]  # see `InsertionDeletion.difference`
    road: Float[Tensor, "b m"]  # see `RemoveAndDebias.combined`


def measure_faithfulness(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    maps: Mapping[str, Float[Tensor, "b m _h _w"]],
    *,
    target: Target,
    layer: str | None = None,
    steps: int = 20,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Faithfulness]:
    """Both measures for the maps of several methods, and always for the class-agnostic map and a random order as well.

    Costs 2 · `steps` + 20 forward passes for each map. Errors are those of the two functions. The model, a network or
    `Encoder`, is left as it was; `maps` are by method: "caam" is made here if it is missing (the sum of the channels of
    `layer`, for an `Encoder` of its feature map if left out), and "random" is added. `batch_size` is of perturbed
    images; `seed` of the random order, and of ROAD's noise.
    """
    known = dict(maps)
    if "caam" not in known:
        known["caam"] = explain_image(model, images, target=target, method="caam", layer=layer).maps
    known["random"] = torch.zeros_like(known["caam"])  # equal values are put in a random order
    given: dict[str, Any] = {"target": target, "batch_size": batch_size, "seed": seed}
    return {
        name: Faithfulness(
            insertion_deletion(model, images, heat, steps=steps, **given).difference,
            remove_and_debias(model, images, heat, **given).combined,
        )
        for name, heat in known.items()
    }


class _Ranks(NamedTuple):
    """Ranks of matches in a gallery."""

    gallery: Tensor
    matches: Tensor
    metric: Metric

    @classmethod
    def of(cls, target: Target, gallery: Tensor | None, matches: Tensor | None) -> _Ranks | None:
        if gallery is None and matches is None:
            return None
        if gallery is None or matches is None or not isinstance(target, Similarity):
            raise InputError("rank curves need a Similarity as target, a gallery, and the rows of the matches in it")
        refuse_non_finite("the gallery", gallery)
        if not bool(((matches >= 0) & (matches < len(gallery))).all()):
            raise InputError(f"matches are rows of a gallery of {len(gallery)}, from 0; got {matches.tolist()}")
        return cls(gallery, matches, target.metric)

    def __call__(self, output: Any, rows: Tensor, question: Tensor) -> Tensor:
        """1 + the number of gallery vectors nearer than the match; of equally near ones the first counts as nearer."""
        vectors = vector_of(output).detach()
        distance = distances(vectors, self.gallery.to(vectors), self.metric)
        match = self.matches.to(rows.device)[rows, question][:, None]
        own = distance.gather(1, match)
        earlier = torch.arange(distance.shape[1], device=distance.device) < match
        return 1 + ((distance < own) | ((distance == own) & earlier)).sum(1)


class _Asked:
    """The images, their questions and maps, and the network that answers for perturbed copies."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        maps: Tensor,
        target: Target,
        batch_size: int,
        seed: int,
        ranks: _Ranks | None = None,
    ) -> None:
        if maps.ndim != 4 or len(maps) != len(images):
            raise ShapeError(f"{len(images)} images need maps (b, m, rows, columns); got {tuple(maps.shape)}")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} should be 1 or more")
        refuse_non_finite("the images", images)
        refuse_non_finite("the maps", maps)
        self.model, self.batch_size, self.ranks = model, batch_size, ranks
        size = (images.shape[-2], images.shape[-1])
        self.rank = pixel_order(upsample(maps, size), seed=seed).to(images.device)
        with undisturbed(model), torch.no_grad():
            self.score: TargetScore = target.fix(output := _in_batches(model, images, batch_size))
            found = self.score(output).shape
        if found != maps.shape[:2]:
            raise ShapeError(f"the target asks {tuple(found)} questions; there are maps for {tuple(maps.shape[:2])}")
        if ranks is not None and ranks.matches.shape != found:
            raise ShapeError(f"matches should have shape {tuple(found)}; got {tuple(ranks.matches.shape)}")

    def curve(
        self, fractions: Tensor, perturb: Callable[[Tensor, Tensor, float], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Scores, and ranks if wanted, (b, m, s); `perturb` is given images' rows, pixel ranks, and a share."""
        scores, places = [], []
        n_images, n_questions = self.rank.shape[:2]
        pairs = torch.cartesian_prod(torch.arange(n_images), torch.arange(n_questions)).to(self.rank.device)
        with undisturbed(self.model), torch.no_grad():
            for share in fractions.tolist():
                for rows, question in (some.unbind(1) for some in torch.split(pairs, self.batch_size)):
                    output = self.model(perturb(rows, self.rank[rows, question], share))
                    scores.append(self.score(output, rows).gather(1, question[:, None])[:, 0])
                    if self.ranks is not None:
                        places.append(self.ranks(output, rows, question))
        shape = (len(fractions), n_images, n_questions)
        curve = torch.cat(scores).double().reshape(shape).permute(1, 2, 0).cpu()
        return curve, torch.cat(places).reshape(shape).permute(1, 2, 0).cpu() if places else None


def _in_batches(model: nn.Module, images: Tensor, batch_size: int) -> Any:
    """The network's output for all images, a batch at a time."""
    outputs = [model(some) for some in torch.split(images, batch_size)]
    if isinstance(outputs[0], Encoding):
        return Encoding.cat(outputs)
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return outputs[0] if len(outputs) == 1 else model(images)  # a dictionary: whatever it holds, all at once
