"""The program: published layouts, the released evaluation's golden answers, kills, failures, endpoints."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import shared
from fake_endpoint import SERVER_ERROR, FakeEndpoint
from PIL import Image

from rlhfv_jax.conversion import job
from rlhfv_jax.conversion.job import Options
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation import questions
from rlhfv_jax.generation.questions import Question

COMMAND = [sys.executable, "-m", "rlhfv_jax.generate"]
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "OPENAI_API_KEY": "secret"}


def generate(*arguments: object) -> subprocess.CompletedProcess:
    line = [*COMMAND, *map(str, arguments), "--format=json"]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def png(color: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), color, np.uint8)).save(out, "png")
    return out.getvalue()


# --- Layouts --------------------------------------------------------------------------------------------------------


def test_every_published_layout_gives_the_same_question(tmp_path):
    data, name = png(7), "COCO_val2014_000000000042.jpg"
    (tmp_path / name).write_bytes(data)
    text = base64.b64encode(data).decode()
    rows = {
        "path.jsonl": {"question_id": 5, "prompt": "What?", "image": name, "image_id": 42},
        "url.jsonl": {"question_id": 5, "prompt": "What?", "image": f"data:image/png;base64,{text}", "image_id": 42},
        "llava.jsonl": {"question_id": 5, "text": "What?", "image": name, "category": "conv", "image_id": 42},
        "objhal.jsonl": {"question_id": 5, "question": "What?", "image": text, "image_id": 42},
        "mmhal.json": [{"question_id": 5, "question": "What?", "image_src": f"https://x/a/{name}", "image_id": 42}],
        "vqa.json": {
            "data_subtype": "val2014",
            "questions": [{"question_id": 5, "question": "What?", "image_id": 42}],
        },
    }
    for file, value in rows.items():
        (tmp_path / file).write_text(json.dumps(value))
        [found] = questions.read(tmp_path / file).rows
        assert (found.id, found.text, found.image_id, found.image_bytes()) == (5, "What?", 42, data), file
    del rows["vqa.json"]["data_subtype"]
    (tmp_path / "vqa.json").write_text(json.dumps(rows["vqa.json"]))
    assert questions.read(tmp_path / "vqa.json").rows[0].image == tmp_path / "000000000042.jpg"


def test_the_questions_of_llava_bench_and_mmhal_are_read_whole(tmp_path):
    bench = questions.read(shared("data/benchmarks/llava_bench/qa90_questions.jsonl"), tmp_path).rows
    assert len(bench) == 90 and len({question.id for question in bench}) == 90
    template = questions.read(shared("data/benchmarks/mmhal/mmhal-bench_answer_template.json"), tmp_path).rows
    assert [question.id for question in template] == list(range(96))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question_id": 1, "prompt": "a"}\n{"question_id": 1, "prompt": "b"}', "line 2: question_id 1 stands in"),
        ('{"question_id": 1, "prompt": "a"}\n{"question_id"', "line 2: not JSON"),
        ('{"question_id": 1}', "line 1: expected the question as one of"),
        ('{"question_id": 1, "prompt": " "}', "line 1, prompt: expected text"),
        ('{"prompt": "a"}', "line 1, question_id: expected a number or text"),
        ('{"question_id": 1, "prompt": "a", "image": "data:image/png,x"}', "expected a data URL in base64"),
        ('{"questions": [{"question_id": 1, "question": "a", "image_id": "x"}]}', "image_id: expected a whole number"),
        ("", "has no questions"),
    ],
)
def test_a_damaged_question_is_named_by_file_and_row(tmp_path, text, words):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        questions.read(tmp_path / "q.jsonl")


@pytest.mark.parametrize("image", ["not base64!", ""])
def test_an_image_that_is_none_is_an_error_when_asked_for(image):
    with pytest.raises(UserError, match="image"):
        Question(1, "What?", image).image_bytes()


# --- A checkpoint ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("converted") / "tiny-muffin"
    job.run_to_orbax(Options(str(shared("fixtures/tiny-muffin")), str(path), tower_heads=4))
    return path


@pytest.mark.slow
def test_the_preset_gives_the_released_codes_answers_and_a_bad_image_costs_no_other(checkpoint, fixtures, tmp_path):
    golden = json.loads((fixtures / "generate.json").read_text())
    runs = {run["prompts"][0]: run for run in golden["runs"] if run["name"] == "beam3_muffin_vqa"}
    asked = [
        {"question_id": f"q{i}", "prompt": golden["prompts"][i]["question"], "image": golden["prompts"][i]["image"]}
        for i in (2, 0, 1)
    ]
    (tmp_path / "torn.png").write_bytes(png(3)[:40])
    asked.insert(1, {"question_id": "torn", "prompt": "What?", "image": str(tmp_path / "torn.png")})
    options = {"A": "a dog", "B": "two cats on a mat"}
    asked.append({"question_id": "choice", "prompt": "What?", "image": asked[0]["image"], "options": options})
    write(tmp_path / "q.jsonl", asked)
    arguments = [
        f"--checkpoint={checkpoint}",
        "--preset=muffin_release",
        "--max_new_tokens=24",
        f"--questions={tmp_path / 'q.jsonl'}",
        f"--image_dir={fixtures / 'images'}",
        f"--answers={tmp_path / 'a.jsonl'}",
    ]
    first = generate(*arguments)
    assert first.returncode == 1 and "1 of 5 questions have no answer; the first is 'torn'" in first.stderr
    found = lines(tmp_path / "a.jsonl")
    assert [line["question_id"] for line in found] == ["q2", "torn", "q0", "q1", "choice"]
    assert "error" in found[1] and "text" not in found[1]
    for line, i in zip([found[0], found[2], found[3]], (2, 0, 1), strict=True):
        assert line["token_ids"] == runs[i]["new_tokens"][0]
    log_probs = found[4]["option_log_probs"]
    assert log_probs.keys() == options.keys() and found[4]["text"] == options[max(log_probs, key=log_probs.get)]
    assert json.loads(first.stdout) | {"tokens_per_second": 0} == {
        "answers": str(tmp_path / "a.jsonl"),
        "questions": 5,
        "asked": 5,
        "failed": 1,
        "tokens": 72,
        "tokens_per_second": 0,
    }

    (tmp_path / "torn.png").write_bytes(png(3))
    again = generate(*arguments)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["asked"] == 1
    mended = lines(tmp_path / "a.jsonl")
    assert [mended[i] for i in (0, 2, 3, 4)] == [found[i] for i in (0, 2, 3, 4)] and mended[1]["text"]

    other = generate(*arguments, "--num_beams=1")
    assert other.returncode == 1 and "holds answers of another run: num_beams was 3 and is 1;" in other.stderr
    assert lines(tmp_path / "a.jsonl") == mended


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give the questions as --questions=FILE"),
        (["--questions=q", "--answers=a"], "Give either --checkpoint=PATH or --endpoint=URL"),
        (["--questions=q", "--answers=q", "--checkpoint=c"], "--answers names the file of the questions"),
        (["--questions=none.jsonl", "--answers=a", "--checkpoint=c"], "The file none.jsonl does not exist"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, words):
    result = generate(*arguments)
    assert result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1


# --- An endpoint ----------------------------------------------------------------------------------------------------


def echo(body: dict) -> str:
    content = body["messages"][-1]["content"]
    return "Re: " + (content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text"))


def test_an_endpoint_is_asked_with_the_image_and_the_settings(tmp_path):
    write(tmp_path / "q.jsonl", [{"question_id": 1, "prompt": "What?", "image": base64.b64encode(png(9)).decode()}])
    with FakeEndpoint(echo) as server:
        result = generate(
            f"--endpoint={server.url}",
            "--model=llava",
            f"--questions={tmp_path / 'q.jsonl'}",
            f"--answers={tmp_path / 'a.jsonl'}",
            "--temperature=0.5",
            "--stop=###",
        )
        [call] = server.calls
    assert result.returncode == 0, result.stderr
    assert "secret" not in result.stdout + result.stderr
    [line] = lines(tmp_path / "a.jsonl")
    assert (line["question_id"], line["prompt"], line["text"]) == (1, "What?", "Re: What?")
    asked = {name: call.body[name] for name in ("model", "temperature", "stop", "max_tokens")}
    assert asked == {"model": "llava", "temperature": 0.5, "stop": ["###"], "max_tokens": 256}
    [picture] = [part["image_url"]["url"] for part in call.body["messages"][-1]["content"] if part["type"] != "text"]
    assert base64.b64decode(picture.partition(",")[2]) == png(9)


def test_killed_at_any_moment_and_started_again_the_file_is_complete_in_order_and_without_duplicates(tmp_path):
    write(tmp_path / "q.jsonl", [{"question_id": i, "prompt": f"Question {i}"} for i in range(200)])
    answers = tmp_path / "a.jsonl"
    most = [0]  # questions from here on wait, so that no run ends before it is killed

    def slow(body: dict) -> str:
        time.sleep(0.02)
        while int(echo(body).rsplit(" ", 1)[1]) >= most[0]:
            time.sleep(0.01)
        return echo(body)

    with FakeEndpoint(slow, lambda count, body: SERVER_ERROR if count % 17 == 3 else None) as server:
        line = [*COMMAND, f"--endpoint={server.url}", "--model=m", "--concurrency=8"]
        line += [f"--questions={tmp_path / 'q.jsonl'}", f"--answers={answers}", "--format=json"]
        kept = 0
        for wanted in (5, 60, 130):
            most[0] = wanted + 40
            process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < wanted):
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            now = answers.read_bytes().count(b"\n")
            assert kept <= now < 200
            kept = now
        most[0] = 200
        result = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        calls = len(server.answered())
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["asked"] <= 200 - kept
    found = lines(answers)
    assert [(line["question_id"], line["text"]) for line in found] == [(i, f"Re: Question {i}") for i in range(200)]
    assert calls <= 200 + 3 * 8  # each kill loses at most what was under way
