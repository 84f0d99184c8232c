"""The shape of the package: no circles of imports, files and folders of a size that one finds one's way in."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import distcam

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {file.parent.name for file in ROOT.glob("*/pyvenv.cfg")}
NOT_THE_PACKAGE = {"tests", "benchmarks", "recipes", "docs", "examples", "build", *ENVIRONMENTS}
FILES = sorted(
    file
    for file in ROOT.rglob("*.py")
    if file.relative_to(ROOT).parts[0] not in NOT_THE_PACKAGE and not file.relative_to(ROOT).parts[0].startswith(".")
)
SCRIPTS = [file for folder in ("benchmarks", "examples", "recipes") for file in sorted((ROOT / folder).rglob("*.py"))]


def dotted(file: Path) -> str:
    parts = ("distcam", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file): file for file in FILES}


class Imports(ast.NodeVisitor):
    """The modules of the package that a file imports when it runs, those inside of functions too."""

    def __init__(self, module: str, file: Path) -> None:
        self.package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            base = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            source = ".".join([*base, *([node.module] if node.module else [])])
            self.found |= {home(source, alias.name) for alias in node.names}


def home(source: str, name: str) -> str:
    """The module that defines what is imported: through a package's face, the one behind it."""
    if f"{source}.{name}" in MODULES and not hasattr(importlib.import_module(source), name):
        return f"{source}.{name}"
    if MODULES[source].name != "__init__.py":
        return source
    found = getattr(importlib.import_module(source), name)
    if f"{source}.{name}" in MODULES and getattr(found, "__name__", "") == f"{source}.{name}":
        return f"{source}.{name}"
    defined = getattr(found, "__module__", None)
    return defined if defined in MODULES else source


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    visitor = Imports(module, MODULES[module])
    visitor.visit(tree_of(MODULES[module]))
    return visitor.found - {module}


def bodies(file: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of the body of each function, its docstring not counted."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) else node.body
            if statements:
                yield node.name, node.end_lineno - statements[0].lineno + 1  # type: ignore[operator]


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: imports_of(module) for module in MODULES if module != "distcam"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_a_file_is_read_in_one_sitting() -> None:
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES + SCRIPTS}
    assert {str(file.relative_to(ROOT)): count for file, count in lines.items() if count > 350} == {}


def test_a_body_is_seen_at_once() -> None:
    long = {
        f"{file.relative_to(ROOT)}:{name}": lines
        for file in FILES
        if file.relative_to(ROOT).parts[0] != "cli"
        for name, lines in bodies(file)
        if lines > 40
    }
    assert long == {}


def test_a_folder_is_looked_over_at_once() -> None:
    folders = {file.parent for file in FILES + SCRIPTS}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > 20} == {}


def test_a_class_name_stands_for_one_class() -> None:
    homes: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_every_folder_of_the_package_is_installed() -> None:
    project = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    assert {module for module, file in MODULES.items() if file.name == "__init__.py"} - listed == set()
    assert distcam.__name__ in listed
