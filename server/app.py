"""The ASGI application: routes, page, errors; and running it with uvicorn, without dropping what is being answered."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from .._version import __version__
from ..errors import DistcamError, InputError
from . import schemas
from .middleware import Middleware, Traffic
from .queues import take_one
from .refusals import COOKIE, ApiError, api_error_of, client_key, cookie_of, is_token
from .routes import gallery as showing
from .routes import search as searching
from .service import Service
from .settings import ServerSettings

_log = logging.getLogger(__name__)
_ROUTERS = (searching.router, showing.router, showing.writing)
_GRACE_S = 30  # for requests at work when the server is told to end
_PATIENCE_S = 30.0  # with connections that ask for nothing
_CONNECTIONS, _CLIENT_CONNECTIONS, _SPARE_CONNECTIONS = 1000, 250, 8
_TICKS = 100  # of .1 s, between two times that free memory is given back
_ARENAS = 2  # of malloc; by default each thread soon has one, and what a thread has freed serves no other
_M_ARENA_MAX = -8
_SWITCH_S = 0.0005  # between threads; Python's 5 ms is what the event loop would wait at each step for a busy thread


def create_app(settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application; DistcamError for a gallery or an encoder that cannot be used."""
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


def _add_page(app: FastAPI, settings: ServerSettings) -> None:
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

    @app.get("/atlas", include_in_schema=False)
    async def atlas_page() -> Response:
        return _file(settings, "atlas.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return _file(settings, "favicon.ico")

    app.mount("/static/shared", StaticFiles(packages=[("distcam.explain.drawing", "shared")]), name="shared")
    app.mount("/static", StaticFiles(directory=settings.static, check_dir=False), name="static")


def _file(settings: ServerSettings, name: str) -> Response:
    if not (settings.static / name).is_file():
        raise HTTPException(404, "there is no such page")
    return FileResponse(settings.static / name)


def _add_errors(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.exception_handler(DistcamError)
    async def refused(_request: Request, error: DistcamError) -> Response:
        answer = api_error_of(error)
        if answer.status >= 500 and not isinstance(error, ApiError):
            _log.warning("%s", error)
        service.metrics.refused.labels(answer.reason).inc()
        # clients need not know where on this machine it lies
        answer.detail = answer.detail.replace(str(settings.uploads_folder), "the uploads")
        answer.detail = answer.detail.replace(str(settings.gallery), "the gallery")
        return answer.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        service.metrics.refused.labels("malformed").inc()
        return ApiError(422, _sentence(error), reason="malformed").response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
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


class _Connection(H11Protocol):
    """A connection closed when nothing happens on it; h11, as httptools does not bound a head that comes in pieces."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch = self.loop.call_later(_PATIENCE_S, self._look, None, True)
        self._client_key = client_key(self.client[0]) if self.client else ""
        self._counts: Counter[str] = self.config.app.state.traffic.connections  # type: ignore[union-attr]
        self._counts[self._client_key] += 1
        free = _CONNECTIONS - len(self.connections)  # what is left is never all for one
        if self._counts[self._client_key] > min(_CLIENT_CONNECTIONS, max(_SPARE_CONNECTIONS, free // 2)):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        take_one(self._counts, self._client_key)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:  # a body that does not parse; its request is being answered already, and one answer is enough
            self.transport.abort()

    def _look(self, last: object, was_idle: bool) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        if is_idle and was_idle and self.cycle is last:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(_PATIENCE_S, self._look, self.cycle, is_idle)


class _Server(uvicorn.Server):
    """Refuses new requests from the moment it is told to end; those at work are finished. Gives free memory back."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0 and (libc := glibc()) is not None:
            await asyncio.to_thread(libc.malloc_trim, 0)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.traffic.is_draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def glibc() -> ctypes.CDLL | None:
    """The C library, where it is GNU's: its malloc keeps what large uploads needed, unless it is told to let go."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def bound_socket(host: str, port: int) -> socket.socket:
    """Listen before anything is loaded, so that a port in use is noticed at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delays on
    try:
        if os.name == "posix":  # elsewhere this option means something else
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Address of the server for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{name}:{port}"


def server_of(app: FastAPI, *, on_ready: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """The server that `run` runs; its `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        log_level="error",  # warnings are about what clients do
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address as its own
        http=_Connection,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_GRACE_S,
        ws="none",
        lifespan="on",
    )
    return _Server(config, on_ready)


def run(
    app: FastAPI, bound: socket.socket, *, access_log: bool = False, on_ready: Callable[[], None] = lambda: None
) -> bool:
    """Serve until SIGINT or SIGTERM, finish what is being answered, and return; `access_log` writes JSON to stderr.

    False if threads are still at work after the time for that, which would keep Python from ending: then `os._exit`.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is none
    if access_log:
        log = logging.getLogger("distcam.access")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(logging.StreamHandler())
        app.state.traffic.log_requests = True
    # uvicorn raises the signals once more when it is done, for whoever was asked before; that is nobody
    switching = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    if (libc := glibc()) is not None and "MALLOC_ARENA_MAX" not in os.environ:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}

    def ready() -> None:
        gc.collect()
        gc.freeze()  # else each full collection looks at all of torch, and stops every thread for .2 s
        on_ready()

    try:
        server_of(app, on_ready=ready).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.setswitchinterval(switching)
        gc.unfreeze()
        bound.close()
    return not app.state.service.has_hung_threads
