"""The annotation app at team size: CPU time of an import, the wait for the next item, statistics, agreement.

    python benchmarks/annotate_size.py --out=annotate_size.json

An import of 10,000 answers of 64 words, each with an image of its own, drawn for two people by a share of 0.1. Then
people have done all items but the last few, which is where looking for the next one takes longest. The statistics are
of 5,700 items, the number of the paper's pairs; agreement is of as many items that two people did, which differ at random.
"""

import dataclasses
import json
import os
import random
import statistics as figures
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from PIL import Image

from rlhfv_jax.annotation import adjudication, assignment, collected, comparison, diff, imports, people, project
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


def files(folder: Path) -> Path:
    """The rows of the import, and their images."""
    lines = []
    for i in range(_ITEMS.value):
        Image.new("RGB", (336, 336), (i % 256, i // 256, 128)).save(folder / f"{i}.jpg", quality=80)
        lines.append({"id": i, "prompt": "Describe the image.", "response": f"{ANSWER} {i}", "image": f"{i}.jpg"})
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def annotate(store: Store, identity: int, items: int, workers: list[int], share: float) -> None:
    """Finished work in the store, as the saves of so many people would leave it; each corrects what is wrong by chance."""
    rng = random.Random(0)

    def work(c: Any) -> None:
        found = c.execute("SELECT id, response FROM item WHERE project = ? ORDER BY id LIMIT ?", (identity, items))
        for number, response in found.fetchall():
            wrong = [word for word in WRONG if rng.random() < 0.5]
            for worker in workers:
                words = [word for word in wrong if rng.random() < share]
                corrected = response
                for word in words:
                    corrected = corrected.replace(f" {word} ", f" {word}ish ", 1)
                changes = diff.segments(response, corrected)
                values = (number, worker, corrected, "corrected" if changes else "clean")
                row = c.execute(
                    "INSERT INTO annotation(item, annotator, rev, state, corrected, cuts_json, verdict, active_ms, opened, "
                    "updated) VALUES (?, ?, 1, 'submitted', ?, '{}', ?, 30000, 0, 0)",
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
    """Waits in milliseconds for twenty items in turn, each taken from the end of a project that is nearly done."""
    settings, waits = assignment.project_of(store.read, identity), []
    for _ in range(20):
        start = time.perf_counter()
        item = store.write(lambda c: assignment.next_item(c, person, identity, settings))
        waits.append(1000 * (time.perf_counter() - start))
        if item is None:
            raise RuntimeError("there is no next item")
        store.write(lambda c, item=item: assignment.release(c, person, item))
    return {"median": figures.median(waits), "max": max(waits)}


def main(_: list[str]) -> None:
    values: dict[str, Any] = {"items": _ITEMS.value, "done": _DONE.value}
    with tempfile.TemporaryDirectory(prefix="annotate-size-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        store = Store(folder / "work")
        for who in ("a", "b", "c"):
            people.add(store, who)
        last = Person(3, "c", "annotator")
        path = files(folder)
        for kind in project.KINDS:
            settings = dataclasses.replace(project.new(kind), overlap=0.1)
            identity = store.write(lambda c, kind=kind, settings=settings: assignment.add_project(c, kind, settings))
            start = time.process_time(), time.perf_counter()
            report = imports.run(store, identity, path, imports.Options())
            cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
            if report.added != _ITEMS.value:
                raise RuntimeError(f"{report.added} items were added, and {len(report.errors)} refused")
            values[f"import {kind}"] = {"wall": wall, "cpu": cpu}
            values[f"next item {kind}, first, ms"] = next_items(store, identity, last)
            annotate(store, identity, _ITEMS.value - 20, [1, 2], 0.9)
            values[f"next item {kind}, last, ms"] = next_items(store, identity, last)
        settings = dataclasses.replace(project.new("correction"), overlap=1.0)
        identity = store.write(lambda c: assignment.add_project(c, "shared", settings))
        imports.run(store, identity, path, imports.Options())
        annotate(store, identity, _DONE.value, [1, 2], 0.9)
        c = store.read
        single = dataclasses.replace(settings, overlap=0.0)
        alone = store.write(lambda c: assignment.add_project(c, "alone", single))
        imports.run(store, alone, path, imports.Options())
        annotate(store, alone, _DONE.value, [1], 0.9)
        values["statistics"] = seconds(lambda: project_statistics.statistics(c, alone, single))
        values["statistics, every item done twice"] = seconds(
            lambda: project_statistics.statistics(c, identity, settings)
        )
        values["agreement"] = seconds(
            lambda: comparison.report(collected.outcomes(c, identity, several=True), settings)
        )
        values["adjudication queue"] = seconds(lambda: adjudication.queue(c, identity))
        store.close()
    values["load_average"] = os.getloadavg()[0]
    print(json.dumps(values, indent=2))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
