"""`distcam index …`: build a gallery, change it, and look after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import InputError
from ...remarks import counted
from .. import console, options
from ..command import Commands, refuse_unused

if TYPE_CHECKING:
    from ...index import Gallery, RayEngine

app = Commands(no_args_is_help=True)


@app.command(
    cls=options.ReadsImages,
    epilog="Example: `distcam index build photos/ --out photos.gallery --encoder mobilenet_v2 --weights imagenet`",
)
def build(
    images: options.Images,
    out_path: Annotated[Path, typer.Option("--out", help="The gallery's folder; a stopped build resumes.")],
    encoder: options.EncoderName = "resnet50",
    weights: options.Weights = None,
    layer: options.Layer = None,
    readout: options.Readout = None,
    fit: options.Fit = None,
    image_size: options.ImageSize = None,
    labels: options.Labels = None,
    store_maps: options.StoreMaps = False,
    store_lines: options.StoreLines = False,
    fine_layer: options.FineLayer = "auto",
    masks: options.Masks = None,
    mask_class: options.MaskClass = None,
    boxes: options.BoxFile = None,
    box_format: options.BoxFormat = None,
    box_confidence: options.BoxConfidence = None,
    box_margin: Annotated[
        float,
        typer.Option(min=0, help="Cut boxes out wider by this share of their width and height on every side; kept."),
    ] = 0.0,
    metric: options.Metric = "cosine",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    index: options.Index = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            help="Keep vectors and metadata in Milvus: `milvus://HOST:19530/COLLECTION` (or `milvus+tls://…`). "
            "The token comes from DISTCAM_MILVUS_TOKEN=TOKEN@HOST."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished gallery at --out.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="`ray` encodes on a cluster (pip install 'distcam[ray]').")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="With --engine ray: the cluster, e.g. `auto`. Default: Ray on this machine.")
    ] = None,
    ray_workers: Annotated[int | None, typer.Option(min=1, help="With --engine ray: encoders at work at once.")] = None,
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Encode images and write them, with their pooled vectors and labels, as a gallery."""
    from ...images import BoxSource
    from ...index import Gallery

    where: Literal["local"] | RayEngine = "local"
    if engine == "ray":
        from ...index import RayEngine

        where = RayEngine(ray_address, ray_workers)
    else:
        refuse_unused("by the local engine", "ray_address", "ray_workers", remedy="add --engine ray")
    if masks is None:
        refuse_unused("without --masks", "mask_class", remedy="add --masks FOLDER")
    if not store_lines:
        refuse_unused("without --store-lines", "fine_layer", remedy="add --store-lines")
    console.require_encoder(encoder, weights, layer)
    console.require_images([images])
    with console.resumable(), console.progress_bar("building") as progress:
        loaded = console.load_encoder(encoder, weights, fit=fit, size=image_size, layer=layer, readout=readout)
        gallery = Gallery.build(
            images,
            loaded,
            out=out_path,
            metric=metric,
            labels=labels,
            store_maps=store_maps,
            store_lines=fine_layer if store_lines else False,
            masks=masks,
            mask_class=mask_class,
            boxes=BoxSource(boxes, box_format, box_confidence),
            box_margin=box_margin,
            batch_size=batch_size,
            workers=workers,
            device=device,
            index=index,
            backend=backend,
            overwrite=overwrite,
            strict=strict,
            progress=progress,
            engine=where,
        )
        if store_lines:
            from ...retrieval import Retriever

            Retriever(gallery, loaded, device=device).lines.keep()
    if as_json:
        console.print_json({**gallery.info(), "skipped": [asdict(item) for item in gallery.skipped]})
        return
    seen_as = f"{loaded.transform.summary}, {gallery.manifest.encoder.precision}"
    console.say(f"{counted(len(gallery), 'image')} in {out_path}, encoded by {loaded.short_name}; {seen_as}")
    if names := gallery.labels:
        bare = len(gallery) - int(gallery.prototypes.counts.sum())
        classes = f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        console.say(classes + (f", {bare} images without a label" if bare else ""))
    else:
        console.say("no image has a label")
    say_boxes(gallery)
    if gallery.masks is not None:
        pooled = gallery.info()["masks"]
        console.say(f"vectors are pooled under masks: {pooled['images']} of them have one in {pooled['folder']}")
    console.report_skipped(gallery.skipped)


