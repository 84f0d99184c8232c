"""`distcam encoders`: the names that `--encoder` takes, and encoders written for other runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from rich.table import Column, Table

from ..errors import InputError
from . import library
from .command import Commands, FirstByDefault
from .console import answer, note, out, print_json
from .options import AsJson, Loading, argument, option

app = Commands(cls=FirstByDefault)
EXAMPLE = "Example: `distcam encoders dinov2`, `distcam encoders 'vit_small*' --library timm --json`"


@app.command(name="list", epilog=EXAMPLE)
def encoders(
    word: str | None = argument(None, "Part of a name, or a pattern such as `vit_small*`."),
    library: Literal["torchvision", "timm", "hf", "open_clip"] | None = option(None, "Names of one library alone."),
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
        size = "×".join(map(str, each.size or ()))
        table.add_row(each.name, str(each.width or ""), size, each.readout or "", each.licence or "")
    out.print(table)
    if library in (None, "hf"):
        note("hf: takes any name of the Hugging Face hub and any folder with its files; listed are those in its cache")


EXPORT_EXAMPLE = "Example: `distcam encoders export photos.gallery --onnx encoder.onnx --images photos/`"
_CHECKED = 8  # images, at most


@app.command(epilog=EXPORT_EXAMPLE)
def export(
    encoder: str = argument(..., "A CHECKPOINT, a gallery (its encoder), or an architecture."),
    *,
    loading: Loading,
    onnx: Path | None = option(None, "Write FILE.onnx for ONNX Runtime and kin."),
    torch_file: Path | None = option(None, "Write FILE.pt2 for `torch.export.load`.", "--torch"),
    images: str | None = option(None, "Check on up to eight of these images. Default: on three scenes drawn for it."),
    as_json: AsJson = False,
) -> None:
    """Write an encoder with two outputs, embedding and response map, so that a service elsewhere can explain too."""
    targets = {".onnx": onnx, ".pt2": torch_file}
    for suffix, path in targets.items():
        if path is not None and path.suffix != suffix:
            raise InputError(f"{path}: expected a file name that ends in {suffix}")
    if onnx is None and torch_file is None:
        raise InputError("nothing to write: give --onnx FILE.onnx, --torch FILE.pt2, or both")
    if Path(encoder).is_dir():
        encoder = _kept_by(Path(encoder))
    loaded = loading.load(encoder).eval()
    import torch

    from ..explain.export import export_encoder

    if images is None:
        import numpy as np

        from ..synthetic.blueprint import blueprints
        from ..synthetic.scene import draw_scene

        drawn = np.random.default_rng(0)
        pictures = [draw_scene([each], generator=drawn, size=256).image for each in blueprints(3)]
    else:
        listing = library.images.list_images(images, labels="none")
        pictures = [library.images.read_image(listing.file(record)) for record in list(listing)[:_CHECKED]]
    pixels = torch.stack([loaded.transform(picture) for picture in pictures])
    written = [export_encoder(loaded, path, pixels) for path in targets.values() if path is not None]
    told = [{"path": str(each.path), **each.described, "difference": each.difference} for each in written]
    lines = [
        f"{loaded.short_name} written to {each.path}, described in {each.path.with_suffix('.json').name}: the "
        f"largest difference on {each.images} images is {each.difference:.1e}"
        for each in written
    ]
    answer(told, "\n".join(lines), as_json=as_json)


def _kept_by(folder: Path) -> str:
    """The checkpoint that a gallery keeps."""
    with library.index.Gallery.open(folder) as gallery:
        if gallery.encoder_path is None:
            raise InputError(
                f"{folder} keeps no copy of its encoder {gallery.manifest.encoder.short_name}; name a file"
            )
        return str(gallery.encoder_path)
