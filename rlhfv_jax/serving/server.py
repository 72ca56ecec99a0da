"""uvicorn around the application: listens, and when it is told to stop lets requests finish for a while."""

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn

from rlhfv_jax.serving.application import application
from rlhfv_jax.serving.service import Service
from rlhfv_jax.serving.worker import Worker

KEEP_ALIVE = 60  # seconds that a connection may lie idle
LAST = 5  # seconds for refusals to be sent, when the grace is over


class Server(uvicorn.Server):
    """Serves until `should_exit` or a signal; `grace` seconds later, requests that are still there get a 503."""

    def __init__(self, service: Service, worker: Worker, grace: float):
        super().__init__(
            uvicorn.Config(
                application(service, worker),
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=round(grace) + LAST,
            )
        )
        self._stop, self._grace = worker.stop, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; requests under way finish first."""
        asyncio.get_running_loop().call_later(self._grace, self._stop)
        await super().shutdown(sockets)


def run(service: Service, worker: Worker, listener: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    """Serves on a bound socket until SIGTERM or SIGINT; calls `ready()` when clients can connect."""
    # uvicorn stops at these signals and then raises them again, for whoever handled them before: nobody, here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    listener.listen(2048)
    ready()
    Server(service, worker, grace).run(sockets=[listener])
