"""A chat endpoint on 127.0.0.1 that speaks the real protocol, faults included; what tests ask instead of a model.

with FakeEndpoint(lambda body: "Rating: 4", lambda count, body: RATE_LIMIT if count == 3 else None) as server:
    ... server.url, server.calls
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What the server does instead of answering: a status with an error body, or a 200 with a broken body."""

    status: int = 500
    message: str = "The server had an error while processing your request."
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None  # sent as it is, as application/json
    delay: float = 0.0  # seconds before anything is sent


SERVER_ERROR = Fault()
RATE_LIMIT = Fault(
    429, "Rate limit reached for requests. Please try again in 50ms.", "rate_limit_exceeded", {"retry-after": "0.05"}
)
BROKEN_JSON = Fault(200, body='{"id": "chatcmpl-1", "choices": [{"mess')
NO_CHOICES = Fault(200, body='{"id": "chatcmpl-1", "object": "chat.completion", "model": "fake", "choices": []}')
SLOW = Fault(503, delay=0.5)


@dataclass(frozen=True)
class Call:
    """One request as it arrived, and how it was answered."""

    body: dict[str, Any]
    authorization: str
    at: float  # time.monotonic()
    status: int
    content: str | None  # the text sent; None where a fault was


class FakeEndpoint:
    """Answers `/v1/chat/completions`; `answer(body)` gives the text, `fault(count, body)` a fault or None.

    `count` numbers the requests from 0 in order of arrival. `hold` stops answers while it is set (requests wait).
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str],
        fault: Callable[[int, dict[str, Any]], Fault | None] = lambda count, body: None,
        model: str = "fake-judge-2024-01-01",
    ):
        self.answer, self.fault, self.model = answer, fault, model
        self.calls: list[Call] = []
        self.running = threading.Event()
        self.running.set()
        self._arrived = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answered(self) -> list[Call]:
        """The calls that got an answer rather than a fault."""
        return [call for call in self.calls if call.content is not None]

    def __enter__(self) -> "FakeEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: dict[str, Any], authorization: str) -> tuple[Fault | None, str | None]:
        arrived = time.monotonic()
        with self._lock:
            count, self._arrived = self._arrived, self._arrived + 1
        self.running.wait()
        fault = self.fault(count, body)
        content = self.answer(body) if fault is None else None
        with self._lock:
            self.calls.append(Call(body, authorization, arrived, fault.status if fault else 200, content))
        return fault, content

    def _completion(self, body: dict[str, Any], content: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {"message": message, "logprobs": None, "finish_reason": "stop"}
        return {
            "id": f"chatcmpl-{len(self.calls)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [{"index": index, **choice} for index in range(body.get("n", 1))],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/chat/completions":
                    return self._send(404, _error(f"Invalid URL (POST {self.path})", None))
                fault, content = endpoint._take(body, self.headers.get("authorization", ""))
                if fault is None:
                    return self._send(200, json.dumps(endpoint._completion(body, content)))
                time.sleep(fault.delay)
                self._send(fault.status, fault.body or _error(fault.message, fault.code), fault.headers)

            def _send(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
                data = text.encode()
                try:
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **(headers or {})}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client was killed or gave up waiting

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _error(message: str, code: str | None) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})
