"""Settings of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..images.loading import MAX_PIXELS

_LEAST = {
    "max_batch queue concurrency client_concurrency max_upload_bytes": 1,
    "decode_limit_s work_limit_s time_limit_s": 0.001,
    "window_ms rate kept_bytes kept_s match_bytes": 0,
    "max_pixels": 64,
}


@dataclass(frozen=True)
class ServerSettings:
    """Everything that `create_app` needs; every limit is per server, and the command's options have the same names."""

    gallery: Path  # its folder; absolute from here on
    encoder: Path | None = None  # a checkpoint, for a gallery that keeps none
    root: Path | None = (
        None  # only images under it are shown; left out, that of a gallery this user built here, or none
    )
    device: str = "auto"
    threads: int | None = None  # of the arithmetic; None leaves torch's setting alone
    max_batch: int = 16  # images of one forward pass
    window_ms: float = 3.0  # that the first image of a batch waits for others that are on their way
    queue: int = 64  # images that may wait for the network; one more is answered with 503
    concurrency: int = 64  # requests at once; one more gets 429, unless its client has less than an equal share of them
    client_concurrency: int = 32  # of them for one client, so that nobody has them all
    rate: float = 100.0  # requests a second of one client, which may save up twice as many; 0 sets no limit
    max_upload_bytes: int = 20 << 20
    max_pixels: int = MAX_PIXELS  # of an image once decoded
    decode_limit_s: float = 10.0  # of the processor, for decoding one image
    work_limit_s: float = 10.0  # for the filter of one request; in `time_limit_s` a few of them would have all threads
    time_limit_s: float = 60.0  # for one request, from its first byte to its answer
    kept_bytes: int = 256 << 20  # memory of the queries that can still be explained
    kept_s: float = 900.0  # and for how long
    match_bytes: int = 256 << 20  # memory of the maps of explained matches, kept as long; 0 keeps none
    token: str | None = field(default=None, repr=False)  # to add and remove images; None makes a server that only reads
    read_token: str | None = field(default=None, repr=False)  # or `token`, to look and search; None lets everybody
    uploads: Path | None = None  # where added images are put; by default `GALLERY.uploads` beside the gallery
    urls: bool = True  # fetch queries that are given by URL, from public addresses
    allowed_hosts: frozenset[str] = frozenset()  # names that the server may be called by, besides localhost and any IP
    static: Path = Path(__file__).parent / "static"  # the page's folder

    def __post_init__(self) -> None:
        for names, low in _LEAST.items():
            for name in names.split():
                if not low <= getattr(self, name) < math.inf:
                    raise InputError(f"{name} must be at least {low}, and finite, got {getattr(self, name)}")
        object.__setattr__(self, "gallery", Path(self.gallery).absolute())
        for name, token in (("token", self.token), ("read token", self.read_token)):
            if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable()):
                raise InputError(
                    f"the {name} needs at least 16 printable ASCII characters; `python -c 'import secrets; "
                    "print(secrets.token_urlsafe(32))'` makes one"
                )

    @property
    def is_writable(self) -> bool:
        """True if images may be added and removed."""
        return self.token is not None

    @property
    def uploads_folder(self) -> Path:
        """Folder of added images."""
        beside = self.gallery.with_name(f"{self.gallery.name}.uploads")
        return beside if self.uploads is None else self.uploads.absolute()
