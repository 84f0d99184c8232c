"""Where in a picture its similarity to another lies: Dist-CAM, folding, boxes, measures, and drawing."""

from __future__ import annotations

from .boxes import box_from_map, boxes_from_maps, largest_component, peak
from .capture import LayerRun, capture
from .colours import COLOUR_SCALES, Colours, colourise
from .dist_cam import channel_weights, contrast, dist_cam
from .engine import METHODS, ActivationMaps, explain_image
from .folding import Response, fold
from .inputs import METRICS, NORMS, WEIGHTINGS, Metric, Norm, Weighting
from .maps import is_constant, normalise, rectify, spearman, upsample
from .measures import EnergyShare, energy_in_box, match_sensitivity, peak_in_box
from .panels import Tile, grid, legend, panel
from .rendering import contour, draw_box, overlay, to_data_uri, to_png_bytes
from .targets import ClassScore, ComponentAt, PixelScore, Score, Similarity, Target

__all__ = [
    "COLOUR_SCALES",
    "METHODS",
    "METRICS",
    "NORMS",
    "WEIGHTINGS",
    "ActivationMaps",
    "ClassScore",
    "Colours",
    "ComponentAt",
    "EnergyShare",
    "LayerRun",
    "Metric",
    "Norm",
    "PixelScore",
    "Response",
    "Score",
    "Similarity",
    "Target",
    "Tile",
    "Weighting",
    "box_from_map",
    "boxes_from_maps",
    "capture",
    "channel_weights",
    "colourise",
    "contour",
    "contrast",
    "dist_cam",
    "draw_box",
    "energy_in_box",
    "explain_image",
    "fold",
    "grid",
    "is_constant",
    "largest_component",
    "legend",
    "match_sensitivity",
    "normalise",
    "overlay",
    "panel",
    "peak",
    "peak_in_box",
    "rectify",
    "spearman",
    "to_data_uri",
    "to_png_bytes",
    "upsample",
]
