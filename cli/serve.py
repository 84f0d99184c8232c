"""`distcam serve`: a gallery as a web page and a REST API."""

from __future__ import annotations

import ipaddress
import os
import secrets
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import InputError, MissingExtraError
from . import library
from .client import READ_TOKEN_VARIABLE
from .command import Commands, refuse_unused
from .console import note, note_unfinished_build, require_file, say
from .options import Device, GalleryPath, ReadsImages, option

if TYPE_CHECKING:
    from ..server.service import Service

app = Commands()
EXAMPLE = "Example: `distcam serve photos.gallery --open`"
TOKEN_VARIABLE = "DISTCAM_TOKEN"
_MEGABYTE = 1 << 20


@app.command(cls=ReadsImages, epilog=EXAMPLE)
def serve(
    gallery: GalleryPath,
    host: str = option("127.0.0.1", "Address to listen on; `0.0.0.0` lets other machines in."),
    port: int = option(8000, "Port; 0 takes a free one.", min=0, max=65535),
    writable: bool = option(False, "Let whoever has the token add and remove images.", "--writable"),
    token_file: Path | None = option(
        None, f"The token's FILE; else the variable {TOKEN_VARIABLE}, else one is made and printed once."
    ),
    read_token_file: Path | None = option(
        None,
        f"FILE with a token that everybody needs who looks or searches; else the variable "
        f"{READ_TOKEN_VARIABLE}, else nobody does.",
    ),
    uploads: Path | None = option(None, "Folder for images that are added. Default: `GALLERY.uploads` beside it."),
    allow_host: list[str] | None = option(
        None, "A name that browsers call this server by; may be given several times."
    ),
    max_batch: int = option(16, "Images of one forward pass.", min=1),
    window_ms: float = option(3.0, "How long a batch waits for images that are on their way.", min=0),
    concurrency: int = option(64, "Requests at a time; more are answered with 429.", min=1),
    client_concurrency: int = option(32, "How many of them one client may have.", min=1),
    rate: float = option(100.0, "Requests a second of one client; 0 sets no limit.", min=0),
    max_upload_mb: float = option(20.0, "Largest image, in MiB.", min=0.001, max=100_000),
    encoder: Path | None = option(None, "Only for a gallery that keeps no encoder: a CHECKPOINT."),
    root: Path | None = option(
        None,
        "The folder that the gallery's images lie in; none outside it are shown. Default: the recorded one, if you "
        "built the gallery on this machine; else none are shown.",
    ),
    device: Device = "auto",
    threads: int | None = option(None, "Threads of the arithmetic on a CPU. Default: one for each core.", min=1),
    urls: bool = option(True, "Fetch queries given by URL; from addresses of the public internet alone."),
    access_log: bool = option(False, "A line of JSON for every request.", "--access-log"),
    open_page: bool = option(False, "Open the page in the browser.", "--open"),
) -> None:
    """Search, explain and look around in a gallery with a browser, or over REST (`/api/v1/openapi.json`)."""
    if not writable:
        refuse_unused("by a server that only reads", "token_file", "uploads", remedy="add --writable")
    require_file(encoder, "--encoder")
    library.index.Gallery.open(gallery, root=root, verify=False)  # what is wrong with it now, not after torch
    try:
        from ..server.app import bound_socket, create_app, run, url_of
        from ..server.settings import ServerSettings
    except ModuleNotFoundError as error:
        missing = f"the server needs {error.name}, which is not installed: pip install 'distcam[serve]'"
        raise MissingExtraError(missing) from error
    given = _given_token(token_file, TOKEN_VARIABLE) if writable else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = ServerSettings(
        gallery=gallery,
        encoder=encoder,
        root=root,
        device=device,
        threads=threads or cores,
        max_batch=max_batch,
        window_ms=window_ms,
        concurrency=concurrency,
        client_concurrency=client_concurrency,
        rate=rate,
        max_upload_bytes=int(max_upload_mb * _MEGABYTE),
        token=secrets.token_urlsafe(32) if writable and given is None else given,
        read_token=_given_token(read_token_file, READ_TOKEN_VARIABLE),
        max_pixels=library.images.pixel_limit(),
        uploads=uploads,
        urls=urls,
        allowed_hosts=frozenset(name.lower() for name in (*(allow_host or ()), host)),
    )

    with closing(bound_socket(host, port)) as bound:  # before anything is loaded
        app, url = create_app(settings), url_of(bound)

        def ready() -> None:
            _introduce(app.state.service, url, host)
            if settings.token != given:
                say(f"token for adding and removing, shown this once: {settings.token}")
            if open_page:
                typer.launch(url)

        has_ended = run(app, bound, access_log=access_log, on_ready=ready)
    if not has_ended:  # a thread would keep this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _introduce(service: Service, url: str, host: str) -> None:
    """Say what is served and where; note what cannot be asked for, and who can see it."""
    from ..retrieval.ranking import UnknownInference

    with service.live.reading() as retriever:
        images, manifest = len(retriever.gallery), retriever.gallery.manifest
        is_shown = bool(getattr(retriever.gallery, "shown", ()))
        note_unfinished_build(retriever.gallery)
    if isinstance(service.inference, UnknownInference):
        note(
            "the gallery's encoder is not known: its own images and vectors can be searched for, but no image can be "
            "encoded or explained; --encoder CHECKPOINT names one"
        )
    say(f"{service.settings.gallery.name}: {images} image{'' if images == 1 else 's'} at {url}, until Ctrl-C")
    if images and not is_shown:
        note(
            "no images are shown: this gallery does not come from you on this machine, and could name any file here as "
            f"an image; if its images lie where others may look, name that folder (--root {manifest.root})"
        )
    is_local = host == "localhost"
    with suppress(ValueError):
        is_local = ipaddress.ip_address(host).is_loopback
    if not is_local:
        has_token = service.settings.read_token is not None
        whoever = "whoever has the read token and reaches" if has_token else "whoever reaches"
        remedy = "" if has_token else "; --read-token-file FILE asks for a token"
        note(
            f"{whoever} {host} can see every image of this gallery, and search{remedy}. The connection is not "
            "encrypted: put a proxy with TLS before it"
        )


def _given_token(file: Path | None, variable: str) -> str | None:
    """A token from a file or an environment variable; never an argument, which other users can see."""
    if file is None:
        return os.environ.get(variable, "").strip() or None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a file with the token ({error})") from error
