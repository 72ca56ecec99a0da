"""The endpoints of administration: import, people and tokens, leases, exports, backup."""

import asyncio
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from rlhfv_jax.annotation import assignment, exports, imports, people, schema
from rlhfv_jax.annotation.faults import Forbidden, Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.serving import Server, endpoint, object_body, path_id
from rlhfv_jax.errors import UserError

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv", ".json", ".zip")
# What the browser can ask for and fetch file by file, with the name of each; spans are several files in a folder.
NAMES = {
    "parquet": "pairs.parquet",
    "jsonl": "pairs.jsonl",
    "csv": "annotations.csv",
    "spans": "",
    "label_studio": "tasks.json",
    "argilla": "records.json",
    "archive": "project.zip",
}


async def import_file(request: Request, server: Server, person: Person) -> Any:
    """The body is the file; the query says its `name` (for its form), `dry_run`, `keep_going`, `prefill`."""
    identity = path_id(request, "project")
    server.project(identity)
    query = request.query_params
    suffix = Path(query.get("name", "items.jsonl")).suffix.lower()
    if suffix not in SUFFIXES:
        raise Invalid(f"name: expected a file that ends in {', '.join(SUFFIXES)}.", [("name", "unknown form")])
    annotators = query.get("annotators", "1")
    if annotators not in [str(n) for n in range(1, 21)]:
        raise Invalid("annotators: expected 1 to 20.", [("annotators", "expected 1 to 20")])
    try:
        overlap = float(query["overlap"]) if "overlap" in query else None
    except ValueError:
        overlap = math.nan
    if overlap is not None and not 0 <= overlap <= 1:
        raise Invalid("overlap: expected a share from 0 to 1.", [("overlap", "expected 0 to 1")])
    options = imports.Options(
        images=server.images,
        confined=True,
        prefill=query.get("prefill") == "1",
        n_annotators=int(annotators),
        keep_going=query.get("keep_going") == "1",
        dry_run=query.get("dry_run") == "1",
        overlap=overlap,
    )
    with tempfile.TemporaryDirectory(prefix="rlhfv-import-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as file:
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
        report = await asyncio.to_thread(imports.run, server.store, identity, path, options)
        values = dataclasses.asdict(report)
        for error in values["errors"]:
            error["detail"] = error["detail"].replace(str(path), "the file")
    return values


async def list_people(request: Request, server: Server, person: Person) -> Any:
    return people.listed(server.store.read)


async def add_person(request: Request, server: Server, person: Person) -> Any:
    value = await object_body(request)
    name, role = value.get("name"), value.get("role", "annotator")
    if not isinstance(name, str) or not isinstance(role, str):
        raise Invalid("name and role: expected texts.", [("name", "expected text")])
    _clean(name)
    return {"token": await asyncio.to_thread(people.add, server.store, name, role)}


async def change_person(request: Request, server: Server, person: Person) -> Any:
    """{"disabled": true} shuts somebody out, {"token": "new"} gives a new token."""
    identity = path_id(request, "person")
    value = await object_body(request)
    row = server.store.read.execute("SELECT name FROM annotator WHERE id = ?", (identity,)).fetchone()
    if row is None:
        raise NotFound("There is nobody with this number.")
    if value.get("token") == "new":
        return {"token": await asyncio.to_thread(people.new_token, server.store, row["name"])}
    if type(value.get("disabled")) is not bool:
        raise Invalid("Expected disabled or token.", [("disabled", "expected true or false")])
    if identity == person.id:
        raise Forbidden("You cannot shut yourself out.")
    await server.write(lambda c: people.disable(c, identity, value["disabled"]))
    return {}


def _clean(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise Invalid("The text holds half a surrogate pair.", [("name", "not text")])


async def list_leases(request: Request, server: Server, person: Person) -> Any:
    return assignment.leases(server.store.read, path_id(request, "project"))


async def end_lease(request: Request, server: Server, person: Person) -> Any:
    item, holder = path_id(request, "item"), path_id(request, "person")
    await server.write(
        lambda c: c.execute("DELETE FROM lease WHERE item = ? AND annotator = ?", (item, holder)) and None
    )
    return {}


async def make_export(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    settings = server.project(identity)
    wanted = await object_body(request)
    kind, gold = wanted.get("format"), wanted.get("gold") is True
    known = [name for name in exports.FORMATS[settings.kind] if name in NAMES]
    if kind not in known:
        formats = ", ".join(known)
        raise Invalid(f"format: expected one of {formats}.", [("format", f"expected one of {formats}")])

    def work() -> dict[str, Any]:
        folder = server.store.folder / "exports" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
        folder.mkdir(parents=True)
        try:
            found = exports.export(server.store, identity, settings, kind, folder / NAMES[kind], gold)
        except UserError:
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
        return found | {"folder": folder.name}

    return await asyncio.to_thread(work)


async def list_exports(request: Request, server: Server, person: Person) -> Any:
    rows = server.store.read.execute(
        "SELECT id, at, format, files_json, counts_json FROM export WHERE project = ? ORDER BY id DESC LIMIT 50",
        (path_id(request, "project"),),
    )
    return [
        {"id": row["id"], "at": row["at"], "format": row["format"]}
        | {"files": json.loads(row["files_json"]), "counts": json.loads(row["counts_json"])}
        for row in rows
    ]


async def get_export(request: Request, server: Server, person: Person) -> Any:
    """A file of an export; only names that lie in that very folder are found."""
    folder, name = request.path_params["folder"], request.path_params["name"]
    root = server.store.folder / "exports"
    known = {path.name: path for path in root.iterdir()} if root.is_dir() else {}
    files = {path.name: path for path in known[folder].iterdir()} if folder in known else {}
    if name not in files:
        raise NotFound("There is no such file.")
    return FileResponse(files[name], filename=name, media_type="application/octet-stream")


async def make_backup(request: Request, server: Server, person: Person) -> Any:
    def work() -> str:
        folder = server.store.folder / "backups"
        folder.mkdir(exist_ok=True)
        path = folder / f"annotations-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}.sqlite"
        return schema.backup(server.store.read, path).name

    return {"name": await asyncio.to_thread(work)}


ROUTES = [
    Route("/api/projects/{project}/import", endpoint(import_file, "admin"), methods=["POST"]),
    Route("/api/projects/{project}/export", endpoint(make_export, "admin"), methods=["POST"]),
    Route("/api/projects/{project}/exports", endpoint(list_exports, "admin"), methods=["GET"]),
    Route("/api/projects/{project}/leases", endpoint(list_leases, "admin"), methods=["GET"]),
    Route("/api/exports/{folder}/{name}", endpoint(get_export, "admin"), methods=["GET"]),
    Route("/api/items/{item}/lease/{person}", endpoint(end_lease, "admin"), methods=["DELETE"]),
    Route("/api/people", endpoint(list_people, "admin"), methods=["GET"]),
    Route("/api/people", endpoint(add_person, "admin"), methods=["POST"]),
    Route("/api/people/{person}", endpoint(change_person, "admin"), methods=["POST"]),
    Route("/api/backup", endpoint(make_backup, "admin"), methods=["POST"]),
]
