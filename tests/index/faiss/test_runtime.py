"""Two FAISS in one place, none, or one whose files are gone: said, with what mends it, wherever a GPU is asked for."""

from __future__ import annotations

import importlib.metadata
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import faiss
import pytest
import torch
from commands import distcam, fails
from search_answers import blobs, build

from distcam import DistcamWarning, Retriever
from distcam.cli import app
from distcam.errors import InputError
from distcam.index.faiss import runtime
from distcam.index.faiss.runtime import fault, installed, note_search_on_cpu, why_no_gpu

CPU, GPU, CUVS = ("faiss-cpu", "1.15.1"), ("faiss-gpu", "1.15.0"), ("faiss-gpu-cuvs", "1.14")
OTHERS = (("faiss-helper", "2.0"), ("numpy", "2.0"))


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *packages: tuple[str, str], files: str = "whole") -> None:
    """Let `packages` be what pip knows, and FAISS's files "whole", "gone" or an "empty" folder that is left."""
    for name, version in (*packages, *OTHERS):
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    specs = {"whole": ModuleSpec("faiss", None, origin="faiss/__init__.py"), "empty": ModuleSpec("faiss", None)}
    monkeypatch.setattr(runtime, "distributions", lambda: importlib.metadata.distributions(path=[str(folder)]))
    monkeypatch.setattr(runtime, "find_spec", lambda name: specs.get(files))


def on_gpus(monkeypatch: pytest.MonkeyPatch, *, torch_sees: bool, faiss_sees: int, is_built: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: faiss_sees)
    if is_built:
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    else:
        monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)


@pytest.mark.parametrize("packages", [(CPU,), (GPU,), (CUVS,), ()])
def test_one_faiss_is_no_fault_nor_is_one_that_pip_does_not_know(
    packages: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, *packages)
    assert installed() == dict(packages)
    assert fault() is None


@pytest.mark.parametrize("packages", [(CPU, GPU), (CPU, CUVS), (GPU, CUVS), (CPU, GPU, CUVS)])
@pytest.mark.parametrize("files", ["whole", "empty", "gone"])
def test_several_in_one_place_are_named_with_what_mends_it(
    packages: tuple[tuple[str, str], ...], files: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, *packages, files=files)
    names = " ".join(sorted(name for name, _ in packages))
    said = fault() or ""
    assert all(f"{name} {version}" in said for name, version in packages)
    assert f"pip uninstall -y {names}, then pip install" in said


@pytest.mark.parametrize("files", ["empty", "gone"])
@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ((), "FAISS is not installed: pip install faiss-cpu"),
        ((GPU,), "faiss-gpu 1.15.0 are gone, as after removing another FAISS beside it: pip install --force-reinstall"),
    ],
)
def test_a_faiss_whose_files_went_with_another_s_is_told_from_none(
    packages: tuple[tuple[str, str], ...], expected: str, files: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, *packages, files=files)
    assert expected in (fault() or "")
    assert why_no_gpu() == fault()


@pytest.mark.parametrize(
    ("packages", "is_built", "expected"),
    [
        ((CPU,), False, "faiss-cpu 1.15.1 is made for the CPU alone; for a GPU: pip uninstall -y faiss-cpu, then pip"),
        ((CPU, GPU), False, "are both installed"),
        ((CPU, GPU), True, "are both installed"),
        ((GPU,), True, "faiss-gpu 1.15.0 could use one"),
        ((), False, "a FAISS not from pip is made for the CPU alone"),
    ],
)
def test_asking_an_index_for_a_gpu_says_why_there_is_none(
    packages: tuple[tuple[str, str], ...],
    is_built: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install(monkeypatch, tmp_path, *packages)
    on_gpus(monkeypatch, torch_sees=True, faiss_sees=0, is_built=is_built)
    with pytest.raises(InputError, match=f"FAISS sees no GPU; use auto or cpu .*{expected}"):
        build(blobs(10, 4), device="cuda:1")
    assert build(blobs(10, 4), device="auto").device == "cpu"


@pytest.mark.parametrize("packages", [(CPU,), (CPU, GPU)])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0"])
@pytest.mark.parametrize("torch_sees", [False, True])
@pytest.mark.parametrize("faiss_sees", [0, 1])
def test_a_search_that_stays_on_the_cpu_is_said_where_a_gpu_was_asked_for_or_lost(
    packages: tuple[tuple[str, str], ...],
    device: str,
    torch_sees: bool,
    faiss_sees: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    install(monkeypatch, tmp_path, *packages)
    on_gpus(monkeypatch, torch_sees=torch_sees, faiss_sees=faiss_sees)
    is_asked, is_lost = device.startswith("cuda"), device == "auto" and torch_sees and len(packages) == 2
    note_search_on_cpu(device)
    said = [str(warning.message) for warning in recwarn if warning.category is DistcamWarning]
    assert len(said) == (is_asked or is_lost) * (not faiss_sees)
    assert all(text.startswith("searches run on the CPU, FAISS sees no GPU: faiss-cpu 1.15.1") for text in said)


def test_a_retriever_on_a_gpu_says_that_it_searches_on_the_cpu(
    small_gallery, small_encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, CPU)
    on_gpus(monkeypatch, torch_sees=False, faiss_sees=0)
    monkeypatch.setattr("distcam.retrieval.retriever.Inference", lambda encoder, **_: None)
    with pytest.warns(DistcamWarning, match="searches run on the CPU.*faiss-cpu 1.15.1 is made for the CPU alone"):
        Retriever(small_gallery, small_encoder, device="cuda")
    Retriever(small_gallery, small_encoder, device="auto")


@pytest.mark.parametrize(
    ("packages", "devices", "expected"),
    [
        ((CPU,), 0, None),
        ((CPU,), 1, "faiss-cpu 1.15.1 is made for the CPU alone"),
        ((CPU, GPU), 0, "faiss-cpu 1.15.1 and faiss-gpu 1.15.0 are both installed"),
        ((CPU, GPU), 1, "faiss-cpu 1.15.1 and faiss-gpu 1.15.0 are both installed"),
    ],
)
def test_a_bug_report_names_every_faiss_and_what_is_wrong(
    packages: tuple[tuple[str, str], ...],
    devices: int,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install(monkeypatch, tmp_path, *packages)
    on_gpus(monkeypatch, torch_sees=bool(devices), faiss_sees=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a GPU")
    facts = json.loads(distcam("env", "--json"))
    assert {name: facts.get(name) for name, _ in packages} == dict(packages)
    assert (facts["faiss fault"] or "").startswith(expected or "")
    assert (facts["faiss fault"] is None) == (expected is None)
    assert "faiss fault" in distcam("env")


@pytest.mark.parametrize("name", ["faiss", "faiss.contrib", "json"])
@pytest.mark.parametrize("is_import", [True, False])
def test_a_command_that_misses_something_of_faiss_is_one_line(
    name: str, is_import: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if is_import:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        _ = ModuleType(name).IndexFlat

    monkeypatch.setattr(app, "app", command)
    install(monkeypatch, tmp_path, CPU, files="empty")
    if name == "json":
        with pytest.raises((ImportError, AttributeError), match="json"):
            app.main()
    else:
        assert "the files of faiss-cpu 1.15.1 are gone" in fails(monkeypatch, capsys, "query")
