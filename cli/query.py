"""`distcam query`: which of these is this, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from .console import err, out, print_json, say
from .options import AsJson, Device

if TYPE_CHECKING:
    from ..retrieval import Matches

EXAMPLE = "Example: `distcam query photos.gallery probe.jpg -k 5 --explain why.html`"
Weighting = Literal["dist", "dist*s", "dist*excess", "dot", "dot_centered", "gradcam_cos", "caam"]


def query(
    gallery: Annotated[Path, typer.Argument(help="The gallery's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Query images; several are encoded in one batch.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many matches.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="Only gallery images that fit, e.g. `label=cat and year>=2020`.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Explain against every `match`, the nearest class `prototype`, or a class LABEL.")
    ] = "match",
    weighting: Annotated[Weighting, typer.Option(help="How channels are weighted; `dist` is Dist-CAM.")] = "dist",
    space: Annotated[
        Literal["metric", "backbone"],
        typer.Option(help="Explain the space that ranks, or the features before the head."),
    ] = "metric",
    explain: Annotated[
        Path | None, typer.Option(help="Write the maps: OUT.html (one report), or a folder of PNG and NPZ files.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Only for a gallery that keeps no encoder: a CHECKPOINT.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the gallery's pictures lie now, if they were moved.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the nearest gallery images of each query, and explain every match."""
    from ..encoders import Encoder
    from ..index import Gallery
    from ..retrieval import Retriever

    if explain is None and (against, weighting, space) != ("match", "dist", "metric"):
        raise InputError("--against, --weighting and --space say how to explain; add --explain OUT.html or a folder")
    if explain is not None and explain.suffix.lower() not in ("", ".html"):
        raise InputError(f"--explain writes OUT.html or a folder, not {explain.name}")
    opened = Gallery.open(gallery, root=root)
    if not opened.manifest.complete:
        err.print("note: the build of this gallery is not finished; only what is encoded so far is searched")
    retriever = Retriever(opened, None if encoder is None else Encoder.load(encoder), device=device)
    results = retriever.query([str(image) for image in images], k=k, where=where)
    written = None if explain is None else _write(results, explain, against=against, weighting=weighting, space=space)
    if as_json:
        print_json([matches.to_dict() for matches in results])
        return
    for matches in results:
        matches.show(out)
    if written is not None:
        say(f"explanations: {written}")


def _write(results: list[Matches], target: Path, **options: Any) -> Path:
    from ..retrieval import write_report

    explanations = [matches.explain(**options) for matches in results]
    if target.suffix.lower() == ".html":
        return write_report(target, explanations)
    target.mkdir(parents=True, exist_ok=True)
    for number, explanation in enumerate(explanations, start=1):
        name = f"{number:03d}-{Path(explanation.matches.query.name).stem}"
        explanation.save(target / f"{name}.png")
        explanation.save(target / f"{name}.npz")
    return target
