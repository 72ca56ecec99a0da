"""The ASGI application: the endpoints, and the front end's few files, held in memory."""

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhfv_jax.annotation import administration, api, comparison, reviewing
from rlhfv_jax.annotation.ballots import Ballots
from rlhfv_jax.annotation.faults import Fault, NotFound
from rlhfv_jax.annotation.security import LOCAL, Guard
from rlhfv_jax.annotation.serving import Server, reply

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
IMPORT_LIMIT = 512 * 2**20


def build(
    server: Server, hosts: Sequence[str] = LOCAL, import_limit: int = IMPORT_LIMIT, ballots: Ballots | None = None
) -> Starlette:
    """The application over an open store.

    `hosts` are the names it answers to, `import_limit` the most bytes of an import, `ballots` a comparison to show.
    """
    files = {path.relative_to(STATIC).as_posix(): _File(path) for path in STATIC.rglob("*") if path.suffix in TYPES}

    async def static(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in files:
            return reply(NotFound("There is nothing here.").to_dict(), 404)
        return files[name].response(request)

    app = Starlette(
        routes=[
            *api.ROUTES,
            *administration.ROUTES,
            *reviewing.ROUTES,
            *comparison.ROUTES,
            Route("/", static, methods=["GET"]),
            Route("/static/{name:path}", static, methods=["GET"]),
        ],
        middleware=[
            Middleware(
                Guard,
                hosts=hosts,
                large=lambda path: path.startswith("/api/projects/") and path.endswith("/import"),
                large_limit=import_limit,
            )
        ],
        exception_handlers={404: _missing, 405: _method, Fault: _fault},
    )
    app.state.server, app.state.ballots = server, ballots
    return app


async def _missing(request: Request, error: Exception) -> Response:
    return reply(NotFound("There is nothing here.").to_dict(), 404)


async def _method(request: Request, error: Exception) -> Response:
    return reply({"error": "method", "detail": "Not this method here.", "fields": []}, 405)


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return reply(error.to_dict(), error.status)


class _File:
    """A file of the front end, plain and compressed."""

    def __init__(self, path: Path):
        self.plain = path.read_bytes()
        self.small = gzip.compress(self.plain, 9, mtime=0)
        self.tag = f'"{hashlib.sha256(self.plain).hexdigest()[:16]}"'
        self.kind = TYPES[path.suffix]

    def response(self, request: Request) -> Response:
        headers = {"etag": self.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(b"", 304, headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.small, 200, headers | {"content-encoding": "gzip"}, self.kind)
        return Response(self.plain, 200, headers, self.kind)
