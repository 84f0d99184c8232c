"""Classes of procedural objects: a body and two to four attached parts, each with a shape, a colour and a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .painter import INKS, OUTLINES, check_name, outline, turn

_T = TypeVar("_T")

_BODIES = ("disc", "box", "triangle", "diamond", "hexagon", "drop", "heart")
_LIMBS = ("disc", "box", "triangle", "star", "bar", "drop", "diamond", "heart", "crescent", "ring")
_MARKS = ("disc", "star", "ring", "heart", "diamond", "triangle", "cross", "bar", "crescent", "flower")
_LIMB_ANGLES = {"crown": 0.0, "ears": 38.0, "arms": 98.0, "feet": 152.0, "tail": 180.0}  # degrees from "up"
_MARK_SPOTS = {"eyes": (0.46, -0.28), "belly": (0.0, 0.4), "badge": (0.0, 0.0)}  # in units of the body's inner radius
_SIZES = {"badge": 0.6, "belly": 0.4, "eyes": 0.3, "limb": 0.4}
_PAIRS = frozenset({"ears", "arms", "feet", "eyes"})
_VOWELS = {
    "b": "aeo", "d": "ao", "f": "a", "k": "ou", "l": "aeiou", "m": "aeiou",
    "n": "eiou", "r": "eiou", "s": "aeo", "t": "aeo", "v": "aeio", "z": "aeo",
}  # fmt: skip
_SYLLABLES = tuple(consonant + vowel for consonant, vowels in _VOWELS.items() for vowel in vowels)


@dataclass(frozen=True)
class ToyPart:
    """One coloured piece of a class: the body, a limb behind its edge, or a mark on it.

    Ears, arms, feet and eyes are mirrored pairs and count as one part.
    """

    place: str
    shape: str  # an outline's name, such as "star"
    colour: str  # an ink's name, such as "coral"
    size: float = 1.0  # radius in units of the body's

    def __post_init__(self) -> None:
        check_name("place", self.place, ("body", *_LIMB_ANGLES, *_MARK_SPOTS))
        check_name("shape", self.shape, OUTLINES)
        check_name("colour", self.colour, tuple(INKS))

    @property
    def name(self) -> str:
        """A plain name, for example "coral star ears"; unique within a blueprint."""
        return f"{self.colour} {self.shape} {self.place}"

    @property
    def is_limb(self) -> bool:
        """True for parts that stick out from behind the body."""
        return self.place in _LIMB_ANGLES


@dataclass(frozen=True)
class Blueprint:
    """A class of objects: its name and its parts from back to front (limbs, the body, marks)."""

    name: str
    parts: tuple[ToyPart, ...]

    def __post_init__(self) -> None:
        places = [part.place for part in self.parts]
        if places.count("body") != 1 or len(set(places)) < len(places):
            raise InputError(f"expected one body and no place twice, got {', '.join(places) or 'no parts'}")

    @property
    def body(self) -> ToyPart:
        """The part all others are attached to."""
        return next(part for part in self.parts if part.place == "body")

    @property
    def looks(self) -> frozenset[tuple[str, str, str]]:
        """The features that tell classes apart: place, shape and colour of every part; sizes alone do not."""
        return frozenset((part.place, part.shape, part.colour) for part in self.parts)

    def outlines(self, jitter: Float[np.ndarray, "p 3"]) -> list[tuple[Float[np.ndarray, "n 2"], ...]]:
        """Each part's polygons about the body's centre, in units of the body's radius, y pointing down.

        `jitter` holds one row per part: its shift across and down, and the logarithm of its magnification.
        """
        edge = outline(self.body.shape)
        radii = np.hypot(edge[:, 0], edge[:, 1])
        polygons: list[tuple[Float[np.ndarray, "n 2"], ...]] = []
        for part, (across, down, growth) in zip(self.parts, jitter, strict=True):
            polygon = part.size * outline(part.shape)
            if part.is_limb:
                angle = np.deg2rad(_LIMB_ANGLES[part.place])
                directions = np.arctan2(edge[:, 0], -edge[:, 1])
                order = np.argsort(directions)
                reach = np.interp(angle, directions[order], radii[order], period=2 * np.pi) + 0.45 * part.size
                polygon = polygon @ turn(angle) + reach * np.array([np.sin(angle), -np.cos(angle)])
            elif part.place != "body":
                room = max(float(radii.min()), 0.6)
                polygon = min(1.0, 0.45 + room / 2) * polygon + room * np.array(_MARK_SPOTS[part.place])
            polygon = polygon * np.exp(growth) + np.array([across, down])
            polygons.append((polygon, polygon * [-1, 1]) if part.place in _PAIRS else (polygon,))
        return polygons


def blueprints(n_classes: int, *, seed: int = 0, relatives: float = 0.35) -> tuple[Blueprint, ...]:
    """That many different classes with different names; the first n of a longer list are the same n.

    Slice one list to get base and novel classes that share none: `classes[:40]`, `classes[40:]`.

    Args:
        n_classes: how many, at least 1.
        seed: another seed gives other classes; not negative.
        relatives: share of classes that repeat an earlier one except for one part (fine-grained classes), in [0, 1].

    Raises:
        InputError: `n_classes` is not positive, `seed` is negative, or `relatives` is not a share.

    >>> [blueprint.name for blueprint in blueprints(2)] == [blueprint.name for blueprint in blueprints(9)[:2]]
    True
    """
    if n_classes < 1:
        raise InputError(f"expected n_classes of at least 1, got {n_classes}; ask for one class or more")
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}")
    if not 0 <= relatives <= 1:
        raise InputError(f"expected relatives as a share in [0, 1], got {relatives}")
    classes: list[Blueprint] = []
    names, looks = set(), set()
    for index in range(n_classes):
        generator = np.random.default_rng([seed, index])
        n_syllables = 3 + index // 20_000  # three make some 60,000 names
        while True:
            is_relative = bool(classes) and generator.random() < relatives
            if is_relative:  # the same parts but for one limb or mark: another colour, mostly another shape
                relative = _pick(classes, generator)
                old = _pick([part for part in relative.parts if part.place != "body"], generator)
                new = replace(_new_part(old.place, relative.body, relative.parts, generator), size=old.size)
                parts = tuple(new if part is old else part for part in relative.parts)
            else:  # a body with one or two marks and one to three limbs, two to four together
                marks = _pick((("eyes",), ("badge",), ("belly",), ("eyes", "belly")), generator)
                limbs = [_pick(places, generator) for places in (("crown", "ears"), ("arms",), ("feet", "tail"))]
                n_limbs = int(generator.integers(max(1, 2 - len(marks)), 4 - len(marks), endpoint=True))
                chosen = sorted(generator.permutation(len(limbs))[:n_limbs])
                body = ToyPart("body", _pick(_BODIES, generator), _pick(tuple(INKS), generator))
                made = [body]
                for place in (*(limbs[number] for number in chosen), *marks):
                    made.append(_new_part(place, body, made, generator))
                parts = tuple(sorted(made, key=lambda part: 0 if part.is_limb else 1 if part is body else 2))
            candidate = Blueprint("".join(_pick(_SYLLABLES, generator) for _ in range(n_syllables)), parts)
            if candidate.looks not in looks and candidate.name not in names:
                break
        classes.append(candidate)
        names.add(candidate.name)
        looks.add(candidate.looks)
    return tuple(classes)


def _new_part(place: str, body: ToyPart, others: Sequence[ToyPart], generator: np.random.Generator) -> ToyPart:
    """A part for this place whose colour stands out from the body and is not yet used."""
    is_limb = place in _LIMB_ANGLES
    used = {part.colour for part in others}
    contrast = {name: int(np.abs(np.subtract(ink, INKS[body.colour])).sum()) for name, ink in INKS.items()}
    colour = _pick([name for name in INKS if name not in used and contrast[name] > 150], generator)
    size = _SIZES["limb" if is_limb else place] * generator.uniform(0.85, 1.2)
    return ToyPart(place, _pick(_LIMBS if is_limb else _MARKS, generator), colour, round(float(size), 2))


def _pick(choices: Sequence[_T], generator: np.random.Generator) -> _T:
    return choices[int(generator.integers(len(choices)))]
