from .checks.faithfulness import (
    Faithfulness as Faithfulness,
    InsertionDeletion as InsertionDeletion,
    RemoveAndDebias as RemoveAndDebias,
    insertion_deletion as insertion_deletion,
    measure_faithfulness as measure_faithfulness,
    pixel_order as pixel_order,
    remove_and_debias as remove_and_debias,
)
from .checks.localisation import (
    THRESHOLDS as THRESHOLDS,
    BestThreshold as BestThreshold,
    BoxOverlaps as BoxOverlaps,
    PixelCounts as PixelCounts,
    box_overlaps as box_overlaps,
    pixel_counts as pixel_counts,
)
from .checks.sanity import (
    Randomisation as Randomisation,
    match_randomisation as match_randomisation,
    randomise_parameters as randomise_parameters,
    two_object_preference as two_object_preference,
)
from .checks.sensitivity import (
    EnergyShare as EnergyShare,
    box_coverage as box_coverage,
    energy_in_box as energy_in_box,
    energy_shares as energy_shares,
    match_sensitivity as match_sensitivity,
    peak_in_box as peak_in_box,
)
from .drawing.boxes import (
    Components as Components,
    box_from_map as box_from_map,
    boxes_from_maps as boxes_from_maps,
    components as components,
    largest_component as largest_component,
    peak as peak,
)
from .drawing.colours import COLOUR_SCALES as COLOUR_SCALES, Colours as Colours, colourise as colourise
from .drawing.overlay import (
    Look as Look,
    map_tiles as map_tiles,
    paint as paint,
    sheet as sheet,
    write_page as write_page,
)
from .drawing.panels import Tile as Tile, grid as grid, legend as legend, panel as panel
from .drawing.rendering import (
    contour as contour,
    draw_box as draw_box,
    draw_points as draw_points,
    overlay as overlay,
    to_data_uri as to_data_uri,
    to_png_bytes as to_png_bytes,
)
from .engine import METHODS as METHODS, ActivationMaps as ActivationMaps, explain_image as explain_image
from .folding import Response as Response, fold as fold
from .inputs import (
    METRICS as METRICS,
    NORMS as NORMS,
    WEIGHTINGS as WEIGHTINGS,
    Metric as Metric,
    Norm as Norm,
    Weighting as Weighting,
)
from .layer_runs import LayerRun as LayerRun, capture as capture
from .maps import (
    is_constant as is_constant,
    normalise as normalise,
    rectify as rectify,
    spearman as spearman,
    upsample as upsample,
)
from .methods.correspondence import (
    Correspondence as Correspondence,
    PositionPair as PositionPair,
    correspondence as correspondence,
    pairwise_shares as pairwise_shares,
)
from .methods.dist_cam import channel_weights as channel_weights, contrast as contrast, dist_cam as dist_cam
from .regions import (
    Region as Region,
    coverage as coverage,
    pool_region as pool_region,
    region_weights as region_weights,
)
from .targets import (
    ClassScore as ClassScore,
    ComponentAt as ComponentAt,
    PixelScore as PixelScore,
    Score as Score,
    Similarity as Similarity,
    Target as Target,
)
