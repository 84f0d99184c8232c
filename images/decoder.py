"""A process that decodes uploads: it may be killed, and has only so much memory and time. It does not import torch.

It reads requests from standard input and writes answers to standard output, one after the other, until its input ends.
A request is `REQUEST` (length of the file, length of the fitting, pixel limit, seconds of the processor), then a
`Fitting` as JSON, then the file. An answer is `ANSWER` (outcome, width and height of the image, length), then the
network's pixels or a message.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import sys
from contextlib import suppress
from typing import Final

from ..errors import ImageError
from .geometry import Fitting
from .loading import image_size, read_levels

REQUEST: Final = struct.Struct(">QQQd")
ANSWER: Final = struct.Struct(">BIIQ")
DONE, TOO_LARGE, UNUSABLE, MEMORY = range(4)

_BYTES_PER_PIXEL = 32  # coefficients, canvas, conversions: the most that a decoder was seen to take is 24
_OWN_BYTES = 1 << 30  # of address space, for the interpreter and the libraries


def main(*, nice: int = 0) -> None:
    """Serve until standard input ends, `nice` to other processes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the server, which then closes our input
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):
        os.nice(nice)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints must not get among the answers
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        length, length_of_fitting, max_pixels, seconds = REQUEST.unpack(head)
        fitting = Fitting.from_dict(json.loads(source.read(length_of_fitting)))
        data = source.read(length)
        if len(data) < length:
            return
        _limit(max_pixels * _BYTES_PER_PIXEL + _OWN_BYTES + length, seconds)
        outcome, size, payload = DONE, (0, 0), b""
        try:
            size = image_size(data)
            if math.prod(size) > max_pixels:
                outcome = TOO_LARGE
            else:
                levels, size = read_levels(data, fitting, max_pixels=max_pixels, whole=True)
                payload = levels.tobytes()
        except ImageError as error:
            outcome, payload = UNUSABLE, error.reason.encode("utf-8", "replace")
        except MemoryError:
            outcome = MEMORY
        sink.write(ANSWER.pack(outcome, *(min(side, 2**32 - 1) for side in size), len(payload)))
        sink.write(payload)
        sink.flush()


def _limit(memory: int, seconds: float) -> None:
    """Bound the address space, and the processor's time from now on; whoever exceeds the latter is ended."""
    try:
        import resource
    except ImportError:  # not on Windows, where only the server's clock counts
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
