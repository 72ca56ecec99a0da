"""The server is killed while it saves: what it acknowledged is there, whole; what it did not is there or absent."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

import httpx
import pytest
from annotation_world import RESPONSE, add

from rlhfv_jax.annotation import collected, people
from rlhfv_jax.annotation.store import FILE, Store

KILLS = 20
WRITERS = 4


class Server:
    """The program as a process of its own, on one port, started again after each kill."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.line = [sys.executable, "-m", "rlhfv_jax.annotate", f"--project={folder}", f"--port={self.port}"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.line, stdout=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz").json()["ok"]:
                    return
            assert self.process.poll() is None
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Writer(threading.Thread):
    """Somebody who has an item and saves it without pause; a lost request is sent again. Keeps all acknowledgments."""

    def __init__(self, url: str, token: str, stop: threading.Event):
        super().__init__()
        self.stop = stop
        self.client = httpx.Client(base_url=url, headers={"X-Requested-With": "rlhfv"}, timeout=10)
        assert self.client.post("/api/session", json={"token": token}).status_code == 200
        self.item = self.client.post("/api/projects/1/next").json()["item"]
        self.acknowledged: dict[int, str] = {}
        self.wrong: list[str] = []

    def run(self) -> None:
        rev, number = 0, 0
        while not self.stop.is_set():
            number += 1
            text = f"A blue bus number {number} of item {self.item} stands on the left of two men."
            body = {"base_rev": rev, "op_id": uuid.uuid4().hex, "state": "draft", "corrected": text}
            reply = self.send(body)
            if reply is None:
                break
            if reply.status_code != 200 or reply.json()["rev"] != rev + 1:
                self.wrong.append(reply.text)
                break
            rev += 1
            self.acknowledged[rev] = text
        self.client.close()

    def send(self, body: dict) -> httpx.Response | None:
        while True:
            try:
                return self.client.put(f"/api/items/{self.item}/annotation", json=body)
            except httpx.TransportError:
                if self.stop.is_set():
                    return None
                time.sleep(0.02)


@pytest.mark.slow
def test_no_acknowledged_save_is_lost_in_twenty_kills_under_load(tmp_path):
    folder = tmp_path / "work"
    store = Store(folder)
    add(store, tmp_path, "correction", [{"response": RESPONSE}] * WRITERS)
    tokens = [people.add(store, f"person {i}") for i in range(WRITERS)]
    store.close()
    server, stop = Server(folder), threading.Event()
    server.start()
    writers = [Writer(server.url, token, stop) for token in tokens]
    for writer in writers:
        writer.start()
    kills = 0
    try:
        while kills < KILLS:
            before = sum(len(writer.acknowledged) for writer in writers)
            while sum(len(w.acknowledged) for w in writers) < before + 10 and all(w.is_alive() for w in writers):
                time.sleep(0.01)
            server.kill()
            kills += 1
            server.start()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        server.kill()
    assert [writer.wrong for writer in writers] == [[]] * WRITERS
    assert sum(len(writer.acknowledged) for writer in writers) >= 10 * KILLS
    connection = sqlite3.connect(folder / FILE)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    for writer in writers:
        rows = connection.execute(
            "SELECT e.rev, e.payload_json FROM event e JOIN annotation a ON a.id = e.annotation WHERE a.item = ? "
            "ORDER BY e.rev",
            (writer.item,),
        ).fetchall()
        stored = {rev: json.loads(payload)["corrected"] for rev, payload in rows}
        assert len(rows) == len(stored) and list(stored) == list(range(1, len(stored) + 1))
        assert {rev: stored[rev] for rev in writer.acknowledged} == writer.acknowledged
        assert len(stored) <= len(writer.acknowledged) + 1  # at most the one that was on its way
        ((text, rev),) = connection.execute("SELECT corrected, rev FROM annotation WHERE item = ?", (writer.item,))
        assert (rev, text) == (len(stored), stored[len(stored)])
    connection.close()
    store = Store(folder)
    collected.finished(store.read, 1)  # stored segments stand where their offsets say
    store.close()
