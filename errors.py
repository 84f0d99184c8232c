"""The one error tree: everything distcam raises on purpose is a `DistcamError`.

A message says what was expected, what came, and what to do about it. The command line prints it as one line and exits
with status 2; a traceback is a bug.
"""

from __future__ import annotations

import errno


class DistcamError(Exception):
    """Root of everything distcam raises on purpose."""


class InputError(DistcamError, ValueError):
    """An argument, option, or listing that cannot be used as it is."""


class ShapeError(InputError):
    """A tensor or array whose shape is not the documented one; the message holds both."""


class TooFewVectorsError(InputError):
    """Fewer vectors than an index needs to learn its lists and codes from.

    Attributes:
        needed: how many would do, as far as is known.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class ImageError(DistcamError, ValueError):
    """A file that is not a usable image.

    Attributes:
        path: the file, or `"<bytes>"`.
        reason: why it was refused, without the path; this is what skip reports list.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class WeightsError(DistcamError, ValueError):
    """A weights file or checkpoint that cannot be loaded safely, fits another model, or cannot be downloaded."""


class FingerprintMismatchError(DistcamError, ValueError):
    """An encoder other than the one that built the gallery; the message holds both fingerprints."""


class GalleryError(DistcamError):
    """A gallery directory that cannot serve the request."""


class NotAGalleryError(GalleryError, FileNotFoundError):
    """The path holds no gallery."""


class GalleryExistsError(GalleryError, FileExistsError):
    """The output path is already taken."""


class GalleryLockedError(GalleryError):
    """Another process is writing to the gallery."""


class UnknownEncoderError(GalleryError):
    """The gallery keeps no encoder and none was given, so nothing can be encoded or explained."""


class CorruptGalleryError(GalleryError):
    """A file of the gallery is missing, damaged, or holds what no gallery may hold; the message names the file."""


class MissingExtraError(DistcamError, ImportError):
    """An optional dependency is not installed; the message holds the `pip install` line."""


class TooManyFilesError(GalleryError):
    """The process, or the machine, has no file descriptor left; nothing is damaged."""


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """True if a call failed because the process, or the machine, has too many files open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def too_many_files(path: object) -> TooManyFilesError:
    """The error for a file that cannot be opened any more; to be raised by the caller."""
    return TooManyFilesError(
        f"{path}: cannot be opened, this process has too many files open; nothing is damaged: "
        "allow more with `ulimit -n 4096` in the shell that starts it, and do the same again"
    )
