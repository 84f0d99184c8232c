"""Results as a notebook shows them: a piece of HTML that needs nothing else, and tables for pandas."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup
from PIL import Image

from ..errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from ..explain.drawing.rendering import Photograph

SHOWN = 10  # images of a result, and of a gallery
_SIDE, _PIXELS = 132, 196  # of an image: as wide as it stands on the page, and as it is stored


@dataclass(frozen=True)
class Tile:
    """One image of a grid: `title` stands above it, `caption` below; `frame` colours its edge.

    Of the colours that colour-blind readers keep apart, (0, 114, 178) and (213, 94, 0) serve for right and wrong. With
    `within` the image is a crop, which is shown in its photograph.
    """

    image: Image.Image
    title: str = ""
    caption: str = ""
    frame: tuple[int, int, int] | None = None
    within: Photograph | None = None

    @property
    def shown(self) -> Image.Image:
        """The image as it is shown."""
        return self.image if self.within is None else self.within.around(self.image)


def to_data_uri(image: Image.Image, kind: Literal["png", "jpeg", "webp"] = "png", *, quality: int = 88) -> str:
    """The image as a `data:` address for an HTML page; of photographs "jpeg" and "webp" are many times smaller."""
    if kind not in ("png", "jpeg", "webp"):
        raise InputError(f"kind={kind!r} is not known; choose 'png', 'jpeg' or 'webp'")
    file = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if kind == "png" else {"quality": quality}
    image.convert("RGB").save(file, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def fragment(
    title: str,
    rows: Sequence[Sequence[Tile | None]] = (),
    *,
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A piece of HTML with rows of images, a table of headings and rows, and notes; all text in it is escaped.

    Letters and lines take the colour of the page that it is put into, light or dark. A single row of images breaks
    where the page ends, several scroll together; None is a gap.
    """
    parts = [Markup('<p style="margin:0 0 6px"><b>{}</b></p>').format(title)]
    if rows:
        columns = max(map(len, rows))
        layout = f"grid;grid-template-columns:repeat({columns},{_SIDE}px);overflow-x:auto"
        figures = [_figure(tile) for row in rows for tile in (*row, *[None] * (columns - len(row)))]
        box = Markup('<div style="display:{};gap:8px">{}</div>')
        parts.append(box.format("flex;flex-wrap:wrap" if len(rows) == 1 else layout, Markup("").join(figures)))
    if table is not None:
        lines = [_line("th", table[0]), *(_line("td", row) for row in table[1])]
        parts.append(Markup('<table style="margin:4px 0">{}</table>').format(Markup("").join(lines)))
    parts += [Markup('<p style="margin:4px 0;max-width:100ch;opacity:.8">{}</p>').format(note) for note in notes]
    return str(Markup('<div style="line-height:1.4;color:inherit">{}</div>').format(Markup("").join(parts)))


def _figure(tile: Tile | None) -> Markup:
    if tile is None:
        return Markup("<span></span>")
    small = tile.shown.copy()
    small.thumbnail((_PIXELS, _PIXELS))
    figure = Markup(
        '<figure style="margin:0;width:{side}px;font-size:12px;overflow-wrap:anywhere">{title}'
        '<img alt="{alt}" src="{uri}" style="display:block;margin:0;width:{width}px">'
        '<figcaption style="opacity:.8">{caption}</figcaption></figure>'
    )
    return figure.format(
        side=_SIDE,
        width=round(_SIDE * small.width / max(small.size)),
        title=tile.title,
        alt=tile.title or tile.caption,
        uri=to_data_uri(small, "webp", quality=75),
        caption=tile.caption,
    )


def _line(tag: str, cells: Sequence[str]) -> Markup:
    """A row of a table, whose first cell is text and whose others are numbers."""
    sides = ["left", *["right"] * (len(cells) - 1)]
    cell = Markup(f'<{tag} style="text-align:{{}};padding:2px 10px">{{}}</{tag}>')
    return Markup("<tr>{}</tr>").format(Markup("").join(map(cell.format, sides, cells)))


def more(count: int, nouns: str) -> list[str]:
    """A note on what is not shown of so many, if anything."""
    return [f"and {count - SHOWN:,} more of {count:,} {nouns}"] if count > SHOWN else []


def data_frame(content: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
    """A DataFrame of pandas, of columns or of rows.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("a DataFrame needs pandas: pip install 'distcam[pandas]'") from error
    return pandas.DataFrame(content)
