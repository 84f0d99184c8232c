"""What a release is made of: one version, a change log by version, links that work on any page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.version import Version

import distcam

ROOT = Path(__file__).parents[1]
RELEASES = re.findall(
    r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def test_the_change_log_has_a_part_for_every_release_and_one_for_what_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [Version(number) for number, _ in RELEASES]
    assert versions == sorted(versions, reverse=True)
    assert [date for _, date in RELEASES] == sorted((date for _, date in RELEASES), reverse=True)
    headings = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert headings == ["Unreleased", *(number for number, _ in RELEASES)]
    assert re.findall(r"^\[(.+?)\]: https://", text, flags=re.MULTILINE) == headings


def test_a_version_is_either_in_development_or_the_newest_in_the_change_log() -> None:
    current, newest = Version(distcam.__version__), Version(RELEASES[0][0])
    assert current > newest if current.is_devrelease else current == newest


def test_a_citation_names_the_newest_release() -> None:
    number, date = RELEASES[0]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {number}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "distcam._version.__version__"}
    modules = (*ROOT.glob("*.py"), *ROOT.glob("*/*.py"))
    assert [path.name for path in modules if "\n__version__ = " in path.read_text(encoding="utf-8")] == ["_version.py"]
