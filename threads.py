"""Work shared out among threads: files that are read and decoded, whose results come in their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import TypeVar

from .progress import Progress

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int | None = None,
    ahead: int | None = None,
    progress: Progress | None = None,
) -> Generator[R, None, None]:
    """The result for each item, in order, by `workers` threads; by default one for each core, at most eight.

    They work on up to `ahead` items before one is asked for, by default on all. Where the caller stops, or the work
    raises an error, what has not begun is dropped. `progress` is for items that can be counted.

    >>> list(in_threads(len, ["a", "bcd"]))
    [1, 3]
    """
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="distcam-decode")
    waiting: deque[Future[R]] = deque()
    rest, total = iter(items), len(items) if isinstance(items, Sized) else 0
    try:
        for done in count(1):
            waiting.extend(pool.submit(work, item) for item in islice(rest, ahead and ahead - len(waiting)))
            if not waiting:
                return
            found = waiting.popleft().result()
            if progress is not None:
                progress(done, total)
            yield found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
