"""`distcam index tune` and `calibrate`: the search index and the threshold of a match, chosen by measuring."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ...errors import InputError
from ...remarks import counted, remark
from .. import library
from ..command import refuse_unused
from ..console import (
    answer,
    load_retriever,
    note,
    out,
    print_json,
    progress_bar,
    require_file,
    require_images,
    resumable,
    say,
)
from ..options import AsJson, Device, GalleryEncoder, GalleryPath, Labels, Strict, option

if TYPE_CHECKING:
    from torch import Tensor

    from ...images import ImageRecord
    from ...index import Gallery, TuningReport

TUNE_EXAMPLE = "Example: `distcam index tune photos.gallery --memory 4G --recall 0.97 --latency-ms 5`"
CALIBRATE_EXAMPLE = (
    "Example: `distcam index calibrate photos.gallery --queries validation/ --false-alarms 0.01`, then "
    "`distcam query photos.gallery probe.jpg --reject`"
)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def tune(
    gallery: GalleryPath,
    recall: float = option(0.97, "Share of the true ten neighbours that have to be found."),
    memory: str | None = option(None, "What index and ids may take: 4G, 500M. Default: half of the machine's memory."),
    latency_ms: float | None = option(
        None, "What a single query may take; the smallest such index wins. Default: the quickest wins."
    ),
    queries: int = option(500, "How many stored images ask, each without itself.", min=1),
    candidates: list[str] | None = option(
        None, "A FAISS factory string to try, such as `IVF4096,SQ8`; repeatable. Default: by size."
    ),
    seed: int = option(0, "Of the draw of queries and of the training."),
    device: Device = "auto",
    dry_run: bool = option(False, "Measure, and leave the gallery as it is.", "--dry-run"),
    as_json: AsJson = False,
) -> None:
    """Try search indexes on the gallery's own vectors and keep the cheapest that is good enough.

    Matches are re-scored exactly whatever the index: it decides only which true neighbours may be missed.
    """
    opened = library.index.Gallery.open(gallery)
    with resumable("the gallery is as it was"), progress_bar("trying indexes") as progress:
        report = opened.tune(
            recall=recall,
            memory=None if memory is None else read_size(memory),
            latency_ms=latency_ms,
            candidates=candidates,
            queries=queries,
            seed=seed,
            device=device,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json({"gallery": str(gallery), "stored": not dry_run, **report.to_dict()})
        return
    out.print(trials_table(report), width=max(out.width, 100), crop=False)
    say(str(report) + (" (not stored)" if dry_run else ""))


def read_size(text: str) -> int:
    """A number of bytes: `4G`, `500M`, `1.5GiB`; K, M, G and T are powers of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise InputError(f"expected a size such as 4G or 500M, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def trials_table(report: TuningReport) -> Table:
    """One row for each candidate, the chosen one marked; bytes are per vector, milliseconds per query."""
    title = Text(f"{counted(report.tuning.images, 'image')}, {report.tuning.queries} queries; recall after re-scoring")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("index", no_wrap=True)
    for name in ("bytes", "build s", "@1", "@10", "@100", "ms", "p95", "batch", "fetch", "effort"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for trial in report.trials:
        found, is_chosen = trial.tuning, trial.tuning is report.tuning
        room = f"{trial.total_bytes / report.tuning.images:.0f}" if trial.total_bytes else "–"
        cells = [trial.factory, room, *[""] * 9]
        if found is not None:
            cells[2:] = [
                f"{found.build_seconds:.1f}",
                *(f"{value:.3f}" for value in (found.recall_at_1, found.recall_at_10, found.recall_at_100)),
                *(f"{value:.2f}" for value in (found.latency_ms, found.latency_p95_ms, found.batch_ms)),
                f"×{found.overfetch}",
                "" if found.effort is None else str(found.effort),
            ]
        verdict = "chosen" if is_chosen else f"beyond {trial.note}" if found is not None and trial.note else trial.note
        table.add_row(*(Text(cell, style="bold" if is_chosen else "") for cell in (*cells, verdict)))
    return table


def calibrate(
    gallery: GalleryPath,
    queries: str | None = option(
        None, "Labelled images that are not in the gallery. Default: its own images, each without itself."
    ),
    false_alarms: float = option(0.01, "Share of unknown queries that may pass."),
    exclude_same: str | None = option(
        None, "A column, e.g. `camera`: images of a query's class that share it do not count."
    ),
    verify: str | None = option(
        None,
        "Instead measure on the gallery's labelled images whether `query --verify 20` helps, and keep the calibration: "
        "`20`, `lines:20`.",
    ),
    lines: bool = option(False, "Instead keep what lines of this gallery are measured against.", "--lines"),
    labels: Labels = None,
    encoder: GalleryEncoder = None,
    explanations: bool = option(
        False,
        "Choose the weighting that explains matches instead, by composites as in `benchmark explanations`.",
        "--explanations",
    ),
    composites: int = option(100, "With --explanations: images of two photographs.", min=2),
    device: Device = "auto",
    seed: int = option(0, "Of the draw among the gallery's own images."),
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Choose from which distance on nothing is a match, and store it with its error rates in the gallery."""
    if verify is not None or lines:
        unused = ("queries", "false_alarms", "labels", "strict", "max_pixels", "explanations", "composites")
        refuse_unused("with --verify or --lines", *unused)
        _calibrate_lines(
            library.index.Gallery.open(gallery), verify, exclude_same, encoder, device, seed=seed, as_json=as_json
        )
        return
    if explanations:
        branch = "with --explanations"
        refuse_unused(branch, "false_alarms", "exclude_same", "encoder")
        from ...retrieval.localisation import explanations as measured

        opened = library.index.Gallery.open(gallery)
        given = None if queries is None else library.images.list_images(queries, labels=labels)
        asked, references = measured.from_gallery(opened, given, 2 * composites, seed=seed)
        with progress_bar("composites") as progress:
            table = measured.benchmark_explanations(
                asked,
                measured.gallery_encoder(opened),
                references,
                composites=composites,
                methods=measured.weightings_to_choose(references),
                faithful=0,
                device=device,
                precision=opened.manifest.encoder.precision or "auto",
                seed=seed,
                strict=strict,
                progress=progress,
            )
        choice = table.choice(generation=opened.manifest.generation)
        opened.choose_maps(choice)
        said = "nothing is better beyond chance than distcam's default, which explains matches of this gallery"
        answer({"map_choice": choice and asdict(choice)}, str(choice or said), as_json=as_json)
        return
    refuse_unused("without --explanations", "composites")
    if queries is None:
        by, others = "by the gallery's own images", ("labels", "encoder", "device", "strict", "max_pixels")
        refuse_unused(by, *others, remedy="add --queries IMAGES")
    else:
        refuse_unused("with --queries, which all ask", "seed")
        require_file(encoder, "--encoder")
        require_images([queries])
    opened = library.index.Gallery.open(gallery)
    options: dict[str, Any] = {"false_alarm_rate": false_alarms, "exclude_same": exclude_same, "seed": seed}
    if queries is not None:
        with progress_bar("encoding queries"):
            options |= _encoded_probes(
                opened, queries, labels=labels, column=exclude_same, encoder=encoder, device=device, strict=strict
            )
    with progress_bar("calibrating"):
        rejection = opened.calibrate(**options)
    if as_json:
        print_json(asdict(rejection))
        return
    say(str(rejection))
    if rejection.identification_rate < 0.5 * rejection.closed_set_rate:
        note(
            f"this threshold turns away more than half of what would be identified without one; more false alarms, "
            f"such as --false-alarms {min(5 * rejection.target, 0.5):g}, let more of it pass"
        )
    if not rejection.is_resolved:
        note(f"{rejection.n_unknown} unknown probes cannot tell {rejection.target:.2%} from none at all")


def _calibrate_lines(
    gallery: Gallery,
    verify: str | None,
    exclude_same: str | None,
    encoder: str | None,
    device: str,
    *,
    seed: int,
    as_json: bool,
) -> None:
    """The scale of the gallery's lines, and with `verify` whether sorting matches anew helps; both are kept."""
    from ...retrieval.line_calibration import calibrate_verification

    require_file(encoder, "--encoder")
    retriever = load_retriever(gallery, encoder, device)
    with progress_bar("looking for lines") as progress:
        scale = retriever.lines.keep()
        found = None
        if verify is not None:
            found = calibrate_verification(
                retriever, verify=verify, exclude_same=exclude_same, seed=seed, progress=progress
            )
    kept = {"layer": scale.layer, "null": scale.null, "pairs": scale.pairs}
    median, _, highest = scale.null
    text = (
        f"lines from {scale.layer or 'the last map'}: places that lie alike on "
        + (f"{scale.pairs} pairs of unrelated images of the gallery" if scale.pairs else "unrelated images elsewhere")
        + f": median {median}, 99 % quantile {highest}"
        + ("" if scale.pairs else "; the gallery's are too few to measure")
        + ("" if found is None else f"\n{found}")
    )
    answer(kept if found is None else kept | asdict(found), text, as_json=as_json)


def _encoded_probes(
    gallery: Gallery,
    queries: str,
    *,
    labels: str | None,
    column: str | None,
    encoder: str | None,
    device: str,
    strict: bool,
) -> dict[str, Any]:
    """Labelled images, encoded as the gallery was, for `Gallery.calibrate`; those that cannot be used are left out."""
    import numpy as np

    from ...images.items import item_of, widened
    from ...index.sync.sync import LazyEncoder
    from ...retrieval.localisation.references import photographs

    loaded = LazyEncoder(gallery, encoder)()
    listing = library.images.list_items(queries, labels=labels)
    if column is not None and column not in listing.column_names:
        raise InputError(f"{queries} has no column {column!r}; it has {', '.join(listing.column_names) or 'none'}")
    photographs(listing, strict=strict)
    records = [record for record in listing if record.label is not None]
    inference = library.encoders.Inference(
        loaded, device=device, precision=gallery.manifest.encoder.precision or "auto"
    )
    margin = gallery.manifest.box_margin

    def read(record: ImageRecord) -> Tensor:
        return inference.read(widened(item_of(listing.file(record), record.box), margin))

    known, vectors, failures = [], [], []
    for batch in inference.stream(records, load=read, maps=False):
        failures += [f"{failure.item.path}: {failure.error.reason}" for failure in batch.failures]
        if batch.encoding is not None:
            known += batch.items
            vectors.append(batch.encoding.embedding.cpu().numpy())
    if not known:
        raise InputError(f"none of the images of {queries} can be used; {failures[0]}")
    if failures:
        count = f"{len(failures):,} of {len(records):,} queries"
        remark(f"{count} cannot be read and are left out, the first: {failures[0]}")
    return {
        "embeddings": np.concatenate(vectors),
        "labels": [record.label for record in known],
        "groups": None if column is None else [record.columns[column] for record in known],
        "source": f"{counted(len(known), 'image')} of {queries}",
    }
