"""What every request passes: known host, own origin, a bounded body; and what every reply carries."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhfv_jax.annotation.faults import Fault, Forbidden, TooLarge

HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
BODY_LIMIT = 2**20
WRITES = ("POST", "PUT", "DELETE", "PATCH")
LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")


class Guard:
    """ASGI middleware. `hosts` are the names that the server answers to ("*" for any); `large` tells which paths may
    carry up to `large_limit` bytes."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str],
        large: Callable[[str], bool],
        large_limit: int,
        limit: int = BODY_LIMIT,
    ):
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.large, self.large_limit, self.limit = large, large_limit, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        limit = self.large_limit if self.large(scope["path"]) else self.limit

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            self._check(scope, headers, limit)
        except Fault as fault:
            await refuse(fault, guarded)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    raise TooLarge(f"The body is larger than {limit} bytes.")
            return message

        await self.app(scope, bounded, guarded)

    def _check(self, scope: Scope, headers: dict[bytes, bytes], limit: int) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if "*" not in self.hosts and name not in self.hosts:
            raise Forbidden("This server does not answer to that host name; name it with --hosts.")
        if scope["method"] not in WRITES:
            return
        if headers.get(b"x-requested-with") != b"rlhfv":
            raise Forbidden("Writes need the header X-Requested-With: rlhfv.")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            raise Forbidden("This request comes from another site.")
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            raise Fault("The header Content-Length is not a number.") from None
        if length > limit:
            raise TooLarge(f"The body has {length} bytes; at most {limit} are taken.")


async def refuse(fault: Fault, send: Callable[[Message], Any]) -> None:
    """Sends a fault as a JSON reply."""
    body = json.dumps(fault.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
