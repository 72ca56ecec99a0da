"""The server, asked by the official client: the engine's own answers, none lost or crossed, whatever else is asked."""

import base64
import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import numpy as np
import openai
import pytest
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch_weights import TINY_MUFFIN, tiny_muffin

from rlhfv_jax.conversion import job
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding import batch
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.serving.limits import Limits
from rlhfv_jax.serving.refusal import Refusal
from rlhfv_jax.serving.server import Server
from rlhfv_jax.serving.service import Service
from rlhfv_jax.serving.worker import Ticket, Worker

LIMITS = Limits(
    context=256, max_new_tokens=16, text_chars=2000, messages=8, image_bytes=2**16, image_pixels=2**16, requests=64
)
TOKEN = "secret"


class Running:
    """A server on 127.0.0.1, in a thread of this process."""

    def __init__(self, engine: Engine, limits: Limits = LIMITS, grace: float = 5):
        self.worker = Worker(engine)
        self._server = Server(Service(engine, engine.template, "tiny", limits, TOKEN), self.worker, grace=grace)
        self._server.config.port = 0
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._http = httpx.Client(trust_env=False)

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._server.should_exit = True
        self._thread.join()

    def wait_for(self, tickets: int) -> None:
        """Returns when so many requests are in the worker's hands."""
        while len({*self.worker._waiting, *self.worker._decoded}) < tickets:
            time.sleep(0.01)

    def client(self, token: str = TOKEN) -> openai.OpenAI:
        return client(f"{self.url}/v1", token)

    def post(self, content, headers: dict | None = None) -> httpx.Response:
        sent = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"} | (headers or {})
        return self._http.post(f"{self.url}/v1/chat/completions", content=content, headers=sent, timeout=60)


def client(url: str, token: str = TOKEN) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=url, api_key=token, max_retries=0, http_client=http, timeout=120)


@pytest.fixture(scope="module")
def engine(fixtures):
    pytest.importorskip("torch")
    import jax

    from rlhfv_jax import sharding

    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    tokenizer = MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PROMPT_MULTIPLE", 128)  # one width, to compile less
        yield Engine(TINY_MUFFIN, tiny_muffin(), tokenizer, mesh=mesh, batch_size=4)


@pytest.fixture(scope="module")
def server(engine):
    with Running(engine) as running:
        yield running


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "png") -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind)
    return out.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(text: str, image: str | None = None) -> dict:
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts + [{"type": "image_url", "image_url": {"url": image}}] * bool(image)}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


class Streamed(NamedTuple):
    texts: list[str]
    reasons: list[str | None]
    chunks: int


