"""Every option of every command is used, or refused by the branch that does not use it."""

from __future__ import annotations

import functools
import shlex

import pytest
import typer
from commands import distcam, fails
from segment_recipe import RECIPE

from distcam.cli.app import app
from distcam.cli.command import Command, OnDemand, option_names

DRAW = "--n-way 3 --n-shot 1 --n-query 2 --episodes 9 --seed 1 --dirichlet 2"
LOADING = "--encoder conv4 --weights random --layer layer3 --readout mean --fit pad --image-size 64"
RUNNING = "--batch-size 2 --workers 0 --device cpu"

# A command, the branch of it that runs, and options that this branch does not use.
BRANCHES = [
    ("inspect {gallery}", "without --report", "--shown 3 --encoder x --device cpu"),
    ("inspect {gallery} confusions", "by confusions", "--rate 0.1 --no-look"),
    ("inspect {gallery} duplicates", "by duplicates", "--most 3"),
    ("inspect {gallery} outliers", "by outliers", "--most 3 --no-look"),
    (
        "query {gallery} {photo}",
        "without --explain",
        "--against prototype --versus cat --weighting dot --mean half --detail fine --space backbone --point 3,3 "
        "--style box --scale shared --colours gray --lines",
    ),
    (
        "query {gallery} {photo} --explain why.html",
        "by the report",
        "--point 3,3 --style box --scale each --colours gray",
    ),
    ("query {gallery} {photo} --explain maps --style box", "by the style box", "--colours gray"),
    ("query {gallery} {photo} --explain why.html --against prototype", "by --against prototype", "--lines"),
    ("query {gallery} {photo}", "without --mask", "--mask-class 3"),
    ("query {gallery} {photo}", "without --lines or --verify", "--fine-layer layer2"),
    ("reid evaluate {walkers} --encoder conv4 --verify loftr", "without --verify by lines", "--calibration {gallery}"),
    ("query {gallery} {photo} --explain why.html --weighting dist", "by the weighting dist", "--mean half"),
    ("query {gallery} {photo}", "without an image to join with --text", "--text-weight 0.3"),
    ("query {gallery} {photo}", "where no image of the gallery is opened", "--root ."),
    (
        "query {gallery} {photo} --server http://127.0.0.1:9",
        "by a server (--server)",
        "--explain why.html --verify 5 --encoder x.safetensors --device cpu --max-pixels 64000000",
    ),
    ("query {gallery} --id 0", "where nothing is encoded", "--device cpu --max-pixels 64000000"),
    ("classify {gallery} {photo} --by prototypes", "by prototypes alone", "--weighting uniform"),
    ("classify {gallery} {photo}", "without --explain", "--root ."),
    ("atlas {gallery} --out a.html --thumbnails 0", "where no image is opened", "--root . --max-pixels 64000000"),
    ("index build {photos} --out g", "without --masks", "--mask-class 3"),
    (
        "index export {gallery} --out e --to csv",
        "by --to csv",
        "--index none --rows-per-file 9 --half --encoder",
    ),
    ("index build {photos} --out g", "by the local engine", "--ray-address auto --ray-workers 2"),
    (
        "index calibrate {gallery}",
        "by the gallery's own images",
        "--labels none --encoder x.safetensors --device cpu --strict --max-pixels 64000000",
    ),
    ("index calibrate {gallery} --queries {photos}", "with --queries", "--seed 3"),
    ("index calibrate {gallery}", "without --explanations", "--composites 9"),
    ("index build {photos} --out g", "without --store-lines", "--fine-layer layer2"),
    ("benchmark explanations {gallery}", "with a gallery", f"{LOADING} --metric l2"),
    ("index sync {gallery} {photos}", "without --watch", "--every 3 --settle 1"),
    ("index sync {gallery} {photos} --keep-missing", "with --keep-missing", "--force --max-vanishing 0.1"),
    ("index sync {gallery} {photos} --force", "with --force", "--max-vanishing 0.1"),
    (
        "index sync {gallery} {photos} --dry-run",
        "with --dry-run",
        f"--encoder x.safetensors {RUNNING} --strict",
    ),
    ("index import {vectors} --out g", "where nothing is encoded", "--device cpu"),
    ("index import {vectors} --out g --encoder x.safetensors", "where --encoder says", "--name resnet"),
    ("index import {vectors} --out g", "", "--embeddings {encodings}"),
    ("index import {vectors} --out g --kind hloc", "", "--label-column class"),
    (
        "evaluate {gallery}",
        "is encoded already",
        f"{LOADING} {RUNNING} --gallery {{gallery}} --cache c.h5 --split test --protocol csv "
        "--precision bf16 --strict "
        "--max-pixels 64000000",
    ),
    ("evaluate {photos} --gallery {gallery}", "with --gallery", "--precision fp32"),
    (
        "evaluate {photos} --gallery {gallery}",
        "by the encoder that --gallery brings",
        f"{LOADING}".partition("conv4")[2],
    ),
    ("explain {photo} --target class", "by the target class", "--gallery {gallery} --metric l2 --readout mean"),
    ("explain {photo} --target match:{photo}", "by the target match", "--classes names.txt"),
    (
        "explain {photo} --target prototype --gallery {gallery}",
        "by the encoder that a gallery brings",
        "--weights random --readout mean --fit pad --image-size 64",
    ),
    ("explain {photo} --target match:{photo} --encoder e.safetensors", "without --both", "--lines"),
    (
        "explain {photo} --target match:{photo} --encoder e.safetensors --both",
        "with --both",
        "--method distcam --layer x --option tau=0 --faithfulness",
    ),
    (
        "explain {photo} --target match:{photo} --encoder e.safetensors --both --out o.html",
        "by the report",
        "--style box --scale shared --colours gray",
    ),
    ("explain {photo} --target class", "where no image is drawn", "--style box --scale shared --colours gray"),
    ("explain {photo} --target class --out o.npz", "where no image is drawn", "--style box --scale each"),
    ("explain {photo} --target class --out o.png --style contour", "by the style contour", "--colours viridis"),
    (
        "fewshot evaluate --data {encodings} --out r.h5",
        "holds features already",
        f"{LOADING} {RUNNING} --features f --max-pixels 64000000",
    ),
    ("fewshot evaluate --data {encodings} --out r.h5", "by proto", "--base {encodings}"),
    ("fewshot evaluate --data {encodings} --out r.h5 --episodes-file e.h5", "with --episodes-file", DRAW),
    ("fewshot episodes e.h5", "where a manifest is shown", f"{DRAW} --part base --overwrite"),
    (
        "fewshot report r.h5 --html r.html --no-pictures",
        "with --no-pictures",
        "--data d --encoder conv4 --weights random --device cpu --max-pixels 64000000",
    ),
    ("fewshot report r.h5 --html r.html", "without --encoder", "--weights random"),
    ("reid audit {photos} --quick", "with --quick", "--near 1 --max-pixels 64000000"),
    (
        "reid evaluate {walkers} --features {encodings}",
        "with --features",
        f"{LOADING} {RUNNING} --flip --max-pixels 64000000",
    ),
    ("reid explain {photo} {photo}", "where no map is written", "--weighting dot"),
    ("localize {photos} --boxes {boxes} --references {photos}", "by boxes that are not CUB's", "--split train"),
    ("train {recipe} --dry-run", "with --dry-run", "--out o --seeds 1 --resume --cache c --max-pixels 64000000"),
    ("train {photos_recipe}", "by a recipe that draws no scenes", "--cache c"),
    ("reproduce cpn_voc --mini", "with --mini", "--data ."),
    ("reproduce cpn_voc --mini --dry-run", "with --dry-run", "--out o --seeds 1 --resume --max-pixels 64000000"),
    ("serve {gallery}", "by a server that only reads", "--token-file t --uploads u"),
    (
        "segment infer {network} {scenes} --out m",
        "by a segmentation network",
        "--labels all --background 0.4 --refined",
    ),
    ("segment infer {network} {scenes} --out m", "by a segmentation network", "--plain"),
    ("segment infer {network} {scenes} --out m", "", "--refine walk"),
    ("segment infer {network} {scenes} --out m", "by the layout scenes", "--masks {photos} --names n.txt"),
    ("segment infer {weak} {scenes} --out m", "", "--labels {boxes}"),
    ("segment infer {weak} {scenes} --out m", "by a model without refined maps", "--refined"),
    ("segment infer {weak} {scenes} --out m --refine walk", "by a random walk", "--background 0.4"),
    ("segment infer {weak} {photos} --out m", "by a folder of images", "--split val"),
    (
        "segment evaluate {network} {scenes}",
        "by a segmentation network",
        "--curve --background 0.4 --labels all --plain",
    ),
    (
        "segment evaluate {photos} {scenes}",
        "where masks are compared with masks",
        "--curve --background 0.4 --labels all --scales 1 --no-flip --base image --plain --refine crf --device cpu",
    ),
    ("segment evaluate {weak} {scenes} --refine walk", "by a random walk", "--background 0.4"),
    ("segment evaluate {weak} {scenes} --refine crf", "by refined masks", "--curve"),
    ("segment evaluate {weak} {scenes}", "by class maps without --refine", "--hausdorff"),
    ("segment evaluate {photos} {photos}", "by a folder of masks", "--split val"),
]

