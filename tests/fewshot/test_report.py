"""Results on disk, exact maps of every classifier, supports, and the page."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
import torch

from distcam.datasets import open_data
from distcam.errors import InputError
from distcam.fewshot import (
    BDCSPN,
    Centre,
    EpisodeManifest,
    NearestNeighbour,
    PowerTransform,
    Prototypes,
    baseline,
    baseline_plus_plus,
    evaluate,
    sample_episodes,
    simple_shot,
)
from distcam.fewshot.evaluation import support_quality, support_sensitivity
from distcam.fewshot.explanation import answers_of
from distcam.fewshot.features import encode_split
from distcam.fewshot.methods import METHODS, classifier_of
from distcam.fewshot.report import Explainer, worst_failures, write_report
from distcam.fewshot.results import ResultFile, load_result

CLASSIFIERS = [
    Prototypes(), Prototypes("cosine"), NearestNeighbour(), NearestNeighbour("cosine"), simple_shot("L2N"),
    simple_shot("CL2N", mean=torch.linspace(0, 1, 6)), Prototypes("cosine", transforms=(Centre(torch.ones(6)),)),
    BDCSPN(), baseline(epochs=5), baseline_plus_plus(epochs=5, transforms=(Centre(torch.ones(6)),)),
]  # fmt: skip


def bank(n_classes=4, n=8, d=6):
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(n_classes, d, generator=generator).repeat_interleave(n, 0)
    return centres + torch.randn(n_classes * n, d, generator=generator), np.repeat(list("abcd")[:n_classes], n)


@pytest.fixture(scope="module")
def results() -> ResultFile:
    features, labels = bank()
    episodes = sample_episodes(labels, n_way=3, n_query=3, n_episodes=60)
    return ResultFile(
        tuple(evaluate(features, episodes, classifier_of(name), encoder="x") for name in ("proto", "bdcspn")),
        {"data": "d"},
    )


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda c: c.name)
def test_the_decision_map_sums_to_the_difference_of_the_logits(classifier) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(7, 6, 3, 2, generator=generator, dtype=torch.float64)
    support = torch.rand(4, 2, 6, generator=generator, dtype=torch.float64)
    query = maps.mean((-2, -1))
    prepared = classifier.prepare(torch.cat([support.flatten(0, 1), query]))
    logits = classifier.logits(prepared[:8].view(1, 4, 2, 6), prepared[None, 8:])[0]

    answers = answers_of(classifier, support, query)
    first, second = torch.randint(4, (2, 7), generator=generator)
    decision = answers.decision(maps, first, second)
    rows = torch.arange(7)
    expected = logits[rows, first] - logits[rows, second]
    torch.testing.assert_close(decision.map.sum((-2, -1)) + decision.constant, expected)
    ours = answers.logits()
    torch.testing.assert_close(ours - ours[:, :1], logits - logits[:, :1])
    assert answers.maps(maps).shape == (7, 4, 3, 2)
    alone = answers[5].decision(maps[5:6], first[5:6], second[5:6])
    torch.testing.assert_close(alone.map[0], decision.map[5])


def test_after_a_power_transform_no_map_is_exact() -> None:
    assert answers_of(Prototypes(transforms=(PowerTransform(),)), torch.rand(2, 1, 3), torch.rand(1, 3)) is None


def test_every_method_has_its_own_name_and_says_its_setting() -> None:
    for name in METHODS:
        about = classifier_of(name, mean=torch.zeros(4)).describe()
        assert about["name"] == name
        assert about["setting"] == ("transductive" if name == "bdcspn" else "inductive")
    with pytest.raises(InputError, match="no few-shot method 'protos'; did you mean proto"):
        classifier_of("protos")
    with pytest.raises(InputError, match="simpleshot-cl2n needs the mean feature of the base classes"):
        classifier_of("simpleshot-cl2n")


# --- results on disk --------------------------------------------------------------------------------------------------


def test_save_then_load_is_the_identity(results, tmp_path) -> None:
    results.save(tmp_path / "r.h5")
    loaded = ResultFile.load(tmp_path / "r.h5")
    assert loaded.to_dict() == results.to_dict() == json.loads(json.dumps(results.to_dict()))
    np.testing.assert_array_equal(loaded["bdcspn"].margin, results["bdcspn"].margin)
    assert load_result(f"{tmp_path / 'r.h5'}:bdcspn").is_transductive


def test_a_method_must_be_named_where_there_are_several(results, tmp_path) -> None:
    results.save(tmp_path / "r.h5")
    with pytest.raises(InputError, match="say which method is meant; there are proto, bdcspn"):
        load_result(str(tmp_path / "r.h5"))
    with pytest.raises(InputError, match="no method 'nn' here; there are proto, bdcspn"):
        load_result(f"{tmp_path / 'r.h5'}:nn")
    with pytest.raises(InputError, match="no such file"):
        load_result(str(tmp_path / "s.h5:proto"))


def change_format(file) -> None:
    file.attrs["results"] = file.attrs["results"].replace("results/1", "results/9")


def drop(file) -> None:
    del file["answers/1/margin"]


def flip(file) -> None:
    margin = file["answers/0/margin"][()]
    margin[0, 0] *= -1
    file["answers/0/margin"][...] = margin


def change_manifest(file) -> None:
    query = file["episodes/query"][()]
    file["episodes/query"][...] = query[:, ::-1]


def widen(file) -> None:
    prediction = file["answers/0/prediction"][()]
    del file["answers/0/prediction"]
    file["answers/0/prediction"] = prediction.astype("int64")


def hide_setting(file) -> None:
    file.attrs["results"] = file.attrs["results"].replace('"transductive"', '"unknown"')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_format, "have format 'distcam-fewshot-results/9', this version reads"),
        (drop, "is not a few-shot result"),
        (flip, "episode 0, query 0: answer and margin contradict each other"),
        (change_manifest, "does not match its own hash"),
        (widen, "answers are of types int64 and float32"),
        (hide_setting, "does not say whether it is inductive or transductive"),
    ],
)
def test_changed_files_are_refused(results, tmp_path, change, message) -> None:
    results.save(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "a") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        ResultFile.load(tmp_path / "r.h5")


def test_results_of_different_manifests_or_equal_names_do_not_share_a_file(results) -> None:
    features, labels = bank()
    other = evaluate(features, sample_episodes(labels, n_way=3, n_query=3, n_episodes=60, seed=1))
    with pytest.raises(InputError, match="must be of one manifest"):
        ResultFile((results["proto"], other))
    with pytest.raises(InputError, match="every method once"):
        ResultFile((results["proto"], results["proto"]))


# --- supports ---------------------------------------------------------------------------------------------------------


def test_support_quality_by_hand() -> None:
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [2.5]], dtype=np.float32)
    episodes = EpisodeManifest(
        np.array([f"x{i}" for i in range(6)]), np.array(list("aaabbb")),
        np.array([[[0], [3]], [[1], [5]]]), np.array([[1, 2, 4, 5], [0, 2, 3, 4]]),
    )  # fmt: skip
    # Episode 0: x1, x2 → a right; x4 right, x5 (2.5) → a wrong. Episode 1 (a at 1, b at 2.5): x0 right, x2 → b wrong.
    found = {
        each.name: (each.recall, each.n_queries) for each in support_quality(evaluate(features, episodes), least=1)
    }
    assert found == {"x0": (1.0, 2), "x3": (0.5, 2), "x1": (0.5, 2), "x5": (1.0, 2)}
    assert support_quality(evaluate(features, episodes)) == []


def test_support_sensitivity_redraws_only_the_support() -> None:
    features, labels = bank()
    found = support_sensitivity(features, labels, ("a", "b", "c"), Prototypes(), n_query=4, n_supports=20)
    assert found.accuracy.shape == (20,)
    assert found.accuracy.std() > 0
    again = support_sensitivity(features, labels, ("a", "b", "c"), Prototypes(), n_query=4, n_supports=20)
    np.testing.assert_array_equal(found.accuracy, again.accuracy)
    facts = found.to_dict()
    assert facts["worst"] <= facts["mean"] <= facts["best"]
    with pytest.raises(InputError, match=r"'a' has 8 images, 9 are needed to redraw a support"):
        support_sensitivity(features, labels, ("a", "b"), Prototypes(), n_shot=7)


# --- the page ---------------------------------------------------------------------------------------------------------


def page_data(page) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_worst_failures_show_every_query_once_by_margin(results) -> None:
    result = results["proto"]
    failures = worst_failures(result, 5)
    margins = [float(result.margin[f]) for f in failures]
    assert margins == sorted(margins)
    assert margins[0] == result.margin.min() < 0
    items = [int(result.episodes.query[f]) for f in failures]
    assert len(set(items)) == len(items)


def test_a_page_without_pictures_lists_failures_by_name(results, tmp_path) -> None:
    page = write_report(tmp_path / "r.html", results)
    data = page_data(page)
    assert [method["setting"] for method in data["methods"]] == ["inductive", "transductive"]
    assert [each["kind"] for each in data["methods"][0]["intervals"]] == ["usual", "bootstrap", "class jackknife"]
    assert all(
        each["question"].endswith("?") or "question" in each["question"] for each in data["methods"][0]["intervals"]
    )
    assert data["images"] == {}
    assert data["methods"][0]["failures"][0]["maps"] is None
    assert "http" not in page.read_text().replace("http-equiv", "")


def test_names_cannot_leave_their_place_in_the_page(tmp_path) -> None:
    features, _ = bank(2)
    labels = np.repeat(["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>"], 8)
    episodes = sample_episodes(labels, n_way=2, n_query=3, n_episodes=5, names=[f"<b>{i}</b>" for i in range(16)])
    page = write_report(tmp_path / "r.html", ResultFile((evaluate(features, episodes),)), title="<i>title</i>")
    text = page.read_text()
    assert text.count("</script>") == 2
    assert "<b>" not in text
    assert "<img src=x" not in text
    assert "<i>title" not in text
    assert "innerHTML" not in text
    assert "<h1>&lt;i&gt;title&lt;/i&gt;</h1>" in text


def test_maps_of_failures_add_up_to_the_stored_margins(photos, small_encoder, tmp_path) -> None:
    split = open_data(str(photos))["novel"]
    stored = encode_split(split, small_encoder, tmp_path / "f.h5")
    episodes = sample_episodes(split.labels, names=split.names, n_way=3, n_query=4, n_episodes=8)
    methods = {name: classifier_of(name) for name in ("proto", "proto-power", "baseline", "baseline++", "bdcspn")}
    file = ResultFile(tuple(evaluate(stored.embeddings, episodes, each) for each in methods.values()))
    features = dict(zip(split.names.tolist(), stored.embeddings, strict=True))
    explainer = Explainer(split, small_encoder, methods, precision="fp32", features=features)
    data = page_data(write_report(tmp_path / "r.html", file, explainer=explainer, n_failures=2))
    for method in data["methods"]:
        for failure in method["failures"]:
            assert failure["query"] in data["images"]
            assert set(failure["support_won"] + failure["support_true"]) <= set(data["images"])
            if method["name"] == "proto-power":
                assert failure["maps"] is None
                continue
            maps = failure["maps"]
            assert maps["error"] < 1e-9
            assert maps["difference"] == pytest.approx(-failure["margin"], rel=0.05, abs=1e-3)
            assert sum(maps["decision"]) + maps["constant"] == pytest.approx(maps["difference"], rel=1e-2, abs=1e-4)
            assert len(maps["won"]) == maps["shape"][0] * maps["shape"][1]
    assert Explainer(split, None).explain(file["proto"], worst_failures(file["proto"], 1)[0]) is None
