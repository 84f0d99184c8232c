"""Which segments become one, and the rows that they bring along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .records import Array, Vectors
from .segments import Segment
from .snapshot import BLOCK_BYTES

__all__ = ["groups_of", "live_blocks", "newest_to_merge"]


def newest_to_merge(sizes: Sequence[int], *, base: int, most: int) -> int:
    """How many of the newest segments of a long build should become one now; 0 for none.

    Segments have levels: the power of `base` in their number of images. As many as `base` of one level, with all
    smaller ones among them, become one of a higher level, so a row is written again once a level at the most, and no
    level has many segments. Those of half of `most` images stay as they are.

    >>> newest_to_merge([64, 16, 4, 4, 1, 4, 4], base=4, most=1000), newest_to_merge([16, 4, 4, 1], base=4, most=1000)
    (5, 0)
    """
    start = len(sizes)
    while start > 0 and sizes[start - 1] < most // 2:
        start -= 1
    levels = [_level(size, base) for size in sizes[start:]]
    for level in sorted(set(levels)):
        first = len(levels)
        while first > 0 and levels[first - 1] <= level:
            first -= 1
        if levels[first:].count(level) >= base:
            return len(levels) - first
    return 0


def _level(size: int, base: int) -> int:
    level = 0
    while (size := size // base) > 0:
        level += 1
    return level


def groups_of(sizes: Sequence[int], alive: Sequence[int], *, most: int) -> Iterator[range]:
    """Neighbours with at most so many living rows together; a segment that is alone and wholly alive stays as it is.

    >>> list(groups_of([3, 3, 3, 9, 2], [3, 3, 2, 9, 1], most=9))
    [range(0, 3), range(4, 5)]
    """
    start = living = dying = 0
    for number, (size, left) in enumerate(zip(sizes, alive, strict=True)):
        if number > start and living + left > most:
            if number > start + 1 or dying:
                yield range(start, number)
            start, living, dying = number, 0, 0
        living += left
        dying += size - left
    if len(sizes) > start + 1 or dying:
        yield range(start, len(sizes))


def live_blocks(parts: Sequence[tuple[Segment, Array]]) -> Iterator[Vectors]:
    """The vectors of some rows of some segments, a bounded number of bytes at a time."""
    for segment, rows in parts:
        row_bytes = segment.file.bytes // max(1, len(segment))
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for start in range(0, len(rows), step):
            yield segment.vectors(rows[start : start + step])
