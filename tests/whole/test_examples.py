"""Every notebook of examples/ runs from top to bottom, with a small random encoder in the place of a downloaded one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[str]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", [pytest.param(one, id=one.stem) for one in NOTEBOOKS])
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if "DataFrame" in notebook.read_text(encoding="utf-8"):
        pytest.importorskip("pandas")
        pytest.importorskip("matplotlib")
    names: dict[str, object] = {}
    for number, code in enumerate(cells(notebook)):
        small = code.replace('"mobilenet_v2", weights="imagenet"', '"conv4", weights="random"')
        exec(compile(small.replace('weights="DEFAULT"', "weights=None"), f"{notebook.name}[{number}]", "exec"), names)


@pytest.mark.parametrize("notebook", [pytest.param(one, id=one.stem) for one in NOTEBOOKS])
def test_a_notebook_is_kept_without_what_it_printed(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code" and cell["outputs"]] == []
