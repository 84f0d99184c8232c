"""Names of the weightings and of what `root_ratio` takes off, in words; imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

Weighting = Literal[
    "root_ratio", "dist", "dist*s", "dist*excess", "log_ratio", "dot", "dot_centered", "gradcam_cos", "caam"
]
Mean = Literal["auto", "gallery", "border", "max", "half"]

WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
MEANS: tuple[Mean, ...] = get_args(Mean)
RECOMMENDED: Weighting = "root_ratio"  # whatever explains a match or a prototype; chosen in docs/results/

WORDS: dict[Weighting, str] = {
    "root_ratio": "What sets this match apart: channels that it has more of than the gallery speak for it.",
    "dist": "Dist-CAM: where the query shows channels whose strength is close to the reference's.",
    "dist*s": "Dist-CAM of the channels that the reference has.",
    "dist*excess": "Dist-CAM of the channels that the reference has more of than the gallery's mean.",
    "log_ratio": "How many times more of a channel the reference has than the gallery's mean.",
    "dot": "What each place adds to the dot product with the reference.",
    "dot_centered": "What each place adds to what sets the reference apart from the gallery's mean.",
    "gradcam_cos": "Which of the objects in this image is meant: the gradient of the cosine. Worse where there is one.",
    "caam": "The class-agnostic map: the same for every reference, to compare with.",
}

NEEDS_MEAN = frozenset({"root_ratio", "dist*excess", "log_ratio", "dot_centered"})
SIGNED = frozenset({"dot", "dot_centered", "gradcam_cos"})  # drawn with 0 in the middle: below speaks against the match
RECTIFIED = frozenset({"root_ratio"})  # drawn from 0 up: most of an image is no reason against the match, only none

DEPENDS = {
    0.95: "It hardly depends on the match: against an unrelated image it would look the same",
    0.75: "It depends a little on the match",
    0.4: "It depends in part on the match",
    -1.0: "It depends on the match: against an unrelated image it would look different",
}
