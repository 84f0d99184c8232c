"""`distcam query`: which of these is this, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from ..errors import ImageError, InputError
from ..explain.weightings import Mean, Weighting
from . import console, library, options
from .command import Commands, refuse_unused
from .options import argument, option
from .writing import DRAWINGS, require_place, write_explanations

app = Commands()
EXAMPLE = "Example: `distcam query photos.gallery probe.jpg -k 5 --explain why.html`"
_UNUSED_BY = {".html": ("style", "scale", "colours"), ".npz": ("style", "scale", "colours", "lines")}


@app.command(cls=options.ReadsImages, epilog=EXAMPLE)
def query(
    gallery: options.GalleryPath,
    images: list[str] | None = argument(
        None,
        "Query images, folders of images, CSVs with a column path, or quoted globs; all are encoded together.",
        show_default=False,
    ),
    text: list[str] | None = option(
        None, "Ask with words (an encoder with a text tower); once with images or --id, else several times."
    ),
    text_weight: float = option(0.5, "With images: the text's share in the mean of the two unit vectors."),
    ids: list[int] | None = option(
        None, "Ask with an image of the gallery instead; may be given several times.", "--id", min=0
    ),
    k: int = option(10, "How many matches.", "-k", min=1),
    where: str | None = option(None, "Only gallery images that fit, e.g. `label=cat and year>=2020`."),
    region: str | None = option(
        None, "Search for a part of each query only: `x1,y1,x2,y2` in its pixels, or `mask:FILE`."
    ),
    mask: Path | None = option(
        None, "Search for what a mask marks: MASK.png, or a FOLDER with NAME.png for each query NAME.jpg."
    ),
    mask_class: int | None = option(
        None, "The number that marks the object in the mask. Default: all but black.", min=0, max=255
    ),
    reject: bool = option(False, 'Say "no match" beyond the threshold of `distcam index calibrate`.', "--reject"),
    max_distance: float | None = option(None, "The same with another threshold."),
    against: str = option(
        "match",
        "Explain against every `match`, one (`rank:2`), the nearest class `prototype`, or a class LABEL (`label:match` "
        "if it is called match).",
    ),
    versus: str | None = option(
        None, "Show what speaks for --against rather than for this `rank:2`, `prototype`, or LABEL."
    ),
    point: str | None = option(
        None, "With a folder: where each match answers the point `x,y` of the query, in its pixels."
    ),
    weighting: Weighting | None = option(
        None,
        "How channels are weighted: `root_ratio` shows what sets the match apart, `gradcam_cos` which of several "
        "objects is meant; `dist` is Dist-CAM, which always stands beside. Default: what `index calibrate "
        "--explanations` found, else `root_ratio`.",
    ),
    mean: Mean = option(
        "auto",
        "What `root_ratio` takes off: the gallery's mean, the mean of its images' borders, the larger of both (max), "
        "or half of each; auto chooses by what is explained.",
    ),
    detail: Literal["auto", "plain", "fine", "finer"] = option(
        "auto",
        "Rows and columns of the maps: fine dilates the last stage of a CNN (twice as many, 1.3 to 1.5 passes more), "
        "finer takes a larger image, whose vector differs a little; auto does that for elongated images, without their "
        "margins, and else explains the pass that ranks, as plain does for all.",
    ),
    space: Literal["metric", "backbone"] = option(
        "metric", "Explain the space that ranks, or the features before the head."
    ),
    explain: Path | None = option(
        None,
        "Write the maps: OUT.html (one report), OUT.png or OUT.npz (of one query), or a folder of PNG and NPZ files.",
    ),
    style: Literal["overlay", "contour", "box"] = option("overlay", "With a folder: how maps are drawn."),
    scale: Literal["each", "shared"] = option("each", "With a folder: each map on its own scale, or one for all."),
    colours: Literal["inferno", "viridis", "gray", "blue-orange"] | None = option(
        None, "With a folder. `blue-orange` has 0 in the middle and is what --versus takes."
    ),
    lines: bool = option(
        False, "With --explain: which place of the query answers which of each match, as lines.", "--lines"
    ),
    verify: str | None = option(
        None,
        "Sort the first K matches anew by lines, for instances (the same individual, object, place), not for classes: "
        "`20`, `lines:20`; `lightglue:20` and `loftr:20` by kornia's matchers.",
    ),
    fine_layer: options.FineLayer = "auto",
    encoder: options.GalleryEncoder = None,
    root: options.Root = None,
    device: options.Device = "auto",
    server: str | None = option(
        None,
        "Ask a running `distcam serve` by its URL, in a tenth of the time; `auto` asks the one at port 8000 of this "
        "machine, if it serves the gallery. Its read token, if it has one: DISTCAM_READ_TOKEN.",
    ),
    strict: options.Strict = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the nearest gallery images of each query, and explain every match."""
    if bool(images) + bool(ids) != 1 and (images or not text):
        raise InputError("expected query images, or --id for images of the gallery, or --text; give one of them")
    has_area, words = region is not None or mask is not None, None
    if text and (images or ids):
        if len(text) > 1:
            raise InputError(f"images are joined with one --text, got {len(text)}")
        words = text[0]
    else:
        refuse_unused("without an image to join with --text", "text_weight")
        if text and has_area:
            raise InputError("--region and --mask say which part of an image to search for, and --text is none")
    if ids and mask is not None and mask.is_dir():
        raise InputError("--id asks with images of the gallery; give them one --mask FILE, not a folder")
    if explain is None:
        refuse_unused(
            "without --explain", "against", "versus", "weighting", "mean", "detail", "space", "point", "style",
            "scale", "colours", "lines", remedy="add --explain OUT.html or a folder",
        )  # fmt: skip
        if not ids or not has_area:
            refuse_unused("where no image of the gallery is opened", "root", remedy="add --explain, or leave it out")
        if ids and not has_area and words is None:
            kept = "where nothing is encoded: the gallery keeps the vectors of its images"
            refuse_unused(kept, "device", "max_pixels")
    elif explain.suffix.lower() not in ("", ".html", *DRAWINGS, ".npz"):
        raise InputError(f"--explain writes OUT.html, OUT.png, OUT.npz or a folder, not {explain.name}")
    elif explain.suffix:
        whom = "the report, which has its own switches" if explain.suffix.lower() == ".html" else "one file"
        unused = _UNUSED_BY.get(explain.suffix.lower(), ())
        refuse_unused(f"by {whom}", "point", *unused, remedy="give --explain a folder")
    if weighting not in (None, "root_ratio"):
        refuse_unused(f"by the weighting {weighting}", "mean")
    if style != "overlay" and colours != "blue-orange":
        refuse_unused(f"by the style {style}, which draws lines", "colours")
    if mask is None:
        refuse_unused("without --mask", "mask_class", remedy="add --mask FILE or FOLDER")
    if text and words is None:
        refuse_unused("by a text, which has no places", "lines", "verify", "point")
    if against != "match" and not against.startswith("rank:"):
        refuse_unused(f"by --against {against}, which is no image", "lines")
    if not lines and verify is None:
        refuse_unused("without --lines or --verify", "fine_layer", remedy="add --lines, or leave it out")
    asked: dict[str, Any] = {"k": k, "where": where, "reject": reject, "max_distance": max_distance}
    if server is not None:
        from .client import is_answered

        sent: dict[str, Any] = {"region": region, "text_weight": text_weight, "as_json": as_json}
        if is_answered(server, gallery, (images or [], ids or [], text or []), **sent, **asked):
            return
    console.require_file(encoder, "--encoder")
    console.require_file(mask, "--mask", also=" or FOLDER")
    opened = library.index.Gallery.open(gallery, root=root)
    probes = console.listed_images(images or (), margin=opened.manifest.box_margin)
    if explain is not None:
        require_place(explain, len(ids or probes or text or ()))
    for hint in opened.filter_hints(where) if where is not None else ():
        console.note(hint)
    console.note_unfinished_build(opened)
    if reject:
        console.note_old_threshold(opened)
    from ..retrieval.ranking import UnknownInference

    if ids and encoder is None and opened.encoder_path is None:
        unknown = UnknownInference(opened.manifest.encoder)
        retriever = library.retrieval.Retriever(opened, unknown.encoder, inference=unknown)
    else:
        retriever = console.load_retriever(opened, encoder, device, fine_layer=fine_layer)
        if lines:
            _ = retriever.lines.layer  # read in the queries' own pass
    asked |= {"verify": verify}
    asked |= {} if text and words is None else {"text": words, "text_weight": text_weight}
    skipped: list[str] = []
    if text and words is None:
        results = retriever.query_text(text, **asked)
    elif ids:
        area = _area([], region, mask, mask_class)
        results = [retriever.query_stored(image, region=area, **asked) for image in ids]
    else:
        try:
            results = retriever.query(probes, region=_area(probes, region, mask, mask_class), **asked)
        except ImageError:
            if strict or len(probes) == 1:
                raise
            probes, skipped = console.readable_images(probes)
            results = retriever.query(probes, region=_area(probes, region, mask, mask_class), **asked)
    if explain is not None:
        wanted: dict[str, Any] = {"against": against, "versus": versus, "weighting": weighting}
        wanted |= {"mean": mean, "space": space, "detail": detail}
        colours = colours or ("inferno" if versus is None else "blue-orange")
        drawn: dict[str, Any] = {"style": style, "scale": scale, "colours": colours}
        place = None if point is None else options.read_point(point)
        write_explanations(results, explain, drawn, place, lines=lines, **wanted)
    if as_json:
        console.print_json([matches.to_dict() for matches in results])
    else:
        for matches in results:
            matches.show(console.out)
        if explain is not None:
            console.say(f"explanations: {explain}")
    if skipped:
        raise typer.Exit(1)


def _area(images: list[str], region: str | None, mask: Path | None, mask_class: int | None) -> Any:
    """The part of the queries that is searched for: None for all of them, a box, one mask, or one for each."""
    from ..images.masks import read_mask
    from ..retrieval.evidence import region_of_file

    if mask is None:
        if region is None:
            return None
        kind, _, file = region.partition(":")
        return read_mask(file) if kind == "mask" and file else options.read_box(region)
    if region is not None:
        raise InputError("--region and --mask both say which part to search for; give one of them")
    if not mask.is_dir():
        return region_of_file(mask, category=mask_class)
    files = [mask / f"{Path(image).stem}.png" for image in images]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{mask} holds no mask {missing.name}; every query needs one")
    return [region_of_file(file, category=mask_class) for file in files]
