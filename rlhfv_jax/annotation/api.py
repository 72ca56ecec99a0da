"""The endpoints of everybody's work: signing in, items, saving, history, images, statistics, training weights."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhfv_jax.annotation import (
    assignment,
    checks,
    diff,
    people,
    preview,
    saving,
    statistics,
)
from rlhfv_jax.annotation import project as projects
from rlhfv_jax.annotation.faults import Forbidden, Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.serving import (
    COOKIE,
    Server,
    body,
    endpoint,
    object_body,
    path_id,
    query_int,
    reply,
)
from rlhfv_jax.errors import UserError

SEERS = ("reviewer", "admin")


async def health(request: Request, server: Server, person: Person) -> Any:
    (version,) = server.store.read.execute("PRAGMA user_version").fetchone()
    return {"ok": True, "schema": version}


async def sign_in(request: Request, server: Server, person: Person) -> Any:
    token = (await object_body(request)).get("token")
    if not isinstance(token, str):
        raise Invalid("token: expected text.", [("token", "expected text")])
    address = request.client.host if request.client else ""
    secret, somebody = await asyncio.to_thread(server.sign_in, token.strip(), address)
    response = reply(somebody._asdict())
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, secret, max_age=people.SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
    return response


async def sign_out(request: Request, server: Server, person: Person) -> Any:
    await asyncio.to_thread(people.sign_out, server.store, request.cookies.get(COOKIE, ""))
    response = reply({})
    response.delete_cookie(COOKIE)
    return response


async def me(request: Request, server: Server, person: Person) -> Any:
    return person._asdict()


async def list_projects(request: Request, server: Server, person: Person) -> Any:
    c = server.store.read
    return [
        {"id": identity, "name": name, "weights": server.tokenizer is not None}
        | {"skip_reasons": projects.SKIP_REASONS, "progress": assignment.progress(c, person, identity)}
        | projects.to_dict(settings)
        for identity, name, settings in assignment.all_projects(c)
    ]


async def next_item(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    settings = server.project(identity)
    after = query_int(request, "after", 0, 2**53)
    found = await server.write(lambda c: assignment.next_item(c, person, identity, settings, after))
    return {"item": found}


async def get_item(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    c = server.store.read
    assignment.demand_access(c, person, item.id)
    kind = server.project(item.project).kind
    row = saving.find(c, _whose(request, server, person, item.id), item.id)
    stored = saving.copy(c, row) if row else None
    return item.public(kind) | {"project": item.project, "annotation": stored}


def _whose(request: Request, server: Server, person: Person, item: int = 0) -> int:
    """Whose work is asked for: one's own, or with the role for it somebody else's."""
    whose = query_int(request, "annotator", person.id, 2**53)
    if whose != person.id and person.role not in SEERS:
        raise Forbidden("Other people's work is not shown to you.")
    if whose != person.id and assignment.blind(server.store.read, item):
        raise Forbidden("Not everybody who does this item has finished; until then nobody sees others' work.")
    return whose


async def save(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    settings = server.project(item.project)
    wanted = checks.save_request(await body(request), item.response)
    if settings.kind != "correction":
        wanted = checks.replaced(wanted, corrected=item.response)
    segments = saving.segments_of(wanted, item, settings)
    return await server.write(lambda c: saving.save(c, person, item, settings, wanted, segments))


async def skip(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    value = await body(request)
    base, op_id = checks.operation(value)
    reason = checks.skip_reason(value)
    settings = server.project(item.project)
    return await server.write(lambda c: saving.skip(c, person, item, settings, base, op_id, reason))


async def reopen(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    base, op_id = checks.operation(await body(request))
    settings = server.project(item.project)
    return await server.write(lambda c: saving.reopen(c, person, item, settings, base, op_id))


async def release(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    await server.write(lambda c: assignment.release(c, person, item.id))
    return {}


async def keep_lease(request: Request, server: Server, person: Person) -> Any:
    """A heartbeat: only a lease that still stands is kept for longer."""
    item = server.item(path_id(request, "item"))
    settings = server.project(item.project)

    def work(c: Any) -> None:
        held = c.execute("SELECT 1 FROM lease WHERE item = ? AND annotator = ?", (item.id, person.id)).fetchone()
        if held is None:
            raise Forbidden("This item is no longer held for you.")
        assignment.lease(c, person, item.id, settings)

    await server.write(work)
    return {}


async def item_history(request: Request, server: Server, person: Person) -> Any:
    item = server.item(path_id(request, "item"))
    return saving.history(server.store.read, _whose(request, server, person, item.id), item.id)


async def my_items(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    state = request.query_params.get("state", "")
    if state not in ("", "draft", "submitted", "skipped"):
        raise Invalid("state: expected draft, submitted or skipped.", [("state", "unknown state")])
    limit, offset = query_int(request, "limit", 50, 500), query_int(request, "offset", 0, 2**31)
    whose, c = _whose(request, server, person), server.store.read
    rows = saving.mine(c, whose, identity, state, limit, offset)
    return [row for row in rows if whose == person.id or not assignment.blind(c, row["id"])]


async def compute_diff(request: Request, server: Server, person: Person) -> Any:
    value = await object_body(request)
    source = value.get("source")
    if not isinstance(source, str):
        raise Invalid("source: expected text.", [("source", "expected text")])
    wanted = checks.save_request(value | {"base_rev": 0, "op_id": "only-a-diff", "segments": []}, source)
    changes = await asyncio.to_thread(diff.segments, diff.normalized(source), wanted.corrected, wanted.cuts)
    return {"segments": [change._asdict() for change in changes]}


async def training_weights(request: Request, server: Server, person: Person) -> Any:
    if server.tokenizer is None:
        raise NotFound("Training weights need a tokenizer: start annotate with --tokenizer=FILE.")
    item = server.item(path_id(request, "item"))
    assignment.demand_access(server.store.read, person, item.id)
    settings = server.project(item.project)
    wanted = checks.save_request(await body(request), item.response)
    segments = saving.segments_of(wanted, item, settings)
    return await asyncio.to_thread(
        preview.weights,
        item.prompt,
        item.response,
        wanted.corrected,
        segments,
        server.tokenizer,
        server.template,
    )


async def image(request: Request, server: Server, person: Person) -> Any:
    try:
        data, mime = await asyncio.to_thread(server.pictures.copy, request.path_params["sha256"])
    except UserError as error:
        raise NotFound(str(error) if person.role in SEERS else "The image is not here.") from error
    return Response(data, 200, {"cache-control": "private, max-age=31536000, immutable"}, mime)


async def show_statistics(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    settings = server.project(identity)
    return await asyncio.to_thread(
        lambda: statistics.statistics(server.store.read, identity, settings, people=person.role in SEERS)
    )


ROUTES = [
    Route(
        "/api/items/{item}/annotation", endpoint(save), methods=["PUT"]
    ),  # first: asked for once a second by everybody
    Route("/healthz", endpoint(health, public=True), methods=["GET"]),
    Route("/api/session", endpoint(sign_in, public=True), methods=["POST"]),
    Route("/api/session", endpoint(sign_out, public=True), methods=["DELETE"]),
    Route("/api/me", endpoint(me), methods=["GET"]),
    Route("/api/projects", endpoint(list_projects), methods=["GET"]),
    Route("/api/projects/{project}/next", endpoint(next_item), methods=["POST"]),
    Route("/api/projects/{project}/mine", endpoint(my_items), methods=["GET"]),
    Route("/api/projects/{project}/stats", endpoint(show_statistics), methods=["GET"]),
    Route("/api/items/{item}", endpoint(get_item), methods=["GET"]),
    Route("/api/items/{item}/skip", endpoint(skip), methods=["POST"]),
    Route("/api/items/{item}/reopen", endpoint(reopen), methods=["POST"]),
    Route("/api/items/{item}/release", endpoint(release), methods=["POST"]),
    Route("/api/items/{item}/lease", endpoint(keep_lease), methods=["POST"]),
    Route("/api/items/{item}/history", endpoint(item_history), methods=["GET"]),
    Route("/api/items/{item}/weights", endpoint(training_weights), methods=["POST"]),
    Route("/api/diff", endpoint(compute_diff), methods=["POST"]),
    Route("/api/image/{sha256}", endpoint(image), methods=["GET"]),
]
