"""Where stderr is no terminal, what takes long says so in plain lines, and what is quick says nothing."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from distcam.cli import console
from distcam.cli.app import app
from distcam.progress import progress_bar


@pytest.fixture
def said(monkeypatch):
    """The lines printed on stderr; an event is set with each."""
    lines, spoken = [], threading.Event()

    def show(text, **_options):
        lines.append(text)
        spoken.set()

    monkeypatch.setattr(console.err, "print", show)
    return lines, spoken


def test_what_is_counted_is_said_again_and_again(said) -> None:
    lines, spoken = said
    with console.progress_lines("encoding", every=0.01) as progress:
        assert spoken.wait(10)
        assert lines[0] == "encoding (0 s)"
        progress(1500, 2000)
        spoken.clear()
        assert spoken.wait(10)
        spoken.clear()
        assert spoken.wait(10)
    assert lines[-1] == "encoding: 1,500 of 2,000 (0 s)"


def test_of_two_at_once_the_one_that_counts_speaks(said) -> None:
    lines, spoken = said
    with console.progress_lines("outer", every=60), console.progress_lines("ranking", every=0.01) as progress:
        assert not spoken.wait(0.1)
        progress(1, 2)
        assert spoken.wait(10)
    assert lines[0].startswith("ranking: 1 of 2")


def test_what_ends_before_the_first_line_says_nothing(said) -> None:
    with console.progress_bar("quick") as progress:
        progress(1, 1)
    assert said[0] == []


def test_a_notebook_has_a_bar_in_its_cell_that_changes_in_its_place(said, monkeypatch) -> None:
    shown = []
    cell = SimpleNamespace(update=shown.append)
    display = SimpleNamespace(HTML=str, display=lambda html, display_id: shown.append(html) or cell)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with progress_bar("a < b") as progress:
        for done in range(1, 1001):
            progress(done, 1000)
    assert shown[0] == "a &lt; b"
    assert '<progress value="1000" max="1000"></progress> 1,000 of 1,000 (' in shown[-1]
    assert len(shown) < 100
    assert said[0] == []


def test_lines_go_to_stderr_beside_json(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("distcam.progress.LINE_EVERY", 0.001)
    encoder = ["--encoder", "conv4", "--weights", "random", "--image-size", "64"]
    done = CliRunner().invoke(app, ["encode", str(photos), "--out", str(tmp_path / "x.h5"), *encoder, "--json"])
    assert json.loads(done.stdout)["added"] == 24
    assert "encoding: 24 of 24 (" in done.stderr or "encoding (" in done.stderr
