"""Work shared out among threads."""

from __future__ import annotations

import threading

import pytest

from distcam.threads import in_threads


def test_results_come_in_order_and_are_counted() -> None:
    said: list[tuple[int, int]] = []
    found = list(in_threads(lambda n: n * n, range(5), progress=lambda done, total: said.append((done, total))))
    assert found == [0, 1, 4, 9, 16]
    assert said == [(n, 5) for n in range(1, 6)]


def test_what_has_not_begun_is_dropped_after_an_error_and_where_the_caller_stops() -> None:
    begun: list[int] = []
    held = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise ValueError("broken")
        held.wait(5)
        return number

    results = in_threads(work, range(100), workers=2)
    threading.Timer(0.2, held.set).start()
    with pytest.raises(ValueError, match="broken"):
        next(results)
    assert len(begun) < 10
    stopped = in_threads(begun.append, range(10_000), workers=1)
    next(stopped)
    stopped.close()
    assert len(begun) < 10_000
