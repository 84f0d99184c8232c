"""`distcam inspect`: questions about a gallery's own data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import InputError
from ...remarks import remark
from .. import library
from ..command import Commands, refuse_unused
from ..console import answer, load_retriever, progress_bar, require_file
from ..options import AsJson, Device, GalleryEncoder, GalleryPath, Strict, argument, option

if TYPE_CHECKING:
    from ...index import Gallery
    from ...index.inspection.findings import Findings
    from ...index.inspection.inspection import Inspection

app = Commands()
Asked = Literal["duplicates", "outliers", "mislabels", "leaks", "hard-negatives", "confusions", "all"]


@app.command(epilog="Example: `distcam inspect photos.gallery mislabels --csv wrong.csv --report wrong.html`")
def inspect(
    gallery: GalleryPath,
    question: Asked = argument("all", "The question; `all` is every one that fits the gallery."),
    other: Path | None = argument(None, "Of leaks: the other gallery, such as the test set.", show_default=False),
    rate: float | None = option(
        None, "Expected share of wrong findings. Default: 0.03 of copies, 0.05 of outliers, 0.2 of labels."
    ),
    most: int = option(100, "Pairs listed of hard-negatives and confusions.", min=1),
    look: bool = option(True, "Open the images of pairs that may be copies; else vectors decide, without crops."),
    csv: Path | None = option(None, "Write every image of every finding to this FILE.csv."),
    report: Path | None = option(None, "Write the clearest findings, with maps on both images, to this FILE.html."),
    shown: int = option(20, "With --report: findings shown of each question.", min=1),
    encoder: GalleryEncoder = None,
    device: Device = "auto",
    strict: Strict = False,  # noqa: ARG001 - the command reads it
    as_json: AsJson = False,
) -> None:
    """Ask a gallery about its own data: copies, outliers, labels that neighbours outvote, leaks, confusions.

    Every threshold is calibrated on the gallery itself. Nothing is changed.
    """
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
    opened = library.index.Gallery.open(gallery)
    beside = None if other is None else library.index.Gallery.open(other)
    with progress_bar("looking") as progress:
        answers = _answers(opened.inspect(look=look, progress=progress), question, beside, rate, most)
    if csv is not None:
        write_csv(csv, answers)
    if report is not None and any(answers):
        from ...retrieval.inspection import write_inspection

        asked = load_retriever(opened, encoder, device)
        write_inspection(report, asked, answers, other=beside, most=shown)
    content = {"gallery": str(gallery), "answers": [each.to_dict() for each in answers]}
    files = (csv, report if any(answers) else None)
    answer(content, "\n".join(map(str, answers)), as_json=as_json, written=files)


def _answers(
    asked: Inspection, question: Asked, other: Gallery | None, rate: float | None, most: int
) -> list[Findings]:
    """The answers to one question, or to all that the gallery's labels and the other gallery allow."""
    rates, numbers = {} if rate is None else {"rate": rate}, {"most": most}
    known: dict[str, Callable[[], Findings]] = {"duplicates": partial(asked.duplicates, **rates)}
    known["outliers"] = partial(asked.outliers, **rates)
    if question != "all" or len(asked.gallery.labels) > 1:
        known["mislabels"] = partial(asked.mislabels, **rates)
        known["hard-negatives"] = partial(asked.hard_negatives, **numbers)
        known["confusions"] = partial(asked.confusions, **numbers)
    else:
        remark("the gallery has fewer than two classes: nothing is asked about labels")
    if other is not None:
        known["leaks"] = partial(asked.leaks, other, **rates)
    return [answer() for name, answer in known.items() if question in ("all", name)]
