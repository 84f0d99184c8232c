"""Weakly supervised segmentation: from image-level labels to masks, and what the maps of a segmenter mean.

Names load on first use, since torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .crf import CrfSettings, dense_crf
    from .cues import CueSettings, make_cues, pseudo_mask
    from .data import MaskedImages, MaskIds
    from .inference import InferenceSettings, class_scores, score_images
    from .measures import BackgroundCurve, SegmentationScore, background_curve, evaluate_masks
    from .pipeline import run_segmentation, score_segmenter
    from .random_walk import WalkSettings, refine_by_walk
    from .recipe import PipelineRecipe
    from .segmenter import Segmenter, build_segmenter, class_probabilities, load_segmenter
    from .sources import load_source, network_of
    from .voc import VocFolder
    from .weak import WeakSegmenter

_HOME = {
    "BackgroundCurve": "measures",
    "CrfSettings": "crf",
    "CueSettings": "cues",
    "InferenceSettings": "inference",
    "VocFolder": "voc",
    "MaskIds": "data",
    "MaskedImages": "data",
    "PipelineRecipe": "recipe",
    "SegmentationScore": "measures",
    "Segmenter": "segmenter",
    "WalkSettings": "random_walk",
    "WeakSegmenter": "weak",
    "background_curve": "measures",
    "build_segmenter": "segmenter",
    "class_probabilities": "segmenter",
    "class_scores": "inference",
    "dense_crf": "crf",
    "evaluate_masks": "measures",
    "load_segmenter": "segmenter",
    "load_source": "sources",
    "make_cues": "cues",
    "network_of": "sources",
    "pseudo_mask": "cues",
    "refine_by_walk": "random_walk",
    "run_segmentation": "pipeline",
    "score_images": "inference",
    "score_segmenter": "pipeline",
}

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

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