# Options that every branch of their command uses; all others must stand in `BRANCHES`.
ALWAYS = {
    "inspect": "csv report strict as_json",
    "query": "ids k where region mask reject max_distance text server strict as_json",
    "index build": "max_pixels out_path encoder weights layer readout store_lines fit image_size labels store_maps "
    "masks metric "
    "batch_size workers "
    "device index backend overwrite engine boxes box_format box_confidence box_margin strict as_json",
    "index add": "max_pixels encoder labels boxes box_format box_confidence batch_size workers device strict as_json",
    "index remove": "path where as_json",
    "index info": "skipped as_json",
    "index restore": "as_json",
    "index verify": "repair as_json",
    "index calibrate": "verify lines explanations queries false_alarms exclude_same as_json",
    "index compact": "as_json",
    "index tune": "recall memory latency_ms queries candidates seed device dry_run as_json",
    "index sync": "max_pixels labels boxes box_format box_confidence checksum keep_missing dry_run watch root as_json",
    "index import": "out_path kind metric encoder root index overwrite as_json",
    "index export": "out_path to as_json",
    "benchmark explanations": "queries boxes reference methods composites faithful device max_pixels seed strict html "
    "as_json",
    "encoders list": "library as_json",
    "encoders export": "weights layer readout fit image_size images onnx torch_file as_json",
    "classify": "max_pixels csv k by reject max_distance explain encoder device strict as_json",
    "encode": "max_pixels out_file encoder weights layer readout labels fit image_size store_maps batch_size workers "
    "device overwrite "
    "strict as_json",
    "evaluate": "metric recall_at nmi out seed as_json",
    "explain": "max_pixels target encoder out_file both as_json",
    "fewshot evaluate": "data split strict out_file part episodes_file method overwrite as_json",
    "fewshot compare": "difference as_json",
    "fewshot episodes": "data as_json",
    "fewshot predict": "max_pixels encoder weights layer readout fit image_size labels method csv explain device "
    "strict as_json",
    "fewshot report": "html failures pictures",
    "fewshot train": "max_pixels out_path variant seeds changes resume _list _template strict as_json",
    "reid audit": "format_name option least_images quick as_json",
    "reid walkers": "identities cameras images_per_camera look_alikes distractors junk masks seed as_json",
    "reid evaluate": "verify strict features format_name option metric protocol rerank aqe camera_norm "
    "multi_query single_gallery_shot html out as_json",
    "reid explain": "max_pixels strict different encoder weights layer readout fit image_size parts out_path "
    "device as_json",
    "reid train": "max_pixels out_path variant seeds changes resume _list _template strict as_json",
    "segment train": "max_pixels out_path variant seeds changes saliency resume _list _template strict as_json",
    "segment infer": "max_pixels strict folder scales flip base layout show device as_json",
    "segment evaluate": "max_pixels strict layout masks names as_json",
    "localize": "max_pixels boxes references encoder weights readout reference methods labels masks "
    "reference_masks composites layer fit image_size metric batch_size device seed out_file strict as_json",
    "train": "variant changes device dry_run _list _template strict as_json",
    "reproduce": "variant changes saliency dry_run mini _list strict",
    "serve": "max_pixels read_token_file host port writable allow_host max_batch window_ms concurrency "
    "client_concurrency rate max_upload_mb "
    "encoder root device threads urls access_log open_page",
    "atlas": "out_path method outliers thumbnails seed as_json",
    "demo": "folder seed as_json",
    "env": "as_json",
}


