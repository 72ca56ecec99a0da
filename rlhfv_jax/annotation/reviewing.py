"""The endpoints of reviewers and administrators: the queue of what people differ in, decisions, agreement."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhfv_jax.annotation import adjudication, agreement_report, collected
from rlhfv_jax.annotation.faults import NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.serving import Server, endpoint, object_body, path_id


async def show_queue(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    server.project(identity)
    return await asyncio.to_thread(lambda: adjudication.queue(server.store.read, identity))


def _item(request: Request, server: Server) -> Any:
    item = server.item(path_id(request, "item"))
    if item.project != path_id(request, "project"):
        raise NotFound("This item is of another project.")
    return item, server.project(item.project)


async def show_case(request: Request, server: Server, person: Person) -> Any:
    item, settings = _item(request, server)
    return adjudication.case(server.store.read, item, settings)


async def decide(request: Request, server: Server, person: Person) -> Any:
    item, settings = _item(request, server)
    value = await object_body(request)
    result = adjudication.result_of(value, item, settings)
    adjudication.reason_of(value)
    return await server.write(lambda c: adjudication.decide(c, person, item, settings, value, result))


async def show_agreement(request: Request, server: Server, person: Person) -> Any:
    identity = path_id(request, "project")
    settings = server.project(identity)

    def work() -> dict[str, Any]:
        return agreement_report.report(collected.outcomes(server.store.read, identity, several=True), settings)

    return await asyncio.to_thread(work)


async def raw_agreement(request: Request, server: Server, person: Person) -> Any:
    """The table that the figures are computed from, as CSV."""
    identity = path_id(request, "project")
    server.project(identity)

    def work() -> str:
        return agreement_report.raw(collected.outcomes(server.store.read, identity, several=True))

    headers = {"content-disposition": 'attachment; filename="agreement.csv"', "cache-control": "no-store"}
    return Response(await asyncio.to_thread(work), 200, headers, "text/csv; charset=utf-8")


ROUTES = [
    Route("/api/projects/{project}/queue", endpoint(show_queue, "reviewer", "admin"), methods=["GET"]),
    Route("/api/projects/{project}/adjudicate/{item}", endpoint(show_case, "reviewer", "admin"), methods=["GET"]),
    Route("/api/projects/{project}/adjudicate/{item}", endpoint(decide, "reviewer", "admin"), methods=["POST"]),
    Route("/api/projects/{project}/agreement", endpoint(show_agreement, "reviewer", "admin"), methods=["GET"]),
    Route("/api/projects/{project}/agreement.csv", endpoint(raw_agreement, "reviewer", "admin"), methods=["GET"]),
]
