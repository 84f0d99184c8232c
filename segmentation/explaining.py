"""Explanations of a segmenter, measured: does the map light up the object that was asked about, and does it matter?

Among several objects of one class a question is asked about one of them, by its pixels, its box, or one point in it.
The true answer lies in that object; energy and peaks elsewhere in the class belong to the others. A map may find the
class and not the object: the shares *among the objects of the class* tell these apart, and maps that do not know the
question stand beside them. ROAD says whether the pixels matter to the network; `roar.py` asks a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..explain import METHODS, PixelScore, explain_image, is_constant, normalise, rectify, upsample
from ..explain.checks.faithfulness import remove_and_debias
from ..explain.engine import method_name
from ..metrics.components import largest_component
from ..metrics.intervals import bootstrap_means
from .segmenter.pixel_data import PixelData, predict

__all__ = [
    "ASKS",
    "REFERENCES",
    "Ask",
    "MapScores",
    "Questions",
    "ask_objects",
    "judge_maps",
    "maps_for",
]

Ask = Literal["component", "box", "point", "class"]
ASKS: tuple[Ask, ...] = ("component", "box", "point", "class")
REFERENCES: Mapping[str, str] = {
    "random": "a smooth map of noise",
    "centre": "a bell in the middle of the picture",
    "full": "the whole picture alike",
    "largest": "the largest object that is predicted to be of the class",
    "softmax": "the network's own probability of the class",
    "asked": "the pixels that were asked about",
}


@dataclass(frozen=True, eq=False)
class Questions:
    """m questions about one picture.

    Attributes:
        category: the class of each.
        pixels: the set that is asked about.
        asked: the object that the answer lies in.
        others: the other objects of its class; nowhere for questions about a class.
    """

    category: Int[Tensor, " m"]
    pixels: Bool[Tensor, "m h w"]
    asked: Bool[Tensor, "m h w"]
    others: Bool[Tensor, "m h w"]

    def __len__(self) -> int:
        return len(self.category)

    @property
    def target(self) -> PixelScore:
        """For a batch of this one picture."""
        return PixelScore(self.category[None], self.pixels[None])


def ask_objects(
    data: PixelData,
    row: int,
    predicted: Int[Tensor, "h w"],
    *,
    by: Ask = "component",
    least_pixels: int = 12,
    least_found: float = 0.5,
    most: int | None = None,
) -> Questions | None:
    """The questions about a picture's objects; None if there is nothing to ask.

    Objects are asked about that are not alone in their class, have `least_pixels`, and of which the network finds a
    share of `least_found`: a map of what it did not see answers another question. By "component" the set is the part
    that was found, by "box" the tight box around the object, by "point" the found pixel farthest inside. With "class"
    each class that is there is asked about as a whole, by what is predicted to be of it.

    Args:
        data: the pictures.
        row: which.
        predicted: the class of each of its pixels, as the network says.
        by: see above.
        least_pixels: of an object.
        least_found: share of its pixels, in (0, 1].
        most: questions, the first ones in the order of the objects' numbers; all if left out.
    """
    if by not in ASKS:
        raise InputError(f"by={by!r} is not known; choose one of {', '.join(ASKS)}")
    found = list(_classes(data, row) if by == "class" else _objects(data, row))
    asked: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for category, own, others in found:
        seen = own & (predicted == category)
        if own.sum() >= least_pixels and seen.sum() >= least_found * own.sum() and (by == "class" or others.any()):
            asked.append((category, _pixels_of(by, own, seen, predicted == category), own, others))
    if not asked:
        return None
    chosen = asked[:most]
    return Questions(
        category=torch.tensor([category for category, *_ in chosen]),
        pixels=torch.stack([pixels for _, pixels, _, _ in chosen]),
        asked=torch.stack([own for _, _, own, _ in chosen]),
        others=torch.stack([others for *_, others in chosen]),
    )


def _classes(data: PixelData, row: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    classes = data.classes[row]
    for category in range(len(data.names)):
        if category != data.background:
            own = classes == category
            yield category, own, torch.zeros_like(own)


def _objects(data: PixelData, row: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    classes, instances = data.classes[row], data.instances[row]
    for number in torch.unique(instances).tolist():
        if number:
            own = instances == number
            category = int(classes[own].mode().values)
            yield category, own, (classes == category) & ~own


def _pixels_of(by: Ask, own: Tensor, seen: Tensor, predicted: Tensor) -> Tensor:
    if by == "class":
        return predicted
    if by == "component":
        return seen
    if by == "box":
        rows, columns = own.any(1).nonzero(), own.any(0).nonzero()
        filled = torch.zeros_like(own)
        filled[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
        return filled
    core = seen
    while True:  # peel until nothing would be left
        peeled = ~functional.max_pool2d((~core)[None].float(), 3, stride=1, padding=1)[0].bool()
        if not peeled.any():
            break
        core = peeled
    point = torch.zeros_like(own)
    row, column = core.nonzero()[0].tolist()
    point[row, column] = True
    return point


# --- maps -------------------------------------------------------------------------------------------------------------


def maps_for(
    model: nn.Module,
    image: Float[Tensor, "1 3 h w"],
    questions: Questions,
    *,
    methods: Sequence[str],
    layer: str,
    seed: int = 0,
    **options: Any,
) -> dict[str, Float[Tensor, "m _h _w"]]:
    """The raw maps of one picture's questions by method; `REFERENCES` are methods too, in the picture's size.

    Args:
        model: the segmenter.
        image: normalised.
        questions: about it.
        methods: of `METHODS` and `REFERENCES`.
        layer: of the network.
        seed: of "random".
        options: of the methods, each for those that take it.
    """
    found = {}
    for name in methods:
        if name in REFERENCES:
            found[name] = _reference(name, model, image, questions, seed)
            continue
        known = {key: value for key, value in options.items() if key in METHODS[method_name(name)].options}
        maps = explain_image(model, image, target=questions.target, method=name, layer=layer, **known)
        found[name] = maps.maps[0]
    return found


def _reference(name: str, model: nn.Module, image: Tensor, questions: Questions, seed: int) -> Tensor:
    """A map that costs no gradient."""
    m, (rows, columns) = len(questions), image.shape[-2:]
    if name == "random":
        noise = torch.rand(m, 8, 8, generator=torch.Generator().manual_seed(seed))
        return upsample(noise, (rows, columns))
    if name == "centre":
        y, x = (torch.linspace(-1, 1, n, dtype=image.dtype) for n in (rows, columns))
        return torch.exp(-2 * (y[:, None] ** 2 + x**2)).expand(m, -1, -1)
    if name == "full":
        return torch.ones(m, rows, columns)
    if name == "asked":
        return questions.pixels.float()
    with torch.no_grad():
        output = model(image)
        logits: Tensor = output["out"] if isinstance(output, Mapping) else output
    if name == "softmax":
        return logits.softmax(1)[0, questions.category]
    predicted = logits[0].argmax(0)
    return torch.stack(
        [torch.from_numpy(largest_component(predicted == category)) for category in questions.category.tolist()]
    ).float()


# --- measures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MapScores:
    """How well the maps of one method answer n questions about several pictures.

    Attributes:
        pointing: whether the map's peak lies in the object; a constant map points nowhere.
        energy: share of the map, scaled to [0, 1], in the object.
        own_energy: of the map's energy in all objects of the class, the share in the one asked about; nan for classes.
        own_peak: whether of all objects of the class the map is highest in that one; ties are no hit, nan for classes.
        road: (LeRF - MoRF) / 2 of the score per pixel asked about; nan if it was not measured.
        picture: which picture a question belongs to.
    """

    pointing: Float[Tensor, " n"]
    energy: Float[Tensor, " n"]
    own_energy: Float[Tensor, " n"]
    own_peak: Float[Tensor, " n"]
    road: Float[Tensor, " n"]
    picture: Int[Tensor, " n"]

    MEASURES = ("pointing", "energy", "own_energy", "own_peak", "road")

    @classmethod
    def cat(cls, parts: Sequence[MapScores]) -> MapScores:
        """The scores of several pictures."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in (*cls.MEASURES, "picture")))

    def interval(self, measure: str, *, samples: int = 2000, seed: int = 0) -> tuple[float, float, float] | None:
        """Mean with its 95 % bootstrap interval over pictures, whose questions stay together; None without values."""
        values = getattr(self, measure).double().numpy()
        known = ~np.isnan(values)
        if not known.any():
            return None
        own, picture = values[known, None], self.picture.numpy()[known]
        means = bootstrap_means(own, picture, samples=samples, seed=seed)
        low, high = np.quantile(means, [0.025, 0.975]).tolist()
        return float(own.mean()), low, high


