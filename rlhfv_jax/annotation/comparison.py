"""The endpoints of the comparison that the server was started with."""

import asyncio
import functools
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhfv_jax.annotation.ballots import Ballots
from rlhfv_jax.annotation.faults import Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.serving import Server, endpoint, object_body, path_id
from rlhfv_jax.comparing.thumbnails import thumbnail
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.questions import Question

SHOWN_PIXELS = 1024


def _ballots(request: Request) -> Ballots:
    found: Ballots | None = request.app.state.ballots
    if found is None:
        raise NotFound("There is no comparison here; start annotate with --compare=A.jsonl,B.jsonl.")
    return found


async def comparisons(request: Request, server: Server, person: Person) -> Any:
    """What there is to compare: nothing, or one comparison's sizes."""
    found: Ballots | None = request.app.state.ballots
    return [] if found is None else [found.summary(server.store.read, person)]


async def show(request: Request, server: Server, person: Person) -> Any:
    """The comparison, as far as this person may know it."""
    return _ballots(request).shown(server.store.read, person)


async def vote(request: Request, server: Server, person: Person) -> Any:
    """Keeps a vote {item, choice}; the reply is the item with its names."""
    ballots, values = _ballots(request), await object_body(request)
    number = values.get("item")
    if type(number) is not int:
        raise Invalid("item: expected the question's number.", [("item", "expected a number")])
    return await server.write(lambda c: ballots.vote(c, person, number, values.get("choice", -1)))


async def results(request: Request, server: Server, person: Person) -> Any:
    """Win rates, for who has voted on everything."""
    ballots = _ballots(request)
    return await asyncio.to_thread(lambda: ballots.results(server.store.read, person))


async def image(request: Request, server: Server, person: Person) -> Any:
    """A question's image, turned and cleaned of metadata."""
    item = _ballots(request).item(path_id(request, "number"))
    try:
        data = await asyncio.to_thread(_image, item.question)
    except UserError:  # its words may name a folder, and that a model
        data = None
    if data is None:
        raise NotFound("This question has no image that can be shown.")
    return Response(data, 200, {"cache-control": "private, max-age=3600"}, "image/jpeg")


@functools.lru_cache(maxsize=512)
def _image(question: Question) -> bytes | None:
    data = question.image_bytes()
    return data and thumbnail(data, SHOWN_PIXELS)


ROUTES = [
    Route("/api/comparisons", endpoint(comparisons), methods=["GET"]),
    Route("/api/compare", endpoint(show), methods=["GET"]),
    Route("/api/compare/vote", endpoint(vote), methods=["POST"]),
    Route("/api/compare/results", endpoint(results), methods=["GET"]),
    Route("/api/compare/image/{number}", endpoint(image), methods=["GET"]),
]
