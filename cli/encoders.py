"""`distcam encoders`: the names that `--encoder` takes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from .console import note, out, print_json
from .options import AsJson

EXAMPLE = "Example: `distcam encoders dinov2`, `distcam encoders 'vit_small*' --library timm --json`"


def encoders(
    word: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern such as `vit_small*`.")] = None,
    library: Annotated[
        Literal["torchvision", "timm", "hf", "open_clip"] | None, typer.Option(help="Names of one library alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List names for `--encoder`, with the width of the embedding, the input's size, the readout and the licence.

    Width and readout are told of up to 40 names, for which each network is laid out without weights.
    """
    from ..encoders.libraries import listing

    found, absent = listing.listed(word, library)
    if absent:
        note(f"more names with pip install 'distcam[{','.join(absent)}]'")
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    name = Column("name", min_width=max(len(each.name) for each in found))  # to be copied, so never cut
    table = Table(name, "width", "size", "readout", "licence", title=f"{len(found)} encoders", title_justify="left")
    for each in found:
        size = "" if each.size is None else "×".join(map(str, each.size))
        width = "" if each.width is None else str(each.width)
        table.add_row(each.name, width, size, each.readout or "", each.licence or "")
    out.print(table)
    if library in (None, "hf"):
        note("hf: takes any name of the Hugging Face hub and any folder with its files; listed are those in its cache")