def judge_maps(
    model: nn.Module,
    data: PixelData,
    *,
    methods: Sequence[str],
    layer: str,
    by: Ask = "component",
    road: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    most: int | None = None,
    least_pixels: int = 12,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, MapScores]:
    """The measures of several methods on every picture that has something to ask about.

    Args:
        model: the segmenter; it is left as it was.
        data: pictures with masks.
        methods: of `METHODS` and `REFERENCES`.
        layer: of the network.
        by: how objects are asked about, see `ask_objects`.
        road: shares of the pixels that ROAD removes; none leaves it out.
        most: questions about one picture.
        least_pixels: of an object.
        batch_size: of ROAD.
        seed: of the random map, and of ROAD's noise.
        progress: called with (pictures done, pictures in all).
        options: of the methods, as for `maps_for`.

    Raises:
        InputError: an unknown method or way to ask, or nothing to ask about.
    """
    names = [name if name in REFERENCES else method_name(name) for name in methods]
    predicted = predict(model, data.images)
    parts: dict[str, list[MapScores]] = {name: [] for name in names}
    for row in range(len(data)):
        questions = ask_objects(data, row, predicted[row], by=by, most=most, least_pixels=least_pixels)
        if questions is not None:
            image = data.images[row : row + 1]
            found = maps_for(model, image, questions, methods=names, layer=layer, seed=seed + row, **options)
            for name, maps in found.items():
                removed = _road(model, image, maps, questions, road, batch_size, seed) if road else None
                parts[name].append(_measured(maps, questions, removed, row))
        if progress is not None:
            progress(row + 1, len(data))
    if not any(parts.values()):
        raise InputError("nothing to ask about: no picture has two found objects of one class")
    return {name: MapScores.cat(own) for name, own in parts.items()}


