"""The annotation app at team size: CPU time of an import, the wait for the next item, statistics, agreement.

    python benchmarks/annotate_size.py --out=annotate_size.json

An import of 10,000 answers of 64 words, each with an image of its own, drawn for two people by a share of 0.1. Then
people have done all items but the last few, which is where looking for the next one takes longest. Statistics are of
5,700 items, the size of the published data; agreement is of as many that two people did, who differ at random.
"""

import dataclasses
import functools
import json
import os
import random
import statistics as figures
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags
from PIL import Image

from rlhfv_jax.annotation import adjudication, agreement_report, assignment, collected, diff, imports, people, project
from rlhfv_jax.annotation import statistics as project_statistics
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.store import Store

_ITEMS = flags.DEFINE_integer("items", 10_000, "Items of the import.")
_DONE = flags.DEFINE_integer("done", 5_700, "Items that were annotated, for statistics and agreement.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")

ANSWER = (  # 64 words, as the paper's answers have on average
    "The image shows a red double-decker bus parked on the right side of a wide street. Three people are standing next "
    "to the bus, and one of them is holding an umbrella. In the background there are two tall buildings and a row of "
    "green trees. The sun is shining in a clear sky, and the people seem to be waiting patiently to get on the bus."
)
WRONG = {"red": "attributes", "right": "positions", "Three": "numbers", "umbrella": "objects", "green": "attributes"}


def files(folder: Path, items: int, name: str, images: bool) -> Path:
    """The rows of an import; each with an image of its own, or all with one."""
    lines = []
    for i in range(items):
        image = f"{i if images else 'one'}.jpg"
        if images or not i:
            Image.new("RGB", (336, 336), (i % 256, i // 256, 128)).save(folder / image, quality=80)
        lines.append({"id": i, "prompt": "Describe the image.", "response": f"{ANSWER} {i}", "image": image})
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def annotate(store: Store, identity: int, items: int, workers: list[int], share: float) -> None:
    """Finished work in the store, as so many people's saves leave it; each corrects what is wrong by chance."""
    rng = random.Random(0)
    segments = functools.cache(lambda corrected: diff.segments(ANSWER, corrected))

    def work(c: Any) -> None:
        found = c.execute("SELECT id, response FROM item WHERE project = ? ORDER BY id LIMIT ?", (identity, items))
        for number, response in found.fetchall():
            wrong = [word for word in WRONG if rng.random() < 0.5]
            for worker in workers:
                words = [word for word in wrong if rng.random() < share]
                corrected = ANSWER
                for word in words:
                    corrected = corrected.replace(f" {word}", f" {word}ish", 1)
                changes = segments(corrected)
                corrected += response[len(ANSWER) :]
                values = (number, worker, corrected, "corrected" if changes else "clean")
                row = c.execute(
                    "INSERT INTO annotation(item, annotator, rev, state, corrected, cuts_json, verdict, active_ms, "
                    "opened, updated) VALUES (?, ?, 1, 'submitted', ?, '{}', ?, 30000, 0, 0)",
                    values,
                ).lastrowid
                for i, s in enumerate(changes):
                    texts = (response[s.src0 : s.src1], corrected[s.dst0 : s.dst1])
                    kind = WRONG[texts[0].split()[0]]
                    c.execute("INSERT INTO segment VALUES (?,?,?,?,?,?,?,?,?,?)", (row, i, *s, *texts, s.op, kind))

    store.write(work)


def seconds(task: Callable[[], Any], times: int = 3) -> dict[str, float]:
    """The least wall and CPU time of a few runs: what others do on the machine only adds."""
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"wall": min(wall for wall, _ in found), "cpu": min(cpu for _, cpu in found)}


def next_items(store: Store, identity: int, person: Person) -> dict[str, float]:
    """Waits in milliseconds for the next item, twenty times over, and the CPU time of one."""
    settings, waits = assignment.project_of(store.read, identity), []
    assignment.shuffled.cache_clear()
    cpu = time.process_time()
    for _ in range(20):
        start = time.perf_counter()
        item = store.write(lambda c: assignment.next_item(c, person, identity, settings))
        waits.append(1000 * (time.perf_counter() - start))
        if item is None:
            raise RuntimeError("there is no next item")
        store.write(lambda c, item=item: assignment.release(c, person, item))
    cpu = 1000 * (time.process_time() - cpu) / len(waits)
    return {"median": figures.median(waits), "max": max(waits), "cpu": cpu}


def made(store: Store, name: str, kind: str, overlap: float, path: Path) -> tuple[int, project.Project]:
    """A project with the items of a file."""
    settings = dataclasses.replace(project.new(kind), overlap=overlap)
    identity = store.write(lambda c: assignment.add_project(c, name, settings))
    report = imports.run(store, identity, path, imports.Options())
    if report.errors or not report.added:
        raise RuntimeError(f"{report.added} items were added, and {len(report.errors)} refused")
    return identity, settings


def measured(folder: Path) -> Iterator[tuple[str, Any]]:
    """(what, figures), one after the other."""
    store = Store(folder / "work")
    for who in ("a", "b", "c"):
        people.add(store, who)
    last = Person(3, "c", "annotator")
    path = files(folder, _ITEMS.value, "many.jsonl", True)
    yield "import, s", seconds(lambda: made(store, "correction", "correction", 0.1, path), 1)
    shared = files(folder, _ITEMS.value, "shared.jsonl", False)
    for kind in project.KINDS:
        identity = 1 if kind == "correction" else made(store, kind, kind, 0.1, shared)[0]
        yield f"next item of {kind}, the first, ms", next_items(store, identity, last)
        annotate(store, identity, _ITEMS.value - 20, [1, 2], 0.9)
        yield f"next item of {kind}, the last, ms", next_items(store, identity, last)
    path = files(folder, _DONE.value, "done.jsonl", False)
    c = store.read
    for name, overlap, workers in (("one person", 0.0, [1]), ("two people", 1.0, [1, 2])):
        identity, settings = made(store, name, "correction", overlap, path)
        annotate(store, identity, _DONE.value, workers, 0.9)
        yield f"statistics, {name}, s", seconds(functools.partial(project_statistics.statistics, c, identity, settings))
    yield (
        "agreement, s",
        seconds(lambda: agreement_report.report(collected.outcomes(c, identity, several=True), settings)),
    )
    yield "adjudication queue, s", seconds(lambda: adjudication.queue(c, identity))
    store.close()


def main(_: list[str]) -> None:
    values: dict[str, Any] = {"items": _ITEMS.value, "done": _DONE.value}
    with tempfile.TemporaryDirectory(prefix="annotate-size-", dir=os.environ.get("TMPDIR")) as name:
        for what, figure in measured(Path(name)):
            values[what] = figure
            print(f"{what}: {json.dumps(figure)}", flush=True)
    values["load_average"] = os.getloadavg()[0]
    print(f"load average: {values['load_average']}")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
