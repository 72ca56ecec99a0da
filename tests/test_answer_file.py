"""Answers survive a kill at any byte, stay in order, and are never mixed with those of another run."""

import json

import pytest

from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.answer_file import AnswerFile

IDS = [f"q{i}" for i in range(6)]
FACTS = {"seed": 0}


def line(identity, **more):
    return {"question_id": identity, "text": f"äß {identity}", **more}


def finish(path):
    with AnswerFile(path, FACTS, IDS) as file:
        asked = list(file.missing)
        for identity in reversed(asked):
            file.add(line(identity))
    return asked


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_file_cut_at_any_byte_is_completed_in_order_without_duplicates(tmp_path):
    path = tmp_path / "a.jsonl"
    assert finish(path) == IDS
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert finish(path) == IDS[whole[:cut].count(b"\n") :]
        assert path.read_bytes() == whole


def test_failures_alone_are_asked_again_even_after_a_kill_before_they_are_answered(tmp_path):
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, FACTS, IDS) as file:
        for identity in IDS:
            file.add({"question_id": identity, "error": "no image"} if identity == "q2" else line(identity))
    AnswerFile(path, FACTS, IDS)._file.close()  # a run that dies before its first answer
    assert finish(path) == ["q2"]
    assert read(path) == [line(identity) for identity in IDS]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.manifest.json"]


def test_answers_of_another_run_are_refused_by_name_and_left_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    finish(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="seed was 0 and is 1"):
        AnswerFile(path, {"seed": 1}, IDS)
    (tmp_path / "a.jsonl.manifest.json").unlink()
    (tmp_path / "b.manifest.json").write_text('{"settings": {"beams": 2, "seed": 0}}')
    with pytest.raises(UserError, match="seed was 0 and is 1;"):
        AnswerFile(tmp_path / "b", {"settings": {"beams": 2, "seed": 1}}, ["1"])
    with pytest.raises(UserError, match="limit was None and is None;"):  # a setting that the older run did not have
        AnswerFile(tmp_path / "b", {"settings": {"beams": 2, "seed": 0, "limit": None}}, ["1"])
    with pytest.raises(UserError, match="without its"):
        AnswerFile(path, FACTS, IDS)
    assert path.read_bytes() == before
