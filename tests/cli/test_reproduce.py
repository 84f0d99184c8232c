"""Tables of the papers: every recipe is one, names what it reads, and runs on a miniature of the data."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from commands import distcam, fails

from distcam.cli.papers.reproduce import PAPERS
from distcam.cli.train import task_options, titles_in
from distcam.datasets.registry import named_benchmark
from distcam.errors import InputError
from distcam.images import load_dataset
from distcam.synthetic.miniatures import MINIATURES, write_miniature
from distcam.training.recipes.recipe import Paper, Recipe, RecipeFile, require
from distcam.training.recipes.tables import parse

NAMES = list(titles_in(PAPERS))
QUICK = ["cam_loss_imagenet"]


def opened(name):
    file = RecipeFile.read(PAPERS / f"{name}.toml")
    return file, {variant: parse(Paper, file.paper(variant), "paper") for variant in file.variants or [None]}


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_a_recipe_of_its_command(name) -> None:
    file, papers = opened(name)
    assert set(papers.keys()) >= set(parse(Paper, file.paper()).mini.variants)
    for variant, paper in papers.items():
        table = file.resolved(variant=variant)
        assert "paper" not in table
        make = task_options("train" if paper.task == "none" else paper.task, file).get("task", Recipe.from_dict)
        assert make(table).name == file.table["name"]
        commands = paper.commands(table, data_folder=Path("data"), run=Path("run"))
        assert all("{" not in word for words in commands for word in words)
        assert paper.needs
        if paper.task == "none":
            assert commands
    head = (PAPERS / f"{name}.toml").read_text().splitlines()
    assert any(f"distcam reproduce {name} --data FOLDER" in line for line in head[:6])


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_has_all_that_its_recipe_reads(name, tmp_path) -> None:
    file, papers = opened(name)
    mini = parse(Paper, file.paper()).mini
    with pytest.raises(InputError) as refused:
        require(list(papers.values()), tmp_path)
    needed = {need.partition("|")[0] for paper in papers.values() for need in (*paper.needs, *paper.weights)}
    for need in needed:
        assert str(tmp_path / need) in str(refused.value)
    if not {"cub", "miniimagenet"} & set(mini.layouts):  # those of many files are read by other tests
        for layout in mini.layouts:
            write_miniature(layout, tmp_path)
        require([papers[variant] for variant in mini.variants or papers], tmp_path, weights=False)


def test_a_folder_one_too_deep_is_said(tmp_path) -> None:
    with pytest.raises(InputError, match="VOC2012 is one of the data sets: give the folder around it"):
        require([Paper(needs=("VOC2012/JPEGImages",))], tmp_path / "VOC2012")


def test_settings_are_printed_without_a_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shown = distcam("reproduce", "market_strong_baseline", "--mini", "--dry-run", "--set", "run.epochs=7")
    assert tomllib.loads(shown)["run"]["epochs"] == 7
    given = ("--variant", "gain", "--saliency", "maps")
    shown = distcam("reproduce", "gain_voc", "--mini", "--dry-run", *given)
    assert tomllib.loads(shown)["data"]["saliency"] == str(tmp_path / "maps")
    assert "key in [data] 'saliency'" in fails(monkeypatch, capsys, "segment", "train", "cpn", *given[2:])
    assert [line.split()[0] for line in distcam("reproduce", "--list").splitlines()] == NAMES
    assert "--data FOLDER" in fails(monkeypatch, capsys, "reproduce", "cpn_voc")
    said = fails(monkeypatch, capsys, "reproduce", "cpn_voc", "--data", ".", "--variant", "cam,prcm")
    assert "5 of what the recipe reads are not there" in said
    assert "ilsvrc-cls_rna-a1_cls1000_ep-0001.params" in said
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_papers_names_every_recipe_and_nothing_else() -> None:
    page = Path(__file__).parents[2] / "docs/papers.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [span.split() for row in rows if len(row) == 4 for span in re.findall(r"`([^`]+)`", row[1])]
    commands = [words for words in commands if words[0] != "distcam"]
    assert {words[0] for words in commands} == set(NAMES)
    for words in commands:
        if "--variant" in words:
            assert set(words[words.index("--variant") + 1].split(",")) <= set(opened(words[0])[0].variants), words
        for change in (words[i + 1] for i, word in enumerate(words) if word == "--set"):
            variant = words[words.index("--variant") + 1] if "--variant" in words else None
            opened(words[0])[0].resolved(variant=variant, changes=[change])


@pytest.mark.filterwarnings("ignore::distcam.remarks.DistcamWarning")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_the_whole_chain_runs_on_a_miniature(name, tmp_path, monkeypatch) -> None:
    if name in ("gain_sec_voc", "cpn_voc_network"):
        pytest.importorskip("pydensecrf")
    if name in ("cpn_voc", "seghires_cityscapes"):
        pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    shown = distcam("reproduce", name, "--mini", "--out", "out")
    assert Path("out/comparison.json").is_file()
    file, papers = opened(name)
    ran = parse(Paper, file.paper()).mini.variants or papers
    assert shown.count("\n# distcam ") == sum(len(papers[variant].then) for variant in ran)


def test_ilsvrc_has_its_validation_labels_from_the_annotations(tmp_path) -> None:
    write_miniature("ilsvrc", tmp_path)
    assert named_benchmark("ilsvrc:ILSVRC", tmp_path) == ("ilsvrc", tmp_path / "ILSVRC", "")
    found = load_dataset(tmp_path, layout="ilsvrc")
    test = [record for record in found.records if record.split == "test"]
    assert [record.label for record in test[:2]] == ["n01440764", "n01443537"]
    assert (len(found) - len(test), len(test)) == (36, 12)
    assert any("expected 50,000 images" in problem for problem in found.problems)
    file = next((tmp_path / "ILSVRC" / "Annotations").rglob("*.xml"))
    file.write_text(file.read_text().replace("</annotation>", ""))
    with pytest.raises(InputError):
        load_dataset(tmp_path, layout="ilsvrc")


def test_birds_for_classification_are_halved_by_their_list(tmp_path) -> None:
    write_miniature("cub", tmp_path)
    found = load_dataset(tmp_path / "CUB_200_2011", layout="cub-classification")
    assert {record.split for record in found.records} == {"train", "test"}
    assert len({record.label for record in found.records if record.split == "test"}) == 200
    assert len([record for record in found.records if record.split == "train"]) == 400
    file = tmp_path / "CUB_200_2011" / "train_test_split.txt"
    file.write_text(file.read_text().replace("7 1\n", "", 1))
    with pytest.raises(InputError, match=r"train_test_split\.txt: expected 0 or 1 for image 7"):
        load_dataset(tmp_path / "CUB_200_2011", layout="cub-classification")
    assert {record.label for record in load_dataset(tmp_path, layout="cub", split="train").records} < {
        record.label for record in found.records
    }


def test_a_miniature_has_a_name() -> None:
    with pytest.raises(InputError, match="nearest is 'cifar10'"):
        write_miniature("cifar1", Path())
    assert set(MINIATURES) >= {"cub", "voc", "market", "ilsvrc"}