@app.command(cls=options.ReadsImages, epilog="Example: `distcam index add photos.gallery new_photos/`")
def add(
    gallery: options.GalleryPath,
    images: options.Images,
    encoder: options.GalleryEncoder = None,
    labels: options.Labels = None,
    boxes: options.BoxFile = None,
    box_format: options.BoxFormat = None,
    box_confidence: options.BoxConfidence = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Add images: new ones are encoded, changed ones replaced, known ones left alone."""
    from ...images import BoxSource
    from ...index import Gallery

    console.require_file(encoder, "--encoder")
    opened = Gallery.open(gallery)
    console.require_images([images])
    from ...index.sync.sync import LazyEncoder

    loaded = LazyEncoder(opened, encoder)()
    with console.progress_bar("adding") as progress, console.resumable():
        report = opened.add(
            images,
            loaded,
            labels=labels,
            boxes=BoxSource(boxes, box_format, box_confidence),
            batch_size=batch_size,
            workers=workers,
            device=device,
            strict=strict,
            progress=progress,
        )
    if as_json:
        console.print_json({"gallery": str(gallery), "images": len(opened), **report.to_dict()})
        return
    taken = f"{report.added} added, {report.replaced} replaced, {report.unchanged} already there"
    console.say(f"{taken}; now {counted(len(opened), 'image')}")
    console.report_skipped(report.skipped)
    note_what_is_due(opened)


@app.command(epilog="Example: `distcam index remove photos.gallery --where 'label=cat'`")
def remove(
    gallery: options.GalleryPath,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Paths of images, as the gallery lists them or where they lie.", show_default=False),
    ] = None,
    path: Annotated[list[str] | None, typer.Option(help="The same as an option; repeatable.")] = None,
    where: Annotated[str | None, typer.Option(help="A filter, e.g. `label=cat` or `year<2020 and camera!=3`.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove images by path or by a filter; nothing is rebuilt."""
    from ...index import Gallery

    paths = [*(images or ()), *(path or ())]
    if bool(paths) == (where is not None):
        raise InputError("say what to remove: paths of images, or --where FILTER; one of both")
    opened = Gallery.open(gallery)
    for hint in opened.filter_hints(where) if where is not None else ():
        console.note(hint)
    removed = opened.remove(paths=paths or None, where=where)
    if as_json:
        console.print_json({"gallery": str(gallery), "removed": removed, "images": len(opened)})
        return
    console.say(f"{removed} removed; {counted(len(opened), 'image')} left")
    note_what_is_due(opened)


@app.command(epilog="Example: `distcam index info photos.gallery --json`")
def info(
    gallery: options.GalleryPath,
    skipped: Annotated[
        bool, typer.Option("--skipped", help="Also list every file that could not be used, with the reason.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what a gallery holds and which encoder built it."""
    from ...index import Gallery

    opened = Gallery.open(gallery, verify=False)
    facts, left_out = opened.info(), opened.skipped if skipped else ()
    if as_json:
        console.print_json({**facts, **({"skipped_files": [asdict(item) for item in left_out]} if skipped else {})})
        return
    console.print_facts(str(gallery), dict(_flat(facts)))
    for item in left_out:
        console.say(f"{item.path}: {item.reason}")
    if facts["skipped"] and not skipped:
        console.say(f"{counted(facts['skipped'], 'file')} could not be used; --skipped lists them")


@app.command(epilog="Example: `distcam index verify photos.gallery --repair`")
def verify(
    gallery: options.GalleryPath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged files aside, drop damaged caches, sweep up.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check every file of a gallery: checksums, structure, values, counts.

    Exit status 1 when something is wrong; with --repair, when it could not be mended without loss.
    """
    from ...index import verify_gallery

    report = verify_gallery(gallery, repair=repair)
    console.answer(report.to_dict(), str(report), as_json=as_json)
    raise typer.Exit(0 if report.is_sound and not report.has_losses else 1)


@app.command(epilog="Example: `distcam index compact photos.gallery`")
def compact(gallery: options.GalleryPath, as_json: options.AsJson = False) -> None:
    """Merge small segments and drop removed images from disk."""
    from ...index import Gallery

    opened = Gallery.open(gallery)
    before = opened.info()["bytes"]
    opened.compact()
    after = opened.info()["bytes"]
    content = {"gallery": str(gallery), "images": len(opened), "bytes_before": before, "bytes": after}
    text = f"{before / 2**20:.1f} MiB → {after / 2**20:.1f} MiB, {counted(len(opened), 'image')}"
    console.answer(content, text, as_json=as_json)


def say_boxes(gallery: Gallery) -> None:
    """Say how many images of a gallery are boxes, and how much wider they are cut out."""
    if boxes := gallery.info()["boxes"]:
        wider = f", each {boxes['margin']:.0%} wider on every side" if boxes["margin"] else ""
        console.say(f"{boxes['count']:,} of them are boxes of {counted(boxes['files'], 'file')}{wider}")


def note_what_is_due(gallery: Gallery) -> None:
    """Say on stderr when the tuning does not fit the gallery any more."""
    if gallery.is_tuning_due:
        console.note(
            f"the index was tuned for a gallery of another size; run `distcam index tune {gallery.folder}` again"
        )


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
