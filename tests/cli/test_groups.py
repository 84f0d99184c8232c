"""Groups of options: a command takes a dataclass, and typer sees its fields."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from distcam.cli.command import Commands, refuse_unused
from distcam.cli.options import Running, argument, option
from distcam.errors import InputError


@dataclass(frozen=True)
class Sides:
    width: int = option(..., "Of the image.", min=1)
    tall: bool = option(False, "Twice as high as wide.", "--tall")


@dataclass(frozen=True)
class Named(Sides):
    names: list[str] | None = option(None, "Repeatable.", "--name")  # noqa: RUF009 - as in cli/


app = Commands()
seen = []


@app.command()
def draw(file: str = argument(..., "A file."), *, sides: Named, running: Running, k: int = option(3, "How many.")):
    if sides.tall:
        refuse_unused("by tall images", Running)
    seen.append((file, sides, vars(running), k))


def run(*arguments):
    seen.clear()
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, InputError):
        raise result.exception
    return result.exit_code


def test_a_command_gets_its_groups_with_what_was_typed_and_what_was_not() -> None:
    assert run("a.png", "--width", "4", "--name", "x", "--name", "y", "--workers", "0") == 0
    rest = {"batch_size": None, "workers": 0, "device": "auto"}
    assert seen == [("a.png", Named(width=4, tall=False, names=["x", "y"]), rest, 3)]


def test_limits_and_required_options_of_a_group_hold() -> None:
    assert run("a.png") == 2
    assert run("a.png", "--width", "0") == 2
    assert seen == []


def test_options_stand_where_their_group_stands() -> None:
    names = [each.name for each in typer.main.get_command(app).params]
    assert names[:8] == ["file", "width", "tall", "names", "batch_size", "workers", "device", "k"]


def test_a_group_is_refused_as_a_whole() -> None:
    assert run("a.png", "--width", "4", "--tall") == 0
    with pytest.raises(InputError, match=r"--workers, --device are not used by tall images; leave them out"):
        run("a.png", "--width", "4", "--tall", "--device", "cpu", "--workers", "1")
