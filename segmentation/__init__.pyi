from .cam_training.weak_segmenter import WeakSegmenter as WeakSegmenter
from .data import MaskedImages as MaskedImages, MaskIds as MaskIds
from .measures import (
    BackgroundCurve as BackgroundCurve,
    SegmentationScore as SegmentationScore,
    background_curve as background_curve,
    evaluate_masks as evaluate_masks,
)
from .pipeline import run_segmentation as run_segmentation, score_segmenter as score_segmenter
from .pseudo_masks.crf import CrfSettings as CrfSettings, dense_crf as dense_crf
from .pseudo_masks.cues import CueSettings as CueSettings, make_cues as make_cues, pseudo_mask as pseudo_mask
from .pseudo_masks.random_walk import WalkSettings as WalkSettings, refine_by_walk as refine_by_walk
from .pseudo_masks.sources import load_source as load_source, network_of as network_of
from .recipe import PipelineRecipe as PipelineRecipe
from .segmenter.inference import (
    InferenceSettings as InferenceSettings,
    class_scores as class_scores,
    score_images as score_images,
)
from .segmenter.segmenter import (
    Segmenter as Segmenter,
    build_segmenter as build_segmenter,
    class_probabilities as class_probabilities,
    load_segmenter as load_segmenter,
)
from .voc import VocFolder as VocFolder
