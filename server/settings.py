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
class Settings:
    """Everything that `create_app` needs; every limit is per server, and the command's options have the same names.

    Attributes:
        gallery: its folder; absolute from here on.
        encoder: a checkpoint, for a gallery that keeps none.
        root: where the gallery's images lie; only images under it are shown. Left out, it is the root that the
            gallery records, if this user built the gallery on this machine; of any other gallery none are shown.
        device: "auto", "cpu", "cuda", …
        threads: of the arithmetic; None leaves torch's setting alone.
        max_batch: images of one forward pass.
        window_ms: how long the first image of a batch waits for others that are on their way.
        queue: images that may wait for the network; one more is answered with 503.
        concurrency: requests of the API at the same time; one more is answered with 429, unless its client has less
            than an equal share of them.
        client_concurrency: how many of them one client may have, so that nobody has them all.
        rate: requests a second of one client, which may save up twice as many; 0 sets no limit.
        max_upload_bytes: largest image.
        max_pixels: largest image once decoded.
        decode_limit_s: of the processor, for decoding one image.
        work_limit_s: for the filter of one request; `time_limit_s` would let a few of them have all threads.
        time_limit_s: for one request, from its first byte to its answer.
        kept_bytes, kept_s: how much memory the queries that can still be explained take, and for how long.
        match_bytes: how much memory the maps of matches take that were explained within `kept_s`: the next weighting of
            a match needs no forward pass. 0 keeps none.
        token: whoever has it may add and remove images; None makes a server that only reads.
        read_token: whoever has it (or `token`) may look and search; None lets everybody who reaches the server.
        uploads: where added images are put; by default `GALLERY.uploads` beside the gallery.
        allowed_hosts: names that a request may call the server by, besides `localhost` and any IP address.
        static: the page's folder.
    """

    gallery: Path
    encoder: Path | None = None
    root: Path | None = None
    device: str = "auto"
    threads: int | None = None
    max_batch: int = 16
    window_ms: float = 3.0
    queue: int = 64
    concurrency: int = 64
    client_concurrency: int = 32
    rate: float = 100.0
    max_upload_bytes: int = 20 << 20
    max_pixels: int = MAX_PIXELS
    decode_limit_s: float = 10.0
    work_limit_s: float = 10.0
    time_limit_s: float = 60.0
    kept_bytes: int = 256 << 20
    kept_s: float = 900.0
    match_bytes: int = 256 << 20
    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)
    uploads: Path | None = None
    allowed_hosts: frozenset[str] = frozenset()
    static: Path = Path(__file__).parent / "static"

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
