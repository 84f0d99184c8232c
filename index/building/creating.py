"""The start of a new gallery: a place where it may lie, its id, its copy of the encoder."""

from __future__ import annotations

import hmac
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import GalleryError, GalleryExistsError, InputError, NotAGalleryError
from ...files import LOCK_NAME
from ..storage.cache import user_secret
from ..storage.manifest import FileEntry, Manifest
from ..storage.writer import GalleryWriter

if TYPE_CHECKING:
    from ...encoders import Encoder


def existing_gallery(folder: Path, *, overwrite: bool, remedy: str = "choose another --out") -> Manifest | None:
    """The gallery that lies there; a new one may be where nothing is or a build left off, never among other files."""
    if os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112 - never raise
        raise GalleryExistsError(f"{folder}: is a file; {remedy}")
    try:
        return Manifest.load(folder)
    except NotAGalleryError:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208
        for name in names:
            if name != LOCK_NAME and not GalleryWriter.owns(name):
                raise GalleryExistsError(
                    f"{folder}: is no gallery and holds other files, such as {name}; {remedy}"
                ) from None
        return None
    except GalleryError:
        if overwrite:
            return None
        raise


def new_gallery_id(root: str | None = None) -> str:
    """A random name for a new gallery; with the root that this user named for its images, one that proves who did."""
    name = uuid.uuid4().hex
    tag = None if root is None else _root_tag(name, root)
    return name if tag is None else f"{name}-{tag}"


def is_root_of_this_user(manifest: Manifest) -> bool:
    """True if this user, on this machine, named the root that a gallery records; nobody else can make it seem so."""
    name, _, given = manifest.gallery_id.partition("-")
    expected = _root_tag(name, manifest.root)
    return expected is not None and hmac.compare_digest(expected.encode(), given.encode())


def _root_tag(name: str, root: str) -> str | None:
    secret = user_secret()
    text = f"root\0{name}\0{root}".encode("utf-8", "surrogateescape")
    return None if secret is None else hmac.new(secret, text, "sha256").hexdigest()


def write_encoder_copy(encoder: Encoder, writer: GalleryWriter) -> FileEntry | None:
    """The gallery's copy of the encoder; None for a network of the user's own, which queries bring along."""

    def save(aside: Path) -> None:
        checkpoint = aside.with_name(f"{aside.name}.safetensors")  # the suffix that checkpoints must have
        encoder.save(checkpoint)
        checkpoint.replace(aside)

    try:
        return writer.write_encoder(save)
    except InputError:
        return None
