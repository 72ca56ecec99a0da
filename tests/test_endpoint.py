"""The endpoint client, against a server that speaks the protocol and misbehaves."""

import base64
import sys
import threading
import time

import pytest
from fake_endpoint import BROKEN_JSON, NO_CHOICES, RATE_LIMIT, SERVER_ERROR, SLOW, FakeEndpoint, Fault

from rlhfv_jax import endpoint
from rlhfv_jax.endpoint import Endpoint, Failure, Reply, Request
from rlhfv_jax.errors import UserError

PNG = b"\x89PNG\r\n\x1a\nrest"


def echo(body):
    return f"said {body['messages'][-1]['content']}"


def quick(server, **changes):
    return Endpoint(server.url, "judge", **({"first_wait": 0.01, "longest_wait": 0.05} | changes))


def ask(config, texts, settings=None):
    results = {}
    requests = (Request(text, [endpoint.user_message(text)], settings or {}) for text in texts)
    endpoint.ask(config, requests, lambda request, result: results.update({request.id: result}))
    return results


def test_every_question_gets_its_own_answer_and_its_settings():
    with FakeEndpoint(echo) as server:
        results = ask(quick(server), [f"q{i}" for i in range(20)], {"temperature": 0.2, "top_k": 3})
    assert {name: reply.text for name, reply in results.items()} == {f"q{i}": f"said q{i}" for i in range(20)}
    assert all(call.body["temperature"] == 0.2 and call.body["top_k"] == 3 for call in server.calls)
    assert {call.body["model"] for call in server.calls} == {"judge"}
    assert {reply.model for reply in results.values()} == {"fake-judge-2024-01-01"}


def test_several_choices_come_back_as_several_texts():
    with FakeEndpoint(echo) as server:
        assert ask(quick(server), ["q"], {"n": 3})["q"].texts == ("said q",) * 3


@pytest.mark.parametrize(
    "fault", [SERVER_ERROR, RATE_LIMIT, BROKEN_JSON, NO_CHOICES, SLOW], ids=lambda f: str(f.status)
)
def test_a_fault_that_passes_costs_a_retry_and_no_answer(fault):
    with FakeEndpoint(echo, lambda count, body: fault if count % 3 == 0 else None) as server:
        results = ask(quick(server, timeout=0.2), [f"q{i}" for i in range(6)])
    assert all(isinstance(reply, Reply) for reply in results.values())
    assert len(server.answered()) == 6 < len(server.calls)
    assert sum(reply.attempts for reply in results.values()) == len(server.calls)


def test_retry_after_halts_every_request_for_that_long():
    wait = Fault(429, "slow down", headers={"retry-after": "0.6"})
    with FakeEndpoint(echo, lambda count, body: wait if count == 0 else None) as server:
        ask(quick(server, concurrency=1), ["a", "b", "c"])
    assert min(call.at for call in server.calls[1:]) - server.calls[0].at >= 0.6


def test_a_request_that_always_fails_is_a_failure_and_the_others_are_answered():
    with FakeEndpoint(echo, lambda count, body: SERVER_ERROR if "bad" in str(body) else None) as server:
        results = ask(quick(server, retries=2), ["good", "bad", "fine"])
    assert isinstance(results["bad"], Failure) and results["bad"].attempts == 3 and "500" in results["bad"].reason
    assert results["good"].text == "said good" and results["fine"].text == "said fine"


def test_a_refused_request_is_not_tried_again():
    refusal = Fault(400, "This model's maximum context length is 8192 tokens.", "context_length_exceeded")
    with FakeEndpoint(echo, lambda count, body: refusal) as server:
        results = ask(quick(server), ["q"])
    assert isinstance(results["q"], Failure) and results["q"].refused and len(server.calls) == 1
    assert "context length" in results["q"].reason


def test_requests_keep_to_the_rate():
    with FakeEndpoint(echo) as server:
        ask(quick(server, requests_per_minute=60 / 0.05), [f"q{i}" for i in range(9)])
    times = sorted(call.at for call in server.calls)
    assert times[-1] - times[0] >= 8 * 0.05 - 0.03


def test_as_many_requests_are_under_way_as_was_asked_for():
    meeting = threading.Barrier(5)  # nobody is answered before five have come

    def answer(body):
        meeting.wait(timeout=10)
        return "met"

    with FakeEndpoint(answer) as server:
        results = ask(quick(server, concurrency=5), [f"q{i}" for i in range(10)])
    assert len(results) == 10


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "invalid_api_key", "OPENAI_API_KEY"),
        (404, "model_not_found", "ends in /v1"),
        (429, "insufficient_quota", "quota"),
    ],
)
def test_what_no_retry_mends_stops_the_run_with_a_sentence_that_hides_the_key(monkeypatch, status, code, words):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fault = Fault(status, "Incorrect API key provided: sk-very-secret.", code)
    with FakeEndpoint(echo, lambda count, body: fault) as server, pytest.raises(UserError, match=words) as caught:
        ask(quick(server, concurrency=1), ["q", "r"])
    assert len(server.calls) == 1 and server.calls[0].authorization == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_named():
    with FakeEndpoint(echo) as server:
        gone = quick(server)
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"Nothing answers at {gone.url}"):
        ask(gone, ["q"])
    assert time.monotonic() - begun < 5


def test_what_is_done_is_reported_at_once_and_requests_are_drawn_as_slots_get_free():
    drawn, done = [], []

    def requests():
        for index in range(6):
            drawn.append(index)
            yield Request(str(index), [endpoint.user_message(str(index))])

    with FakeEndpoint(echo) as server:
        endpoint.ask(quick(server, concurrency=1), requests(), lambda r, _: done.append((r.id, len(drawn))))
    assert done == [(str(i), i + 1) for i in range(6)]


def test_images_go_before_the_text_as_data_uris():
    message = endpoint.user_message("what is this?", [PNG])
    picture, text = message["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == PNG and text["text"] == "what is this?"
    with pytest.raises(UserError, match="PNG"):
        endpoint.user_message("what?", [b"no image"])


def test_settings_that_cannot_work_are_refused():
    for changes in ({"url": "localhost:8000"}, {"model": ""}, {"concurrency": 0}, {"timeout": 0.0}):
        with pytest.raises(UserError):
            Endpoint(**({"url": "http://127.0.0.1/v1", "model": "m"} | changes))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"rlhfv_jax\[evals\]"):
        ask(Endpoint("http://127.0.0.1:1/v1", "m"), ["q"])
