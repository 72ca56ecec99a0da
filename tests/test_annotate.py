"""The program from its command line: import, then what it refuses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

pytest.importorskip("regex")
from rlhfv_jax.annotation import store


def annotate(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhfv_jax.annotate", f"--project={folder / 'work'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)


@pytest.fixture
def answers(tmp_path) -> Path:
    """Two lines as `generate` writes them, and their questions; the second answer is empty."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    questions = [{"question_id": i, "text": "What is this?", "image": "a.png"} for i in range(2)]
    lines = [
        {"question_id": i, "prompt": "p", "text": text, "token_ids": [1], "model_id": "m"}
        for i, text in enumerate(["A bus.", " "])
    ]
    for name, rows in (("questions", questions), ("answers", lines)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "answers.jsonl"


def test_nothing_of_a_file_with_a_bad_row_is_imported_unless_asked(answers, tmp_path):
    given = (f"--import={answers}", f"--questions={tmp_path / 'questions.jsonl'}", "--format=json")
    refused = annotate(tmp_path, *given)
    assert refused.returncode == 1 and json.loads(refused.stdout)["added"] == 0
    assert "line 2, response: the text is empty" in json.loads(refused.stdout)["errors"][0]["detail"]
    taken = annotate(tmp_path, *given, "--keep_going")
    assert taken.returncode == 0 and json.loads(taken.stdout)["added"] == 1
    again = annotate(tmp_path, *given, "--keep_going")
    assert json.loads(again.stdout)["duplicates"] == 1


def test_agreement_of_nothing_is_undefined_and_not_perfect(answers, tmp_path):
    given = (f"--import={answers}", f"--questions={tmp_path / 'questions.jsonl'}", "--keep_going", "--overlap=1")
    result = annotate(tmp_path, *given, "--agreement", f"--agreement_table={tmp_path / 'words.csv'}")
    assert result.returncode == 0, result.stderr
    assert "0 items, 0 annotators" in result.stdout and "undefined (nothing to compare)" in result.stdout
    assert "1.0" not in result.stdout and "nan" not in result.stdout
    assert (tmp_path / "words.csv").read_text().startswith("item,state,annotator,verdict,word,")
    with store.opened(tmp_path / "work", create=False) as kept:
        assert [row["n_annotators"] for row in kept.read.execute("SELECT n_annotators FROM item")] == [2]


def test_statistics_and_exports_make_no_project(tmp_path):
    for argument in ("--stats", f"--export={tmp_path / 'pairs.parquet'}"):
        result = annotate(tmp_path, argument)
        assert result.returncode == 1 and "holds no annotation project" in result.stderr
    assert not (tmp_path / "work").exists()


def test_whoever_starts_it_first_administers_also_after_others_were_added(tmp_path):
    added = json.loads(annotate(tmp_path, "--add_person=Ada", "--format=json").stdout)
    assert added["name"] == "Ada" and len(added["token"]) >= 43  # 256 bits
    line = [sys.executable, "-m", "rlhfv_jax.annotate", f"--project={tmp_path / 'work'}", "--port=0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(3)]
        server.terminate()
    port = int(said[2].rpartition(":")[2])
    assert port and said[2].startswith(f"Serving {tmp_path / 'work'} on http://127.0.0.1:")
    assert said[0].startswith("admin signs in with the token ") and f"http://127.0.0.1:{port}/#t=" in said[1]
    assert (tmp_path / "work" / "annotations.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_one_sentence_and_nobody_is_added(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = annotate(tmp_path, f"--port={port}")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"Cannot listen on 127.0.0.1, port {port}" in result.stderr and result.stdout == ""


def test_a_comparison_is_served_blind_and_its_votes_are_exported_and_counted(tmp_path):
    """From the command line to the figures: two files of answers, one vote, its win rate."""
    for name in ("zebra", "quokka"):
        line = {"question_id": "x", "prompt": "What is it?", "text": f"A {len(name)}-letter animal."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    token = json.loads(annotate(tmp_path, "--add_person=Ada", "--format=json").stdout)["token"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "rlhfv_jax.annotate", f"--project={tmp_path / 'work'}", f"--port={port}", "--blind"]
    line.append(f"--compare={tmp_path / 'zebra.jsonl'},{tmp_path / 'quokka.jsonl'}")
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        while "Serving" not in server.stdout.readline():
            assert server.poll() is None
        url = f"http://127.0.0.1:{port}"
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=url, headers={"X-Requested-With": "rlhfv"}, transport=transport) as client:
            assert client.post("/api/session", json={"token": token}).status_code == 200
            assert "zebra" not in client.get("/api/compare").text
            chosen = client.post("/api/compare/vote", json={"item": 0, "choice": 0}).json()["answers"][0]["name"]
        server.terminate()
    votes = tmp_path / "votes.jsonl"
    assert annotate(tmp_path, f"--export_votes={votes}").stdout == f"{votes}: 1 votes\n"
    command = [sys.executable, "-m", "rlhfv_jax", "compare", f"--votes={votes}", "--format=json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)
    assert {name: of["chosen"] for name, of in found["models"].items()} == {"zebra": 0, "quokka": 0} | {chosen: 1}
