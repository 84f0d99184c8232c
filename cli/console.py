"""Text, notes, progress bars, JSON, and loading an encoder: shared by all commands."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from .. import progress
from ..errors import InputError
from ..remarks import DistcamWarning, Skipped
from . import library
from .command import option_names

if TYPE_CHECKING:
    from ..encoders import Encoder
    from ..index import Gallery
    from ..retrieval import Retriever
    from .options import FitName


Number = TypeVar("Number", int, float)

out = Console(markup=False, highlight=False)  # file names may hold [brackets]
err = Console(stderr=True, markup=False, highlight=False)
progress_bar = partial(progress.progress_bar, console=err)
progress_lines = partial(progress.progress_lines, console=err)


def say(text: str) -> None:
    """A line on standard output, as it is: nothing in it is markup, and it is not broken at the terminal's width."""
    out.print(text, soft_wrap=True)


def complain(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    text = Text(" ".join(message.split()))
    err.print(Text("error: ", style="bold red") + text, soft_wrap=True)


def note(message: str) -> None:
    """One line `note: …` on stderr, whatever the message holds."""
    err.print(f"note: {' '.join(message.split())}", soft_wrap=True)


def note_unfinished_build(gallery: Gallery) -> None:
    """A note if a gallery's build has not come to its end."""
    if not gallery.manifest.complete:
        note("the build of this gallery is not finished; only what is encoded so far is searched")


def note_old_threshold(gallery: Gallery) -> None:
    """A note if a gallery has changed since its threshold of rejection was chosen."""
    rejection = gallery.manifest.rejection
    if rejection is not None and rejection.generation != gallery.manifest.generation:
        note("the gallery has changed since its threshold was chosen; `distcam index calibrate` renews it")


@contextmanager
def remarks() -> Iterator[None]:
    """Print every `DistcamWarning` as a note, each once."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **file: Any) -> None:
        if not issubclass(category, DistcamWarning):
            shown(message, category, *where, **file)
        elif (text := option_names(str(message))) not in said:
            said.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DistcamWarning)
        shown, warnings.showwarning = warnings.showwarning, show
        yield


def print_json(value: Any) -> None:
    """A value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """A table of names and values on standard output."""
    from rich.table import Table

    table = Table("what", "value", title=Text(title), title_justify="left")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    out.print(table)


def answer(content: Any, text: str, *, as_json: bool, written: Iterable[Path | None] = ()) -> None:
    """A result on standard output: as JSON, or in words and with the files that were written."""
    if as_json:
        print_json(content)
        return
    say(text)
    for file in filter(None, written):
        say(f"written: {file}")


def load_retriever(gallery: Gallery, encoder: str | None, device: str, **options: Any) -> Retriever:
    """The retriever of a gallery, with the encoder that it keeps or with one named by the user."""
    own = None if encoder is None else library.encoders.Encoder.load(encoder)
    return library.retrieval.Retriever(gallery, own, device=device, **options)


def load_encoder(
    name: str,
    weights: str | None,
    *,
    fit: FitName | None = None,
    size: int | tuple[int, int] | None = None,
    layer: str | None = None,
    readout: str | None = None,
) -> library.encoders.Encoder:
    """The encoder that the options name; an architecture without `--weights` is an error that lists the choices."""
    require_encoder(name, weights, layer)
    encoder = library.encoders.Encoder.load(name, weights=weights, layer=layer, readout=readout or "auto")
    encoder.transform = encoder.transform.adapted(size=size, fit=fit)
    return encoder


def crop_encoder(
    name: str,
    weights: str | None,
    size: str | None,
    *,
    fit: FitName | None = None,
    layer: str | None = None,
    readout: str | None = None,
) -> Encoder:
    """The encoder that the options name, for images that are boxes around somebody."""
    sides = () if size is None else tuple(number_of(side, "--image-size", int) for side in size.lower().split("x"))
    if sides and (len(sides) > 2 or min(sides) < 16):
        raise InputError(f"--image-size expects HEIGHTxWIDTH of at least 16 pixels, got {size!r}")
    whole = (sides[0], sides[-1]) if sides else None
    return load_encoder(name, weights, fit=fit, size=whole, layer=layer, readout=readout)


def number_of(text: str, option: str, kind: type[Number]) -> Number:
    """The number that an option's text is."""
    try:
        return kind(text)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise InputError(f"{option}: expected a {what}, got {text!r}") from None


@contextmanager
def resumable(
    kept: str = "everything encoded so far is kept, and the same command goes on from there",
) -> Iterator[None]:
    """Ctrl-C says what is kept, and ends with exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"stopped; {kept}", soft_wrap=True)
        raise typer.Exit(130) from None


_NAMES = ("imagenet", "random", "pretrained", "default")  # of weights that are in no file


def require_encoder(name: str, weights: str | None, layer: str | None = None) -> None:
    """Refuse `--encoder` and `--weights` that can mean no encoder."""
    from ..encoders.names import OWN_ARCHITECTURES, needs_weights, refuse_weight_file

    if name.endswith(".safetensors"):
        if weights is not None or layer is not None:
            raise InputError(
                f"{name} is a checkpoint and brings its own weights and layer; leave --weights and --layer out"
            )
        require_file(name, "--encoder")
        return
    refuse_weight_file(name, options=f": --encoder ARCHITECTURE --weights {name}")
    if weights is None:
        if name not in OWN_ARCHITECTURES:
            raise InputError(needs_weights(name).replace("weights", "--weights", 1))
    elif weights not in _NAMES:
        require_file(weights, "--weights", also=f", `{_NAMES[0]}`, or `{_NAMES[1]}`")


def require_file(path: str | Path | None, option: str, *, also: str = "") -> None:
    """Refuse a file that is not there, by the name of its option; None was not asked for."""
    if path is not None and not Path(path).exists():
        raise InputError(f"{option} {path}: no such file; expected a FILE{also}")


def require_model(path: Path) -> None:
    """Refuse a path at which nothing is."""
    if not path.exists():
        raise InputError(f"{path}: nothing is there; expected a run's folder or a file of weights")


def require_images(sources: Iterable[str | Path]) -> None:
    """Refuse sources that are not there, and patterns that fit no file; URLs are looked up when they are read."""
    from ..images.given.inputs import is_given

    for source in map(str, sources):
        if not Path(source).exists() and not is_given(source):
            library.images.list_images(source, labels="none")


def report_skipped(skipped: Sequence[Skipped], *, most: int = 10) -> None:
    """List on stderr the files that could not be used, with the reasons."""
    if not skipped:
        return
    err.print(Text(f"{len(skipped)} of the files could not be used:", style="yellow"))
    for item in skipped[:most]:
        err.print(f"  {item.path}: {item.reason}", soft_wrap=True)
    if len(skipped) > most:
        err.print(f"  … and {len(skipped) - most} more (all with --json)")


def listed_images(sources: Sequence[str], *, margin: float = 0.0) -> list[str]:
    """The images to ask with that the arguments name, see `list_queries`; what is left out is noted."""
    from ..images.queries import list_queries

    found, problems = list_queries(sources, margin=margin)
    for problem in problems:
        note(problem)
    return found


def readable_images(images: list[str]) -> tuple[list[str], list[str]]:
    """The images that can be read, and the others, which are named on stderr."""
    from ..images.opening import unreadable

    skipped = {images[place]: reason for place, reason in unreadable(images).items()}
    report_skipped([Skipped(image, reason) for image, reason in skipped.items()])
    if len(skipped) == len(images):
        raise InputError(f"none of the {len(images)} query images can be read")
    return [image for image in images if image not in skipped], list(skipped)