def _road(
    model: nn.Module,
    image: Tensor,
    maps: Tensor,
    questions: Questions,
    fractions: Sequence[float],
    batch_size: int,
    seed: int,
) -> Tensor:
    """ROAD in logits per pixel asked about, so that large and small objects count alike."""
    found = remove_and_debias(
        model,
        image,
        maps[None].to(image),
        target=questions.target,
        fractions=tuple(fractions),
        batch_size=batch_size,
        seed=seed,
    )
    return found.combined[0] / questions.pixels.sum((1, 2)).clamp(min=1)


def _measured(maps: Tensor, questions: Questions, road: Tensor | None, row: int) -> MapScores:
    rows, columns = questions.asked.shape[-2:]
    heat = normalise(rectify(upsample(maps.double(), (rows, columns))))
    flat = is_constant(heat)
    heat = torch.where(flat[:, None, None], 1.0, heat)
    inside, outside = heat * questions.asked, heat * questions.others
    own, other = inside.sum((1, 2)), outside.sum((1, 2))
    top, top_other = (part.amax((1, 2)) for part in (inside, outside))
    unknown = torch.full_like(own, torch.nan)
    has_others = questions.others.any(-1).any(-1)
    among = own + other
    asked_share = questions.asked.sum((1, 2)) / (questions.asked | questions.others).sum((1, 2))
    own_energy = torch.where(among > 0, own / among.clamp(min=1e-30), asked_share)  # nothing in either is no choice
    return MapScores(
        pointing=torch.where(flat, 0.0, (top >= heat.amax((1, 2))).double()),
        energy=own / heat.sum((1, 2)),
        own_energy=torch.where(has_others, own_energy, unknown),
        own_peak=torch.where(has_others, (top > top_other).double(), unknown),
        road=unknown if road is None else road.double(),
        picture=torch.full((len(questions),), row),
    )
