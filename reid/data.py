"""Reading a re-identification data set, whatever its format: `read_data`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ..errors import InputError
from .layouts import read_cuhk03, read_market, read_veri
from .lists import read_csv, read_msmt17, read_vehicleid
from .records import FormatName, ReidData, ReidImage, Role, labels_of

__all__ = ["ReidData", "ReidImage", "Role", "labels_of", "read_data"]

_MARKS: tuple[tuple[str, FormatName], ...] = (
    ("bounding_box_test", "market"),
    ("image_query", "veri"),
    ("list_gallery.txt", "msmt17"),
    ("cuhk03_new_protocol_config_*.mat", "cuhk03"),
    ("train_test_split", "vehicleid"),
    ("images.csv", "csv"),
)
"""What a folder of each format holds."""
_READERS: dict[FormatName, Callable[..., ReidData]] = {
    "market": read_market,
    "duke": read_market,
    "msmt17": read_msmt17,
    "cuhk03": read_cuhk03,
    "veri": read_veri,
    "vehicleid": read_vehicleid,
    "csv": read_csv,
}
_OPTIONS: dict[FormatName, tuple[str, ...]] = {
    "cuhk03": ("boxes",),
    "vehicleid": ("test", "seed"),
    "csv": ("identity", "camera", "role"),
}


def read_data(source: str | os.PathLike[str], *, format: str = "auto", **options: Any) -> ReidData:
    """A data set from a folder or a CSV file; images are listed, not opened.

    Args:
        source: the folder (or one that holds nothing but it), or a CSV file.
        format: `"auto"` looks at what the folder holds; or `market` (which knows DukeMTMC's and CUHK03-NP's names too),
            `duke`, `msmt17`, `cuhk03`, `veri`, `vehicleid`, `csv`.
        **options: cuhk03: `boxes`; vehicleid: `test`, `seed`; csv: `identity`, `camera`, `role` (names of columns).

    Raises:
        InputError: there is no such folder, it is of no known format, or its lists are damaged.
    """
    if format != "auto" and format not in get_args(FormatName):
        raise InputError(f"format must be auto or one of {', '.join(get_args(FormatName))}; got {format!r}")
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such folder or table; data sets are not downloaded, see docs/guides/reid.md")
    root, found = _recognised(path)
    kind = found if format == "auto" else next(name for name in get_args(FormatName) if name == format)
    if kind is None:
        marks = ", ".join(f"{mark} ({name})" for mark, name in _MARKS)
        raise InputError(f"{path} is of no known format; looked for {marks}, or give a CSV file")
    if strange := set(options) - set(_OPTIONS.get(kind, ())):
        raise InputError(f"the {kind} format has no option {', '.join(sorted(strange))}")
    if kind == "csv" and root.is_dir():
        root = root / "images.csv"
    return _READERS[kind](root, **options)


def _recognised(path: Path) -> tuple[Path, FormatName | None]:
    """The folder a data set lies in, which may be the only one inside, and its format."""
    if path.is_file():
        return path, "csv"
    inside = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    candidates = [path, *([inside[0]] if len(inside) == 1 and inside[0].is_dir() else [])]
    for folder in candidates:
        for mark, name in _MARKS:
            if next(folder.glob(mark), None) is not None:
                return folder, name
    return path, None
