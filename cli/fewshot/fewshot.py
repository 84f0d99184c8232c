"""`distcam fewshot …`: evaluate on stored episodes, compare results in pairs, and show why answers were wrong."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import DistcamError, InputError
from .. import library, train
from ..command import Commands, refuse_unused
from ..console import note, print_json, progress_bar, require_file, say
from ..options import AsJson, Device, Loading, ReadsImages, Running, Strict, argument, option
from . import predict, sources

if TYPE_CHECKING:
    from ...fewshot.evaluation import SupportSensitivity

app = Commands(no_args_is_help=True)

_DATA_HELP = (
    "NAME[:SPLIT]@FOLDER, with NAME out of omniglot, miniimagenet, tieredimagenet, cifar-fs, cub, mini-to-cub, folder; "
    "a folder of class folders; a FILE.csv (path,label[,split]); or a FILE.h5 of `distcam encode`."
)
Part = Annotated[str, typer.Option(help="Which classes: base, val or novel.")]
Result = Annotated[str, typer.Argument(help="results.h5 if it holds one method, else results.h5:METHOD.")]


@app.command(
    cls=ReadsImages,
    epilog="Example: `distcam fewshot evaluate --data omniglot:vinyals@omniglot --encoder conv4.safetensors "
    "--method proto,bdcspn --out results.h5`",
)
def evaluate(
    *,
    data: str = option(..., _DATA_HELP),
    out_file: Path = option(..., "The HDF5 file of results to write.", "--out"),
    encoder: str | None = option(
        None, "A torchvision architecture, `resnet12`, `conv4`, or a CHECKPOINT. Not with a FILE.h5."
    ),
    loading: Loading,
    part: Part = "novel",
    split: str | None = option(
        None, "Of a folder or table with splits: whose classes are novel. Default: test, or val.", "--split"
    ),
    draw: sources.Draw,
    episodes_file: Path | None = option(None, "Replay this manifest instead; then the episode options say nothing."),
    method: str = option(
        "proto",
        "One or more of proto, proto-cosine, proto-power, nn, nn-cosine, simpleshot-un, simpleshot-l2n, "
        "simpleshot-cl2n, baseline, baseline++, bdcspn, separated by commas. All but bdcspn are inductive. baseline "
        "and baseline++ train a linear or a cosine classifier on each support: 100 epochs of SGD, learning rate 0.01, "
        "batches of 4.",
    ),
    base: str | None = option(
        None, "Data whose mean feature centres simpleshot-cl2n. Default: the base part of --data."
    ),
    features: Path | None = option(None, "Folder that keeps the features of each part. Default: OUT.features."),
    running: Running,
    overwrite: bool = option(False, "Replace results and features.", "--overwrite"),
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Encode every image once, answer the episodes with each method, and print three intervals side by side."""
    if out_file.exists() and not overwrite:
        raise InputError(f"{out_file}: is there already; choose another --out, or give --overwrite")
    if data.endswith(".h5"):
        refuse_unused(
            f"as {data} holds features already", "encoder", Loading, "features", Running, "max_pixels",
        )  # fmt: skip
    if episodes_file is not None:
        refuse_unused("with --episodes-file, which is replayed", sources.Draw)
    if encoder is not None:
        loading.require(encoder)
    elif not data.endswith(".h5"):
        raise InputError(f"{data} holds images; say what makes their features: --encoder and --weights")
    place = data if Path(data).exists() else data.partition("@")[2] or data
    missing = next((part for part in place.split(",") if not Path(part).exists()), None)
    if missing is not None and ("@" in data or data.partition(":")[0] == data):
        raise InputError(f"--data {data}: nothing is at {missing}")
    require_file(episodes_file, "--episodes-file")
    from ... import fewshot
    from ...encoders.trained_on import say_overlap
    from ...fewshot.features import overlap_of
    from ...fewshot.methods import METHODS, classifier_of, needs_base_mean
    from ...fewshot.results import NO_JACKKNIFE, ResultFile

    methods = [name.strip() for name in method.split(",") if name.strip()]
    if not methods:
        raise InputError(f"--method names no method; there are {', '.join(METHODS)}")
    for name in methods:
        if not needs_base_mean(name):
            classifier_of(name)  # a misspelt name now, not after hours of encoding
    if not any(map(needs_base_mean, methods)):
        refuse_unused(f"by {', '.join(methods)}", "base", remedy="it is for simpleshot-cl2n; leave it out")
    data = sources.of_split(data, split)
    opened, encodings = sources.open_source(data)
    tested = opened[part]
    if episodes_file is None:
        sources.refuse_prescribed(opened, part)
    loaded = None if encoder is None else loading.load(encoder)
    encode = partial(
        sources.features_of, encoder=loaded, folder=features or out_file.with_suffix(".features"),
        batch_size=running.batch_size, workers=running.workers, device=running.device, overwrite=overwrite,
        strict=strict,
    )  # fmt: skip
    manifest = sources.manifest_of(opened, part, episodes_file, draw)
    manifest.rows_in(tested.names)  # missing images now, not after the encoding
    mean = None
    if any(map(needs_base_mean, methods)):
        mean = sources.base_mean(opened, tested, base, encode=encode, is_encoded=encodings is not None)
    encodings = encodings or encode(tested)
    if not encodings.skipped.keys().isdisjoint(tested.names.tolist()):  # then the episodes are those of the others
        tested = tested.without(encodings.skipped)
        opened = dataclasses.replace(opened, parts={**opened.parts, part: tested})
        manifest = sources.manifest_of(opened, part, episodes_file, draw)
    overlap = say_overlap(overlap_of(encodings, tested, loaded))
    names = [record.path for record in encodings.records]
    short_name = str(encodings.encoder.get("short_name", ""))
    answer = partial(fewshot.evaluate, encodings.embeddings, manifest, names=names, encoder=short_name)
    results = []
    with progress_bar("methods") as progress:
        for name in methods:
            results.append(answer(classifier_of(name, mean=mean)))
            progress(len(results), len(methods))
    about = {
        "data": data, "part": part, "split_hash": tested.split_hash, "encoder": encoder, **vars(loading),
        "base": base, "features": str(encodings.file),
        "fingerprint": encodings.encoder.get("fingerprint"), "precision": encodings.encoder.get("precision"),
        "transform": (encodings.encoder.get("description") or {}).get("transform"),
        "trained_on": None if overlap is None else overlap.to_dict(),
    }  # fmt: skip
    file = ResultFile(tuple(results), about)
    file.save(out_file)
    if as_json:
        print_json(file.to_dict())
        return
    first, transform = file.results[0], file.source.get("transform")
    seen = None if transform is None else f"images {library.images.Transform.from_dict(transform).summary}"
    computed = ", ".join(filter(None, (seen, file.source.get("precision"))))
    say("; ".join(filter(None, (first.table().splitlines()[0], first.encoder, computed))))
    rows = [("method", "setting", "accuracy", "± usual", "bootstrap", "class jackknife")]
    for result in file:
        intervals = result.intervals()
        ranges = [f"{100 * each.low:.2f} … {100 * each.high:.2f}" for each in intervals][1:]
        jackknife = ranges[1:] or ["does not exist"]
        accuracy, half = f"{100 * result.mean_accuracy:.2f}", f"± {100 * intervals.usual.half_width:.2f}"
        about_method = str(result.classifier["name"]), str(result.classifier["setting"])
        rows.append((*about_method, accuracy, half, ranges[0], jackknife[0]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # not a rich table: none of this may be cut off in a narrow terminal or a log
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for each in first.intervals():
        say(f"{each.kind}: {each.question}")
    if first.intervals().class_jackknife is None:
        say(NO_JACKKNIFE)
    say(f"results: {out_file}")


@app.command(epilog="Example: `distcam fewshot compare results.h5:proto results.h5:bdcspn --difference 0.5`")
def compare(
    first: Result,
    second: Result,
    difference: float | None = option(
        None, "Points that a comparison should find in 80 % of cases. Default: the one found.", min=1e-6
    ),
    as_json: AsJson = False,
) -> None:
    """Compare two results episode by episode; results of different episodes are refused."""
    from ... import fewshot
    from ...fewshot.results import load_result

    comparison = fewshot.compare(load_result(first), load_result(second))
    sought = comparison.mean_difference if difference is None else difference / 100
    needed = comparison.required_episodes(difference=sought) if sought else None
    if as_json:
        print_json({**comparison.to_dict(), "sought_difference": abs(sought), "required_episodes": needed})
        return
    say(comparison.table())
    ratio = comparison.variance_ratio
    times = f"an unpaired comparison would need {ratio:.1f} × as many episodes"
    say(times if ratio < 1e6 else "no difference anywhere")
    if needed is not None:
        say(
            f"a difference of {100 * abs(sought):.2f} points is found in 80 % of cases with {needed:,} episodes "
            f"of these classes; there are {comparison.first.episodes.n_episodes:,}"
        )


@app.command(epilog="Example: `distcam fewshot episodes novel-5w1s.h5 --data cub:chen@CUB_200_2011 --episodes 600`")
def episodes(
    file: Path = argument(..., "The manifest: shown, or with --data written."),
    *,
    data: str | None = option(None, _DATA_HELP, "--data"),
    part: Part = "novel",
    draw: sources.Draw,
    overwrite: bool = option(False, "Replace the file.", "--overwrite"),
    as_json: AsJson = False,
) -> None:
    """Show a manifest of episodes, or with --data draw one and write it, for replay on any model."""
    if data is None:
        refuse_unused("where a manifest is shown", "part", sources.Draw, "overwrite", remedy="add --data to draw one")
        manifest = library.fewshot.EpisodeManifest.load(file)
    else:
        if file.exists() and not overwrite:
            raise InputError(f"{file}: is there already; choose another file, or give --overwrite")
        opened = sources.open_source(data)[0]
        sources.refuse_prescribed(opened, part)
        manifest = sources.manifest_of(opened, part, None, draw)
        manifest.save(file)
    if as_json:
        print_json(manifest.describe())
        return
    for name, value in manifest.describe().items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        say(f"{name:13} {shown}")


@app.command(cls=ReadsImages, epilog="Example: `distcam fewshot report results.h5 --html report.html`")
def report(
    results: Path = argument(..., "A file of `distcam fewshot evaluate`."),
    html: Path = option(..., "The page to write.", "--html"),
    data: str | None = option(None, f"{_DATA_HELP} By default what the results name.", "--data"),
    encoder: str | None = option(None, "What made the features. Default: what the results name."),
    weights: str | None = Loading.weights,
    failures: int = option(12, "Wrong answers to show of each method.", min=0),
    pictures: bool = option(True, "Show images and maps; needs data and encoder."),
    device: Device = "auto",
) -> None:
    """Write a page: accuracy of each class, confusion, hardest pairs, the worst failures with maps, and supports."""
    if not pictures:
        refuse_unused("with --no-pictures", "data", "encoder", "weights", "device", "max_pixels")
    if encoder is None:
        refuse_unused("without --encoder", "weights", remedy="add --encoder")
    require_file(results, "results")
    from ...fewshot.report import write_report
    from ...fewshot.results import ResultFile

    file = ResultFile.load(results)
    about = {**file.source, **({"data": data} if data else {})}
    if encoder is not None:
        about |= {"encoder": encoder, "weights": weights, "layer": None, "readout": None}
    explainer = None
    sensitivity: dict[str, list[SupportSensitivity]] = {}
    notes: list[str] = []
    if pictures:
        try:
            explainer, sensitivity = sources.explainer_of(file, about, device=device)
        except DistcamError as error:
            notes = [f"Without images and maps: {error}"]
            note(f"without images and maps: {error}")
    write_report(html, file, explainer=explainer, sensitivity=sensitivity, notes=notes, n_failures=failures)
    say(f"report: {html}")


app.command(name="train", cls=ReadsImages, epilog=train.FEWSHOT_EXAMPLE)(train.fewshot_train)
app.command(name="predict", cls=ReadsImages, epilog=predict.EXAMPLE)(predict.predict)
