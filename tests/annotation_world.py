"""A project directory with items and people, and a server over it in this process, for tests of the annotation app."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from rlhfv_jax.annotation import assignment, imports, people, project
from rlhfv_jax.annotation.store import Store

RESPONSE = "A red bus stands on the left of two men."
CORRECTED = "A blue bus stands on the right of two men."


def picture(hue: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    """A small JPEG: a bus of one of two colors on a street."""
    image = Image.new("RGB", size, (196, 222, 242))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, height * 2 // 3, width, height), fill=(150, 150, 150))
    draw.rectangle((width // 8, height // 3, width * 5 // 8, height * 3 // 4), fill=[(180, 50, 40), (35, 90, 180)][hue])
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def add(store: Store, folder: Path, kind: str, rows: list[dict], settings: project.Project | None = None) -> int:
    """A project with the rows as its items; each gets an image where it names none."""
    identity = store.write(lambda c: assignment.add_project(c, kind, settings or project.new(kind)))
    image = base64.b64encode(picture()).decode()
    path = folder / f"{kind}.jsonl"
    lines = [{"id": i, "prompt": "Describe the image.", "image_base64": image} | row for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = imports.run(store, identity, path, imports.Options())
    assert (report.added, report.errors) == (len(rows), [])
    return identity


class World(NamedTuple):
    """A served project directory: its address, its store, and a token by name."""

    url: str
    store: Store
    tokens: dict[str, str]


@contextlib.contextmanager
def served(folder: Path, port: int = 0, ballots: Callable | None = None, **options) -> Iterator[World]:
    """Ada and Bob annotate, Eve administers; options go to the Server. Tokens are there the first time only.

    `ballots(store)` is a comparison to show.
    """
    import uvicorn

    from rlhfv_jax.annotation import app, serving

    store = Store(folder / "work")
    known = {row["name"] for row in people.listed(store.read)}
    people_here = (("ada", "annotator"), ("bob", "annotator"), ("eve", "admin"))
    tokens = {name: people.add(store, name, role) for name, role in people_here if name not in known}
    listener = socket.create_server(("127.0.0.1", port))
    application = app.build(serving.Server(store, **options), ballots=ballots and ballots(store))
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield World(f"http://127.0.0.1:{listener.getsockname()[1]}", store, tokens)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        store.close()
