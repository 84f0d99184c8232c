"""The answer to a request that is refused: a status and one sentence, for every error of the library."""

from __future__ import annotations

from starlette.responses import JSONResponse

from ..deadlines import DeadlineError
from ..errors import DistcamError, ImageError, InputError, UnknownEncoderError


class ApiError(DistcamError):
    """A request that is answered with a status, one sentence, and perhaps the seconds after which to ask again.

    `reason` is a word for the metrics.
    """

    def __init__(self, status: int, detail: str, *, reason: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """The answer; a lone surrogate in a message must not break its encoding."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        detail = self.detail.encode("utf-8", "replace").decode()
        return JSONResponse({"detail": detail}, self.status, headers=headers)


def api_error_of(error: DistcamError) -> ApiError:
    """Status and sentence: of a wrong request 400, of a gallery that cannot be used at the moment 503.

    Uploads are judged where they are decoded, so an `ImageError` is about an image of the gallery.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlineError):
        return ApiError(400, str(error), reason="work")
    if isinstance(error, ImageError):
        return ApiError(404, f"the file of this image is gone: {error.reason}", reason="gone")
    if isinstance(error, UnknownEncoderError):
        return ApiError(409, str(error), reason="encoder")
    if isinstance(error, InputError):
        return ApiError(400, str(error), reason="input")
    return ApiError(503, str(error), reason="gallery", retry_after=10)
