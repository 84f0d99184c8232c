"""Tiles as a figure of matplotlib, to be changed further or saved as PDF or SVG; an extra, `distcam[plot]`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from ...errors import MissingExtraError
from ...images.inline import Tile

_INCHES = 2.0  # height of a tile


def figure_of(rows: Sequence[Sequence[Tile | None]], words: Sequence[str] = ()) -> Any:
    """A figure with an axis for each tile, titled and captioned, and paragraphs below; a notebook shows it once.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("a figure needs matplotlib: pip install 'distcam[plot]'") from error
    columns = max(map(len, rows))
    widest = max(tile.image.width / tile.image.height for tile in rows[0] if tile is not None)
    width, height = _INCHES * max(1.0, widest) * columns, (_INCHES + 0.5) * len(rows)
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(width, height), layout="constrained", squeeze=False)
    pyplot.close(figure)  # a notebook would show it twice, and a loop keep all of them
    for row, beside in zip(rows, axes, strict=True):
        for tile, axis in zip((*row, *[None] * (columns - len(row))), beside, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            if tile is not None:
                axis.imshow(tile.shown)
                axis.set_title(tile.title, fontsize=9, parse_math=False)
                axis.set_xlabel(tile.caption, fontsize=8, parse_math=False)
    if words:
        figure.supxlabel("\n".join(fill(text, round(15 * width)) for text in words), fontsize=8, parse_math=False)
    return figure
