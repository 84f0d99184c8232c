"""`distcam explain`: which part of an image speaks for a class, for these pixels, or for this match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError
from .. import library
from ..command import Commands, refuse_unused
from ..console import (
    answer,
    err,
    load_encoder,
    note,
    out,
    print_json,
    require_encoder,
    require_file,
    require_images,
    say,
)
from ..options import AsJson, FitName, Loading, Metric, ReadsImages, argument, option, option_values
from ..writing import require_place
from .subjects import TARGETS, Subject, TargetText, encoder_subject, network_subject

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...encoders import Encoder
    from ...explain import ActivationMaps, DrawStyle, Faithfulness

app = Commands()
EXAMPLE = (
    "Example: `distcam explain cat.jpg --encoder mobilenet_v2 --weights FILE.pth --target class:tabby "
    "--method hirescam,gradcam --out why.png`"
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".html", ".npz")
Colours = Literal["inferno", "viridis", "gray", "blue-orange"]
Style = Literal["overlay", "contour", "box"]
Scale = Literal["each", "shared"]


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def explain(
    images: list[Path] = argument(..., "Images; each gets a row."),
    target: str = option(..., TARGETS),
    encoder: str | None = option(
        None,
        "A torchvision classifier (`class`) or segmentation network (`segment`), the file or RUN that training left of "
        "either, or any encoder or CHECKPOINT (`match`, `prototype`).",
    ),
    weights: str | None = option(None, "A FILE of weights, `imagenet` (torchvision's own, downloads), or `random`."),
    gallery: Path | None = option(None, "The gallery of `prototype`; it brings its encoder and metric."),
    method: str | None = option(
        None,
        "A method, several with commas (a column each), or `all`. Default: hirescam; of a match or prototype "
        "rootratio, what sets it apart from --gallery, with distcam beside it.",
    ),
    layer: str | None = option(
        None, "The layer to look at, several with commas (a column each). Default: the last with a map."
    ),
    readout: str | None = Loading.readout,
    option: list[str] | None = option(None, "An option of the method such as `window=3`, `relu=false`, `tau=0`."),
    classes: Path | None = option(None, "A text FILE with the name of a class on each line."),
    metric: Metric | None = option(None, "Of `match`: how vectors are compared. Default: cosine."),
    fit: FitName | None = Loading.fit,
    image_size: int | None = Loading.image_size,
    out_file: Path | None = option(None, "OUT.png, OUT.html, or OUT.npz (the raw maps).", "--out"),
    faithfulness: bool = option(
        False,
        "Also measure insertion minus deletion and ROAD, beside the class-agnostic map and a random order.",
        "--faithfulness",
    ),
    both: bool = option(False, "Of `match`: maps on both images, as `query --explain` draws them.", "--both"),
    lines: bool = option(False, "With --both: also which place of one image answers which of the other.", "--lines"),
    style: Style = option("overlay", "Draw colours, the line at half height, or a box."),
    scale: Scale = option("each", "Each map on its own scale, or one for all images."),
    colours: Colours = option("inferno", "`blue-orange` has 0 in the middle."),
    as_json: AsJson = False,
) -> None:
    """Show which part of each image speaks for a class, for a set of pixels, or for a match."""
    if out_file is not None and out_file.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out writes .png, .jpg, .html or .npz, not {out_file.name}")
    if out_file is None or out_file.suffix.lower() == ".npz":
        refuse_unused("where no image is drawn", "style", "scale", "colours", remedy="add --out OUT.png or OUT.html")
    if style != "overlay" and colours != "blue-orange":
        refuse_unused(f"by the style {style}, which draws lines", "colours")
    asked = TargetText.parse(target)
    of_network = asked.kind in ("class", "segment")
    if not both:
        refuse_unused("without --both", "lines", remedy="add --both")
    else:
        refuse_unused("with --both", "method", "layer", "option", "faithfulness")
        if asked.kind != "match" or encoder is None or gallery is not None:
            raise InputError("--both is for --target match:OTHER.jpg and --encoder; of a gallery ask `distcam query`")
        if out_file is not None and out_file.suffix.lower() == ".html":
            refuse_unused("by the report", "style", "scale", "colours")
    if of_network:
        refuse_unused(f"by the target {asked.kind}", "gallery", "metric", "readout")
    else:
        refuse_unused(f"by the target {asked.kind}", "classes")
        if gallery is None and (encoder is None or asked.kind == "prototype"):
            missing = "--encoder or --gallery" if encoder is None else "--gallery"
            raise InputError(f"--target {asked.kind} needs {missing}")
    if encoder is None:
        refuse_unused("by the encoder that a gallery brings", "weights", "readout", "fit", "image_size")
    elif not of_network or (weights is not None and not encoder.endswith(".safetensors")):
        require_encoder(encoder, weights)
    require_images([*images, *([asked.value] if asked.kind == "match" else [])])
    require_file(gallery, "--gallery")
    require_file(classes, "--classes")
    if both:
        assert encoder is not None
        drawn = {"style": style, "scale": scale, "colours": colours}
        loaded = load_encoder(encoder, weights, fit=fit, size=image_size, readout=readout)
        _both_sides(images, asked.value, loaded, metric or "cosine", out_file, drawn, lines=lines, as_json=as_json)
        return
    subject: Subject
    if of_network:
        subject = network_subject(asked, encoder, weights, classes, fit=fit, size=image_size)
    else:
        own = None if encoder is None else load_encoder(encoder, weights, fit=fit, size=image_size, readout=readout)
        subject = encoder_subject(asked, own, gallery, metric)
    from ...explain.engine import method_name

    given = method or ("hirescam" if of_network else "rootratio,distcam")
    methods = list(dict.fromkeys(library.explain.METHODS if method == "all" else map(method_name, given.split(","))))
    if "rootratio" in methods and not of_network and gallery is None:
        note(
            "without --gallery there is nothing to set the match apart from: rootratio shows the similarity's own parts"
        )
    options = option_values(option or [], methods, defaults=subject.method_options)
    layers = list(dict.fromkeys(layer.split(","))) if layer else [subject.layer]
    if faithfulness and len(layers) > 1:
        raise InputError(f"--faithfulness measures the maps of one layer, got {len(layers)} of --layer")
    found = [_explained(path, subject, methods, layers, options, measured=faithfulness) for path in images]
    if out_file is not None:
        _write(
            out_file, found, target=target, look=library.explain.DrawStyle(style=style, scale=scale, colours=colours)
        )
    for each in found:
        for name, maps in each.maps.items():
            if bool(maps.is_constant[0, 0]):
                err.print(f"warning: {each.path}: the map of {name} is constant and explains nothing", soft_wrap=True)
    if as_json:
        print_json([each.to_dict() for each in found])
        return
    _show(found)
    if out_file is not None:
        say(f"written: {out_file}")


def _both_sides(
    images: Sequence[Path],
    match: str,
    encoder: Encoder,
    metric: Metric,
    out_file: Path | None,
    drawn: dict[str, Any],
    *,
    lines: bool,
    as_json: bool,
) -> None:
    """Each image and the match, explained on both: as a page, a panel, arrays, or in words."""
    if out_file is not None:
        require_place(out_file, len(images))
    found = [library.retrieval.explain_pair(encoder, path, match, metric=metric) for path in images]
    if out_file is not None and out_file.suffix.lower() == ".html":
        library.retrieval.write_report(out_file, found, lines=lines)
    elif out_file is not None:
        found[0].save(out_file, library.explain.DrawStyle(**drawn), lines=lines)
    told: list[dict[str, Any]] = []
    for path, each in zip(images, found, strict=True):
        alike = each.lines(0) if lines else None
        told.append({"image": str(path), "match": match, "similarity": each.matches[0].similarity})
        told[-1] |= {"words": [*each.words, *([] if alike is None else [f"Lines: {alike.caption}."])]}
    said = [f"{one['image']} and {match}: similarity {one['similarity']:.4f}. {' '.join(one['words'])}" for one in told]
    answer(told, "\n".join(said), as_json=as_json, written=[out_file])


@dataclass(frozen=True)
class Explained:
    """An image with its maps by method, or by method@layer where there are several layers."""

    path: Path
    image: Image
    view: Any
    target: str
    maps: Mapping[str, ActivationMaps]
    faithfulness: Mapping[str, Faithfulness]

    def to_dict(self) -> dict[str, Any]:
        """Numbers about each map, with its highest place and the box at half height in pixels of the image."""
        from ...explain.drawing.panels import place_box
        from ...explain.places import middle_of
        from ...metrics.maps import peak

        maps = []
        for name, found in self.maps.items():
            heat = found.maps[0, 0]
            box = place_box(library.explain.normalise(heat), self.view).clipped(*self.image.size)
            described: dict[str, Any] = {"method": name.partition("@")[0], "layer": found.layer}
            described["is_constant"] = bool(found.is_constant[0, 0])
            described |= {"lowest": float(heat.min()), "highest": float(heat.max())}
            described["peak"] = [round(each, 2) for each in middle_of(peak(heat), self.view, heat.shape)]
            maps.append({**described, "box": [round(edge, 2) for edge in box]})
        measures = {
            name: {key: float(value[0, 0]) for key, value in measured._asdict().items()}
            for name, measured in self.faithfulness.items()
        }
        told = {"image": str(self.path), "target": self.target, "score": self.score, "maps": maps}
        return told | ({"faithfulness": measures} if measures else {})

    @property
    def score(self) -> float:
        """The network's answer to what is asked."""
        return float(next(iter(self.maps.values())).scores[0, 0])

    @property
    def title(self) -> str:
        """The image's name, what is asked, and the answer."""
        return f"{self.path.name}: {self.target}, score {self.score:.4g}"


