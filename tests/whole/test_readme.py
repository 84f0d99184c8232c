"""The README's Python runs as it is printed, but for weights that need no download."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_s_python_runs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = sorted(photos.iterdir())
    for name, folder in zip(("cat", "dog"), classes, strict=False):
        shutil.copytree(folder, tmp_path / "photos" / name)
    shutil.copy(next(classes[2].glob("*.jpg")), tmp_path / "probe.jpg")
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    offline = code.replace('"resnet50", weights="imagenet"', '"resnet18", weights="random"')
    assert offline != code
    monkeypatch.chdir(tmp_path)
    exec(compile(offline, str(README), "exec"), {})
    assert (tmp_path / "why.html").is_file()
    assert (tmp_path / "prototype.png").is_file()
