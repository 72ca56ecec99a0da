"""An asynchronous client of any OpenAI-compatible chat endpoint: many questions at once, passing faults retried.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "llava-1.5-7b", concurrency=16, requests_per_minute=300)
    requests = (Request(str(i), (user_message(text, [image]),), {"temperature": 0}) for i, text, image in questions)
    ask(endpoint, requests, lambda request, result: print(request.id, result))

The key is read from the environment variable OPENAI_API_KEY and appears in no message; a server of one's own needs
none. The package `openai` comes with the extra `evals`.
"""

import asyncio
import base64
import email.utils
import importlib
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhfv_jax.errors import UserError

KEY = "OPENAI_API_KEY"
RETRIED = (408, 409, 425, 429)  # and every 5xx
PROBES = 3  # attempts before a server that never answered anything is given up
LONGEST_TOLD_WAIT = 900.0  # seconds of Retry-After that are obeyed; more is a quota that is used up

MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how hard."""

    url: str  # the base, as "https://host/v1"; requests go to {url}/chat/completions
    model: str
    concurrency: int = 8  # requests under way at once
    requests_per_minute: float = 0.0  # 0: no limit
    retries: int = 8  # further attempts after a fault that may pass
    timeout: float = 120.0  # seconds for one attempt
    first_wait: float = 1.0  # seconds before the first retry; doubles with each, up to longest_wait, ± half at random
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"The endpoint {self.url!r} is no URL; expected one like http://127.0.0.1:8000/v1.")
        if not self.model:
            raise UserError(f"Name the model to ask for at {self.url}.")
        if self.concurrency < 1 or self.requests_per_minute < 0 or self.retries < 0 or self.timeout <= 0:
            raise UserError(
                f"An endpoint needs a concurrency of 1 or more (got {self.concurrency}), requests per minute and "
                f"retries of 0 or more (got {self.requests_per_minute:g} and {self.retries}) and a positive timeout."
            )


@dataclass(frozen=True)
class Request:
    """One conversation to continue; `settings` go into the body as they are (temperature, max_tokens, ...)."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What came back: one text for each choice asked for (`n`), normally one."""

    texts: tuple[str, ...]
    model: str  # as the server names itself, often a dated name of the model asked for
    finish_reason: str
    usage: Mapping[str, Any]
    attempts: int

    @property
    def text(self) -> str:
        """The first answer."""
        return self.texts[0]


@dataclass(frozen=True)
class Failure:
    """A request that got no reply: refused by the server, or every attempt failed."""

    reason: str
    attempts: int
    refused: bool = False  # the server will not take this request; asking again would give the same


class _Passing(Exception):
    """A fault that may pass; `wait` is the number of seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None, crowded: bool = False, unreached: bool = False):
        super().__init__(reason)
        self.wait, self.crowded, self.unreached = wait, crowded, unreached


def user_message(text: str, images: Sequence[bytes] = ()) -> dict[str, Any]:
    """A user's message; encoded images (PNG, JPEG, GIF, WebP) go before the text, as data URIs."""
    if not images:
        return {"role": "user", "content": text}
    pictures = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def data_uri(image: bytes) -> str:
    """`data:image/...;base64,...` of an encoded image. Raises UserError on bytes that are none."""
    for magic, kind in MAGIC:
        if image.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(image).decode()}"
    raise UserError(f"An image starts with {image[:8]!r}; endpoints take PNG, JPEG, GIF and WebP.")


def ask(endpoint: Endpoint, requests: Iterable[Request], done: Callable[[Request, Reply | Failure], None]) -> None:
    """Asks everything and returns when all is answered; requests are drawn from the iterable as slots get free.

    `done` is called once per request, in order of completion and in this thread: store the reply there, and a killed
    run has lost only what was under way. Faults that may pass (timeouts, 408, 409, 429, 5xx, a broken reply) are tried
    again, later and later; a Retry-After halts all requests for that long. What the server refuses (400, ...) or what
    failed each time becomes a Failure. Raises UserError on what no retry mends: no server, 401, 403, 404, no quota.
    """
    asyncio.run(_ask(endpoint, iter(requests), done))


