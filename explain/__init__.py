"""Where in a picture its similarity to another lies: Dist-CAM, folding, boxes, measures, and drawing."""

from __future__ import annotations

from .capture import LayerRun, capture
from .checks.faithfulness import (
    Faithfulness,
    InsertionDeletion,
    RemoveAndDebias,
    insertion_deletion,
    measure_faithfulness,
    pixel_order,
    remove_and_debias,
)
from .checks.localisation import THRESHOLDS, BestThreshold, BoxOverlaps, PixelCounts, box_overlaps, pixel_counts
from .checks.sanity import Randomisation, match_randomisation, randomise_parameters, two_object_preference
from .checks.sensitivity import (
    EnergyShare,
    box_coverage,
    energy_in_box,
    energy_shares,
    match_sensitivity,
    peak_in_box,
)
from .drawing.boxes import Components, box_from_map, boxes_from_maps, components, largest_component, peak
from .drawing.colours import COLOUR_SCALES, Colours, colourise
from .drawing.overlay import DrawStyle, map_tiles, paint, sheet
from .drawing.page import write_page
from .drawing.panels import Tile, grid, legend, panel
from .drawing.rendering import contour, draw_box, draw_points, overlay, to_data_uri, to_png_bytes
from .engine import METHODS, ActivationMaps, explain_image
from .folding import Response, fold
from .inputs import METRICS, NORMS, WEIGHTINGS, Metric, Norm, Weighting
from .maps import is_constant, normalise, rectify, spearman, upsample
from .methods.correspondence import Correspondence, PositionPair, correspondence, pairwise_shares
from .methods.dist_cam import channel_weights, contrast, dist_cam
from .regions import Region, coverage, pool_region, region_weights
from .targets import ClassScore, ComponentAt, PixelScore, Score, Similarity, Target

__all__ = [
    "COLOUR_SCALES",
    "METHODS",
    "METRICS",
    "NORMS",
    "THRESHOLDS",
    "WEIGHTINGS",
    "ActivationMaps",
    "BestThreshold",
    "BoxOverlaps",
    "ClassScore",
    "Colours",
    "ComponentAt",
    "Components",
    "Correspondence",
    "DrawStyle",
    "EnergyShare",
    "Faithfulness",
    "InsertionDeletion",
    "LayerRun",
    "Metric",
    "Norm",
    "PixelCounts",
    "PixelScore",
    "PositionPair",
    "Randomisation",
    "Region",
    "RemoveAndDebias",
    "Response",
    "Score",
    "Similarity",
    "Target",
    "Tile",
    "Weighting",
    "box_coverage",
    "box_from_map",
    "box_overlaps",
    "boxes_from_maps",
    "capture",
    "channel_weights",
    "colourise",
    "components",
    "contour",
    "contrast",
    "correspondence",
    "coverage",
    "dist_cam",
    "draw_box",
    "draw_points",
    "energy_in_box",
    "energy_shares",
    "explain_image",
    "fold",
    "grid",
    "insertion_deletion",
    "is_constant",
    "largest_component",
    "legend",
    "map_tiles",
    "match_randomisation",
    "match_sensitivity",
    "measure_faithfulness",
    "normalise",
    "overlay",
    "paint",
    "pairwise_shares",
    "panel",
    "peak",
    "peak_in_box",
    "pixel_counts",
    "pixel_order",
    "pool_region",
    "randomise_parameters",
    "rectify",
    "region_weights",
    "remove_and_debias",
    "sheet",
    "spearman",
    "to_data_uri",
    "to_png_bytes",
    "two_object_preference",
    "upsample",
    "write_page",
]
