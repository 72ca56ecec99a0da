"""A judge run of 90 questions through faults, rate limits, unreadable verdicts and a SIGKILL loses nothing."""

import json
import os
import subprocess
import sys
import time
from collections import Counter

from conftest import shared
from fake_endpoint import BROKEN_JSON, RATE_LIMIT, SERVER_ERROR, FakeEndpoint

RUN = """
import json, sys
from pathlib import Path
from rlhfv_jax.endpoint import Endpoint
from rlhfv_jax.evals import judge, llava_bench, scores
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.replies import Replies

data, out, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
files = ("qa90_questions", "qa90_gpt4_answer", "caps_boxes_coco2014_val_80")
items = llava_bench.questions(*([json.loads(row) for row in (data / f"{name}.jsonl").open()] for name in files))
rules = json.loads((data / "rule_conv_detail_complex.json").read_text())
answers = {item.id: Answer(item.id, item.captions[0]) for item in items}
requests = [llava_bench.request(item, answers[item.id].text, rules) for item in items]
where = Endpoint(url, "judge", concurrency=6, first_wait=0.01, longest_wait=0.05)
with Replies(out / "replies.jsonl") as replies:
    judgment = judge.judge(requests, llava_bench.parse, judge.Judge("judge", where), replies, out / "prompts.jsonl")
scores.write_scores(llava_bench.score(items, answers, judgment), out)
"""


def prompt(body):
    return body["messages"][-1]["content"]


def answers(seen):
    """Scores that depend on the prompt alone; every seventh prompt's first verdict cannot be read."""

    def answer(body):
        seen[prompt(body)] += 1
        if len(prompt(body)) % 7 == 0 and seen[prompt(body)] == 1:
            return "Assistant 2 is better."
        return f"8 {1 + len(prompt(body)) % 9}\nbecause"

    return answer


def faults(count, _):
    """A fifth of the calls fails, some of the others meet a rate limit."""
    if count % 5 == 1:
        return BROKEN_JSON if count % 10 == 1 else SERVER_ERROR
    return RATE_LIMIT if count % 23 == 7 else None


def start(out, url):
    command = [sys.executable, "-c", RUN, str(shared("data/benchmarks/llava_bench")), str(out), url]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stored(out):
    path = out / "replies.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_judge_run_goes_on_where_it_was_and_scores_as_an_undisturbed_one(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    with FakeEndpoint(answers(Counter())) as server:
        assert start(calm, server.url).wait(timeout=60) == 0

    seen = Counter()
    with FakeEndpoint(answers(seen), faults) as server:
        original = server.answer

        def until_half(body):
            if len(server.answered()) >= 45:
                server.running.clear()  # from here on requests wait for an answer
            return original(body)

        server.answer = until_half
        run = start(killed, server.url)
        wait_until(
            lambda: not server.running.is_set() and stored(killed) == len(server.answered()) == sum(seen.values())
        )
        run.kill()
        run.wait()
        assert 45 <= stored(killed) < 90 and not (killed / "scores.json").exists()
        first = Counter(prompt(call.body) for call in server.answered())
        before = Counter(seen)  # what waits now will be answered to nobody

    with FakeEndpoint(answers(before), faults) as server:  # at another address
        assert start(killed, server.url).wait(timeout=60) == 0
        second = Counter(prompt(call.body) for call in server.answered())
        failed = len(server.calls) - len(server.answered())
    assert failed >= 0.2 * len(server.calls) - 1

    times = first + second
    assert len(times) == 90
    assert {text: 2 if len(text) % 7 == 0 else 1 for text in times} == times
    expected = json.loads((calm / "scores.json").read_text())
    assert json.loads((killed / "scores.json").read_text()) == expected
    assert expected["settings"]["judging"]["asked_again"] == sum(len(text) % 7 == 0 for text in times) > 5
    assert (killed / "items.jsonl").read_bytes() == (calm / "items.jsonl").read_bytes()
