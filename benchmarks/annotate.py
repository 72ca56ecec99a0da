"""Annotators who each save a draft once a second: the server's CPU time per save, waiting times, and what was kept.

    python benchmarks/annotate.py --out=annotate.json

The server is the program in a process of its own, on this machine's disk. The client is one thread of plain sockets,
so that it takes little from the server. Each save carries a full answer; the server computes its segments anew.
Afterwards the store is compared with what was sent: nothing may be lost, and nobody's text with anybody else.

The same load then meets a bare server, for what this machine asks for a save at least: uvicorn and the store's writer,
without a framework, people, checks or a diff, which reads the JSON and commits its text as one row.
"""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import selectors
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from absl import app, flags
from PIL import Image

from rlhfv_jax.annotation import assignment, imports, people, project
from rlhfv_jax.annotation.store import FILE, Store

_PEOPLE = flags.DEFINE_integer("people", 50, "Annotators at work.")
_SECONDS = flags.DEFINE_integer("seconds", 60, "How long they work.")
_EVERY = flags.DEFINE_float("every", 1.0, "Seconds between two saves of an annotator.")
_PORT = flags.DEFINE_integer("port", 8399, "The server's port.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")
_BARE = flags.DEFINE_string("bare", "", "Be the bare server over a store in this folder.")

ANSWER = (  # 64 words, as the paper's answers have on average
    "The image shows a red double-decker bus parked on the right side of a wide street. Three people are standing next "
    "to the bus, and one of them is holding an umbrella. In the background there are two tall buildings and a row of "
    "green trees. The sun is shining in a clear sky, and the people seem to be waiting patiently to get on the bus."
)
CORRECTED = ANSWER.replace("red", "blue").replace("right", "left").replace("Three", "Two")


def prepare(folder: Path) -> list[str]:
    """A project with an item for each annotator; their tokens."""
    store = Store(folder)
    identity = store.write(lambda c: assignment.add_project(c, "correction", project.new("correction")))
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    path = folder / "items.jsonl"
    rows = [{"id": i, "prompt": "p", "response": ANSWER, "image_base64": image} for i in range(_PEOPLE.value)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    imports.run(store, identity, path, imports.Options())
    tokens = [people.add(store, f"annotator {i}") for i in range(_PEOPLE.value)]
    store.close()
    return tokens


class Annotator:
    """One connection; a request that is under way has `sent` set to when it was due."""

    def __init__(self, number: int, token: str, port: int):
        self.number = number
        first = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"X-Requested-With": "rlhfv", "Content-Type": "application/json"}
        first.request("POST", "/api/session", json.dumps({"token": token}), headers)
        reply = first.getresponse()
        reply.read()
        self.cookie = (reply.getheader("set-cookie") or "").split(";")[0]
        first.request("POST", "/api/projects/1/next", headers=headers | {"Cookie": self.cookie})
        self.item = json.loads(first.getresponse().read())["item"]
        first.close()
        self.rev = self.count = 0
        self.sent: float | None = None
        self.buffer = b""
        self.text = ""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def save(self, due: float) -> None:
        self.count += 1
        self.text = f"{CORRECTED} Annotator {self.number}, save {self.count}."
        body = json.dumps(
            {
                "base_rev": self.rev,
                "op_id": f"{os.getpid()}-{self.number}-{self.count}-save",
                "state": "draft",
                "corrected": self.text,
                "segments": [],
                "active_ms": 1000 * self.count,
            }
        )
        head = (
            f"PUT /api/items/{self.item}/annotation HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Requested-With: rlhfv\r\n"
            f"Cookie: {self.cookie}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.sent = due
        self.socket.sendall((head + body).encode())

    def receive(self) -> dict[str, Any] | None:
        """The reply once it is whole; raises RuntimeError for any but success."""
        self.buffer += self.socket.recv(65536)
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) < length:
            return None
        self.buffer, self.sent = b"", None
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"annotator {self.number}: {head[:20]!r} {rest[:200]!r}")
        return json.loads(rest)


