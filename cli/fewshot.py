"""`distcam fewshot …`: evaluate on stored episodes, compare results in pairs, and show why answers were wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DistcamError, InputError
from .checks import require_encoder, require_file
from .command import Commands, refuse_unused
from .console import err, load_encoder, print_json, progress_bar, say
from .options import AsJson, BatchSize, Device, Fit, ImageSize, Layer, ReadsImages, Strict, Weights, Workers

if TYPE_CHECKING:
    from ..encoders import Encoder
    from ..fewshot import Centre, EpisodeManifest, EpisodeResult
    from ..fewshot.data import FewShotData, Split
    from ..fewshot.report import Explainer
    from ..fewshot.results import ResultFile
    from ..fewshot.support import SupportSensitivity
    from ..images import Transform
    from ..index import Encodings

app = Commands(
    help="Train few-shot encoders, evaluate classifiers, compare them in pairs, explain their errors.",
    no_args_is_help=True,
)

_DATA_HELP = (
    "NAME[:SPLIT]@FOLDER, with NAME out of omniglot, miniimagenet, tieredimagenet, cifar-fs, cub, mini-to-cub, folder; "
    "a folder of class folders; a FILE.csv (path,label[,split]); or a FILE.h5 of `distcam encode`."
)
Data = Annotated[str, typer.Option("--data", help=_DATA_HELP)]
OtherData = Annotated[str | None, typer.Option("--data", help=f"{_DATA_HELP} By default what the results name.")]
SplitChoice = Annotated[
    str | None,
    typer.Option("--split", help="Of a folder or table with splits: whose classes are novel. Default: test, or val."),
]
Part = Annotated[str, typer.Option(help="Which classes: base, val or novel.")]
Ways = Annotated[int, typer.Option(min=2, help="Classes in an episode.")]
Shots = Annotated[int, typer.Option(min=1, help="Support images per class.")]
Queries = Annotated[int, typer.Option(min=1, help="Query images per class.")]
Episodes = Annotated[int, typer.Option(min=2, help="How many episodes.")]
Seed = Annotated[int, typer.Option(min=0, help="Which list of episodes.")]
Dirichlet = Annotated[
    int | None,
    typer.Option(min=1, help="Unbalanced queries: concentration of their class proportions; 2 is usual."),
]
EncoderChoice = Annotated[
    str | None,
    typer.Option(help="A torchvision architecture, `resnet12`, `conv4`, or a CHECKPOINT. Not with a FILE.h5."),
]
Result = Annotated[str, typer.Argument(help="results.h5 if it holds one method, else results.h5:METHOD.")]

EPISODE_OPTIONS = ("n_way", "n_shot", "n_query", "episodes", "seed", "dirichlet")  # how episodes are drawn


@dataclass(frozen=True)
class _Source:
    """How images become features, as the options say."""

    encoder: Encoder | None
    features: Path
    batch_size: int | None
    workers: int | None
    device: str
    overwrite: bool
    strict: bool = False

    def encodings(self, split: Split, *, prefix: str = "") -> Encodings:
        """The features of a split, from the folder of features if they are there."""
        from ..fewshot.features import cached_features
        from ..index.building.build import InferenceSettings

        if self.encoder is None:
            raise InputError("say what makes the features: --encoder and --weights")
        self.features.mkdir(parents=True, exist_ok=True)
        file = self.features / f"{prefix}{split.name.rpartition('/')[2]}.h5"
        with progress_bar(f"encoding {split.name}") as progress:
            return cached_features(
                split,
                self.encoder,
                file,
                settings=InferenceSettings(self.batch_size, self.workers, self.device),
                overwrite=self.overwrite,
                strict=self.strict,
                progress=progress,
            )


@app.command(
    cls=ReadsImages,
    epilog="Example: `distcam fewshot evaluate --data omniglot:vinyals@omniglot --encoder conv4.safetensors "
    "--method proto,bdcspn --out results.h5`",
)
def evaluate(
    data: Data,
    out_file: Annotated[Path, typer.Option("--out", help="The HDF5 file of results to write.")],
    encoder: EncoderChoice = None,
    weights: Weights = None,
    layer: Layer = None,
    fit: Fit = None,
    image_size: ImageSize = None,
    part: Part = "novel",
    split: SplitChoice = None,
    n_way: Ways = 5,
    n_shot: Shots = 1,
    n_query: Queries = 15,
    episodes: Episodes = 10_000,
    seed: Seed = 0,
    dirichlet: Dirichlet = None,
    episodes_file: Annotated[
        Path | None, typer.Option(help="Replay this manifest instead; then the episode options say nothing.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="One or more of proto, proto-cosine, proto-power, nn, nn-cosine, simpleshot-un, "
            "simpleshot-l2n, simpleshot-cl2n, baseline, baseline++, bdcspn, separated by commas. All but bdcspn are "
            "inductive. baseline and baseline++ train a linear or a cosine classifier on each support: 100 epochs of "
            "SGD, learning rate 0.01, batches of 4."
        ),
    ] = "proto",
    base: Annotated[
        str | None,
        typer.Option(help="Data whose mean feature centres simpleshot-cl2n. Default: the base part of --data."),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder that keeps the features of each part. Default: OUT.features.")
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results and features.")] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Encode every image once, answer the episodes with each method, and print three intervals side by side."""
    if out_file.exists() and not overwrite:
        raise InputError(f"{out_file}: is there already; choose another --out, or give --overwrite")
    if data.endswith(".h5"):
        refuse_unused(
            f"as {data} holds features already", "encoder", "weights", "layer", "fit", "image_size", "features",
            "batch_size", "workers", "device", "max_pixels",
        )  # fmt: skip
    if episodes_file is not None:
        refuse_unused("with --episodes-file, which is replayed", *EPISODE_OPTIONS)
    if encoder is not None:
        require_encoder(encoder, weights, layer)
    elif not data.endswith(".h5"):
        raise InputError(f"{data} holds images; say what makes their features: --encoder and --weights")
    _require_place(data)
    require_file(episodes_file, "--episodes-file")
    from .. import fewshot
    from ..encoders.trained_on import say_overlap
    from ..fewshot.classifiers import METHODS, classifier_of, needs_base_mean
    from ..fewshot.features import overlap_of
    from ..fewshot.results import ResultFile

    methods = [name.strip() for name in method.split(",") if name.strip()]
    if not methods:
        raise InputError(f"--method names no method; there are {', '.join(METHODS)}")
    for name in methods:
        if not needs_base_mean(name):
            classifier_of(name)  # a misspelt name now, not after hours of encoding
    if not any(map(needs_base_mean, methods)):
        refuse_unused(f"by {', '.join(methods)}", "base", remedy="it is for simpleshot-cl2n; leave it out")
    data = _of_split(data, split)
    opened, encodings = _open(data)
    tested = opened[part]
    if episodes_file is None:
        _refuse_prescribed(opened, part)
    loaded = None if encoder is None else load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer)
    kept_in = features or out_file.with_suffix(".features")
    source = _Source(loaded, kept_in, batch_size, workers, device, overwrite, strict)
    drawn = {
        "n_way": n_way, "n_shot": n_shot, "n_query": n_query, "n_episodes": episodes, "seed": seed,
        "dirichlet": dirichlet,
    }  # fmt: skip
    manifest = _manifest(opened, part, episodes_file, **drawn)
    manifest.rows_in(tested.names)  # missing images now, not after the encoding
    mean = _base_mean(opened, tested, base, source, encodings) if any(map(needs_base_mean, methods)) else None
    encodings = source.encodings(tested) if encodings is None else encodings
    if not encodings.skipped.keys().isdisjoint(tested.names.tolist()):  # then the episodes are those of the others
        tested = tested.without(encodings.skipped)
        opened = dataclasses.replace(opened, parts={**opened.parts, part: tested})
        manifest = _manifest(opened, part, episodes_file, **drawn)
    overlap = say_overlap(overlap_of(encodings, tested, loaded))
    names = [record.path for record in encodings.records]
    short_name = str(encodings.encoder.get("short_name", ""))
    results = []
    with progress_bar("methods") as progress:
        for name in methods:
            classifier = classifier_of(name, mean=mean)
            found = fewshot.evaluate(encodings.embeddings, manifest, classifier, names=names, encoder=short_name)
            results.append(found)
            progress(len(results), len(methods))
    about = {
        "data": data, "part": part, "split_hash": tested.split_hash, "encoder": encoder, "weights": weights,
        "layer": layer, "fit": fit, "image_size": image_size, "base": base, "features": str(encodings.file),
        "fingerprint": encodings.encoder.get("fingerprint"), "precision": encodings.encoder.get("precision"),
        "transform": (encodings.encoder.get("description") or {}).get("transform"),
        "trained_on": None if overlap is None else overlap.to_dict(),
    }  # fmt: skip
    file = ResultFile(tuple(results), about)
    file.save(out_file)
    if as_json:
        print_json(file.to_dict())
        return
    _show(file)
    say(f"results: {out_file}")


