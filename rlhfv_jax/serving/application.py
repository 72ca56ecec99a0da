"""The HTTP interface: POST /v1/chat/completions, GET /v1/models, GET /health."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rlhfv_jax.decoding.batch import Answer, Delta
from rlhfv_jax.serving.refusal import Refusal
from rlhfv_jax.serving.reply import Reply
from rlhfv_jax.serving.service import Asked, Service
from rlhfv_jax.serving.worker import Ticket, Worker

READERS = 2  # threads that read bodies and open images, so that so many decoded ones are in memory at most

Items = asyncio.Queue[Delta | Refusal]


def application(service: Service, worker: Worker) -> Starlette:
    """The ASGI application; it closes the worker when it shuts down."""
    started = int(time.time())
    completions = Completions(service, worker)
    card = {"id": service.model, "object": "model", "created": started, "owned_by": "rlhfv_jax"}

    def models(request: Request) -> Response:
        authorize(request, service.token)
        return _json({"object": "list", "data": [card]})

    def model(request: Request) -> Response:
        authorize(request, service.token)
        service.check_model(request.path_params["name"])
        return _json(card)

    def health(request: Request) -> Response:
        state = {"status": "ok" if worker.alive else "down", "waiting": worker.waiting}
        return _json(state, 200 if worker.alive else 503)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, worker.close)
        completions.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", model, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _no_route, Exception: _failed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would build an address from whatever a client calls its host
    return app


class Completions:
    """The endpoint of chat completions, as an ASGI application: what a request holds is let go however it ends."""

    def __init__(self, service: Service, worker: Worker):
        self._service, self._worker = service, worker
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._under_way = 0

    def close(self) -> None:
        """Ends the worker; requests under way have had their time."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        authorize(request, self._service.token)
        if self._under_way >= self._service.limits.requests:
            raise Refusal(429, "Too many requests are under way; try again soon.", None, "busy", {"retry-after": "1"})
        self._under_way += 1
        try:
            asked = await self._read(request)
            await self._answer(asked, scope, receive, send)
        except ClientDisconnect:
            pass  # while its body came; there is nobody to tell
        finally:
            self._under_way -= 1

    async def _read(self, request: Request) -> Asked:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "Send the request as content-type: application/json.")
        body = await self._body(request)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._service.read, body)

    async def _body(self, request: Request) -> bytes:
        most = self._service.limits.body_bytes
        too_large = Refusal(413, f"The body is larger than {most} bytes, the most that is read.", None, "too_large")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._service.limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError as error:
            raise Refusal(408, "The body did not arrive in time.") from error
        return bytes(body)

    async def _answer(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply as the worker delivers it, or stops as soon as the client has left."""
        loop, items = asyncio.get_running_loop(), Items()

        def deliver(item: Delta | Refusal) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the connection
                loop.call_soon_threadsafe(items.put_nowait, item)

        ticket = Ticket(asked.prompt, asked.settings, asked.stream, deliver)
        self._worker.submit(ticket)
        if asked.stream:
            reply = asyncio.ensure_future(_stream(asked, items, send))
        else:
            reply = asyncio.ensure_future(_whole(asked, items, scope, receive, send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({reply, left}, return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                reply.result()
        finally:
            self._worker.leave(ticket)
            for task in (reply, left):
                task.cancel()
            await asyncio.gather(reply, left, return_exceptions=True)


def authorize(request: Request, token: str) -> None:
    """Raises Refusal (401) where the server has a token and the request brings another one, or none."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if token and not (
        scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    ):
        raise Refusal(
            401,
            "The token is missing or wrong; send the server's as Authorization: Bearer TOKEN (the client's api_key).",
            None,
            "invalid_api_key",
            {"www-authenticate": "Bearer"},
        )


async def _whole(asked: Asked, items: Items, scope: Scope, receive: Receive, send: Send) -> None:
    answers: dict[int, Answer] = {}
    while len(answers) < asked.settings.num_answers:
        delta = await _next(items)
        if delta.answer is not None:
            answers[delta.choice] = delta.answer
    found = [answers[choice] for choice in sorted(answers)]
    await _json(asked.reply.completion(found))(scope, receive, send)


async def _stream(asked: Asked, items: Items, send: Send) -> None:
    """Server-sent events. A failure before the first piece is a status; later, it is an event, and the last one."""
    delta = await _next(items)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    answers: list[Answer] = []
    try:
        for choice in range(asked.settings.num_answers):
            await _event(send, asked.reply.chunk(choice, {"role": "assistant", "content": ""}))
        while True:
            for chunk in _chunks(asked.reply, delta):
                await _event(send, chunk)
            answers += [delta.answer] if delta.answer is not None else []
            if len(answers) == asked.settings.num_answers:
                break
            delta = await _next(items)
        if asked.include_usage:
            await _event(send, asked.reply.usage_chunk(answers))
        await _event(send, "[DONE]")
    except Refusal as refusal:
        await _event(send, refusal.body())
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _chunks(reply: Reply, delta: Delta) -> list[dict[str, Any]]:
    text = [reply.chunk(delta.choice, {"content": delta.text})] if delta.text else []
    return text + ([reply.chunk(delta.choice, {}, delta.answer)] if delta.answer is not None else [])


async def _event(send: Send, data: dict[str, Any] | str) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


async def _next(items: Items) -> Delta:
    item = await items.get()
    if isinstance(item, Refusal):
        raise item
    return item


async def _left(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")  # ASCII: half a surrogate has no UTF-8


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json(error.body(), error.status, error.headers)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"There is no {request.method} {request.scope['path'][:100]} here; see docs/serve.md for what there is."
    return _json(Refusal(error.status_code, message).body(), error.status_code, dict(error.headers or {}))


def _failed(_: Request, error: Exception) -> Response:
    return _json(Refusal(500, f"The server failed ({type(error).__name__}).").body(), 500)
