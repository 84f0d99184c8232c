"""Reports as one HTML file that needs nothing else, made of one base template, light or dark as the reader's system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Literal
from zlib import Z_RLE

import numpy as np
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...files import replacing, write_text
from ...images.geometry import Box
from ...images.inline import Tile, to_data_uri
from .rendering import Photograph, colour_table

DIGITS = 4  # significant digits of a map's values in a report


def save_drawing(
    path: str | PathLike[str], what: str, draw: Callable[[], Image.Image], arrays: Callable[[], dict[str, Any]]
) -> Path:
    """Write what `draw` draws (`.png`, `.jpg`), or the arrays behind it (`.npz`); any other ending is refused."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".png", ".jpg", ".jpeg", ".npz"):
        raise InputError(f"{path.name}: {what}")
    with replacing(path) as aside:
        if kind == ".npz":
            np.savez_compressed(aside, allow_pickle=False, **arrays())
        else:
            draw().save(aside, compress_level=1, compress_type=Z_RLE)  # 14 % larger, two fifths of the time
    return path


class Thumbnails(dict[str, dict[str, Any]]):
    """The images of a report by name, each once: small, and with the part that the network saw, as fractions."""

    def __init__(self, view: Callable[[Image.Image], Box], *, side: int = 320) -> None:
        super().__init__()
        self._view = view
        self._side = side

    def add(self, name: str, image: Image.Image, within: Photograph | None = None) -> str:
        """The name, under which the image is shown from now on; a crop in its photograph."""
        if name not in self:
            whole, seen = image, self._view(image)
            place = Box(0, 0, *image.size)
            if within is not None:
                whole, seen, place = within.around(image), seen.shifted(*within.place[:2]), within.place
            small = whole.copy()
            small.thumbnail((self._side, self._side))
            view, clip = (
                [round(edge, 5) for edge in box.scaled(1 / whole.width, 1 / whole.height)] for box in (seen, place)
            )
            self[name] = {"uri": to_data_uri(small, "jpeg"), "view": view, **({"clip": clip} if within else {})}
        return name


def numbers(raw: Tensor) -> list[float]:
    """A map's values in reading order, rounded."""
    values = raw.flatten().double().numpy()
    places = DIGITS - 1 - np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    up, down = (10.0 ** each.clip(min=0) for each in (places, -places))  # powers from 1 up are exact
    rounded: list[float] = (np.rint(values * up / down) / up * down).tolist()
    return rounded


def write_html(
    path: str | PathLike[str],
    template: str,
    *,
    package: str,
    title: str,
    notes: Sequence[str] = (),
    data: dict[str, Any] | None = None,
    **content: Any,
) -> Path:
    """Write a report as one HTML file; an existing one is replaced. All text in it is escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    base = files(__package__).joinpath("base.html").read_text(encoding="utf-8")
    environment = Environment(loader=DictLoader({"base.html": base}), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    shared = files(__package__).joinpath("shared")
    environment.globals["shared"] = lambda name: Markup(
        shared.joinpath(name).read_text(encoding="utf-8").replace("export function", "function")
    )
    page = environment.from_string(files(package).joinpath(template).read_text(encoding="utf-8"))
    colours = {
        name: bytes(colour_table(scale).tobytes()).hex()
        for name, scale in (("heat_colours", "inferno"), ("signed_colours", "blue-orange"))
    }
    return write_text(path, page.render(title=title, notes=notes, data=data, **colours, **content))


def write_page(
    path: str | PathLike[str],
    rows: Sequence[Sequence[Tile | None]],
    *,
    title: str,
    notes: Sequence[str] = (),
    has_unseen: bool = False,
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    kind: Literal["png", "jpeg"] = "png",
) -> Path:
    """The tiles of a `sheet` as one HTML file; a table of headings and rows stands above them."""
    assert __package__ is not None
    content: dict[str, Any] = {"rows": rows, "has_unseen": has_unseen, "table": table}
    content["uri"] = partial(to_data_uri, kind=kind)
    return write_html(path, "sheet.html", package=__package__, title=title, notes=notes, **content)
