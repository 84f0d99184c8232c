"""Progress of a long call: the type that `progress=` takes everywhere, and bars of it for terminals and notebooks."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of things done and the number in all."""
LINE_EVERY = 10.0  # seconds
_UPDATE_EVERY = 0.1  # seconds, of a bar in a notebook
_counting: list[list[int]] = []  # what is under way: done, and in all


@contextmanager
def progress_bar(description: str, *, console: Console | None = None) -> Iterator[Progress]:
    """A bar in the cell of a notebook or on a terminal's stderr, else a line every ten seconds.

    Give what it yields as `progress=`.
    """
    console = console or _stderr()
    if (notebook := _notebook()) is not None:
        yield _cell_bar(description, notebook)
        return
    if not console.is_terminal:
        with progress_lines(description, console=console) as progress:
            yield progress
        return
    import rich.progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_lines(
    description: str, *, every: float | None = None, console: Console | None = None
) -> Iterator[Progress]:
    """A line on stderr every so many seconds, also while nothing is counted; none from what is done before that.

    Of several at once only those that have begun to count say something.
    """
    err = console or _stderr()
    started, done, over = time.monotonic(), [0, 0], threading.Event()
    _counting.append(done)

    def speak() -> None:
        while not over.wait(LINE_EVERY if every is None else every):
            seconds = f"{time.monotonic() - started:.0f} s"
            if done[1]:
                err.print(f"{description}: {done[0]:,} of {done[1]:,} ({seconds})", soft_wrap=True)
            elif len(_counting) == 1:
                err.print(f"{description} ({seconds})", soft_wrap=True)

    def progress(count: int, total: int) -> None:
        done[:] = count, total

    speaker = threading.Thread(target=speak, name="progress", daemon=True)
    speaker.start()
    try:
        yield progress
    finally:
        over.set()
        speaker.join()
        _counting[:] = [each for each in _counting if each is not done]  # not one that has counted as far


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)


def _notebook() -> Any:
    """IPython's module for displaying, if this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    import IPython.display

    return IPython.display


def _cell_bar(description: str, notebook: Any) -> Progress:
    """A bar of HTML in the cell that runs, which changes in its place; no widget is needed."""
    from html import escape

    started, last = time.monotonic(), [0.0]
    cell = notebook.display(notebook.HTML(escape(description)), display_id=True)

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < _UPDATE_EVERY:
            return
        last[0] = now
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        cell.update(notebook.HTML(f"{escape(description)} {bar} {done:,} of {total:,} ({now - started:.0f} s)"))

    return progress
