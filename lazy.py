"""The faces of packages: public names stand in the package's `__init__.pyi` alone, and load on first use.

Type checkers, editors and the documentation read the stub too; a package that needs torch costs nothing until then.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def from_face(name: str) -> Any:
    """A public name of distcam itself, looked up when it is used: so a lower layer hands over to a higher one."""
    return getattr(import_module(__package__), name)


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package: the names that its stub imports.

    Args:
        package: the package's `__name__`.
        file: its `__file__`; the stub lies beside it.
    """
    stub = ast.parse(Path(file).with_name("__init__.pyi").read_text(encoding="utf-8"))
    home = {
        alias.name: "." * statement.level + (statement.module or "")
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name], package), name)

    return load, lambda: sorted(home), sorted(home)
