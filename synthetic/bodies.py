"""Pedestrians from polygons, and which pixel belongs to which garment.

Lengths are shares of a body's height: x to the right from the body's middle, y down from the top of the head. A body is
drawn looking right or at the camera; one that looks left is its mirror image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from .painter import Paint, compose
from .pedestrians import COLOURS, HAIRS, SKINS, Camera, Facing, Moment, Walker

Points = Float[np.ndarray, "n 2"]
Colour = tuple[int, int, int]
Piece = tuple[str, Colour, tuple[Points, ...]]
"""A part, its colour, and its polygons."""
Obstacle = Literal["none", "pole", "rail", "sign"]
OBSTACLES: tuple[Obstacle, ...] = ("pole", "rail", "sign")
PARTS = ("background", "skin", "hair", "top", "bottom", "shoes", "bag", "occluder")
"""Numbers in a part mask are places in this list."""


def draw_pedestrian(
    walker: Walker | None,
    camera: Camera,
    moment: Moment,
    *,
    others: tuple[tuple[Walker, Moment], ...] = (),
    obstacle: Obstacle = "none",
    size: tuple[int, int] = (128, 64),
    generator: np.random.Generator,
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """The image of a person, or of an empty place, and the part of each pixel (see `PARTS`).

    The pixels of `others` and of the obstacle are `occluder`; people whose feet are lower stand before.
    """
    height, width = size
    people = [(moment, _dressed(walker, moment), True)] if walker is not None else []
    people += [(at, _dressed(who, at), False) for who, at in others]
    people.sort(key=lambda person: person[0].top + person[0].scale)
    layers: list[Paint] = []
    parts: list[str] = []
    for at, pieces, is_main in people:
        for part, colour, polygons in pieces:
            corner = np.array([at.middle * width, at.top * height])
            placed = tuple(polygon * (at.scale * height) + corner for polygon in polygons)
            layers.append(Paint(placed, colour, level=0.6))
            parts.append(part if is_main else "occluder")
    for colour, polygon in _obstacle(obstacle, generator):
        layers.append(Paint((polygon * (width, height),), colour))
        parts.append("occluder")
    image, index = compose(camera.ground(height, width, generator), layers, light=camera.light, generator=generator)
    numbers = np.array([0, *(PARTS.index(part) for part in parts)], np.uint8)
    return camera.develop(image, generator), numbers[index]


def _dressed(walker: Walker, moment: Moment) -> list[Piece]:
    """The pieces of a body from back to front, 1 high."""
    side = moment.facing in ("left", "right")
    mirror = -1.0 if moment.facing == "left" else 1.0
    swing = float(np.sin(moment.step)) * (0.09 if side else 0.025)
    broad = walker.breadth * (0.68 if side else 1.0)
    back, front = _bag(walker, moment.facing, broad, swing)
    far, near = _arms(walker, side, broad, swing)
    pieces = [*back, *far, *_legs(walker, side, broad, swing), *_torso(walker, moment.facing, broad), *near]
    pieces += [*_head(walker, moment.facing), *front]
    stretch = np.array([mirror * walker.height, walker.height])
    shift = np.array([0.0, 1 - walker.height])  # small people stand on the same ground
    return [(part, colour, tuple(one * stretch + shift for one in polygons)) for part, colour, polygons in pieces]


def _quad(x1: float, y1: float, w1: float, x2: float, y2: float, w2: float) -> Points:
    """A limb from one end to the other with half widths."""
    return np.array([[x1 - w1, y1], [x1 + w1, y1], [x2 + w2, y2], [x2 - w2, y2]])


def _oval(x: float, y: float, rx: float, ry: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _head(walker: Walker, facing: Facing) -> list[Piece]:
    skin, hair = SKINS[walker.skin], HAIRS[walker.hair_colour]
    across = facing in ("front", "back")
    look = 0.0 if across else 0.014
    neck: Piece = ("skin", skin, (_quad(0, 0.10, 0.028, 0, 0.17, 0.034),))
    face: Piece = ("skin", skin, (_oval(look, 0.078, 0.046, 0.062),))
    crown = _oval(-look, 0.037 if facing == "front" else 0.045, 0.054, 0.044)
    shapes = [crown]
    if facing != "front":
        shapes.append(_oval(0, 0.07, 0.052, 0.062) if across else _oval(-0.026, 0.072, 0.034, 0.056))
    if walker.hair_style == "bun":
        shapes.append(_oval(-2.2 * look, 0.004 if facing == "front" else 0.022, 0.028, 0.026))
    behind: list[Piece] = []
    if walker.hair_style == "long":
        wide = 0.056 if across else 0.036
        locks = _quad(-1.6 * look, 0.06, wide, -2.4 * look, 0.21, wide * 1.05)
        behind = [("hair", hair, (locks,))] if facing == "front" else []  # a face hides them
        shapes += [] if behind else [locks]
    pieces: list[Piece] = [*behind, neck, face, ("hair", hair, tuple(shapes))]
    if walker.hair_style == "cap":
        pieces.append(("hair", COLOURS[walker.accent], (crown, _quad(look, 0.040, 0.056, 3.4 * look, 0.060, 0.060))))
    return pieces


def _torso(walker: Walker, facing: Facing, broad: float) -> list[Piece]:
    shoulder, waist = 0.122 * broad, 0.098 * broad
    right = np.array([[0.35 * shoulder, 0.15], [shoulder, 0.185], [waist, 0.36], [1.06 * waist, 0.51]])
    body = np.concatenate([right, (right * (-1, 1))[::-1]])
    colour, accent = COLOURS[walker.top_colour], COLOURS[walker.accent]
    pieces: list[Piece] = [("top", colour, (body,))]
    if walker.pattern == "stripes":
        rows = [_quad(0, y, 0.97 * waist, 0, y + 0.028, 0.97 * waist) for y in (0.22, 0.28, 0.34, 0.40, 0.46)]
        pieces.append(("top", accent, tuple(rows)))
    elif walker.pattern == "block":
        pieces.append(("top", accent, (_quad(0, 0.34, waist, 0, 0.51, 1.06 * waist),)))
    elif walker.pattern == "panel" and facing != "back":  # a print that only the chest shows
        pieces.append(("top", accent, (_oval(0, 0.285, 0.48 * waist, 0.055),)))
    elif walker.pattern == "vest" and facing != "back":
        pieces.append(("top", accent, (_quad(0, 0.155, 0.20 * shoulder, 0, 0.51, 0.42 * waist),)))
    return pieces


def _arms(walker: Walker, side: bool, broad: float, swing: float) -> tuple[list[Piece], list[Piece]]:
    """The arm behind the body, and what is before it."""
    sleeve = COLOURS[walker.top_colour]
    at = 0.0 if side else 0.122 * broad

    def arm(x: float, forward: float) -> list[Piece]:
        outward = 0.0 if side else np.sign(x) * 0.020
        elbow, hand = x + 0.55 * forward + outward, x + 1.3 * forward + outward
        cover = 0.49 if walker.has_long_sleeves else 0.29
        forearm: Piece = ("skin", SKINS[walker.skin], (_quad(elbow, 0.30, 0.022, hand, 0.52, 0.018),))
        upper = [_quad(x, 0.17, 0.032, elbow, 0.33 if walker.has_long_sleeves else cover, 0.028)]
        if walker.has_long_sleeves:
            upper.append(_quad(elbow, 0.32, 0.028, hand - 0.12 * forward, cover, 0.022))
        return [forearm, ("top", sleeve, tuple(upper))]

    if side:
        return arm(at, -swing), arm(at, swing)
    return [*arm(-at, swing), *arm(at, -swing)], []


def _legs(walker: Walker, side: bool, broad: float, swing: float) -> list[Piece]:
    cloth, skin = COLOURS[walker.bottom_colour], SKINS[walker.skin]
    hip = 0.0 if side else 0.050 * broad
    pieces: list[Piece] = []
    for sign in (-1.0, 1.0):
        knee_x, foot_x = sign * (hip + swing * 0.55), sign * (hip * 0.95 + swing * 1.5)
        lift = max(0.0, sign * swing) * (0.25 if side else 0.9)
        knee, foot = (knee_x, 0.73 - lift), (foot_x, 0.965 - lift)
        thigh, shin = 0.050 * (0.4 + 0.6 * broad), 0.032
        leg = (_quad(sign * hip, 0.49, thigh, *knee, 0.040), _quad(*knee, 0.040, *foot, shin))
        toe = foot_x + (0.018 if side else 0.0)
        shoe = _quad(toe, foot[1] - 0.012, 0.036, toe, 1.0 - lift, 0.046)
        if walker.bottom == "trousers":
            pieces.append(("bottom", cloth, leg))
        else:
            bare = (_quad(*knee, 0.030, *foot, 0.022), _quad(sign * hip, 0.5, 0.044, *knee, 0.032))
            pieces.append(("skin", skin, bare))
            if walker.bottom == "shorts":
                pieces.append(("bottom", cloth, (_quad(sign * hip, 0.49, thigh * 1.05, knee_x, 0.69 - lift, 0.056),)))
        pieces.append(("shoes", COLOURS[walker.shoes], (shoe,)))
    if walker.bottom == "skirt":
        pieces.append(("bottom", cloth, (_quad(0, 0.48, 0.096 * broad, 0, 0.74, 0.135 * (0.3 + 0.7 * broad)),)))
    else:
        pieces.append(("bottom", cloth, (_quad(0, 0.48, 0.10 * broad, 0, 0.56, 0.095 * broad),)))
    return pieces


def _bag(walker: Walker, facing: Facing, broad: float, swing: float) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the bag behind the body and before it."""
    if walker.bag == "none":
        return [], []
    colour = COLOURS[walker.bag_colour]
    dark: Colour = (int(0.6 * colour[0]), int(0.6 * colour[1]), int(0.6 * colour[2]))
    side = facing in ("left", "right")
    if walker.bag == "backpack":
        if facing == "back":
            pack = _quad(0, 0.185, 0.080 * broad, 0, 0.43, 0.092 * broad)
            pocket = _quad(0, 0.33, 0.060 * broad, 0, 0.41, 0.064 * broad)
            return [], [("bag", colour, (pack,)), ("bag", dark, (pocket,))]
        if side:
            return [("bag", colour, (_quad(-0.115, 0.19, 0.055, -0.125, 0.43, 0.065),))], []
        straps = tuple(_quad(x * broad, 0.155, 0.013, x * broad, 0.36, 0.013) for x in (-0.075, 0.075))
        return [], [("bag", colour, straps)]
    if walker.bag == "shoulder":
        hip = (0.02 if side else 0.115 * broad) * (-1 if facing == "back" else 1)
        pouch = _quad(hip, 0.46, 0.062, hip, 0.585, 0.070)
        strap = _quad(-0.6 * hip, 0.16, 0.010, hip, 0.46, 0.010)
        front: list[Piece] = [("bag", dark, (strap,)), ("bag", colour, (pouch,))]
        return (front, []) if facing == "left" else ([], front)  # hidden by the body on one side
    hand = (1.3 * swing if side else 0.145 * broad) * (-1 if facing == "back" else 1)
    pouch = _quad(hand, 0.56, 0.056, hand, 0.69, 0.072)
    handle = _quad(hand, 0.50, 0.012, hand, 0.57, 0.030)
    held: list[Piece] = [("bag", dark, (handle,)), ("bag", colour, (pouch,))]
    return (held, []) if facing == "left" else ([], held)


def _obstacle(kind: Obstacle, generator: np.random.Generator) -> list[tuple[Colour, Points]]:
    grey = int(generator.integers(50, 170))
    colour = (grey, grey, min(255, grey + 8))
    x, y, w = generator.uniform([0.15, 0.60, 0.04], [0.85, 0.78, 0.10])
    if kind == "pole":
        return [(colour, _quad(x, 0, w, x, 1, w))]
    if kind == "rail":
        bars = [(colour, _quad(0.5, y + d, 0.5, 0.5, y + d + 0.025, 0.5)) for d in (0.0, 0.09, 0.18)]
        return [*bars, *((colour, _quad(at, y, 0.02, at, 1, 0.02)) for at in (x / 2, x / 2 + 0.5))]
    if kind == "sign":
        board, post = _quad(x, y - 0.1, 0.24, x, y + 0.08, 0.24), _quad(x, y + 0.08, 0.03, x, 1, 0.03)
        return [((200, 60, 50), board), (colour, post)]
    return []
