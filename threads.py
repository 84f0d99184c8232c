"""Work shared out among threads: files that are read and decoded, whose results come in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .progress import Progress

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    work: Callable[[T], R], items: Sequence[T], *, workers: int | None = None, progress: Progress | None = None
) -> Generator[R, None, None]:
    """The result for each item, in order, by `workers` threads; by default one for each core, at most eight.

    Where the caller stops, or the work raises an error, what has not begun is dropped.

    >>> list(in_threads(len, ["a", "bcd"]))
    [1, 3]
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            for done, found in enumerate(pool.map(work, items), 1):
                if progress is not None:
                    progress(done, len(items))
                yield found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
