"""What the package promises by name: a public name that appears, disappears, or moves is seen here."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import distcam

PUBLIC = {
    "distcam": """
        DistcamError DistcamWarning Encoder Encoding Gallery Matches Retriever __version__
    """,
    "distcam.datasets": """
        ArrayImages DATA_SETS Dataset DatasetRecord EpisodeManifest FewShotData FileImages Images ReidData ReidImage
        Split SplitImages dataset_layouts load_dataset open_data read_data
    """,
    "distcam.encoders": """
        Affine BNNeck Batch Conv4 DropBlock EncodedBatch Encoder Encoding Failure GAP GeM Head Identity IdentityHead
        Inference Linear Overlap Pooling ResNet12 ResNet38 Sequential TrainedOn WideResNet affine_of
        available_architectures evaluating
    """,
    "distcam.explain": """
        ActivationMaps ClassScore ComponentAt Correspondence DrawStyle Faithfulness LayerRun Lines MEANS METHODS
        METRICS Mean NORMS Norm PixelScore Places RECOMMENDED Score Similarity Surroundings Target TargetScore Tile
        WEIGHTINGS Weighting box_from_map capture channel_weights colourise contour contrast correspondence dist_cam
        draw_box energy_in_box explain_image find_lines fold grid is_constant map_tiles match_sensitivity
        measure_faithfulness normalise overlay peak_in_box ratio_maps rectify upsample
    """,
    "distcam.fewshot": """
        BDCSPN Centre Classifier Comparison DecisionMap EpisodeManifest EpisodeResult FeatureTransform FineTuned
        Interval Intervals L2Normalise NearestNeighbour PowerTransform Prototypes ResultFile baseline
        baseline_plus_plus classifier_of compare decision_map episode_maps evaluate load_result
        required_episodes sample_episodes simple_shot support_quality support_sensitivity
    """,
    "distcam.images": """
        Box BoxSource Dataset DatasetRecord IMAGE_SUFFIXES ImageRecord Listing MAX_PIXELS MIN_SIDE Transform as_rgb
        dataset_layouts image_size item_of list_images list_items load_dataset pixel_limit read_image read_item
        set_pixel_limit split_item
    """,
    "distcam.index": """
        AddReport And Atlas Encodings Eq FaissSearch Filter Gallery Glob Hits In METRICS Metric Ne Not Or Problem
        PrototypeStore Range RayEngine Record Rejection Search SearchSpec Skipped SyncReport Tuning TuningReport
        VerifyReport encode_to_file export_gallery import_gallery parse_filter read_encodings restore_gallery
        verify_gallery watch_folder
    """,
    "distcam.reid": """
        Answer Assessment Audit BODY_PARTS CameraPair Evaluation FailedQuery Failure Features Identification Labels
        OperatingPoint PairExplanation PartShare Promotion Protocol QueryResults Refinement ReidData ReidEvaluation
        ReidImage ReidProtocol ReidRecipe Reranking STRIPES SharedNeighbours TestSettings Verification WalkerSet
        WalkerSettings assess audit camera_normalised changed_protocol encode_data evaluate_distances
        evaluate_features expand_queries explain_pair pair_energy pairs_panel pool_views read_data read_features
        rerank_features train write_features write_walkers
    """,
    "distcam.retrieval": """
        DistcamClassifier EncodingSettings Evaluation Explanation Line LocalisationTable Match MatchLines Matches
        Origin PictureCorrespondence PlacePair Prediction Protocol Query Reference References RetrievalEvaluation
        RetrievalProtocol Retriever Score calibrate_verification default_protocol evaluate_dataset
        evaluate_embeddings evaluate_encodings evaluate_gallery explain_pair fiftyone_samples localise
        read_classifier write_atlas write_report
    """,
    "distcam.segmentation": """
        BackgroundCurve CrfSettings CueSettings InferenceSettings MaskIds MaskedImages PipelineRecipe
        SegmentationScore Segmenter VocFolder WalkSettings WeakSegmenter background_curve build_segmenter
        class_probabilities class_scores dense_crf evaluate_masks load_segmenter load_source make_cues
        network_of pseudo_mask refine_by_walk run_segmentation score_images score_segmenter
    """,
    "distcam.server": """
        ServerSettings Settings create_app run
    """,
    "distcam.synthetic": """
        Blueprint SceneSet WalkerSet blueprints write_scenes write_walkers
    """,
    "distcam.training": """
        Batch BatchSource FitResult HasClassWeights Losses Mix Objective OptimiserSettings Progress Regions
        ScheduleSettings Settings Step TERMS Term TermContext TrainingProgress World build_objective current_world
        fit load_classifier save_classifier
    """,
}


@pytest.mark.parametrize("face", PUBLIC)
def test_a_face_shows_exactly_its_public_names_and_each_of_them_loads(face: str) -> None:
    package = importlib.import_module(face)

    assert sorted(package.__all__) == sorted(PUBLIC[face].split())
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("face", PUBLIC)
def test_no_public_name_is_also_the_name_of_a_module_which_would_hide_it(face: str) -> None:
    modules = {module.name for module in pkgutil.iter_modules(importlib.import_module(face).__path__)}

    assert not modules & set(PUBLIC[face].split())


def test_every_face_is_listed_here() -> None:
    root = Path(distcam.__file__).parent
    faces = {".".join(("distcam", *stub.parent.relative_to(root).parts)) for stub in root.rglob("__init__.pyi")}

    assert faces == set(PUBLIC)


def test_an_unknown_name_is_an_attribute_error_that_names_the_package() -> None:
    with pytest.raises(AttributeError, match=r"module 'distcam\.index' has no attribute 'Galery'"):
        importlib.import_module("distcam.index").Galery  # noqa: B018


def test_importing_every_face_loads_neither_torch_nor_faiss() -> None:
    faces = ", ".join(PUBLIC)
    program = f"import sys, {faces}; print({{'torch', 'faiss', 'torchvision', 'h5py'}} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
