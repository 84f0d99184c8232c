from ..datasets.masked_images import VocFolder
from ..metrics.segmentation import BackgroundCurve, SegmentationScore, background_curve, evaluate_masks
from .data import MaskedImages
from .label_maps import MaskIds
from .pipeline import run_segmentation, score_segmenter
from .pipeline_recipe import PipelineRecipe
from .pseudo_masks.affinity_net import WalkSettings, refine_by_walk
from .pseudo_masks.crf import CrfSettings, dense_crf
from .pseudo_masks.make import CueSettings, make_cues, pseudo_mask
from .pseudo_masks.sources import WeakSegmenter, load_source, network_of
from .segmenter.inference import InferenceSettings, class_scores, score_images
from .segmenter.segmenter import Segmenter, build_segmenter, class_probabilities, load_segmenter

__all__ = [
    "BackgroundCurve",
    "CrfSettings",
    "CueSettings",
    "InferenceSettings",
    "MaskIds",
    "MaskedImages",
    "PipelineRecipe",
    "SegmentationScore",
    "Segmenter",
    "VocFolder",
    "WalkSettings",
    "WeakSegmenter",
    "background_curve",
    "build_segmenter",
    "class_probabilities",
    "class_scores",
    "dense_crf",
    "evaluate_masks",
    "load_segmenter",
    "load_source",
    "make_cues",
    "network_of",
    "pseudo_mask",
    "refine_by_walk",
    "run_segmentation",
    "score_images",
    "score_segmenter",
]