def streamed(client: openai.OpenAI, body: dict) -> Streamed:
    texts, reasons, chunks = [""] * body.get("n", 1), [None] * body.get("n", 1), 0
    for chunk in client.chat.completions.create(model="tiny", stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            chunks += bool(choice.delta.content)
    return Streamed(texts, reasons, chunks)


# --- Answers --------------------------------------------------------------------------------------------------------


def test_whole_and_streamed_answers_are_the_engines(engine, server):
    picture, stop = pixels(1), engine.stop
    seen = engine.prompt("What is this?", picture, seed=7)
    talk = engine.prompt("And now?", picture, history=[("What is this?", "A cat.")], seed=7)
    sampling = {"temperature": 0.9, "seed": 7}
    greedy = engine.answer([engine.prompt("Hello")], GenerationSettings(max_new_tokens=16, stop=stop))[0][0].text
    part = greedy[len(greedy) // 2 :][:3]
    cases = [
        (engine.prompt("Hello", seed=7), [user("Hello")], {"temperature": 0}, {}),
        (engine.prompt("Hello"), [user("Hello")], {"temperature": 0, "stop": [part]}, {"stop": (*stop, part)}),
        (seen, [user("What is this?", url(encoded(picture)))], sampling | {"n": 2, "top_p": 0.5, "max_tokens": 5}, {}),
        (talk, [user("What is this?", url(encoded(picture))), assistant("A cat."), user("And now?")], sampling, {}),
    ]
    with server.client() as asking:
        for prompt, messages, options, names in cases:
            own = {"max_tokens": "max_new_tokens", "n": "num_answers"}
            values = {own.get(k, k): v for k, v in options.items() if k != "seed"}
            wanted = GenerationSettings(**{"max_new_tokens": 16, "stop": stop} | values | names)
            [expected] = engine.answer([prompt], wanted)
            body = {"messages": messages, **options}
            found = asking.chat.completions.create(model="tiny", **body)
            assert [choice.message.content for choice in found.choices] == [answer.text for answer in expected]
            assert [choice.finish_reason for choice in found.choices] == [answer.finish_reason for answer in expected]
            assert found.usage.completion_tokens == sum(len(answer.token_ids) for answer in expected)
            assert found.usage.prompt_tokens == len(engine.tokenizer.encode(prompt.text))
            pieces = streamed(asking, body)
            assert pieces.texts == [answer.text for answer in expected]
            assert pieces.reasons == [answer.finish_reason for answer in expected]
        assert streamed(asking, {"messages": [user("Hello")], "temperature": 0}).chunks > 1
        usage = {"messages": [user("Hello")], "stream_options": {"include_usage": True}, "max_tokens": 3}
        *_, last = asking.chat.completions.create(model="tiny", stream=True, temperature=0, **usage)
        assert last.choices == [] and last.usage.completion_tokens == 3


def test_temperature_is_1_and_the_seed_a_new_one_where_a_request_names_none(engine):
    service = Service(engine, engine.template, "tiny", LIMITS)
    body = json.dumps({"model": "tiny", "messages": [user("Hello")]}).encode()
    first, second = service.read(body), service.read(body)
    assert first.settings.temperature == 1 and first.settings == second.settings
    assert first.prompt.seed != second.prompt.seed


def test_an_image_stands_in_front_of_the_question_that_shows_it(engine):
    service = Service(engine, engine.template, "tiny", LIMITS)
    for shown, words in ((0, ("First?", "Then?")), (1, ("Then?", "First?"))):
        images: list[str | None] = [None, None]
        images[shown] = url(encoded(pixels(1)))
        talk = [user("First?", images[0]), assistant("Yes."), user("Then?", images[1])]
        text = service.read(json.dumps({"model": "tiny", "messages": talk}).encode()).prompt.text
        assert f"Human: <im_start>{'<im_patch>' * 8}<im_end>\n{words[0]}" in text and f"Human: {words[1]}" in text


# --- Many at once ---------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    body: dict
    text: str


def cases_of(engine: Engine, reader: int, count: int, taken: set[str], mixed: bool) -> list[Case]:
    """Distinct requests of one client with the answers that the engine gives to each alone, none of them `taken`."""
    found: list[Case] = []
    for i in itertools.count():
        question, seed = f"Question {i} of {reader}?", 100 * reader + i
        picture = None if mixed and (reader + i) % 4 == 0 else pixels(seed)
        options = {"temperature": (1.0, 0.7)[reader % 2], "max_tokens": 12}
        wanted = GenerationSettings(max_new_tokens=12, temperature=options["temperature"], stop=engine.stop)
        [[answer]] = engine.answer([engine.prompt(question, picture, seed=seed)], wanted)
        if answer.text not in taken:  # equal answers would hide a crossing
            taken.add(answer.text)
            image = None if picture is None else url(encoded(picture))
            found.append(Case({"messages": [user(question, image)], "seed": seed, **options}, answer.text))
        if len(found) == count:
            return found


def crowd(engine: Engine, server: Running, seconds: float, each: int, mixed: bool) -> int:
    """32 clients ask for a time while others hang up; returns how many answers came, all of them right.

    `mixed`: every fourth question has no image.
    """
    taken: set[str] = set()
    cases = [cases_of(engine, reader, each, taken, mixed) for reader in range(32)]
    end = time.monotonic() + seconds

    def ask(reader: int) -> tuple[int, list[tuple[str, str]]]:
        asked, wrong = 0, []
        with server.client() as asking:
            while asked < each or time.monotonic() < end:
                body, text = cases[reader][asked % each]
                if (reader + asked) % 3:
                    found = asking.chat.completions.create(model="tiny", **body).choices[0].message.content
                else:
                    [found] = streamed(asking, body).texts
                wrong += [(found, text)] * (found != text)
                asked += 1
        return asked, wrong

    def hang_up() -> int:
        left = 0
        with server.client() as asking:
            while time.monotonic() < end:
                body = {**cases[1][0].body, "seed": left}
                with asking.chat.completions.create(model="tiny", stream=True, **body) as stream:
                    next(iter(stream))
                with contextlib.suppress(openai.APITimeoutError):
                    asking.with_options(timeout=0.02).chat.completions.create(model="tiny", **body)
                left += 2
        return left

    with ThreadPoolExecutor(34) as pool:
        leavers = [pool.submit(hang_up) for _ in range(2)]
        results = list(pool.map(ask, range(32)))
        assert all(leaver.result() for leaver in leavers)
    assert [wrong for _, wrong in results if wrong] == []
    assert server.worker.waiting == 0
    return sum(asked for asked, _ in results)


def test_32_clients_at_once_get_their_own_answers_while_others_hang_up(engine, server):
    assert crowd(engine, server, seconds=3, each=2, mixed=False) >= 64


@pytest.mark.slow
def test_32_clients_for_a_minute_get_their_own_answers_while_others_hang_up(engine, server):
    answers = crowd(engine, server, seconds=60, each=8, mixed=True)
    print(f"{answers} answers in a minute")
    assert answers >= 32 * 8


def ticket(engine: Engine, i: int, out: list, temperature: float = 1.0) -> Ticket:
    wanted = GenerationSettings(max_new_tokens=4, temperature=temperature, stop=engine.stop)
    return Ticket(engine.prompt("Hello", pixels(i), seed=i), wanted, False, lambda item: out.append((i, item)))


def test_requests_of_equal_settings_share_a_batch_whatever_their_seeds(engine, monkeypatch):
    sizes, stream = [], engine.stream
    monkeypatch.setattr(engine, "stream", lambda prompts, *rest: sizes.append(len(prompts)) or stream(prompts, *rest))
    worker, out = Worker(engine, window=0.5), []
    for i, temperature in enumerate((1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0)):
        worker.submit(ticket(engine, i, out, temperature))
    while len({i for i, item in out if item.answer}) < 7:
        time.sleep(0.01)
    worker.close()
    assert sizes == [4, 2, 1]  # the oldest first; a full batch does not wait


def test_a_worker_that_closes_refuses_whoever_waits(engine):
    worker, out = Worker(engine, window=60), []
    left = ticket(engine, 1, out)
    worker.submit(ticket(engine, 0, out))
    worker.submit(left)
    worker.leave(left)
    worker.close()
    [(i, item)] = out
    assert i == 0 and isinstance(item, Refusal) and item.status == 503
    with pytest.raises(Refusal, match="shutting down"):
        worker.submit(ticket(engine, 2, out))


# --- Failures and hostility -----------------------------------------------------------------------------------------


def test_an_engine_that_fails_costs_its_batch_alone(engine, server, monkeypatch):
    ask = {"model": "tiny", "messages": [user("Hello")], "temperature": 0}
    stream = engine.stream

    def fail_at(piece: int):
        def failing(*arguments):
            for i, deltas in enumerate(stream(*arguments)):
                if i == piece:
                    raise RuntimeError("out of memory")
                yield deltas

        return failing

    with server.client() as asking:
        monkeypatch.setattr(engine, "stream", fail_at(0))
        for streaming in (False, True):
            with pytest.raises(openai.InternalServerError, match="The engine failed on this request's batch"):
                asking.chat.completions.create(stream=streaming, **ask)
        monkeypatch.setattr(engine, "stream", fail_at(1))
        chunks = iter(asking.chat.completions.create(stream=True, **ask))
        with pytest.raises(openai.APIError, match="The engine failed"):
            list(chunks)
        monkeypatch.undo()
        assert asking.chat.completions.create(**ask).choices[0].message.content


def test_too_many_requests_are_told_to_come_back(engine, monkeypatch):
    go, stream = threading.Event(), engine.stream
    monkeypatch.setattr(engine, "stream", lambda *arguments: go.wait(60) and stream(*arguments))
    limits = dataclasses.replace(LIMITS, requests=2)
    with Running(engine, limits) as running, running.client() as asking, ThreadPoolExecutor(2) as pool:
        ask = {"model": "tiny", "messages": [user("Hello")], "temperature": 0}
        taken = [pool.submit(asking.chat.completions.create, **ask) for _ in range(2)]
        running.wait_for(2)
        with pytest.raises(openai.RateLimitError, match="Too many requests") as caught:
            asking.chat.completions.create(**ask)
        assert caught.value.code == "busy" and caught.value.response.headers["retry-after"] == "1"
        go.set()
        assert all(future.result().choices for future in taken)


def test_when_the_grace_is_over_requests_get_a_503(engine, monkeypatch):
    go, stream = threading.Event(), engine.stream
    monkeypatch.setattr(engine, "stream", lambda *arguments: go.wait(60) and stream(*arguments))
    ask = {"model": "tiny", "messages": [user("Hello")]}
    with ThreadPoolExecutor(2) as pool:
        with Running(engine, grace=0.1) as running:
            asking = running.client()
            waiting = [pool.submit(asking.chat.completions.create, stream=x, **ask) for x in (False, True)]
            running.wait_for(2)
            threading.Timer(1.0, go.set).start()
        for future in waiting:
            with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
                future.result()
            assert caught.value.status_code == 503


def test_the_token_and_the_model_are_checked(server):
    with server.client() as asking:
        assert [model.id for model in asking.models.list()] == ["tiny"] and asking.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'") as caught:
            asking.chat.completions.create(model="gpt-4", messages=[user("Hello")])
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with server.client("guess") as guessing:
        for ask in (guessing.models.list, lambda: guessing.chat.completions.create(model="tiny", messages=[])):
            with pytest.raises(openai.AuthenticationError, match="The token is missing or wrong"):
                ask()
    health = httpx.get(f"{server.url}/health", trust_env=False)
    assert health.status_code == 200 and health.json() == {"status": "ok", "waiting": 0}


def bomb(side: int) -> bytes:
    """A PNG that claims to be `side` pixels wide and high."""
    data = bytearray(encoded(pixels(0)))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


PNG = url(encoded(pixels(0)))
MESSAGES = [user("What?", PNG)]
BODIES = [  # changes to a good body, the status, words of the sentence
    ({"messages": [user("What?", url(encoded(np.zeros((300, 300, 3), np.uint8))))]}, "300 x 300 pixels, at most 65536"),
    ({"messages": [user("What?", url(bomb(10_000)))]}, "10000 x 10000 pixels, at most 65536"),
    ({"messages": [user("What?", url(bomb(60_000)))]}, "too many pixels"),
    ({"messages": [user("What?", url(encoded(pixels(3))[:60]))]}, "not a readable image"),
    ({"messages": [user("What?", "data:image/png;base64," + "A" * 100_000)]}, "more than 65536 bytes"),
    ({"messages": [user("What?", url(b"<html>"))]}, "unknown format"),
    ({"messages": [user("What?", url(encoded(pixels(0), "tiff")))]}, "unknown format"),
    ({"messages": [user("What?", url(encoded(pixels(0)), "text/html"))]}, "begins 'data:text/html;base64'"),
    ({"messages": [user("What?", "data:image/png;base64,@@@@")]}, "is not base64"),
    ({"messages": [user("What?", "data:image/png;base64,é")]}, "is not base64"),
    ({"messages": [user("What?", "data:image/png")]}, "expected data:TYPE;base64,"),
    ({"messages": [user("What?", "http://127.0.0.1:1/x.png")]}, "addresses are not fetched"),
    ({"messages": [user("What?", "file:///etc/passwd")]}, "addresses are not fetched"),
    ({"messages": [{"role": "user", "content": [*MESSAGES[0]["content"], *MESSAGES[0]["content"]]}]}, "2 images"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "expected a part of type text or image"),
    ({"messages": [user("<im_patch> What?")]}, "contains <im_patch>, which is reserved"),
    ({"messages": [user("</s> What?")]}, "contains </s>, which is reserved"),
    ({"messages": [user("<image> What?", PNG)]}, "contains <image>, which is reserved"),
    ({"messages": [user("\ud800")]}, "half a surrogate pair"),
    ({"messages": [user(" ")]}, "has no text"),
    ({"messages": [user("word " * 390)]}, "more than the context of 256"),
    ({"messages": [user("x" * 2001)]}, "2001 characters; at most 2000"),
    ({"messages": [user("x"), assistant("y")] * 5}, "10 messages; at most 8"),
    ({"messages": [user("x"), assistant("y")]}, "The last message is the assistant's"),
    ({"messages": [assistant("y")]}, "expected user"),
    ({"messages": [user("x"), user("y")]}, "expected assistant"),
    ({"messages": [{"role": "system", "content": "Be good."}, user("x")]}, "is a system message"),
    ({"messages": [{"role": "root", "content": "x"}]}, "role is 'root'"),
    ({"messages": [{"role": "user"}]}, "content is None"),
    ({"messages": [{"role": "user", "content": 5}]}, "content is 5"),
    ({"messages": []}, "at least one message"),
    ({"messages": "Hello"}, "messages is 'Hello'"),
    ({"model": None}, "model is None"),
    ({"n": 10**30}, "n is 10000"),
    ({"n": 5}, "from 1 to 4"),
    ({"n": 2, "temperature": 0}, "all answers would be the same"),
    ({"n": True}, "n is True"),
    ({"max_tokens": -1}, "max_tokens is -1"),
    ({"max_tokens": 17}, "from 1 to 16"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "differ"),
    ({"temperature": -0.1}, "temperature is -0.1"),
    ({"temperature": 1e-300}, "expected 0"),
    ({"temperature": "hot"}, "temperature is 'hot'"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_k": 2**40}, "top_k is 1099511627776"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"stop": ["x"] * 5}, "up to 4"),
    ({"stop": [""]}, "1 to 64 bytes"),
    ({"stop": "é" * 33}, "1 to 64 bytes"),
    ({"stream": "yes"}, "stream is 'yes'"),
    ({"stream_options": {"include_usage": True}}, "stream_options goes with stream=true"),
    ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5, which this server cannot do"),
    ({"logprobs": True}, "logprobs is True"),
    ({"response_format": {"type": "json_object"}}, "response_format is"),
    ({"tools": [{"type": "function"}]}, "tools is"),
    ({"num_beams": 3}, "'num_beams' is not known"),
    ({"\ud800": 1}, "is not known"),
    ({"metadata": 5}, "metadata is 5"),
]  # fmt: skip


def test_every_bad_body_is_a_400_with_a_sentence_and_the_server_goes_on(server):
    good = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 4}
    for change, words in BODIES:
        reply = server.post(json.dumps({**good, **change}))
        assert reply.status_code == 400, (change, reply.text[:200])
        error = reply.json()["error"]
        assert words in error["message"], (words, error)
        assert error["type"] == "invalid_request_error" and len(error["message"]) < 400
        assert error.keys() == {"message", "type", "param", "code"}
    assert server.post(json.dumps(good)).status_code == 200


def test_what_is_no_request_is_a_4xx_and_the_server_goes_on(server):
    good = json.dumps({"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 4})
    for content, headers, status, words in [
        (b"{", {}, 400, "not JSON"),
        (b"\xff\xfe\x00", {}, 400, "not JSON"),
        (b"", {}, 400, "not JSON"),
        (b"[]", {}, 400, "expected a JSON object"),
        (b'{"n": NaN}', {}, 400, "NaN is no JSON number"),
        (b'{"n": ' + b"9" * 5000 + b"}", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (b'{"model": "tiny", "n": ' + b"[" * 900 + b"]" * 900 + b"}", {}, 400, "n is [["),
        (b" " * (LIMITS.body_bytes + 1), {}, 413, "larger than"),
        (good, {"content-type": "text/plain"}, 415, "application/json"),
        (good, {"content-type": "multipart/form-data; boundary=x"}, 415, "application/json"),
        (good, {"authorization": ""}, 401, "token"),
        (good, {"authorization": "Basic c2VjcmV0"}, 401, "token"),
        (good, {"authorization": b"Bearer s\xc3\xa9cret"}, 401, "token"),
    ]:
        reply = server.post(content, headers)
        assert reply.status_code == status and words in reply.json()["error"]["message"], (content[:50], reply.text)
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/chat/completions/", 404),
    ):
        reply = httpx.request(method, server.url + path, trust_env=False, headers={"host": "[x"})
        assert reply.status_code == status and "docs/serve.md" in reply.json()["error"]["message"]
    assert server.post(b" " * 2**16 for _ in range(40)).status_code == 413  # no length is announced
    assert server.post(good).status_code == 200


VALUES = st.recursive(
    st.one_of(
        *(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
        st.sampled_from([-1, 2**63, 1e308, "\x00", "user", "system", PNG, PNG[:40], "data:", "http://x/", "<image>"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def hostile(draw) -> bytes:
    """A good body with one or two of its parts replaced, at any depth, or bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    body = {"model": "tiny", "messages": [user("What?", PNG), assistant("A."), user("So?")], "n": 1, "max_tokens": 4}
    body |= {"stop": ["x"], "seed": 1, "temperature": 0, "top_p": 1, "stream": False, "frequency_penalty": 0}
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(1, 2))):
        where = body
        while True:
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            key = draw(st.sampled_from(keys)) if keys else None
            inner = where[key] if keys else None
            if not isinstance(inner, dict | list) or draw(st.booleans()):
                break
            where = inner
        if keys:
            where[key] = draw(VALUES)
    return json.dumps(body).encode()


def fuzz(server: Running, examples: int, repeat: bool) -> None:
    seen: set[int] = set()
    checks = list(HealthCheck)

    @settings(max_examples=examples, derandomize=repeat, deadline=None, database=None, suppress_health_check=checks)
    @given(hostile())
    def hold(body: bytes) -> None:
        reply = server.post(body)
        seen.add(reply.status_code)
        assert reply.status_code < 500, (body, reply.text)
        assert reply.status_code == 200 or reply.json()["error"]["message"]

    hold()
    assert 400 in seen
    assert server.post(json.dumps({"model": "tiny", "messages": MESSAGES, "temperature": 0})).status_code == 200


def test_no_hostile_body_is_a_server_error(server):
    fuzz(server, 150, repeat=True)


@pytest.mark.slow
def test_none_of_2000_hostile_bodies_is_a_server_error(server):
    fuzz(server, 2000, repeat=False)


# --- The program ----------------------------------------------------------------------------------------------------

ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "RLHFV_TOKEN": TOKEN}
COMMAND = [sys.executable, "-m", "rlhfv_jax.serve"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("converted") / "tiny-muffin"
    job.run_to_orbax(job.Options(str(shared("fixtures/tiny-muffin")), str(path), tower_heads=4))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_program_serves_a_checkpoint_and_a_signal_lets_it_finish(checkpoint, engine, number):
    line = [*COMMAND, f"--checkpoint={checkpoint}", "--port=0", "--max_new_tokens=512", "--batch_size=1"]
    picture = pixels(5)
    wanted = GenerationSettings(max_new_tokens=16, stop=engine.stop)
    [[expected]] = engine.answer([engine.prompt("What is this?", picture)], wanted)
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        name, address = process.stdout.readline().strip().split(": ")
        assert name == "tiny-muffin" and address.startswith("http://127.0.0.1:")
        with client(address) as asking:
            ask = {"model": name, "messages": [user("What is this?", url(encoded(picture)))], "temperature": 0}
            found = asking.chat.completions.create(max_tokens=16, **ask)
            assert found.choices[0].message.content == expected.text
            stream = asking.chat.completions.create(max_tokens=512, stream=True, **ask)
            first = next(iter(stream))
            process.send_signal(number)
            rest = [chunk.choices[0].finish_reason for chunk in stream]
            assert first.choices and rest[-1] in ("length", "stop")
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_wrong_command_line_is_one_sentence(tmp_path):
    for arguments, words in [
        ([], "Give the model to serve as --checkpoint=PATH."),
        (["--checkpoint=none"], "There is no checkpoint at"),
        (["--checkpoint=none", "--host=0.0.0.0"], "lets other machines in, and there is no token"),
        (["--checkpoint=none", "--max_new_tokens=4096"], "leaves no room for a prompt in context=2048"),
    ]:
        bare = {name: value for name, value in ENVIRONMENT.items() if name != "RLHFV_TOKEN"}
        result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=bare, cwd=tmp_path)
        assert result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1