@app.command(epilog="Example: `distcam fewshot compare results.h5:proto results.h5:bdcspn --difference 0.5`")
def compare(
    first: Result,
    second: Result,
    difference: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Points that a comparison should find in 80 % of cases. Default: the one found."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two results episode by episode; results of different episodes are refused."""
    from .. import fewshot
    from ..fewshot.results import load_result

    comparison = fewshot.compare(load_result(first), load_result(second))
    sought = comparison.mean_difference if difference is None else difference / 100
    needed = comparison.required_episodes(difference=sought) if sought else None
    if as_json:
        print_json({**comparison.to_dict(), "sought_difference": abs(sought), "required_episodes": needed})
        return
    say(comparison.table())
    ratio = comparison.variance_ratio
    say(
        f"an unpaired comparison would need {ratio:.1f} × as many episodes" if ratio < 1e6 else "no difference anywhere"
    )
    if needed is not None:
        say(
            f"a difference of {100 * abs(sought):.2f} points is found in 80 % of cases with {needed:,} episodes "
            f"of these classes; there are {comparison.first.episodes.n_episodes:,}"
        )


@app.command(epilog="Example: `distcam fewshot episodes novel-5w1s.h5 --data cub:chen@CUB_200_2011 --episodes 600`")
def episodes(
    file: Annotated[Path, typer.Argument(help="The manifest: shown, or with --data written.")],
    data: Annotated[str | None, typer.Option("--data", help=_DATA_HELP)] = None,
    part: Part = "novel",
    n_way: Ways = 5,
    n_shot: Shots = 1,
    n_query: Queries = 15,
    episodes: Episodes = 10_000,
    seed: Seed = 0,
    dirichlet: Dirichlet = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a manifest of episodes, or with --data draw one and write it, for replay on any model."""
    from ..fewshot import EpisodeManifest

    if data is None:
        refuse_unused(
            "where a manifest is shown", "part", *EPISODE_OPTIONS, "overwrite", remedy="add --data to draw one"
        )
        manifest = EpisodeManifest.load(file)
    else:
        if file.exists() and not overwrite:
            raise InputError(f"{file}: is there already; choose another file, or give --overwrite")
        opened = _open(data)[0]
        _refuse_prescribed(opened, part)
        manifest = _manifest(
            opened, part, None,
            n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=episodes, seed=seed, dirichlet=dirichlet,
        )  # fmt: skip
        manifest.save(file)
    if as_json:
        print_json(manifest.describe())
        return
    for name, value in manifest.describe().items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        say(f"{name:13} {shown}")


@app.command(cls=ReadsImages, epilog="Example: `distcam fewshot report results.h5 --html report.html`")
def report(
    results: Annotated[Path, typer.Argument(help="A file of `distcam fewshot evaluate`.")],
    html: Annotated[Path, typer.Option("--html", help="The page to write.")],
    data: OtherData = None,
    encoder: Annotated[str | None, typer.Option(help="What made the features. Default: what the results name.")] = None,
    weights: Weights = None,
    failures: Annotated[int, typer.Option(min=0, help="Wrong answers to show of each method.")] = 12,
    pictures: Annotated[bool, typer.Option(help="Show pictures and maps; needs data and encoder.")] = True,
    device: Device = "auto",
) -> None:
    """Write a page: accuracy of each class, confusion, hardest pairs, the worst failures with maps, and supports."""
    if not pictures:
        refuse_unused("with --no-pictures", "data", "encoder", "weights", "device", "max_pixels")
    if encoder is None:
        refuse_unused("without --encoder", "weights", remedy="add --encoder")
    require_file(results, "results")
    from ..fewshot.report import write_report
    from ..fewshot.results import ResultFile

    file = ResultFile.load(results)
    about = {**file.source, **({"data": data} if data else {})}
    if encoder is not None:
        about |= {"encoder": encoder, "weights": weights, "layer": None}
    explainer = None
    sensitivity: dict[str, list[SupportSensitivity]] = {}
    notes: list[str] = []
    if pictures:
        try:
            explainer, sensitivity = _explainer(file, about, device=device)
        except DistcamError as error:
            notes = [f"Without pictures and maps: {error}"]
            err.print(f"note: without pictures and maps: {error}", soft_wrap=True)
    write_report(html, file, explainer=explainer, sensitivity=sensitivity, notes=notes, n_failures=failures)
    say(f"report: {html}")


def _require_place(spec: str) -> None:
    """Nothing, if a folder or file that `--data` names is there; InputError otherwise."""
    place = spec if Path(spec).exists() else spec.partition("@")[2] or spec
    missing = next((part for part in place.split(",") if not Path(part).exists()), None)
    if missing is not None and ("@" in spec or spec.partition(":")[0] == spec):
        raise InputError(f"--data {spec}: nothing is at {missing}")


def _of_split(spec: str, split: str | None) -> str:
    """What names the data set when one of its splits is chosen."""
    if split is None:
        return spec
    if "@" in spec and not Path(spec).exists():
        raise InputError(f"--split {split}: {spec} says its split itself, as in NAME:SPLIT@FOLDER; leave --split out")
    if spec.endswith(".h5"):
        raise InputError(f"--split {split}: {spec} holds features already; encode the split alone")
    return f"folder:{split}@{spec}"


def _open(spec: str) -> tuple[FewShotData, Encodings | None]:
    """The data set that an option names, and its features if it is a file of them."""
    from ..fewshot.data import FewShotData, FileImages, Split, open_data
    from ..index import read_encodings

    if not spec.endswith(".h5"):
        return open_data(spec), None
    found = read_encodings(spec)
    if None in found.labels:
        raise InputError(f"{spec}: {found.labels.count(None)} images have no label; encode with --labels")
    names = [record.path for record in found.records]
    split = Split(f"{Path(spec).name}/novel", names, found.labels, FileImages(found.root, names))  # type: ignore[arg-type]
    return FewShotData(Path(spec).name, {"novel": split}), found


def _manifest(opened: FewShotData, part: str, file: Path | None, **settings: Any) -> EpisodeManifest:
    """The episodes to answer: a stored manifest, those that the data prescribes, or drawn ones."""
    from ..fewshot import EpisodeManifest, sample_episodes

    if file is not None:
        return EpisodeManifest.load(file)
    if opened.episodes is not None and part == "novel":
        return opened.episodes
    split = opened[part]
    return sample_episodes(split.labels, names=split.names, **settings)


def _refuse_prescribed(opened: FewShotData, part: str) -> None:
    """Options of a draw of episodes are not used by data that prescribe them."""
    if opened.episodes is not None and part == "novel":
        refuse_unused(f"by {opened.name}, which prescribes its episodes", *EPISODE_OPTIONS)


def _base_mean(
    opened: FewShotData, tested: Split, base: str | None, source: _Source, encodings: Encodings | None
) -> Centre:
    """Mean feature of the base classes, of the data set's own or of the data given; it knows if these are tested on."""
    import torch

    from ..fewshot import Centre

    if base is not None:
        other, found = _open(base)
        split = other.parts.get("base") or other["novel"]
        if found is None:
            found = source.encodings(split, prefix="mean-of-")
    elif "base" in opened.parts and encodings is None:
        split = opened["base"]
        found = source.encodings(split)
    else:
        raise InputError(
            f"simpleshot-cl2n centres by the mean of base classes, and {opened.name} has no base part; give --base DATA"
        )
    row = {record.path: number for number, record in enumerate(found.records)}
    names = [name for name in split.names.tolist() if name not in found.skipped]
    mean = torch.from_numpy(found.embeddings[[row[name] for name in names]]).mean(0)
    return Centre(mean, source="test" if split.split_hash == tested.split_hash else "base")


def _explainer(
    file: ResultFile, about: dict[str, Any], *, device: str
) -> tuple[Explainer, dict[str, list[SupportSensitivity]]]:
    """Images, encoder and classifiers as the results name them, and the redrawn supports."""
    from ..fewshot.classifiers import METHODS, classifier_of, needs_base_mean
    from ..fewshot.report import Explainer
    from ..fewshot.support import support_sensitivity
    from ..index import read_encodings

    if not about.get("data"):
        raise InputError("the results do not say where the images are; give --data")
    opened, encodings = _open(about["data"])
    split = opened[about.get("part") or "novel"]
    file.episodes.rows_in(split.names)
    encoder = None
    if about.get("encoder"):
        encoder = load_encoder(
            about["encoder"], about.get("weights"), fit=about.get("fit"), size=about.get("image_size"),
            layer=about.get("layer"),
        )  # fmt: skip
        encoder.transform = _stored_transform(about, encoder)
        if about.get("fingerprint") not in (None, encoder.fingerprint):
            raise InputError(f"{encoder.short_name} is not the encoder of these results; give --encoder and --weights")
    if encodings is None and Path(about.get("features") or "").is_file():
        encodings = read_encodings(about["features"])
    mean = None
    if any(map(needs_base_mean, file.names)) and encoder is not None:
        source = _Source(encoder, Path(about["features"]).parent, None, None, device, overwrite=False)
        mean = _base_mean(opened, split, about.get("base"), source, None)
    classifiers = {
        name: classifier_of(name, mean=mean)
        for name in file.names
        if name in METHODS and (mean is not None or not needs_base_mean(name))
    }
    precision = about.get("precision") or "auto"
    stored = (
        None if encodings is None else {r.path: v for r, v in zip(encodings.records, encodings.embeddings, strict=True)}
    )
    explainer = Explainer(split, encoder, classifiers, device=device, precision=precision, features=stored)
    if encodings is None:
        return explainer, {}
    labels, features = encodings.labels, encodings.embeddings
    sets = [tuple(file.episodes.class_names[ways].tolist()) for ways in file.episodes.ways[:3]]
    shots = {"n_shot": file.episodes.n_shot, "n_query": file.episodes.n_query}
    return explainer, {
        name: [support_sensitivity(features, labels, classes, classifier, **shots) for classes in sets]  # type: ignore[arg-type]
        for name, classifier in classifiers.items()
        if min(labels.count(label) for classes in sets for label in classes) >= shots["n_shot"] + 2
    }


def _row(result: EpisodeResult) -> tuple[str, ...]:
    """A line of the table, in percent."""
    found = result.intervals()
    low_to_high = [f"{100 * each.low:.2f} … {100 * each.high:.2f}" for each in found][1:]
    return (
        str(result.classifier["name"]),
        str(result.classifier["setting"]),
        f"{100 * result.mean_accuracy:.2f}",
        f"± {100 * found.usual.half_width:.2f}",
        low_to_high[0],
        low_to_high[1] if found.class_jackknife is not None else "does not exist",
    )


def _stored_transform(about: dict[str, Any], encoder: Encoder) -> Transform:
    """The transform of the results; those of 0.1 do not hold it, and cropped where nothing else was said."""
    from ..images import Transform

    if about.get("transform") is not None:
        return Transform.from_dict(about["transform"])
    named = str(about["encoder"])
    return (
        encoder.transform
        if about.get("fit") or named.endswith(".safetensors")
        else encoder.transform.adapted(fit="crop")
    )


def _seen_as(source: Mapping[str, Any]) -> str:
    """What images became and the precision of the arithmetic, as far as results say it."""
    from ..images import Transform

    transform = source.get("transform")
    known = None if transform is None else f"images {Transform.from_dict(transform).summary}"
    return ", ".join(filter(None, (known, source.get("precision"))))


def _show(file: ResultFile) -> None:
    """All methods in one table, and what each interval answers."""
    first = next(iter(file))
    say("; ".join(filter(None, (first.table().splitlines()[0], first.encoder, _seen_as(file.source)))))
    rows = [("method", "setting", "accuracy", "± usual", "bootstrap", "class jackknife"), *map(_row, file)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # not a rich table: none of this may be cut off in a narrow terminal or a log
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for each in first.intervals():
        say(f"{each.kind}: {each.question}")
    if first.intervals().class_jackknife is None:
        say("class jackknife: does not exist, some class is in every episode; nothing is known of other classes")
