"""`distcam index …`: build a gallery, change it, and look after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from ...errors import InputError
from ...remarks import counted
from .. import console, library, options
from ..command import Commands, refuse_unused
from ..options import argument, option

if TYPE_CHECKING:
    from ...index import Gallery

app = Commands(no_args_is_help=True)


@app.command(
    cls=options.ReadsImages,
    epilog="Example: `distcam index build photos/ --out photos.gallery --encoder mobilenet_v2 --weights imagenet`",
)
def build(
    images: options.Images,
    *,
    out_path: Path = option(..., "The gallery's folder; a stopped build resumes.", "--out"),
    encoder: options.EncoderName = "resnet50",
    loading: options.Loading,
    labels: options.Labels = None,
    store_maps: options.StoreMaps = False,
    store_lines: bool = option(
        False,
        "Keep fine maps too (half precision, 50-200 KB an image), and the maps of --store-maps: lines and "
        "`query --verify` then encode nothing but the query.",
        "--store-lines",
    ),
    fine_layer: options.FineLayer = "auto",
    masks: Path | None = option(
        None,
        "A FOLDER with a mask for each image (same path, .png): vectors are pooled under the masks, of images without "
        "one over the whole image (with --strict an error).",
    ),
    mask_class: int | None = option(
        None, "The number that marks the object in the masks. Default: all that is not black.", min=0, max=255
    ),
    boxed: options.BoxOptions,
    box_margin: float = option(
        0.0, "Cut boxes out wider by this share of their width and height on every side; kept.", min=0
    ),
    metric: options.Metric = "cosine",
    running: options.Running,
    index: options.Index = "auto",
    backend: str | None = option(
        None,
        "Keep vectors and metadata in Milvus: `milvus://HOST:19530/COLLECTION` (or `milvus+tls://…`). The token comes "
        "from DISTCAM_MILVUS_TOKEN=TOKEN@HOST.",
    ),
    overwrite: bool = option(False, "Replace a finished gallery at --out.", "--overwrite"),
    engine: Literal["local", "ray"] = option("local", "`ray` encodes on a cluster (pip install 'distcam[ray]')."),
    ray_address: str | None = option(
        None, "With --engine ray: the cluster, e.g. `auto`. Default: Ray on this machine."
    ),
    ray_workers: int | None = option(None, "With --engine ray: encoders at work at once.", min=1),
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Encode images and write them, with their pooled vectors and labels, as a gallery."""
    where: Literal["local"] | library.index.RayEngine = "local"
    if engine == "ray":
        where = library.index.RayEngine(ray_address, ray_workers)
    else:
        refuse_unused("by the local engine", "ray_address", "ray_workers", remedy="add --engine ray")
    if masks is None:
        refuse_unused("without --masks", "mask_class", remedy="add --masks FOLDER")
    if not store_lines:
        refuse_unused("without --store-lines", "fine_layer", remedy="add --store-lines")
    loading.require(encoder)
    console.require_images([images])
    with console.resumable(), console.progress_bar("building") as progress:
        loaded = loading.load(encoder)
        gallery = library.index.Gallery.build(
            images,
            loaded,
            out=out_path,
            metric=metric,
            labels=labels,
            store_maps=store_maps,
            store_lines=fine_layer if store_lines else False,
            masks=masks,
            mask_class=mask_class,
            boxes=boxed.source,
            box_margin=box_margin,
            **vars(running),
            index=index,
            backend=backend,
            overwrite=overwrite,
            strict=strict,
            progress=progress,
            engine=where,
        )
        if store_lines:
            library.retrieval.Retriever(gallery, loaded, device=running.device).lines.keep()
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
    *,
    encoder: options.GalleryEncoder = None,
    labels: options.Labels = None,
    boxed: options.BoxOptions,
    running: options.Running,
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Add images: new ones are encoded, changed ones replaced, known ones left alone."""
    console.require_file(encoder, "--encoder")
    opened = library.index.Gallery.open(gallery)
    console.require_images([images])
    from ...index.sync.sync import LazyEncoder

    loaded = LazyEncoder(opened, encoder)()
    with console.progress_bar("adding") as progress, console.resumable():
        report = opened.add(
            images,
            loaded,
            labels=labels,
            boxes=boxed.source,
            **vars(running),
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
    images: list[str] | None = argument(
        None, "Paths of images, as the gallery lists them or where they lie.", show_default=False
    ),
    path: list[str] | None = option(None, "The same as an option; repeatable."),
    where: str | None = option(None, "A filter, e.g. `label=cat` or `year<2020 and camera!=3`."),
    as_json: options.AsJson = False,
) -> None:
    """Remove images by path or by a filter; nothing is rebuilt."""
    paths = [*(images or ()), *(path or ())]
    if bool(paths) == (where is not None):
        raise InputError("say what to remove: paths of images, or --where FILTER; one of both")
    opened = library.index.Gallery.open(gallery)
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
    skipped: bool = option(False, "Also list every file that could not be used, with the reason.", "--skipped"),
    as_json: options.AsJson = False,
) -> None:
    """Show what a gallery holds and which encoder built it."""
    opened = library.index.Gallery.open(gallery, verify=False)
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
    repair: bool = option(False, "Set damaged files aside, drop damaged caches, sweep up.", "--repair"),
    as_json: options.AsJson = False,
) -> None:
    """Check every file of a gallery: checksums, structure, values, counts.

    Exit status 1 when something is wrong; with --repair, when it could not be mended without loss.
    """
    report = library.index.verify_gallery(gallery, repair=repair)
    console.answer(report.to_dict(), str(report), as_json=as_json)
    raise typer.Exit(0 if report.is_sound and not report.has_losses else 1)


@app.command(epilog="Example: `distcam index compact photos.gallery`")
def compact(gallery: options.GalleryPath, as_json: options.AsJson = False) -> None:
    """Merge small segments and drop removed images from disk."""
    opened = library.index.Gallery.open(gallery)
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
