"""What all endpoints share: the state of a server, who asks, JSON in and out, faults to statuses."""

import asyncio
import json
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from rlhfv_jax.annotation import assignment, people
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.faults import Fault, Invalid, NotFound, TooMany, Unauthorized
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.pictures import Pictures
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import Busy, Full, Store
from rlhfv_jax.data.tokenizer import Tokenizer
from rlhfv_jax.errors import UserError

T = TypeVar("T")
COOKIE = "rlhfv_session"
LARGEST_ID = 2**53
ATTEMPTS, WINDOW = 10, 60.0  # failed sign-ins of one address in so many seconds
KEPT_ITEMS = 4096


class Server:
    """A store with what is kept in memory: items (they never change), projects, failed sign-ins, the tokenizer."""

    def __init__(self, store: Store, tokenizer: Tokenizer | None = None, template: str = "muffin", images: str = ""):
        self.store = store
        self.pictures = Pictures(store.folder)
        self.tokenizer, self.template, self.images = tokenizer, template, images
        self._items: OrderedDict[int, Item] = OrderedDict()
        self._projects: dict[int, Project] = {}
        self._failed: dict[str, deque[float]] = {}

    def item(self, identity: int) -> Item:
        """An item, from memory where it was asked for before; raises NotFound."""
        if identity not in self._items:
            self._items[identity] = assignment.item(self.store.read, identity)
            if len(self._items) > KEPT_ITEMS:
                self._items.popitem(last=False)
        return self._items[identity]

    def project(self, identity: int) -> Project:
        """A project's settings; raises NotFound."""
        if identity not in self._projects:
            self._projects[identity] = assignment.project_of(self.store.read, identity)
        return self._projects[identity]

    async def write(self, work: Callable[[Any], T]) -> T:
        """Waits for the commit without holding up others."""
        return await asyncio.wrap_future(self.store.submit(work))

    def sign_in(self, token: str, address: str) -> tuple[str, Person]:
        """As `people.sign_in`, at most ATTEMPTS failures a minute from one address."""
        failed = self._failed.setdefault(address, deque())
        while failed and failed[0] < time.monotonic() - WINDOW:
            failed.popleft()
        if len(failed) >= ATTEMPTS:
            raise TooMany("Too many attempts; wait a minute.")
        try:
            return people.sign_in(self.store, token)
        except Unauthorized:
            failed.append(time.monotonic())
            raise


Handler = Callable[[Request, Server, Person], Awaitable[Any]]


def endpoint(handler: Handler, *roles: str, public: bool = False) -> Callable[[Request], Awaitable[Response]]:
    """The handler behind the door: a signed-in person with one of the roles (any for none), faults as JSON."""

    async def run(request: Request) -> Response:
        server: Server = request.app.state.server
        try:
            person = Person(0, "", "")
            if not public:
                person = people.who(server.store.read, request.cookies.get(COOKIE, ""))
                if roles:
                    person.demand(*roles)
            return reply(await handler(request, server, person))
        except Fault as fault:
            return reply(fault.to_dict(), fault.status)
        except UserError as error:
            return reply({"error": "invalid", "detail": str(error), "fields": []}, 422)
        except Full:
            return reply(_failure("disk_full", "The server's disk is full; nothing was saved."), 507)
        except Busy as error:
            return reply(_failure("busy", f"The store cannot write now ({error}); nothing was saved."), 503)

    return run


def _failure(code: str, detail: str) -> dict[str, Any]:
    return {"error": code, "detail": detail, "fields": []}


def reply(value: Any, status: int = 200) -> Response:
    """JSON, never kept by a browser; a Response passes as it is."""
    if isinstance(value, Response):
        return value
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=list)
    return Response(text.encode(), status, {"cache-control": "no-store"}, "application/json")


async def body(request: Request) -> Any:
    """The body's JSON value; raises Invalid."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Invalid("The body is not valid JSON.", [("", "not valid JSON")]) from error


async def object_body(request: Request) -> dict[str, Any]:
    """The body's JSON object; raises Invalid."""
    value = await body(request)
    if not isinstance(value, dict):
        raise Invalid("The body is not a JSON object.", [("", "expected a JSON object")])
    return value


def path_id(request: Request, name: str) -> int:
    """A number of the path; raises NotFound for one that no row can have."""
    text = request.path_params[name]
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) > LARGEST_ID or len(text) > 16:
        raise NotFound("There is nothing here.")
    return int(text)


def query_int(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query; raises Invalid."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 16) or int(text) > most:
        raise Invalid(f"{name}: expected a whole number up to {most}.", [(name, f"expected 0 to {most}")])
    return int(text)