async def _ask(
    endpoint: Endpoint, requests: Iterator[Request], done: Callable[[Request, Reply | Failure], None]
) -> None:
    async def work() -> None:
        for request in requests:  # shared by all workers: each takes the next one
            done(request, await session.complete(request))

    async with _client(endpoint) as client:
        session = _Session(endpoint, client)
        workers = [asyncio.create_task(work()) for _ in range(endpoint.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _library() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise UserError("Endpoints need the package openai: pip install 'rlhfv_jax[evals]'.") from error


def _client(endpoint: Endpoint) -> Any:
    openai = _library()
    local = urllib.parse.urlsplit(endpoint.url).hostname in ("localhost", "127.0.0.1", "::1")
    http = openai.DefaultAsyncHttpxClient(trust_env=False) if local else None  # no proxy before one's own machine
    key = os.environ.get(KEY) or "none"  # the library refuses an empty one
    return openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=key, timeout=endpoint.timeout, max_retries=0, http_client=http
    )


class _Session:
    """What all requests of one run share: the pace, the pause a server asked for, whether it ever answered."""

    def __init__(self, endpoint: Endpoint, client: Any):
        self._endpoint, self._client, self._openai = endpoint, client, _library()
        self._next_start = self._paused_until = 0.0
        self._reached = False
        self._random = random.Random()

    async def complete(self, request: Request) -> Reply | Failure:
        for attempt in range(1, self._endpoint.retries + 2):
            await self._turn()
            try:
                result = await self._attempt(request, attempt)
            except _Passing as fault:
                last = str(fault)
                if fault.unreached and not self._reached and attempt >= PROBES:
                    raise UserError(f"Nothing answers at {self._endpoint.url} ({last}). Is the server up?") from fault
                if attempt <= self._endpoint.retries:
                    await self._wait(fault, attempt)
            else:
                self._reached = True
                return result
        return Failure(last, self._endpoint.retries + 1)

    async def _turn(self) -> None:
        """Returns when this request may start."""
        if self._endpoint.requests_per_minute:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / self._endpoint.requests_per_minute
            await asyncio.sleep(start - now)
        while (pause := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)

    async def _wait(self, fault: _Passing, attempt: int) -> None:
        longest = min(self._endpoint.longest_wait, self._endpoint.first_wait * 2.0 ** (attempt - 1))
        wait = longest * self._random.uniform(0.5, 1.5)  # so that those who failed together do not return together
        if fault.wait is not None:
            wait = fault.wait + self._endpoint.first_wait * self._random.uniform(0.0, 0.5)
            self._paused_until = max(self._paused_until, time.monotonic() + fault.wait)
        elif fault.crowded:
            self._paused_until = max(self._paused_until, time.monotonic() + wait)
        await asyncio.sleep(wait)

    async def _attempt(self, request: Request, attempt: int) -> Reply | Failure:
        openai = self._openai
        try:
            completion = await self._client.chat.completions.create(
                model=self._endpoint.model, messages=request.messages, extra_body=dict(request.settings)
            )
        except openai.APITimeoutError as error:
            raise _Passing(f"no reply within {self._endpoint.timeout:g} seconds") from error
        except openai.APIStatusError as error:
            return self._refused(error, attempt)
        except openai.APIConnectionError as error:
            raise _Passing(f"no connection: {error.__cause__ or error}", unreached=True) from error
        except (ValueError, openai.APIError) as error:  # a body that is not JSON, or not a completion
            raise _Passing(f"a reply that cannot be read: {_first_line(error)}") from error
        return _reply(completion, attempt)

    def _refused(self, error: Any, attempt: int) -> Failure:
        """Raises for what may pass or what stops the run, else the failure of this request alone."""
        self._reached = True
        status, url = error.status_code, self._endpoint.url
        words = _first_line(error).replace(os.environ.get(KEY) or "\0", "***")
        if status in (401, 403):
            given = f"the key in {KEY}" if os.environ.get(KEY) else f"to be asked without a key; set {KEY}"
            raise UserError(f"The endpoint {url} refuses {given} ({words}).") from error
        if status == 404:
            raise UserError(
                f"The endpoint {url} knows no {url}/chat/completions or no model {self._endpoint.model!r} ({words}). "
                f"Give the base URL, which usually ends in /v1, and a model that the server lists."
            ) from error
        wait = _retry_after(error.response.headers)
        if getattr(error, "code", None) == "insufficient_quota" or (wait or 0.0) > LONGEST_TOLD_WAIT:
            raise UserError(
                f"The endpoint {url} has no quota left ({words}). What was answered so far is kept; run again later."
            ) from error
        if status in RETRIED or status >= 500:
            raise _Passing(words, wait, crowded=status == 429) from error
        return Failure(words, attempt, refused=True)


def _reply(completion: Any, attempt: int) -> Reply:
    try:
        choices = list(completion.choices)
        texts = tuple(choice.message.content or "" for choice in choices)
        usage = completion.usage.model_dump() if completion.usage else {}
        return Reply(texts, str(completion.model), str(choices[0].finish_reason), usage, attempt)
    except (AttributeError, TypeError, IndexError) as error:  # the library checks no types
        raise _Passing("a reply without choices") from error


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, written as seconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000.0)
        value = headers.get("retry-after", "")
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
