"""Why a request is refused: one sentence and a status for everything that distcam raises."""

from __future__ import annotations

from ..deadlines import DeadlineError
from ..errors import (
    DistcamError,
    FingerprintMismatchError,
    GalleryError,
    ImageError,
    InputError,
    MissingExtraError,
    UnknownEncoderError,
    WeightsError,
)

__all__ = ["Refusal", "refusal_of"]


class Refusal(DistcamError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        detail: one sentence for the client.
        reason: a word for the metrics.
        retry_after: seconds after which asking again makes sense; None if it never does.
    """

    def __init__(self, status: int, detail: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with the status."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: DistcamError) -> Refusal:
    """The answer to a request that ended in an error of the library.

    What the client sent wrong is 400; a gallery that cannot be used at the moment is 503. Pictures that are sent are
    judged where they are read, so an `ImageError` is about a picture of the gallery.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DeadlineError):
        return Refusal(400, str(error), reason="work")
    if isinstance(error, ImageError):
        return Refusal(404, f"the picture of this image is gone: {error.reason}", reason="gone")
    if isinstance(error, UnknownEncoderError):
        return Refusal(409, str(error), reason="encoder")
    if isinstance(error, (GalleryError, FingerprintMismatchError, WeightsError, MissingExtraError)):
        return Refusal(503, str(error), reason="gallery", retry_after=10)
    if isinstance(error, InputError):
        return Refusal(400, str(error), reason="input")
    return Refusal(503, str(error), reason="gallery", retry_after=10)
