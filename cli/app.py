"""The command tree, and the one place where errors become a line and an exit status.

Exit status: 0 done, 1 the check failed (`index verify`), 2 the user can mend it (bad option, bad file, wrong encoder),
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._version import __version__
from ..errors import DistcamError
from ..index.faiss.runtime import fault_behind
from . import (
    benchmark,
    demo,
    encode,
    encoders,
    env,
    evaluate,
    fewshot,
    index,
    localize,
    query,
    reid,
    segment,
    serve,
    train,
)
from .command import Commands, FirstByDefault
from .console import complain, remarks
from .explain import explain
from .options import ReadsImages

app = Commands(
    name="distcam",
    help="Image retrieval, few-shot learning and re-identification that explain every match.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(index.app, name="index")
app.add_typer(fewshot.app, name="fewshot")
app.add_typer(reid.app, name="reid")
app.add_typer(segment.app, name="segment")
app.add_typer(benchmark.app, name="benchmark")
app.command(name="explain", cls=ReadsImages, epilog=explain.EXAMPLE)(explain.explain)
app.command(name="query", cls=ReadsImages, epilog=query.EXAMPLE)(query.query)
app.command(name="encode", cls=ReadsImages, epilog=encode.EXAMPLE)(encode.encode)
app.command(name="evaluate", cls=ReadsImages, epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(name="localize", cls=ReadsImages, epilog=localize.EXAMPLE)(localize.localize)
app.command(name="train", cls=ReadsImages, epilog=train.EXAMPLE)(train.train)
app.command(name="serve", cls=ReadsImages, epilog=serve.EXAMPLE)(serve.serve)
networks = Commands(cls=FirstByDefault, help="Names for `--encoder`, and encoders for other runtimes.")
networks.command(name="list", epilog=encoders.EXAMPLE)(encoders.encoders)
networks.command(name="export", epilog=encoders.EXPORT_EXAMPLE)(encoders.export)
app.add_typer(networks, name="encoders")
app.command(name="demo", epilog=demo.EXAMPLE)(demo.demo)
app.command(name="env", epilog=env.EXAMPLE)(env.env)


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
