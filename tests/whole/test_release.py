"""What a release is made of: one version, a change log by version, links that work on any page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import distcam

ROOT = Path(__file__).parents[2]
HOME = "https://github.com/distcam/distcam"
RAW = "https://raw.githubusercontent.com/distcam/distcam/main/"
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
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


def test_the_readme_has_no_link_that_works_in_one_place_alone() -> None:
    """A package index shows it, too: every link is absolute, every reference defined, and what it names is here."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, flags=re.MULTILINE))
    direct = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in (*direct, *names.values()) if not link.startswith(("https://", "#"))] == []
    body = re.sub(r"^\[[^\]]+\]: \S+$", "", text, flags=re.MULTILINE)
    assert [name for name in names if f"[{name}]" not in body] == []
    looks_like_a_link = re.findall(r"\[([a-z_]+/[\w./]*|[A-Z_]+\.\w+)\](?!\()", body)
    assert [name for name in looks_like_a_link if name not in names] == []
    homes = (HOME + "/blob/main/", HOME + "/tree/main/", RAW)
    own = [link.split("#")[0] for link in (*direct, *names.values()) if link.startswith((HOME + "/", RAW))]
    paths = [next((link.removeprefix(home) for home in homes if link.startswith(home)), None) for link in own]
    assert [path for path in paths if path is not None and not (ROOT / path).exists()] == []


def test_links_of_the_documents_lead_somewhere() -> None:
    broken = []
    for document in (*ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in link and not (document.parent / (link.split("#")[0] or document.name)).exists():
                broken.append((document.name, link))
    for document in ROOT.glob("docs/**/*.md"):
        for test in re.findall(r"`(tests/[\w/]+\.py)`", document.read_text(encoding="utf-8")):
            if not (ROOT / test).exists():
                broken.append((document.name, test))
    assert broken == []


def test_every_package_that_is_asked_for_is_one_that_ci_ran_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: needs for name, needs in project["optional-dependencies"].items() if name not in ("crf", "fiftyone")
    }
    asked = [
        Requirement(text) for text in (*project["dependencies"], *(text for needs in extras.values() for text in needs))
    ]
    pins = [Requirement(line) for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    held = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    by_platform = {"distcam", "torch", "torchvision"}  # torch's builds differ
    assert {canonicalize_name(one.name) for one in asked} - by_platform - set(held) == set()
    assert [
        one for one in asked if one.name not in by_platform and held[canonicalize_name(one.name)] not in one.specifier
    ] == []
    assert not {name for name in held if name in by_platform or name.startswith(("nvidia-", "cuda-", "triton"))}
    assert [name for name in held if name.startswith("faiss")] == ["faiss-cpu"]


def test_commits_are_formatted_by_the_ruff_of_ci() -> None:
    [hook] = re.findall(
        r"ruff-pre-commit\n +rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    )
    assert f"\nruff=={hook}\n" in CONSTRAINTS
