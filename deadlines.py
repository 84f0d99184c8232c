"""A deadline for the work of this thread, for loops that could be made long by a request."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import InputError

_end: ContextVar[float] = ContextVar("distcam_deadline", default=math.inf)


class DeadlineError(InputError):
    """The work asked for takes longer than its deadline."""


@contextmanager
def finish_by(end: float) -> Iterator[None]:
    """Make `check_deadline` raise inside once `time.monotonic()` is past `end`, or past an outer end before it."""
    token = _end.set(min(end, _end.get()))
    try:
        yield
    finally:
        _end.reset(token)


def check_deadline() -> None:
    """Give up if there is no time left; without a deadline there always is."""
    if time.monotonic() > _end.get():
        raise DeadlineError("this would take too long; ask for less, such as a shorter filter")
