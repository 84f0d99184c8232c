"""Remarks are warnings in Python, notes on the command line, and errors where the caller is strict."""

from __future__ import annotations

import pytest

from distcam import DistcamWarning
from distcam.cli.console import remarks
from distcam.errors import InputError
from distcam.remarks import refusing, remark


def test_a_remark_is_a_warning_that_can_be_filtered() -> None:
    with pytest.warns(DistcamWarning, match="2 of 6 images have a label"):
        remark("2 of 6 images have a label")


def test_a_strict_caller_gets_an_error_instead() -> None:
    with pytest.raises(InputError, match="2 of 6"):
        remark("2 of 6 images have a label", strict=True)


def test_the_command_line_prints_each_remark_once(capsys: pytest.CaptureFixture[str]) -> None:
    with remarks():
        remark("2 of 6\nimages")
        remark("2 of 6\nimages")
    assert capsys.readouterr().err == "note: 2 of 6 images\n"


def test_strict_commands_refuse_the_first_remark() -> None:
    with pytest.raises(InputError, match=r"2 of 6 images \(--strict\)"), remarks(), refusing(" (--strict)"):
        remark("2 of 6 images")
