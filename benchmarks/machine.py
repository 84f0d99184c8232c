"""What every benchmark shares: the machine's class, interleaved timing, and a plain table."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """One line: processor, cores in use, Python, and the versions of the packages named."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    return ", ".join([processor, f"Python {platform.python_version()}", *(_version(name) for name in packages)])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def command_of(module: str) -> list[str]:
    """What runs a benchmark's module in a process of its own."""
    return [sys.executable, str(Path(__file__).parent), module.replace(".", "/")]


def interleave(
    methods: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every method in every round; the methods take turns, so a busy machine hurts all alike.

    CPU time by default: the only clock that means something on a machine that others use as well.
    """
    for method in methods.values():
        method()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            start = clock()
            method()
            seconds[name].append(clock() - start)
    return seconds


def ratio_table(seconds: Mapping[str, list[float]], *, base: str) -> str:
    """A Markdown table: median milliseconds, and the ratio to `base` with its range over the rounds."""
    lines = [f"| method | ms (median) | × {base} [min, max] |", "|---|---:|---:|"]
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds[base], strict=True)]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        lines.append(f"| {name} | {1000 * statistics.median(values):.1f} | {spread} |")
    return "\n".join(lines)


def reach_row(what: str, values: list[float], reach: float, *, unit: str = "×") -> str:
    """A Markdown row: what is measured, its median with the range over the rounds, and the reach, at most that."""
    spread = f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}] {unit}"
    return f"| {what} | {spread} | ≤ {reach:g} {unit} |"


REACH_HEAD = "| what | median [min, max] | reach |\n|---|---:|---:|"
