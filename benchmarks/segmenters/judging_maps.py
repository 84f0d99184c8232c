"""Explanations of a segmenter, measured: does the map light up the object that was asked about, and does it matter?

Among several objects of one class a question is asked about one of them, by its pixels, its box, or one point in it.
The true answer lies in that object; energy and peaks elsewhere in the class belong to the others. A map may find the
class and not the object: the shares *among the objects of the class* tell these apart, and maps that do not know the
question stand beside them. ROAD says whether the pixels matter to the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from distcam.errors import InputError
from distcam.explain import METHODS, PixelScore, explain_image, is_constant, normalise, rectify, upsample
from distcam.explain.checks.faithfulness import remove_and_debias
from distcam.explain.engine import method_name
from distcam.metrics.intervals import bootstrap_means
from distcam.metrics.maps import largest_component
from distcam.progress import Progress

from .pixel_data import PixelData, predict

Ask = Literal["component", "box", "point", "class"]
ASKS: tuple[Ask, ...] = ("component", "box", "point", "class")
REFERENCES: Mapping[str, str] = {
    "random": "a smooth map of noise",
    "centre": "a bell in the middle of the image",
    "full": "the whole image alike",
    "largest": "the largest object that is predicted to be of the class",
    "softmax": "the network's own probability of the class",
    "asked": "the pixels that were asked about",
}


@dataclass(frozen=True, eq=False)
class Questions:
    """m questions about one image.

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
        """For a batch of this one image."""
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
    """The questions about an image's objects; None if there is nothing to ask.

    Objects are asked about that are not alone in their class, have `least_pixels`, and of which the network finds a
    share of `least_found`: a map of what it did not see answers another question. By "component" the set is the part
    that was found, by "box" the tight box around the object, by "point" the found pixel farthest inside. With "class"
    each class that is there is asked about as a whole, by what is predicted to be of it.

    Args:
        data: the images.
        row: number of the image.
        predicted: the class of each of its pixels, as the network says.
        by: see above.
        least_pixels: of an object.
        least_found: share of its pixels, in (0, 1].
        most: questions, the first ones in the order of the objects' numbers; all if left out.
    """
    if by not in ASKS:
        raise InputError(f"by={by!r} is not known; choose one of {', '.join(ASKS)}")
    classes, instances = data.classes[row], data.instances[row]
    objects: list[tuple[int, Tensor, Tensor]] = []  # the class, its pixels, and those of others of the class
    if by == "class":
        for category in range(len(data.names)):
            if category != data.background:
                own = classes == category
                objects.append((category, own, torch.zeros_like(own)))
    else:
        for number in filter(None, torch.unique(instances).tolist()):
            own = instances == number
            category = int(classes[own].mode().values)
            objects.append((category, own, (classes == category) & ~own))
    asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for category, own, others in objects:
        seen = own & (predicted == category)
        if own.sum() >= least_pixels and seen.sum() >= least_found * own.sum() and (by == "class" or others.any()):
            pixels = predicted == category if by == "class" else _pixels_of(by, own, seen)
            asked.append((torch.tensor(category), pixels, own, others))
    return Questions(*map(torch.stack, zip(*asked[:most], strict=True))) if asked else None


def _pixels_of(by: Ask, own: Tensor, seen: Tensor) -> Tensor:
    """The pixels that are asked about, of an object and the part of it that was found."""
    if by == "component":
        return seen
    pixels = torch.zeros_like(own)
    if by == "box":
        rows, columns = own.any(1).nonzero(), own.any(0).nonzero()
        pixels[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
        return pixels
    core, peeled = seen, seen
    while peeled.any():  # the last that is left when the edge is peeled off again and again
        core = peeled
        peeled = ~functional.max_pool2d((~core)[None].float(), 3, stride=1, padding=1)[0].bool()
    row, column = core.nonzero()[0].tolist()
    pixels[row, column] = True
    return pixels


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
    """The raw maps of one image's questions by method; `REFERENCES` are methods too, in the image's size.

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
            found[name] = _reference(name, model, image, questions=questions, seed=seed)
            continue
        known = {key: value for key, value in options.items() if key in METHODS[method_name(name)].options}
        maps = explain_image(model, image, target=questions.target, method=name, layer=layer, **known)
        found[name] = maps.maps[0]
    return found


def _reference(name: str, model: nn.Module, image: Tensor, *, questions: Questions, seed: int) -> Tensor:
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
    """Measures of one method's maps for n questions about several images.

    Attributes:
        pointing: 1 where the map's peak lies in the object; a constant map points nowhere.
        energy: share of the map, scaled to [0, 1], in the object.
        own_energy: of the map's energy in all objects of the class, the share in the one asked about; nan for classes.
        own_peak: 1 where of all objects of the class the map is highest in that one; ties are no hit, nan for classes.
        road: (LeRF - MoRF) / 2 of the score per pixel asked about; nan if it was not measured.
        image: number of the image that a question is about.
    """

    pointing: Float[Tensor, " n"]
    energy: Float[Tensor, " n"]
    own_energy: Float[Tensor, " n"]
    own_peak: Float[Tensor, " n"]
    road: Float[Tensor, " n"]
    image: Int[Tensor, " n"]

    MEASURES = ("pointing", "energy", "own_energy", "own_peak", "road")

    @classmethod
    def cat(cls, parts: Sequence[MapScores]) -> MapScores:
        """The scores of several images."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in (*cls.MEASURES, "image")))

    def interval(self, measure: str, *, samples: int = 2000, seed: int = 0) -> tuple[float, float, float] | None:
        """Mean with its 95 % bootstrap interval over images, whose questions stay together; None without values."""
        values = getattr(self, measure).double().numpy()
        known = ~np.isnan(values)
        if not known.any():
            return None
        own, image = values[known, None], self.image.numpy()[known]
        means = bootstrap_means(own, image, samples=samples, seed=seed)
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
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, MapScores]:
    """The measures of several methods on every image that has something to ask about.

    Args:
        model: the segmenter; it is left as it was.
        data: images with masks.
        methods: of `METHODS` and `REFERENCES`.
        layer: of the network.
        by: way to ask about objects, see `ask_objects`.
        road: shares of the pixels that ROAD removes; none leaves it out.
        most: questions about one image.
        least_pixels: of an object.
        batch_size: of ROAD.
        seed: of the random map, and of ROAD's noise.
        progress: called with (images done, images in all).
        options: of the methods, as for `maps_for`.
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
                scores = _measured(maps, questions, row)
                if road:
                    removed = remove_and_debias(
                        model,
                        image,
                        maps[None].to(image),
                        target=questions.target,
                        fractions=tuple(road),
                        batch_size=batch_size,
                        seed=seed,
                    )
                    # in logits per pixel asked about, so that large and small objects count alike
                    each = removed.combined[0] / questions.pixels.sum((1, 2)).clamp(min=1)
                    scores = replace(scores, road=each.double())
                parts[name].append(scores)
        if progress is not None:
            progress(row + 1, len(data))
    if not any(parts.values()):
        raise InputError("nothing to ask about: no image has two found objects of one class")
    return {name: MapScores.cat(own) for name, own in parts.items()}


def _measured(maps: Tensor, questions: Questions, row: int) -> MapScores:
    """All measures but ROAD."""
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
        road=unknown,
        image=torch.full((len(questions),), row),
    )
