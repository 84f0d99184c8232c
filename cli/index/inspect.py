"""`distcam inspect`: questions about a gallery's own data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...errors import InputError
from ...remarks import remark
from .. import options
from ..command import Commands, refuse_unused
from ..console import print_json, progress_bar, require_file, say

if TYPE_CHECKING:
    from ...index import Gallery
    from ...index.inspection.findings import Findings
    from ...index.inspection.inspection import Inspection

app = Commands()
Asked = Literal["duplicates", "outliers", "mislabels", "leaks", "hard-negatives", "confusions", "all"]


@app.command(epilog="Example: `distcam inspect photos.gallery mislabels --csv wrong.csv --report wrong.html`")
def inspect(
    gallery: options.GalleryPath,
    question: Annotated[Asked, typer.Argument(help="The question; `all` is every one that fits the gallery.")] = "all",
    other: Annotated[
        Path | None, typer.Argument(help="Of leaks: the other gallery, such as the test set.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Expected share of wrong findings. Default: 0.03 of copies, 0.05 of outliers, 0.2 of labels."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Pairs listed of hard-negatives and confusions.")] = 100,
    look: Annotated[
        bool, typer.Option(help="Open the images of pairs that may be copies; else vectors decide, without crops.")
    ] = True,
    csv: Annotated[Path | None, typer.Option(help="Write every image of every finding to this FILE.csv.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the clearest findings, with maps on both images, to this FILE.html.")
    ] = None,
    shown: Annotated[int, typer.Option(min=1, help="With --report: findings shown of each question.")] = 20,
    encoder: options.GalleryEncoder = None,
    device: options.Device = "auto",
    strict: options.Strict = False,  # noqa: ARG001 - the command reads it
    as_json: options.AsJson = False,
) -> None:
    """Ask a gallery about its own data: copies, outliers, labels that neighbours outvote, leaks, confusions.

    Every threshold is calibrated on the gallery itself. Nothing is changed.
    """
    from ...index import Gallery
    from ...index.inspection.findings import write_csv

    if (other is None) == (question == "leaks") and question != "all":
        raise InputError("leaks are looked for between two galleries: `distcam inspect TRAIN leaks TEST`")
    if question in ("hard-negatives", "confusions"):
        refuse_unused(f"by {question}", "rate", "look")
    elif question != "all":
        refuse_unused(f"by {question}", "most", *([] if question in ("duplicates", "leaks") else ["look"]))
    if report is None:
        refuse_unused("without --report", "shown", "encoder", "device", remedy="add --report FILE.html")
    for file in (csv, report):
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{file}: there is no such folder")
    require_file(encoder, "--encoder")
    opened = Gallery.open(gallery)
    beside = None if other is None else Gallery.open(other)
    with progress_bar("looking") as progress:
        answers = _answers(opened.inspect(look=look, progress=progress), question, beside, rate, most)
    if csv is not None:
        write_csv(csv, answers)
    if report is not None and any(answers):
        from ...encoders import Encoder
        from ...retrieval import Retriever
        from ...retrieval.inspection import write_inspection

        asked = Retriever(opened, None if encoder is None else Encoder.load(encoder), device=device)
        write_inspection(report, asked, answers, other=beside, most=shown)
    if as_json:
        print_json({"gallery": str(gallery), "answers": [answer.to_dict() for answer in answers]})
        return
    for answer in answers:
        say(str(answer))
    for file in (csv, report if any(answers) else None):
        if file is not None:
            say(f"written: {file}")


def _answers(
    asked: Inspection, question: Asked, other: Gallery | None, rate: float | None, most: int
) -> list[Findings]:
    """The answers to one question, or to all that the gallery's labels and the other gallery allow."""
    rates: dict[str, float] = {} if rate is None else {"rate": rate}
    unlabelled: dict[str, Callable[[], Findings]] = {
        "duplicates": lambda: asked.duplicates(**rates),
        "outliers": lambda: asked.outliers(**rates),
    }
    labelled: dict[str, Callable[[], Findings]] = {
        "mislabels": lambda: asked.mislabels(**rates),
        "hard-negatives": lambda: asked.hard_negatives(most=most),
        "confusions": lambda: asked.confusions(most=most),
    }
    across: dict[str, Callable[[], Findings]] = {} if other is None else {"leaks": lambda: asked.leaks(other, **rates)}
    if question != "all":
        return [{**unlabelled, **labelled, **across}[question]()]
    if len(asked.gallery.labels) < 2:
        remark("the gallery has fewer than two classes: nothing is asked about labels")
        labelled = {}
    return [answer() for answer in {**unlabelled, **labelled, **across}.values()]
