"""Asking a judge: nothing paid twice, nothing made up, one judge per score."""

import json
from collections import Counter

import pytest
from fake_endpoint import RATE_LIMIT, SERVER_ERROR, FakeEndpoint, Fault

from rlhfv_jax import endpoint
from rlhfv_jax.endpoint import Endpoint, Reply, Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import judge
from rlhfv_jax.evals.judge import Judge
from rlhfv_jax.evals.replies import Replies, key_of

REQUESTS = [Request(f"item{i}", [endpoint.user_message(f"question {i}")], {"temperature": 0}) for i in range(10)]


def parse(text):
    """The number that a reply consists of."""
    return int(text)


def asked(body):
    return body["messages"][-1]["content"]


def number(body):
    return asked(body).split()[-1]


def run(folder, server=None, requests=REQUESTS, **changes):
    where = server and Endpoint(server.url, "judge", concurrency=4, first_wait=0.01, longest_wait=0.02, retries=6)
    who = Judge("judge", where, **changes)
    with Replies(folder / "replies.jsonl") as replies:
        return judge.judge(requests, parse, who, replies, folder / "prompts.jsonl")


def test_a_second_run_asks_nothing(tmp_path):
    with FakeEndpoint(number) as server:
        first, second = run(tmp_path, server), run(tmp_path, server)
    assert first == second and len(server.calls) == 10
    assert first.verdicts == {f"item{i}": i for i in range(10)}


def test_other_settings_prompts_and_models_are_asked_anew():
    one = REQUESTS[0]
    others = [
        key_of("judge", Request("item0", one.messages, {"temperature": 1}), 0),
        key_of("judge", Request("item0", REQUESTS[1].messages, one.settings), 0),
        key_of("other", one, 0),
        key_of("judge", one, 1),
    ]
    assert len({key_of("judge", one, 0), *others}) == 5
    assert key_of("judge", Request("renamed", one.messages, one.settings), 0) == key_of("judge", one, 0)


def test_equal_prompts_are_asked_once(tmp_path):
    twins = [Request(name, REQUESTS[4].messages) for name in ("a", "b")]
    with FakeEndpoint(number) as server:
        assert run(tmp_path, server, twins).verdicts == {"a": 4, "b": 4}
    assert len(server.calls) == 1


def test_an_unreadable_verdict_is_asked_again_and_only_that(tmp_path):
    seen = Counter()

    def answer(body):
        seen[asked(body)] += 1
        return "Well," if asked(body) == "question 3" and seen[asked(body)] < 3 else number(body)

    with FakeEndpoint(answer) as server:
        found = run(tmp_path, server)
    assert found.verdicts["item3"] == 3 and not found.unjudged
    assert found.record["asked_again"] == 2 and seen["question 3"] == 3 and sum(seen.values()) == 12


def test_a_verdict_that_stays_unreadable_is_listed_and_never_a_number(tmp_path):
    with FakeEndpoint(lambda body: "none" if asked(body) == "question 3" else number(body)) as server:
        found = run(tmp_path, server, max_unjudged=0.1)
        assert "item3" not in found.verdicts and set(found.record["unjudged"]) == {"item3"}
        with pytest.raises(UserError, match=r"1 of 10 items have no verdict \(item item3.*--max_unjudged=0.05"):
            run(tmp_path, server)
    assert len(server.calls) == 12


def test_the_official_way_asks_once(tmp_path):
    with FakeEndpoint(lambda body: "none") as server:
        found = run(tmp_path, server, official_parse=True)
    assert len(server.calls) == 10 and len(found.unjudged) == 10 and found.contents["item0"] == "none"


def test_a_refused_prompt_is_listed_with_the_servers_words(tmp_path):
    refusal = Fault(400, "The response was filtered.", "content_filter")
    with FakeEndpoint(number, lambda _, body: refusal if asked(body) == "question 3" else None) as server:
        found = run(tmp_path, server, max_unjudged=0.1)
    assert "filtered" in found.unjudged["item3"] and len(server.calls) == 10


def test_calls_that_fail_leave_no_score_and_cost_nothing_the_next_time(tmp_path):
    faults = {"on": True}
    fault = lambda _, body: SERVER_ERROR if faults["on"] and asked(body) == "question 3" else None  # noqa: E731
    with FakeEndpoint(number, fault) as server:
        with pytest.raises(UserError, match=r"1 of 10 calls .* \(item item3.*asks for the rest only"):
            run(tmp_path, server)
        answered = len(server.answered())
        faults["on"] = False
        assert run(tmp_path, server).verdicts["item3"] == 3
    assert answered == 9 and len(server.answered()) == 10


def test_faults_and_rate_limits_change_no_verdict(tmp_path):
    faults = lambda count, _: SERVER_ERROR if count % 5 == 0 else RATE_LIMIT if count % 7 == 0 else None  # noqa: E731
    with FakeEndpoint(number, faults) as server:
        assert run(tmp_path, server).verdicts == {f"item{i}": i for i in range(10)}
    assert len(server.answered()) == 10


def test_replies_of_two_judges_make_no_score(tmp_path):
    with FakeEndpoint(number) as server:
        run(tmp_path, server, requests=REQUESTS[:5])
        server.model = "fake-judge-2024-06-06"
        with pytest.raises(UserError, match=r"fake-judge-2024-01-01 \(5\), fake-judge-2024-06-06 \(5\)"):
            run(tmp_path, server)


def test_without_a_judge_the_prompts_wait_and_their_replies_are_read(tmp_path):
    with pytest.raises(judge.Waiting, match="10 prompts wait"):
        run(tmp_path)
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").open()]
    assert [one["messages"] for one in prompts] == [list(request.messages) for request in REQUESTS]
    with (tmp_path / "replies.jsonl").open("a") as file:
        for at, one in enumerate(prompts):
            line = {"key": one["key"], "model": "judge", "served": "a person", "content": str(at)}
            file.write(json.dumps(line) + "\n")
    found = run(tmp_path)
    assert found.verdicts == {f"item{i}": i for i in range(10)} and found.record["served"] == ["a person"]


def test_a_torn_last_line_is_asked_again_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "replies.jsonl"
    with FakeEndpoint(number) as server:
        before = run(tmp_path, server)
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        assert run(tmp_path, server).verdicts == before.verdicts and len(server.calls) == 11
    assert path.read_bytes().count(b"\n") == 10
    path.write_bytes(b"junk\n" + whole)
    with pytest.raises(UserError, match="line 1"):
        run(tmp_path)


def test_two_evaluations_do_not_write_to_one_file(tmp_path):
    with Replies(tmp_path / "replies.jsonl") as replies:
        replies.add("k", "m", REQUESTS[0], 0, Reply(("text",), "m-1", "stop", {}, 1))
        with pytest.raises(UserError, match="in use"):
            Replies(tmp_path / "replies.jsonl")
    with Replies(tmp_path / "replies.jsonl") as replies:
        assert replies.get("k")["content"] == "text"
