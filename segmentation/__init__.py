"""Weakly supervised segmentation: from image-level labels to masks, and what the maps of a segmenter mean.

Names load on first use, since torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from ..datasets.voc import VocFolder
    from ..metrics.segmentation import BackgroundCurve, SegmentationScore, background_curve, evaluate_masks
    from .cam_training.weak_segmenter import WeakSegmenter
    from .data import MaskedImages
    from .label_maps import MaskIds
    from .pipeline import run_segmentation, score_segmenter
    from .pipeline_recipe import PipelineRecipe
    from .pseudo_masks.affinity_net import WalkSettings, refine_by_walk
    from .pseudo_masks.crf import CrfSettings, dense_crf
    from .pseudo_masks.cues import CueSettings, make_cues, pseudo_mask
    from .pseudo_masks.sources import load_source, network_of
    from .segmenter.inference import InferenceSettings, class_scores, score_images
    from .segmenter.segmenter import Segmenter, build_segmenter, class_probabilities, load_segmenter

_HOME = {
    "BackgroundCurve": ".metrics.segmentation",
    "CrfSettings": "pseudo_masks.crf",
    "CueSettings": "pseudo_masks.cues",
    "InferenceSettings": "segmenter.inference",
    "VocFolder": ".datasets.voc",
    "MaskIds": "label_maps",
    "MaskedImages": "data",
    "PipelineRecipe": "pipeline_recipe",
    "SegmentationScore": ".metrics.segmentation",
    "Segmenter": "segmenter.segmenter",
    "WalkSettings": "pseudo_masks.affinity_net",
    "WeakSegmenter": "cam_training.weak_segmenter",
    "background_curve": ".metrics.segmentation",
    "build_segmenter": "segmenter.segmenter",
    "class_probabilities": "segmenter.segmenter",
    "class_scores": "segmenter.inference",
    "dense_crf": "pseudo_masks.crf",
    "evaluate_masks": ".metrics.segmentation",
    "load_segmenter": "segmenter.segmenter",
    "load_source": "pseudo_masks.sources",
    "make_cues": "pseudo_masks.cues",
    "network_of": "pseudo_masks.sources",
    "pseudo_mask": "pseudo_masks.cues",
    "refine_by_walk": "pseudo_masks.affinity_net",
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
