"""Whole projects to files: for Label Studio, for Argilla, as an archive, and training data as a TFDS build."""

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation import archive, argilla, exchange, label_studio
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.collected import Finished, finished
from rlhfv_jax.annotation.pictures import Pictures
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError

KINDS = ("label_studio", "argilla", "archive")  # of every kind of project, finished or not


def write(
    c: sqlite3.Connection, identity: int, project: Project, pictures: Pictures, kind: str, path: Path
) -> tuple[list[Path], dict[str, int]]:
    """Writes one of KINDS: (files, counts). Beside another tool's tasks stands what tells it to show them."""
    if kind == "archive":
        counts: dict[str, int] = {}
        file = whole(path, lambda temporary: counts.update(archive.write(c, identity, pictures, temporary)))
        return [file], counts
    counts = {"items": 0, "annotations": 0}

    def tasks() -> Iterator[dict[str, Any]]:
        make = label_studio.task if kind == "label_studio" else argilla.record
        for item, mime, image_name, rows in _items(c, identity):
            counts["items"] += 1
            counts["annotations"] += len(rows)
            picture = exchange.data_url(mime, pictures.original(item.image_sha256))
            yield make(item, picture, image_name, rows, project)

    files = [whole(path, lambda temporary: _json_list(temporary, tasks()))]
    if kind == "label_studio":
        beside, text = path.with_suffix(".config.xml"), label_studio.config(project)
    else:
        beside, text = path.with_suffix(".settings.json"), json.dumps(argilla.settings(project), indent=2) + "\n"
    return [*files, whole(beside, lambda temporary: temporary.write_text(text, encoding="utf-8"))], counts


def _items(c: sqlite3.Connection, identity: int) -> Iterator[tuple[Item, str, str, list[Finished]]]:
    """(item, its image's MIME type and name, its finished annotations) of the whole project."""
    done: dict[int, list[Finished]] = {}
    for row in finished(c, identity):
        done.setdefault(row.item, []).append(row)
    for row in c.execute(
        "SELECT i.id, i.project, i.ext_id, i.image_sha256, i.prompt, i.response, i.prefill, i.model, "
        "i.source_json AS source, i.n_annotators, m.mime, m.name FROM item i JOIN image m ON m.sha256 = i.image_sha256 "
        "WHERE i.project = ? ORDER BY i.id",
        (identity,),
    ):
        values = dict(row)
        mime, name = values.pop("mime"), values.pop("name")
        item = Item(**(values | {"source": json.loads(values["source"])}))
        yield item, mime, name, done.get(item.id, [])


def _json_list(path: Path, values: Iterator[dict[str, Any]]) -> None:
    """A list of objects, one a line and one at a time: the images of a whole project need not fit into memory."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for i, value in enumerate(values):
            file.write(("\n" if i == 0 else ",\n") + json.dumps(value, ensure_ascii=False, sort_keys=True))
        file.write("\n]\n")


def tfds_build(path: Path, parquet: Callable[[Path], dict[str, int]]) -> tuple[list[Path], dict[str, int]]:
    """A TFDS build in the folder `path`, from the training data that `parquet` writes; (files, counts)."""
    from rlhfv_jax.data.tfds import rlhfv  # its import takes a second

    with tempfile.TemporaryDirectory(prefix="rlhfv-export-") as folder:
        file = Path(folder) / "pairs.parquet"
        counts = parquet(file)
        build = rlhfv.prepare(sources.read(file), path)
    return sorted(file for file in build.iterdir() if file.is_file()), counts


def whole(path: Path, fill: Callable[[Path], Any]) -> Path:
    """Has a file filled under a temporary name, waits for the disk, renames; its folder is made where there is none.

    Raises UserError where it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