def tree(group, words=()):
    for name, command in group.commands.items():
        command = command.load() if isinstance(command, OnDemand) else command
        if hasattr(command, "commands"):
            yield from tree(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


@functools.cache
def commands():
    """Every command by its words."""
    return dict(tree(typer.main.get_command(app)))


def options_of(command):
    """By what is typed, the name of each option's parameter."""
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    return {text: each.name for each in options for text in (*each.opts, *each.secondary_opts)}


def command_of(line):
    return max((words for words in commands() if f"{line} ".startswith(f"{words} ")), key=len)


def typed(text):
    """The options of a line, each with its value."""
    parts = shlex.split(text)
    starts = [i for i, part in enumerate(parts) if part.startswith("--")]
    return [tuple(parts[i:end]) for i, end in zip(starts, [*starts[1:], None], strict=True)]


TRIPLES = [(line, branch, option) for line, branch, options in BRANCHES for option in typed(options)]


@pytest.fixture(scope="module")
def places(photos, small_gallery, tmp_path_factory):
    """What the lines name in braces."""
    folder = tmp_path_factory.mktemp("options")
    photo = sorted(photos.rglob("*.jpg"))[0]
    encoder = ["--encoder", "conv4", "--weights", "random", "--image-size", "64"]
    distcam("encode", photos, "--out", folder / "photos.h5", *encoder)
    distcam("reid", "walkers", folder / "walkers", "--identities", 4, "--cameras", 2, "--images-per-camera", 2)
    pytest.importorskip("pyarrow")
    distcam("index", "export", small_gallery.folder, "--out", folder / "vectors")
    (folder / "boxes.csv").write_text(f"path,x1,y1,x2,y2\n{photo},1,1,9,9\n")
    (folder / "tiny.toml").write_text(RECIPE)
    distcam("segment", "train", folder / "tiny.toml", "--variant", "cues", "--out", folder / "runs")
    (folder / "photos.toml").write_text(
        f'[data]\nimages = "{photos}"\n[encoder]\narchitecture = "conv4"\n[[loss]]\nkind = "cross_entropy"\n'
    )
    (folder / "scenes.toml").write_text(
        '[data]\nscenes = { classes = 2, splits = { train = 2 } }\n[encoder]\narchitecture = "conv4"\n'
        '[[loss]]\nkind = "cross_entropy"\n'
    )
    run = next((folder / "runs").rglob("segmenter.safetensors")).parent
    return {
        "gallery": small_gallery.folder, "photos": photos, "photo": photo, "encodings": folder / "photos.h5",
        "walkers": folder / "walkers", "vectors": folder / "vectors", "boxes": folder / "boxes.csv",
        "recipe": folder / "scenes.toml", "photos_recipe": folder / "photos.toml", "network": run, "weak": run / "weak",
        "scenes": next((folder / "runs" / "scenes").iterdir()),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "branch", "option"), TRIPLES, ids=[f"{command_of(a)} {b} {c[0]}" for a, b, c in TRIPLES]
)
def test_a_branch_refuses_an_option_that_it_does_not_use(
    line, branch, option, places, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(f"{line} {shlex.join(option)}")
    said = fails(monkeypatch, capsys, *(part.format(**places) for part in arguments))
    assert option[0] in said
    assert branch in said
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_declared() -> None:
    for words, command in commands().items():
        known = set(ALWAYS.get(words, "").split())
        names = options_of(command)
        refused = {names[option[0]] for line, _, option in TRIPLES if command_of(line) == words}
        assert known | refused == set(names.values()), words
        assert not known & refused, words


def test_every_command_is_one_that_can_refuse() -> None:
    assert all(isinstance(command, Command) for command in commands().values())


def test_a_default_that_is_typed_is_refused_as_well(places, monkeypatch, capsys) -> None:
    said = fails(monkeypatch, capsys, "query", places["gallery"], places["photo"], "--weighting", "dist")
    assert "--weighting is not used without --explain" in said


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("fewshot evaluate", "lower n_query or leave it out", "lower --n-query or leave it out"),
        ("train", "holds a run already; pass resume, or choose", "holds a run already; pass --resume, or choose"),
        ("query", "keeps no encoder; pass `encoder`", "keeps no encoder; pass --encoder"),
        ("encode", "pass overwrite=True.", "pass --overwrite."),
        ("index build", "give `labels='none'`", "give --labels none"),
        ("index build", "/data/store_maps/a.jpg, 'store_maps'", "/data/store_maps/a.jpg, 'store_maps'"),
        ("query", "the encoder and the explain folder", "the encoder and the explain folder"),
        ("index build", "a column mask_class=3", "a column mask_class=3"),
        ("encode", "with --max-pixels 9 (in Python max_pixels)", "with --max-pixels 9 (in Python max_pixels)"),
    ],
)
def test_errors_name_options_as_they_are_typed(command, message, expected) -> None:
    assert option_names(message, commands()[command]) == expected


def test_a_readout_can_be_named_wherever_weights_are_given() -> None:
    takes = {words: set(options_of(command).values()) for words, command in commands().items()}
    loading = {words for words, names in takes.items() if "weights" in names} - {"fewshot report"}  # as its results say
    assert loading == {words for words, names in takes.items() if "readout" in names}
