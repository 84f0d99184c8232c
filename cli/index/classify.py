"""`distcam classify`: an answer for each image, with its confidence and the map of what decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError
from ...metrics.prediction import By, Votes
from .. import console
from ..command import Commands, refuse_unused
from ..options import AnswersCsv, AsJson, Device, GalleryEncoder, GalleryPath, ReadsImages, Root, Strict
from ..writing import require_place, write_answers, write_explanations

app = Commands()
EXAMPLE = "Example: `distcam classify photos.gallery new_photos/ --csv answers.csv --explain why/`"


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def classify(
    gallery: GalleryPath,
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders of images, CSVs with a column path, or quoted globs.", show_default=False),
    ],
    csv: AnswersCsv = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Neighbours that vote.")] = 5,
    by: Annotated[
        By,
        typer.Option(
            help="Votes of neighbours, the nearest class mean, or both, each as the gallery's images trust it."
        ),
    ] = "both",
    weighting: Annotated[Votes, typer.Option(help="Neighbours count alike, or the nearer the more.")] = "distance",
    reject: Annotated[
        bool, typer.Option("--reject", help="No class beyond the threshold of `distcam index calibrate`.")
    ] = False,
    max_distance: Annotated[float | None, typer.Option(help="The same with another threshold.")] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="Write each answer's map, on the image and on what decided: OUT.html, OUT.png or a folder."),
    ] = None,
    encoder: GalleryEncoder = None,
    root: Root = None,
    device: Device = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Name the class of each image, with calibrated confidence and the map of what decided."""
    if by == "prototypes":
        refuse_unused("by prototypes alone, which are no neighbours", "k", "weighting")
    if explain is None:
        refuse_unused("without --explain", "root", remedy="add --explain OUT.html or a folder")
    console.require_file(encoder, "--encoder")
    from ...encoders import Encoder
    from ...index import Gallery
    from ...retrieval import Retriever

    opened = Gallery.open(gallery, root=root)
    probes = console.listed_images(images)
    if explain is not None:
        require_place(explain, len(probes))
    console.note_unfinished_build(opened)
    if reject:
        console.note_old_threshold(opened)
    retriever = Retriever(opened, None if encoder is None else Encoder.load(encoder), device=device)
    with console.progress_bar("classifying") as progress:
        options: dict[str, Any] = {"k": k, "by": by, "weighting": weighting, "reject": reject}
        options |= {"max_distance": max_distance}
        found = retriever.classify(list(map(str, probes)), strict=strict, progress=progress, **options)
    usable = [each for each in found if each.problem is None]
    if not usable:
        raise InputError(f"none of the {len(found)} images can be used")
    if explain is not None:
        write_explanations(usable, explain)
    calibration = usable[0].calibration
    assert calibration is not None
    about = {"gallery": str(gallery), **options, "calibration": calibration.to_dict()}
    write_answers([each.to_dict() for each in found], about, str(calibration), csv=csv, as_json=as_json)
