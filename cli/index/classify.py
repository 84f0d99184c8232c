"""`distcam classify`: an answer for each image, with its confidence and the map of what decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError
from ...metrics.prediction import By, Votes
from .. import console, library, options
from ..command import Commands, refuse_unused
from ..options import argument, option
from ..writing import require_place, write_answers, write_explanations

app = Commands()
EXAMPLE = "Example: `distcam classify photos.gallery new_photos/ --csv answers.csv --explain why/`"


@app.command(cls=options.ReadsImages, epilog=EXAMPLE)
def classify(
    gallery: options.GalleryPath,
    images: list[str] = argument(
        ..., "Images, folders of images, CSVs with a column path, or quoted globs.", show_default=False
    ),
    csv: options.AnswersCsv = None,
    k: int = option(5, "Neighbours that vote.", "-k", "--k", min=1),
    by: By = option(
        "both", "Votes of neighbours, the nearest class mean, or both, each as the gallery's images trust it."
    ),
    weighting: Votes = option("distance", "Neighbours count alike, or the nearer the more."),
    reject: bool = option(False, "No class beyond the threshold of `distcam index calibrate`.", "--reject"),
    max_distance: float | None = option(None, "The same with another threshold."),
    explain: Path | None = option(
        None, "Write each answer's map, on the image and on what decided: OUT.html, OUT.png or a folder."
    ),
    encoder: options.GalleryEncoder = None,
    root: options.Root = None,
    device: options.Device = "auto",
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Name the class of each image, with calibrated confidence and the map of what decided."""
    if by == "prototypes":
        refuse_unused("by prototypes alone, which are no neighbours", "k", "weighting")
    if explain is None:
        refuse_unused("without --explain", "root", remedy="add --explain OUT.html or a folder")
    console.require_file(encoder, "--encoder")
    opened = library.index.Gallery.open(gallery, root=root)
    probes = console.listed_images(images, margin=opened.manifest.box_margin)
    if explain is not None:
        require_place(explain, len(probes))
    console.note_unfinished_build(opened)
    if reject:
        console.note_old_threshold(opened)
    retriever = console.load_retriever(opened, encoder, device)
    with console.progress_bar("classifying") as progress:
        asked: dict[str, Any] = {"k": k, "by": by, "weighting": weighting, "reject": reject}
        asked |= {"max_distance": max_distance}
        found = retriever.classify(probes, strict=strict, progress=progress, **asked)
    usable = [each for each in found if each.problem is None]
    if not usable:
        raise InputError(f"none of the {len(found)} images can be used")
    if explain is not None:
        write_explanations(usable, explain)
    calibration = usable[0].calibration
    assert calibration is not None
    about = {"gallery": str(gallery), **asked, "calibration": calibration.to_dict()}
    write_answers([each.to_dict() for each in found], about, str(calibration), csv=csv, as_json=as_json)
