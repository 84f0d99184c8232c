"""Images that the tests of galleries share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def more(photos: Path, tmp_path: Path) -> Path:
    """Three images of `photos` as other files."""
    folder = tmp_path / "more"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:3]):
        (folder / f"new{number}.jpg").write_bytes(path.read_bytes() + b"\0")
    return folder
