"""How the tests of the command line call it."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from distcam.cli import main
from distcam.cli.app import app


def distcam(*arguments, status=0):
    """Run the command in this process; its output with the escape codes of no terminal."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != status and result.exception is not None and status == 0:
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout


def fails(monkeypatch, capsys, *arguments):
    """Run the command as the shell does; its one line of error."""
    monkeypatch.setattr(sys, "argv", ["distcam", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status and the two streams of the command, run as the shell does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distcam", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
