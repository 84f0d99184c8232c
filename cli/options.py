"""The options that several commands share, each with its help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ..metrics import Metric as Metric
from .command import Command
from .console import crop_encoder, load_encoder, require_encoder

if TYPE_CHECKING:
    from ..encoders import Encoder
    from ..images import Box, BoxSource
    from ..reid.pairs import Part


def option(default: Any, help: str, *names: str, **limits: Any) -> Any:
    """An option of a command: its default, its help, names other than the parameter's, and limits of its values."""
    return typer.Option(default, *names, help=help, **limits)


def argument(default: Any, help: str, **limits: Any) -> Any:
    """An argument of a command; its default is `...` if it must be given."""
    return typer.Argument(default, help=help, **limits)


FitName = Literal["crop", "squash", "pad"]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
EncoderName = Annotated[
    str,
    typer.Option(
        help="A torchvision architecture, `timm:NAME`, `hf:NAME` (or folder), `open_clip:NAME`, `conv4`, `resnet12`, "
        "`wrn28_10`, or a CHECKPOINT file of distcam; `distcam encoders` lists names."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="`folder` (class = sub-folder), `split` (class = folder below train, val, …), `none`, or a FILE.csv "
        "(path,label). Default: a table's own, else folders, of which those of splits are no classes."
    ),
]

Images = Annotated[
    str,
    typer.Argument(
        help="A folder (class = sub-folder), a CSV or Parquet file with path,label,…, a quoted glob or "
        "shards-{000..003}.tar, or a URL."
    ),
]
GalleryPath = Annotated[Path, typer.Argument(help="The gallery's folder.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at what is otherwise left out or assumed: an unreadable file, a label, …")
]
AnswersCsv = Annotated[
    Path | None, typer.Option("--csv", help="Write a line for each image to this table instead of the terminal.")
]
GalleryEncoder = Annotated[str | None, typer.Option(help="Only for a gallery that keeps no encoder: a CHECKPOINT.")]
Root = Annotated[Path | None, typer.Option(help="Where the gallery's images lie now, if they were moved.")]
Index = Annotated[str, typer.Option(help="`auto` (by size), `flat` (exact), or a FAISS factory string.")]
StoreMaps = Annotated[
    bool,
    typer.Option(
        "--store-maps", help="Keep every feature map (half precision): maps on matches then cost no forward pass."
    ),
]
FineLayer = Annotated[
    str, typer.Option(help="The layer that lines are read from. Default: the last block with stride 8.")
]


@dataclass(frozen=True)
class Weighted:
    """Options that choose an encoder and its weights."""

    weights: str | None = option(
        None,
        "A FILE of weights, `imagenet` (torchvision's), `pretrained` (of timm, hf, open_clip: from their cache or "
        "downloaded), or `random`. Not needed with a checkpoint.",
    )
    layer: str | None = option(None, "Another layer for the feature map, e.g. `layer3`.")
    readout: str | None = option(
        None,
        "The vector that a timm:, hf: or open_clip: encoder is searched by: mean, class, class+mean, attention. "
        "Default: what its authors rank by.",
    )

    def require(self, encoder: str) -> None:
        """Refuse what can mean no encoder."""
        require_encoder(encoder, self.weights, self.layer)


@dataclass(frozen=True)
class Loading(Weighted):
    """Options that choose an encoder, its weights, and the fit and size of its images."""

    fit: FitName | None = option(
        None, "How an image fits the network: pad (default), squash, or crop the centre. A checkpoint brings its own."
    )
    image_size: int | None = option(None, "Side of the network's input in pixels.", min=16)

    def load(self, encoder: str) -> Encoder:
        """The encoder."""
        chosen = {"layer": self.layer, "readout": self.readout}
        return load_encoder(encoder, self.weights, fit=self.fit, size=self.image_size, **chosen)


@dataclass(frozen=True)
class CropLoading(Weighted):
    """Options that choose an encoder and its weights, for images that are boxes around a person."""

    image_size: str | None = option(None, "The network's input as HEIGHTxWIDTH, e.g. `256x128`, or one number.")
    fit: FitName | None = option(None, "How an image fits. Default: pad, or what a checkpoint was trained with.")

    def load(self, encoder: str) -> Encoder:
        """The encoder."""
        chosen = {"layer": self.layer, "readout": self.readout}
        return crop_encoder(encoder, self.weights, self.image_size, fit=self.fit, **chosen)


