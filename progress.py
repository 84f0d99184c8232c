"""How far a long call is: what `progress=` takes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of things done and the number in all."""
