"""Weakly supervised segmentation: from image-level labels to masks, and what the maps of a segmenter mean.

Names load on first use, since torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from ..datasets.voc import VocFolder
    from .cam_training.weak_segmenter import WeakSegmenter
    from .data import MaskedImages, MaskIds
    from .measures import BackgroundCurve, SegmentationScore, background_curve, evaluate_masks
    from .pipeline import run_segmentation, score_segmenter
    from .pseudo_masks.crf import CrfSettings, dense_crf
    from .pseudo_masks.cues import CueSettings, make_cues, pseudo_mask
    from .pseudo_masks.random_walk import WalkSettings, refine_by_walk
    from .pseudo_masks.sources import load_source, network_of
    from .recipe import PipelineRecipe
    from .segmenter.inference import InferenceSettings, class_scores, score_images
    from .segmenter.segmenter import Segmenter, build_segmenter, class_probabilities, load_segmenter

_HOME = {
    "BackgroundCurve": "measures",
    "CrfSettings": "pseudo_masks.crf",
    "CueSettings": "pseudo_masks.cues",
    "InferenceSettings": "segmenter.inference",
    "VocFolder": ".datasets.voc",
    "MaskIds": "data",
    "MaskedImages": "data",
    "PipelineRecipe": "recipe",
    "SegmentationScore": "measures",
    "Segmenter": "segmenter.segmenter",
    "WalkSettings": "pseudo_masks.random_walk",
    "WeakSegmenter": "cam_training.weak_segmenter",
    "background_curve": "measures",
    "build_segmenter": "segmenter.segmenter",
    "class_probabilities": "segmenter.segmenter",
    "class_scores": "segmenter.inference",
    "dense_crf": "pseudo_masks.crf",
    "evaluate_masks": "measures",
    "load_segmenter": "segmenter.segmenter",
    "load_source": "pseudo_masks.sources",
    "make_cues": "pseudo_masks.cues",
    "network_of": "pseudo_masks.sources",
    "pseudo_mask": "pseudo_masks.cues",
    "refine_by_walk": "pseudo_masks.random_walk",
    "run_segmentation": "pipeline",
    "score_images": "segmenter.inference",
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
