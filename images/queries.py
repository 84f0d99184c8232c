"""Images to ask with: files and URLs as they are, else what folders, tables and data sets hold."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .given.remote import is_url


def list_queries(sources: Iterable[Any], *, margin: float = 0.0) -> tuple[list[str], list[str]]:
    """The images that sources stand for, each what `list_items` takes, and a line for each that is left out.

    Boxes, those of tables and `photo.jpg#xywh=x,y,w,h`, are wider by `margin`, as those of the gallery are. Images that
    are no files lie in a folder that is removed when the process ends.
    """
    found: list[str] = []
    problems: list[str] = []
    for source in sources:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
        is_table = name.lower().endswith((".csv", ".parquet", ".tar", ".tgz"))
        if is_url(name) or (name and not is_table and Path(name).is_file()):
            found.append(name)
            continue
        from .boxes.cutting import list_items  # a query by a file alone does without NumPy
        from .items import item_of, split_item, widened

        if name and not is_table and Path(split_item(name)[0]).is_file():
            found.append(str(widened(name, margin)))
            continue
        listing = list_items(source, labels="none", keep=passing_folder())
        found += [str(widened(item_of(listing.file(record), record.box), margin)) for record in listing]
        problems += listing.problems
    return found, problems


def passing_folder() -> Path:
    """A new folder that is removed when the process ends, for images that are no files; nothing is made yet."""
    folder = Path(tempfile.gettempdir(), f"distcam-{secrets.token_hex(8)}")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
