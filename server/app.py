"""The ASGI application: routes, page, errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route

from .._version import __version__
from ..errors import DistcamError
from . import schemas
from .middleware import Middleware, Traffic
from .refusals import COOKIE, ApiError, api_error_of, cookie_of, is_token
from .routes import gallery as showing
from .routes import search as searching
from .service import Service
from .settings import Settings

_log = logging.getLogger(__name__)
_ROUTERS = (searching.router, showing.router, showing.writing)


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application; `app.state.service` and `app.state.traffic` are what it runs on.

    Raises:
        DistcamError: the gallery or its encoder cannot be used.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="distcam",
        version=__version__,
        description="Image retrieval that explains every match.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service, app.state.traffic = service, Traffic()
    for router in _ROUTERS:
        app.include_router(router)
    _add_operation(app, service)
    _add_page(app, settings)
    _add_errors(app, service)
    app.add_middleware(Middleware, settings=settings, metrics=service.metrics, traffic=app.state.traffic)
    return app


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=schemas.HealthAnswer, responses={503: {"model": schemas.ErrorAnswer}})
    async def health() -> Response:
        """The server answers; how many images it knows, and of which generation. It waits for no search."""
        images, generation = await service.known()
        return searching.json_answer(schemas.HealthAnswer(status="ok", images=images, generation=generation))

    @app.get("/ready", response_model=schemas.HealthAnswer, responses={503: {"model": schemas.ErrorAnswer}})
    async def ready(request: Request) -> Response:
        """New requests are taken: 503 while the server shuts down, or the gallery cannot be used."""
        if request.app.state.traffic.is_draining:
            raise ApiError(503, "the server is shutting down", reason="draining", retry_after=5)
        return await health()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_page(app: FastAPI, settings: Settings) -> None:
    @app.get("/", include_in_schema=False)
    async def page(token: str | None = None) -> Response:
        """The page; with `?token=`, which the page sends when it was told the read token, the cookie that it needs."""
        if token is None or settings.read_token is None:
            return _file(settings, "index.html")
        if not is_token(token, settings.read_token):
            raise ApiError(401, "that is not the read token of this server", reason="token")
        response = RedirectResponse("/", 303)
        cookie = cookie_of(settings.read_token)
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", max_age=30 * 24 * 3600)
        return response

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return _file(settings, "favicon.ico")

    app.mount("/static/shared", StaticFiles(packages=[("distcam.explain.drawing", "shared")]), name="shared")
    app.mount("/static", StaticFiles(directory=settings.static, check_dir=False), name="static")


def _file(settings: Settings, name: str) -> Response:
    if not (settings.static / name).is_file():
        raise HTTPException(404, "there is no such page")
    return FileResponse(settings.static / name)


def _add_errors(app: FastAPI, service: Service) -> None:
    settings = service.settings

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, DistcamError)
        answer = api_error_of(error)
        if answer.status >= 500 and not isinstance(error, ApiError):
            _log.warning("%s", error)
        service.metrics.refused.labels(answer.reason).inc()
        # clients need not know where on this machine it lies
        answer.detail = answer.detail.replace(str(settings.uploads_folder), "the uploads")
        answer.detail = answer.detail.replace(str(settings.gallery), "the gallery")
        return answer.response()

    async def malformed(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        service.metrics.refused.labels("malformed").inc()
        return ApiError(422, _sentence(error), reason="malformed").response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response: Response = ApiError(error.status_code, str(error.detail), reason="http").response()
        if error.status_code == 405 and request.method == "OPTIONS":
            response = Response(status_code=204)
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # each route only knows its own methods; the static files are no route
            routes = (*app.routes, *(route for router in _ROUTERS for route in router.routes))
            fitting = [r for r in routes if isinstance(r, Route) and r.path_regex.match(request.scope["path"])]
            methods = {method for route in fitting for method in route.methods or ()} or {"GET"}
            methods |= {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
            response.headers["Allow"] = ", ".join(sorted(methods))
        return response

    app.add_exception_handler(DistcamError, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http_error)


def _sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong, without repeating what was sent, nor how the server is written."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][:4])
    message = first["msg"].removeprefix("Value error, ")
    if "UploadFile" in message:
        message = "expected a file, sent as multipart/form-data"
    elif first["type"] == "string_pattern_mismatch":
        message = "expected printable text, without line ends, control characters and marks of direction"
    return f"{place}: {message}"
