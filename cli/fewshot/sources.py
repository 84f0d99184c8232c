"""Data, features and episodes as the options of `distcam fewshot` name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .. import library
from ..command import refuse_unused
from ..console import load_encoder, progress_bar
from ..options import option

if TYPE_CHECKING:
    from ...datasets import FewShotData, Split
    from ...encoders import Encoder
    from ...fewshot.evaluation import SupportSensitivity
    from ...fewshot.report import Explainer
    from ...fewshot.results import ResultFile
    from ...index import Encodings


@dataclass(frozen=True)
class Draw:
    """Options of drawing episodes."""

    n_way: int = option(5, "Classes in an episode.", min=2)
    n_shot: int = option(1, "Support images per class.", min=1)
    n_query: int = option(15, "Query images per class.", min=1)
    episodes: int = option(10_000, "How many episodes.", min=2)
    seed: int = option(0, "Which list of episodes.", min=0)
    dirichlet: int | None = option(
        None, "Unbalanced queries: concentration of their class proportions; 2 is usual.", min=1
    )


def of_split(spec: str, split: str | None) -> str:
    """The data set's name when one of its splits is chosen."""
    if split is None:
        return spec
    if "@" in spec and not Path(spec).exists():
        raise InputError(f"--split {split}: {spec} says its split itself, as in NAME:SPLIT@FOLDER; leave --split out")
    if spec.endswith(".h5"):
        raise InputError(f"--split {split}: {spec} holds features already; encode the split alone")
    return f"folder:{split}@{spec}"


def open_source(spec: str) -> tuple[FewShotData, Encodings | None]:
    """The data set that an option names, and its features if it is a file of them."""
    from ...datasets import FewShotData, FileImages, Split, open_data

    if not spec.endswith(".h5"):
        return open_data(spec), None
    found = library.index.read_encodings(spec)
    if None in found.labels:
        raise InputError(f"{spec}: {found.labels.count(None)} images have no label; encode with --labels")
    names = [record.path for record in found.records]
    split = Split(f"{Path(spec).name}/novel", names, found.labels, FileImages(found.root, names))  # type: ignore[arg-type]
    return FewShotData(Path(spec).name, {"novel": split}), found


def manifest_of(opened: FewShotData, part: str, file: Path | None, draw: Draw) -> library.fewshot.EpisodeManifest:
    """The episodes to answer: a stored manifest, those that the data prescribes, or drawn ones."""
    if file is not None:
        return library.fewshot.EpisodeManifest.load(file)
    if opened.episodes is not None and part == "novel":
        return opened.episodes
    split, asked = opened[part], dict(vars(draw))
    return library.fewshot.sample_episodes(split.labels, names=split.names, n_episodes=asked.pop("episodes"), **asked)


def refuse_prescribed(opened: FewShotData, part: str) -> None:
    """Refuse options of a draw for data that prescribe their episodes."""
    if opened.episodes is not None and part == "novel":
        refuse_unused(f"by {opened.name}, which prescribes its episodes", Draw)


def features_of(
    split: Split, encoder: Encoder | None, folder: Path, *, prefix: str = "", device: str = "auto", **options: Any
) -> Encodings:
    """The features of a split, from the folder of features if they are there."""
    from ...fewshot.features import cached_features
    from ...index.building.build import InferenceOptions

    if encoder is None:
        raise InputError("say what makes the features: --encoder and --weights")
    settings = InferenceOptions(options.pop("batch_size", None), options.pop("workers", None), device)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{prefix}{split.name.rpartition('/')[2]}.h5"
    with progress_bar(f"encoding {split.name}") as progress:
        return cached_features(split, encoder, file, settings=settings, progress=progress, **options)


def base_mean(
    opened: FewShotData, tested: Split, base: str | None, *, encode: Callable[..., Encodings], is_encoded: bool
) -> library.fewshot.Centre:
    """Mean feature of the base classes, of the data set's own or of the data given; it knows if these are tested on."""
    import torch

    if base is not None:
        other, found = open_source(base)
        split = other.parts.get("base") or other["novel"]
        found = found or encode(split, prefix="mean-of-")
    elif "base" in opened.parts and not is_encoded:
        split = opened["base"]
        found = encode(split)
    else:
        lacks = f"{opened.name} has no base part; give --base DATA"
        raise InputError(f"simpleshot-cl2n centres by the mean of base classes, and {lacks}")
    row = {record.path: number for number, record in enumerate(found.records)}
    names = [name for name in split.names.tolist() if name not in found.skipped]
    mean = torch.from_numpy(found.embeddings[[row[name] for name in names]]).mean(0)
    return library.fewshot.Centre(mean, source="test" if split.split_hash == tested.split_hash else "base")


def explainer_of(
    file: ResultFile, about: dict[str, Any], *, device: str
) -> tuple[Explainer, dict[str, list[SupportSensitivity]]]:
    """Images, encoder and classifiers as the results name them, and the redrawn supports."""
    from functools import partial

    from ...fewshot.evaluation import support_sensitivity
    from ...fewshot.methods import METHODS, classifier_of, needs_base_mean
    from ...fewshot.report import Explainer

    if not about.get("data"):
        raise InputError("the results do not say where the images are; give --data")
    opened, encodings = open_source(about["data"])
    split = opened[about.get("part") or "novel"]
    file.episodes.rows_in(split.names)
    encoder = None
    if name := about.get("encoder"):
        chosen = {key: about.get(key) for key in ("fit", "layer", "readout")}
        encoder = load_encoder(name, about.get("weights"), size=about.get("image_size"), **chosen)
        if about.get("transform") is not None:
            encoder.transform = library.images.Transform.from_dict(about["transform"])
        elif not (about.get("fit") or str(name).endswith(".safetensors")):  # 0.1 cropped where nothing else was said
            encoder.transform = encoder.transform.adapted(fit="crop")
        if about.get("fingerprint") not in (None, encoder.fingerprint):
            raise InputError(f"{encoder.short_name} is not the encoder of these results; give --encoder and --weights")
    if encodings is None and Path(about.get("features") or "").is_file():
        encodings = library.index.read_encodings(about["features"])
    mean = None
    if any(map(needs_base_mean, file.names)) and encoder is not None:
        encode = partial(features_of, encoder=encoder, folder=Path(about["features"]).parent, device=device)
        mean = base_mean(opened, split, about.get("base"), encode=encode, is_encoded=False)
    classifiers = {
        name: classifier_of(name, mean=mean)
        for name in file.names
        if name in METHODS and (mean is not None or not needs_base_mean(name))
    }
    features = None
    sensitivity: dict[str, list[SupportSensitivity]] = {}
    if encodings is not None:
        features = {r.path: v for r, v in zip(encodings.records, encodings.embeddings, strict=True)}
        labels, n_shot = encodings.labels, file.episodes.n_shot
        sets = [tuple(file.episodes.class_names[ways].tolist()) for ways in file.episodes.ways[:3]]
        if min(labels.count(label) for classes in sets for label in classes) >= n_shot + 2:
            redraw = partial(support_sensitivity, encodings.embeddings, labels, n_query=file.episodes.n_query)  # type: ignore[arg-type]
            sensitivity = {
                name: [redraw(classes=classes, classifier=classifier, n_shot=n_shot) for classes in sets]
                for name, classifier in classifiers.items()
            }
    precision = about.get("precision") or "auto"
    explainer = Explainer(split, encoder, classifiers, device=device, precision=precision, features=features)
    return explainer, sensitivity
