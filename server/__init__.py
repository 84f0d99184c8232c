"""A gallery in service: a REST API that answers queries and explains them, and the page on top of it.

Needs the extra `serve`; names load on first use, so that this package can be imported without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .app import create_app
    from .running import run
    from .settings import Settings

_HOME = {"Settings": "settings", "create_app": "app", "run": "running"}

__all__ = ["Settings", "create_app", "run"]

__getattr__, __dir__ = lazily(__name__, _HOME, __all__)
