from ..encoders.folding import fold
from ..metrics.localisation import energy_in_box, peak_in_box
from ..metrics.maps import is_constant, normalise, rectify, upsample
from .checks.faithfulness import Faithfulness, measure_faithfulness
from .checks.sanity import match_sensitivity
from .drawing.panels import DrawStyle, Tile, grid, map_tiles
from .drawing.rendering import colourise, contour, draw_box, overlay
from .engine import METHODS, ActivationMaps, explain_image
from .inputs import METRICS, NORMS, Norm
from .layer_runs import LayerRun, capture
from .methods.correspondence import Correspondence, correspondence
from .methods.dist_cam import channel_weights, contrast, dist_cam
from .methods.lines import Lines, Places, find_lines
from .methods.surroundings import Surroundings, ratio_maps
from .places import box_from_map
from .targets import ClassScore, ComponentAt, PixelScore, Score, Similarity, Target
from .weightings import MEANS, RECOMMENDED, WEIGHTINGS, Mean, Weighting

__all__ = [
    "MEANS",
    "METHODS",
    "METRICS",
    "NORMS",
    "RECOMMENDED",
    "WEIGHTINGS",
    "ActivationMaps",
    "ClassScore",
    "ComponentAt",
    "Correspondence",
    "DrawStyle",
    "Faithfulness",
    "LayerRun",
    "Lines",
    "Mean",
    "Norm",
    "PixelScore",
    "Places",
    "Score",
    "Similarity",
    "Surroundings",
    "Target",
    "Tile",
    "Weighting",
    "box_from_map",
    "capture",
    "channel_weights",
    "colourise",
    "contour",
    "contrast",
    "correspondence",
    "dist_cam",
    "draw_box",
    "energy_in_box",
    "explain_image",
    "find_lines",
    "fold",
    "grid",
    "is_constant",
    "map_tiles",
    "match_sensitivity",
    "measure_faithfulness",
    "normalise",
    "overlay",
    "peak_in_box",
    "ratio_maps",
    "rectify",
    "upsample",
]
