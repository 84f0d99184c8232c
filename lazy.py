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
    """`__getattr__`, `__dir__` and `__all__` of a package: those in its stub, earlier ones (`Old = New`) too.

    Args:
        package: the package's `__name__`.
        file: its `__file__`; the stub lies beside it.
    """
    stub = ast.parse(Path(file).with_name("__init__.pyi").read_text(encoding="utf-8"))
    home: dict[str, tuple[str, str]] = {}  # the module of each name, and the name there
    for statement in stub.body:
        match statement:
            case ast.ImportFrom(module, names, level):
                home |= {alias.name: ("." * level + (module or ""), alias.name) for alias in names}
            case ast.Assign([ast.Name(old)], ast.Name(new)):
                home[old] = home[new]

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = home[name]
        return getattr(import_module(module, package), attribute)

    return load, lambda: sorted(home), sorted(home)
