"""Processes that are killed at a random moment, and what they said until then."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `code` and says JSON lines ending in `]]`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at_random(child: subprocess.Popen[str], chance: random.Random, *, lines: int, at_most: float) -> list[Any]:
    """Let it say some lines and work on for a random time, and kill it; returns all that it said."""
    assert child.stdout is not None
    assert child.stderr is not None
    said = [child.stdout.readline() for _ in range(lines)]
    time.sleep(chance.random() * at_most)
    with child:
        child.kill()
        rest, errors = child.stdout.read(), child.stderr.read()  # communicate() would pass over what is buffered here
    assert child.returncode in (-9, 0), errors
    return [json.loads(line) for line in "".join([*said, rest]).splitlines() if line.endswith("]]")]  # the last is cut


def sha256_of(path: Path) -> bytes:
    """The checksum of a file's contents."""
    return hashlib.sha256(path.read_bytes()).digest()
