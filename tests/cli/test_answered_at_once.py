"""What is answered before the other options are looked at refuses them; sources that are no files say so."""

from __future__ import annotations

import os
import sys

import pytest

from distcam.cli import main
from distcam.cli.command import option_names
from distcam.errors import InputError
from distcam.images import list_images


@pytest.mark.parametrize("task", [[], ["fewshot"], ["reid"], ["segment"]])
@pytest.mark.parametrize("option", ["--list", "--template"])
@pytest.mark.parametrize("other", [["--seeds", "3"], ["--json"], ["--out=runs"]])
def test_options_beside_a_list_or_a_template_are_refused(task, option, other, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["distcam", *task, "train", option, *other])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{other[0].partition('=')[0]} is not used with {option}; leave it out" in capsys.readouterr().err


def test_a_pipe_is_not_said_to_be_missing(tmp_path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InputError, match="not a regular file"):
        list_images(tmp_path / "x.png")


def test_a_value_that_is_not_known_is_named_by_its_option() -> None:
    import typer

    from distcam.cli.explain import app

    command = typer.main.get_command(app)
    assert option_names("method='nix' is not known; nearest: 'a'", command).startswith("--method 'nix' is not known")
