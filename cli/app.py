"""The command tree, and the one place where errors become a line and an exit status.

Exit status: 0 done, 1 the check failed (`index verify`), 2 the user can mend it (bad option, bad file, wrong encoder),
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__
from ..errors import DistcamError
from .command import Commands, OnDemand
from .console import complain, remarks

_COMMANDS = {  # the module of each has its `app`
    "explain": "Show which part of each image speaks for a class, for a set of pixels, or for a match.",
    "query": "Find the nearest gallery images of each query, and explain every match.",
    "classify": "Name the class of each image, with calibrated confidence and the map of what decided.",
    "encode": "Encode images into one HDF5 file: embeddings, pooled vectors, paths, labels and content hashes.",
    "inspect": "Ask a gallery about its own data: copies, outliers, labels that neighbours outvote, leaks, confusions.",
    "evaluate": "Evaluate an encoder on retrieval; every number comes with its error and its protocol.",
    "localize": "Measure weakly supervised localisation: box errors, pointing, energy, and whether a map knows the "
    "class.",
    "train": "Train encoders as a recipe says; several variants and seeds end in one table, mean ± standard deviation.",
    "reproduce": "Repeat a table of a paper: look for the data, print the settings, train, and measure.",
    "serve": "Search, explain and look around in a gallery with a browser, or over REST (`/api/v1/openapi.json`).",
    "atlas": "Write a gallery in two dimensions as one HTML file: colour, filter, zoom, encircle, list.",
    "demo": "Draw images, train a small encoder, build a gallery of classes it never saw, query it, explain "
    "every match.",
    "env": "Print versions, devices and threads: paste this into a bug report.",
    "index": "Build a gallery, change it, and look after it.",
    "fewshot": "Train few-shot encoders, evaluate classifiers, compare them in pairs, explain their errors.",
    "reid": "Re-identification: audit, synthetic walkers, training, evaluation, and why two images match.",
    "segment": "Weakly supervised segmentation: masks from the classes that an image shows.",
    "benchmark": "Measure what an encoder can do on your own images.",
    "encoders": "Names for `--encoder`, and encoders for other runtimes.",
}
_HOMES = {name: f"index.{name}" for name in ("atlas", "classify", "inspect")}  # modules that lie in a folder
_HOMES["reproduce"] = "papers.reproduce"


class _Root(TyperGroup):
    """The first word's commands, each loaded when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: OnDemand(name, f"{__package__}.{_HOMES.get(name, name)}", line) for name, line in _COMMANDS.items()
        }


app = Commands(
    name="distcam",
    cls=_Root,
    help="Image retrieval, few-shot learning and re-identification that explain every match.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Image retrieval, few-shot learning and re-identification that explain every match."""


def main() -> None:
    """Run the command line: an error of distcam or of the file system is one line on stderr and exit status 2."""
    try:
        with remarks():
            app()
    except DistcamError as error:
        complain(str(error))
        sys.exit(2)
    except (ImportError, AttributeError) as error:
        from ..index.faiss.runtime import fault_behind

        if (wrong := fault_behind(error)) is None:
            raise
        complain(wrong)
        sys.exit(2)
    except BrokenPipeError:  # `distcam … | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(2)
