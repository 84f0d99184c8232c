"""Progress of a long call: the type that `progress=` takes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of things done and the number in all."""
