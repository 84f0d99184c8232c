"""Run a benchmark: `python benchmarks FOLDER/NAME [options]`, `--help` for what it measures; without a name, a list."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


def names() -> list[str]:
    """The files that have a `main`, as they are named on the command line."""
    files = (file for file in HERE.rglob("*.py") if file != Path(__file__))
    runnable = (file for file in files if "\ndef main() -> " in file.read_text(encoding="utf-8"))
    return sorted(file.relative_to(HERE).with_suffix("").as_posix() for file in runnable)


def main() -> None:
    if (name := sys.argv[1] if len(sys.argv) > 1 else "") not in names():
        sys.exit(f"expected a benchmark's name, got {name!r}; there are {', '.join(names())}")
    sys.argv[:2] = [f"benchmarks {name}"]
    sys.exit(import_module(name.replace("/", ".")).main())


if __name__ == "__main__":
    main()