def _explained(
    path: Path,
    subject: Subject,
    methods: Sequence[str],
    layers: Sequence[str | None],
    options: Mapping[str, Mapping[str, Any]],
    *,
    measured: bool,
) -> Explained:
    """The maps of one image, and how faithful they are if that is wanted."""
    image = library.images.read_image(path, whole=subject.has_place)
    pixels = subject.transform.normalise(subject.transform(image)[None])
    target, name = subject.question(image, pixels)
    maps = {
        method if len(layers) == 1 else f"{method}@{layer}": library.explain.explain_image(
            subject.model, pixels, target=target, method=method, layer=layer, **options[method]
        )
        for method in methods
        for layer in layers
    }
    raw = {method: each.maps for method, each in maps.items()}
    faithfulness = (
        library.explain.measure_faithfulness(subject.model, pixels, raw, target=target, layer=layers[0])
        if measured
        else {}
    )
    return Explained(path, image, subject.transform.view(*image.size), name, maps, faithfulness)


def _write(path: Path, found: Sequence[Explained], *, target: str, look: DrawStyle) -> None:
    """The maps as an image, a page, or arrays; written aside first."""
    import numpy as np
    import torch

    from ...explain.drawing.page import save_drawing, write_page
    from ...explain.drawing.panels import sheet

    maps = {name: torch.cat([each.maps[name].maps[:, 0] for each in found]) for name in found[0].maps}
    images, views, targets = zip(*((each.image, each.view, each.target) for each in found), strict=True)
    arrays = {"images": np.array([str(each.path) for each in found]), "targets": np.array(targets)}
    arrays |= {"scores": np.array([each.score for each in found]), "views": np.array(views)}
    arrays |= {f"maps_{name}": each.numpy() for name, each in maps.items()}

    def rows() -> list[list[library.explain.Tile | None]]:
        named = {name: name.partition("@") for name in maps}
        titled = {
            library.explain.METHODS[method].title + (f", {layer}" if layer else ""): maps[name]
            for name, (method, _, layer) in named.items()
        }
        return sheet(images, titled, views=views, look=look, captions=targets)

    if path.suffix.lower() == ".html":
        has_unseen = any(
            each.view.clipped(*each.image.size) != library.images.Box(0, 0, *each.image.size) for each in found
        )
        write_page(path, rows(), title=target, notes=[each.title for each in found], has_unseen=has_unseen)
    else:
        save_drawing(path, "", lambda: library.explain.grid(rows(), tile_size=224), lambda: arrays)


def _show(found: Sequence[Explained]) -> None:
    """A table for each image, a line for each method."""
    from rich.table import Column, Table
    from rich.text import Text

    for each in found:
        described = each.to_dict()
        columns = [Column(name, overflow="fold") for name in ("method", "layer", "lowest", "highest", "peak (x, y)")]
        table = Table(*columns, title=Text(each.title), title_justify="left")
        for maps in described["maps"]:
            ends = (f"{maps['lowest']:.3g}", f"{maps['highest']:.3g}", "{:.0f}, {:.0f}".format(*maps["peak"]))
            table.add_row(Text(maps["method"]), Text(maps["layer"]), *ends)
        out.print(table)
        if each.faithfulness:
            title = "faithfulness; larger is better, a random order is near 0"
            table = Table("method", "insertion - deletion", "ROAD", title=title, title_justify="left")
            for name, measured in described["faithfulness"].items():
                table.add_row(Text(name), *(f"{value:.4f}" for value in measured.values()))
            out.print(table)