def work(annotators: list[Annotator], seconds: int) -> list[float]:
    """Everybody saves every so often, each at another moment; waiting times in seconds since the save was due."""
    selector = selectors.DefaultSelector()
    for annotator in annotators:
        selector.register(annotator.socket, selectors.EVENT_READ, annotator)
    start = time.perf_counter() + 0.1
    every, rounds = _EVERY.value, round(seconds / _EVERY.value)
    due = [(start + every * (k + i / len(annotators)), a) for k in range(rounds) for i, a in enumerate(annotators)]
    waits: list[float] = []
    at = under_way = 0
    while at < len(due) or under_way:
        while at < len(due) and due[at][0] <= time.perf_counter() and due[at][1].sent is None:
            due[at][1].save(due[at][0])
            under_way += 1
            at += 1
        pause = 0.001 if at < len(due) and due[at][1].sent is not None else 0.5
        if at < len(due) and due[at][1].sent is None:
            pause = max(0.0, due[at][0] - time.perf_counter())
        for key, _ in selector.select(pause):
            annotator, sent = key.data, key.data.sent
            if (reply := annotator.receive()) is not None:
                waits.append(time.perf_counter() - sent)
                annotator.rev = reply["rev"]
                under_way -= 1
    return waits


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check(folder: Path, annotators: list[Annotator]) -> None:
    """Raises RuntimeError where the store is not what was sent."""
    connection = sqlite3.connect(folder / FILE)
    for a in annotators:
        rows = connection.execute(
            "SELECT e.rev, e.payload_json FROM event e JOIN annotation n ON n.id = e.annotation WHERE n.item = ?",
            (a.item,),
        ).fetchall()
        texts = [json.loads(payload)["corrected"] for _, payload in sorted(rows)]
        wanted = [f"{CORRECTED} Annotator {a.number}, save {k}." for k in range(1, a.count + 1)]
        if texts != wanted or [rev for rev, _ in sorted(rows)] != list(range(1, a.count + 1)):
            raise RuntimeError(f"annotator {a.number}: the store holds other texts than were sent")
    connection.close()


def serve_bare(folder: str) -> None:
    """An ASGI application that commits a PUT's text as one row, and answers everything as the client needs it."""
    store = Store(folder)
    store.write(lambda c: c.execute("CREATE TABLE bare(text TEXT)") and None)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{name}.complete"})
            return
        reply = {"item": 0, "rev": 0}
        if scope["method"] == "PUT":
            text = json.loads((await receive())["body"])["corrected"]
            commit = store.submit(lambda c: c.execute("INSERT INTO bare VALUES (?)", (text,)).lastrowid)
            reply["rev"] = await asyncio.wrap_future(commit)
        body = json.dumps(reply).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    print("Serving", flush=True)
    uvicorn.run(application, port=_PORT.value, log_level="warning", access_log=False, server_header=False)


@contextlib.contextmanager
def served(*line: str) -> Iterator[int]:
    """The process of a server that answers on the port."""
    server = subprocess.Popen([sys.executable, *line, f"--port={_PORT.value}"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        for _attempt in range(200):
            try:
                socket.create_connection(("127.0.0.1", _PORT.value)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield server.pid
    finally:
        server.terminate()
        server.wait()


def measure(pid: int, annotators: list[Annotator]) -> tuple[float, float, list[float]]:
    """CPU milliseconds per save of the server and of the client, and the sorted waiting times in seconds."""
    work(annotators, 2)
    before, own = cpu_seconds(pid), time.process_time()
    waits = sorted(work(annotators, _SECONDS.value))
    spent, own = cpu_seconds(pid) - before, time.process_time() - own
    return 1000 * spent / len(waits), 1000 * own / len(waits), waits


def main(_: list[str]) -> None:
    if _BARE.value:
        serve_bare(_BARE.value)
        return
    with tempfile.TemporaryDirectory(prefix="annotate-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name) / "project"
        tokens = prepare(folder)
        with served("-m", "rlhfv_jax.annotate", f"--project={folder}") as pid:
            annotators = [Annotator(i, token, _PORT.value) for i, token in enumerate(tokens)]
            spent, own, waits = measure(pid, annotators)
        check(folder, annotators)
        with served(__file__, f"--bare={Path(name) / 'bare'}") as pid:
            bare, _own, _waits = measure(pid, [Annotator(i, token, _PORT.value) for i, token in enumerate(tokens)])
    points = statistics.quantiles(waits, n=100, method="inclusive")
    values = {
        "people": _PEOPLE.value,
        "saves": len(waits),
        "server_cpu_ms_per_save": spent,
        "bare_cpu_ms_per_save": bare,
        "client_cpu_ms_per_save": own,
        "wait_ms": {
            "p50": 1000 * points[49],
            "p95": 1000 * points[94],
            "p99": 1000 * points[98],
            "max": 1000 * waits[-1],
        },
        "load_average": os.getloadavg()[0],
        "lost_or_crossed": 0,
    }
    print(json.dumps(values, indent=2))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