@dataclass(frozen=True)
class Running:
    """Options of encoding; fields are called as the library's arguments are."""

    batch_size: int | None = option(None, "Images per forward pass; by default chosen for the device.", min=1)
    workers: int | None = option(None, "Threads that decode images; by default chosen for the machine.", min=0)
    device: Device = "auto"


@dataclass(frozen=True)
class BoxOptions:
    """Boxes that are images of a gallery."""

    boxes: Path | None = option(
        None,
        "Cut boxes out, each an image of the gallery: a FILE or FOLDER of COCO, MegaDetector, CVAT, Pascal VOC, "
        "Labelme, YOLO, or a CSV. Default: the box columns of a table; `none` takes whole images.",
    )
    box_format: str | None = option(
        None,
        "How a table's boxes are written: xyxy, xywh or cxcywh, and pixel or relative, e.g. `xywh-relative`. "
        "Default: what the columns are called, and what can be proved.",
    )
    box_confidence: float | None = option(
        None, "Leave out boxes that a detector is less sure of. Default: 0.2.", min=0, max=1
    )

    @property
    def source(self) -> BoxSource:
        """Where the boxes come from."""
        from ..images import BoxSource

        return BoxSource(self.boxes, self.box_format, self.box_confidence)


class ReadsImages(Command):
    """A command that reads images, and so has `--max-pixels`: `@app.command(cls=ReadsImages)`."""

    def __init__(self, *args: Any, params: list[Any] | None = None, **options: Any) -> None:
        super().__init__(*args, params=[*(params or []), _pixel_option()], **options)


def _set_pixel_limit(pixels: int | None) -> None:
    if pixels is not None:
        from ..images import set_pixel_limit

        set_pixel_limit(pixels)


def _pixel_option() -> Any:
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(
        max_pixels: Annotated[
            int | None,
            typer.Option(
                min=64,
                expose_value=False,
                callback=_set_pixel_limit,
                metavar="N",
                help="Largest image, width × height. Default: 64 million; JPEGs of up to four times as many "
                "are reduced.",
            ),
        ] = None,
    ) -> None: ...

    return next(option for option in typer.main.get_command(app).params if option.name == "max_pixels")


def read_box(text: str) -> Box:
    """`x1,y1,x2,y2` in pixels of an image; right and bottom are exclusive."""
    from ..images import Box

    left, top, right, bottom = _numbers(text, 4, "x1,y1,x2,y2")
    if right <= left or bottom <= top:
        raise InputError(f"the box {text} is empty; expected x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    return Box(left, top, right, bottom)


def read_point(text: str) -> tuple[float, float]:
    """`x,y` in pixels of an image."""
    x, y = _numbers(text, 2, "x,y")
    return x, y


def class_names(path: Path) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error.reason})") from error


def option_values(
    given: Sequence[str], methods: Sequence[str], *, defaults: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """For each method the options that it takes of those that were given as `name=value`."""
    from ..explain import METHODS

    taken = {method: {k: v for k, v in defaults.items() if k in METHODS[method].options} for method in methods}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text!r} should be name=value, such as window=3")
        takers = [method for method in methods if name in METHODS[method].options]
        if not takers:
            known = sorted({option for method in methods for option in METHODS[method].options})
            raise InputError(
                f"none of {', '.join(methods)} takes {name!r}; they take {', '.join(known) or 'no options'}"
            )
        for method in takers:
            taken[method][name] = _value(value)
    return taken


def _value(text: str) -> Any:
    """A number, true, false, none, or the word itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _numbers(text: str, n: int, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != n or not all(map(math.isfinite, values)):
        raise InputError(f"expected {form} in pixels of the image, got {text!r}")
    return values


def read_stripes(text: str) -> Mapping[str, Part]:
    """`name:top-bottom,…` as parts: `upper:0-0.5,lower:0.5-1`."""
    parts: dict[str, Part] = {}
    for item in text.split(","):
        name, _, span = item.partition(":")
        top, _, bottom = span.partition("-")
        try:
            parts[name.strip()] = (float(top), float(bottom))
        except ValueError:
            raise InputError(f"--parts reads `name:top-bottom,…` in fractions of the height, not {item!r}") from None
    return parts
