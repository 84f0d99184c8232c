"""`distcam query --server`: the answer of a running `distcam serve`, so that a query loads no torch."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from ..errors import InputError
from ..images.given.remote import fetch, is_url
from .command import refuse_unused
from .console import listed_images, note, out, print_json
from .options import read_box

if TYPE_CHECKING:
    from ..images import Box

READ_TOKEN_VARIABLE = "DISTCAM_READ_TOKEN"
_USUAL = "http://127.0.0.1:8000"  # where `distcam serve` listens
_SECONDS = 120
_REFUSED = (
    "mask", "mask_class", "against", "versus", "point", "weighting", "mean", "detail", "space", "explain", "style",
    "scale", "colours", "lines", "verify", "fine_layer", "encoder", "root", "device", "max_pixels",
)  # fmt: skip


class Server:
    """A running server at the address that it says when it starts, and the gallery that it should serve."""

    def __init__(self, url: str, gallery: Path) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--server expects `auto` or a URL such as {_USUAL}, got {url!r}")
        kind = HTTPConnection if parts.scheme == "http" else HTTPSConnection
        self._connect = partial(kind, parts.hostname, parts.port, timeout=_SECONDS)
        self._root = f"{parts.path}/api/v1"
        token = os.environ.get(READ_TOKEN_VARIABLE, "").strip()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.serves = self.ask("GET", "/gallery")
        if self.serves["name"] != gallery.name:
            raise InputError(
                f"{self.url} serves {self.serves['name']}, not {gallery.name}; name the server of that one"
            )
        manifest = gallery / "manifest.json"
        self.box_margin = 0.0
        if manifest.is_file():
            known = json.loads(manifest.read_text(encoding="utf-8"))
            self.box_margin = float(known.get("box_margin", 0.0))
            made_by = known.get("encoder", {}).get("fingerprint")
            if made_by != self.serves["fingerprint"]:
                raise InputError(
                    f"{self.url} serves another gallery of the name {gallery.name}, by another encoder; name the "
                    f"server of {gallery}, or leave --server out"
                )

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        """The answer to a request; what the server refuses is an `InputError` in its words."""
        try:
            with closing(self._connect()) as connection:
                connection.request(method, self._root + path, body, {**self._headers, "Content-Type": kind})
                response = connection.getresponse()
                answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            what = getattr(error, "strerror", None) or error
            raise InputError(f"no server answers at {self.url} ({what}); start one with `distcam serve`") from error
        if response.status >= 400:
            raise InputError(f"{self.url}: {answer.get('detail', response.reason)}")
        return dict(answer)

    def search(self, image: str | None, **options: Any) -> dict[str, Any]:
        """The ranking for an image that is sent, or for a text alone."""
        edge, part = secrets.token_hex(16), b""
        if image is not None:
            head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
            part = head.encode() + _content(image) + b"\r\n"
        kind = f"multipart/form-data; boundary={edge}"
        return self.ask("POST", f"/search?{urlencode(options)}", part + f"--{edge}--\r\n".encode(), kind)


def _content(image: str) -> bytes:
    """The file that is sent of a query image: its own, or one of the box that is cut out."""
    try:
        if is_url(image):
            return fetch(image)
        if "#xywh=" not in image or Path(image).is_file():
            return Path(image).read_bytes()
        from ..images import read_image

        stream = BytesIO()
        read_image(image).save(stream, "PNG")
        return stream.getvalue()
    except OSError as error:
        raise InputError(f"{image}: cannot be read: {error.strerror or error}") from error


def is_answered(
    url: str,
    gallery: Path,
    queries: tuple[list[str], list[int], list[str]],
    *,
    region: str | None,
    as_json: bool,
    **asked: Any,
) -> bool:
    """Print what the server finds for images, ids and texts; False for "auto" where none serves this gallery."""
    refuse_unused("by a server (--server)", *_REFUSED, remedy="leave it or --server out")
    if region is not None and region.startswith("mask:"):
        raise InputError("--region mask:FILE is not used by a server (--server); give x1,y1,x2,y2")
    try:
        server = Server(_USUAL if url == "auto" else url, gallery)
    except InputError as error:
        if url != "auto":
            raise
        note(f"no server is asked: {error}")
        return False
    found = _rankings(server, queries, None if region is None else read_box(region), **asked)
    if as_json:
        print_json(found)
        return True
    from ..retrieval.printing import show_ranking

    for ranking in found:
        show_ranking(ranking, out, where=asked["where"])
    return True


def _rankings(
    server: Server, queries: tuple[list[str], list[int], list[str]], box: Box | None, **asked: Any
) -> list[dict[str, Any]]:
    """The answers, as `Matches.to_dict` says them."""
    images, ids, texts = queries
    weight = asked.pop("text_weight")
    options = {name: value for name, value in asked.items() if value not in (None, False)}
    joined = {"text": texts[0], "text_weight": weight} if texts and (images or ids) else {}
    edges = {} if box is None else box._asdict()
    rejection = server.serves["rejection"] if asked["reject"] and asked["max_distance"] is None else None
    found = []
    for image in listed_images(images, margin=server.box_margin):
        found.append(_ranking(server.search(image, **options, **joined, **edges), image, joined, rejection))
    for id in ids:
        answer = server.ask("POST", "/search/stored", json.dumps({"id": id, "box": box, **options, **joined}).encode())
        found.append(_ranking(answer, answer["query"]["name"], joined, rejection))
    for text in () if joined else texts:
        words = {"text": text, "text_weight": 1.0}
        found.append(_ranking(server.search(None, text=text, **options), text, words, rejection))
    return found


def _ranking(
    answer: dict[str, Any], name: str, words: dict[str, Any], rejection: dict[str, Any] | None
) -> dict[str, Any]:
    """A server's answer in the form of `Matches.to_dict`."""
    judged = {} if answer["max_distance"] is None else {name: answer[name] for name in ("max_distance", "is_known")}
    always = ("rank", "id", "path", "label", "distance", "similarity")
    return {
        "query": name,
        **words,
        "metric": answer["metric"],
        **judged,
        **({} if rejection is None else {"rejection": rejection}),
        "matches": [
            {
                **{each: match[each] for each in always},
                **({} if match["is_accepted"] is None else {"is_accepted": match["is_accepted"]}),
                **({"columns": match["columns"]} if match["columns"] else {}),
            }
            for match in answer["matches"]
        ],
        "prototype": next(iter(answer["prototypes"]), None),
    }
