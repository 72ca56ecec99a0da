"""VQAv2's accuracy, normalization and submission file against the official scorer's own results."""

import json

import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import vqa
from rlhfv_jax.evals.answers import Answer

SETS = ("textvqa_llava15_13b_first1500", "vizwiz_human_noisy_first800")


def rows(name):
    return [json.loads(line) for line in shared(f"data/benchmarks/vqa/{name}.jsonl").read_text().split("\n") if line]


def annotations(data):
    return [
        {**row, "answers": [{"answer": text, "answer_id": i} for i, text in enumerate(row["answers"], 1)]}
        for row in data
    ]


def rounded(official):
    """What the official script rounds to `official`; on a tie a sum's last bit decides, and that differs by Python."""
    return pytest.approx(official, abs=0.005 + 1e-9)


def test_normalized_strings_equal_the_official_ones():
    data = rows("normaliser")
    assert {row["raw"]: vqa.normalize(row["raw"]) for row in data} == {row["raw"]: row["official"] for row in data}
    assert {r["raw"]: vqa.process(r["raw"]) for r in data} == {r["raw"]: r["evalai_processor"] for r in data}


@pytest.mark.parametrize("name", SETS)
def test_accuracy_equals_the_official_scorer_per_question_and_in_total(name):
    data = rows(name)
    records = vqa.check(annotations(data), name)
    scores = vqa.score_records([Answer(str(row["question_id"]), row["prediction"]) for row in data], records)
    for item, row in zip(scores.items, data, strict=True):
        assert item["processed"] == row["expected"]["processed_prediction"]
        assert round(100 * item["accuracy"], 2) == row["expected"]["official_raw"]
        assert round(100 * item["processed_accuracy"], 2) == row["expected"]["official_processed"]
    official = json.loads(shared("data/benchmarks/vqa/expected.json").read_text())[name]
    for prefix, key in (("", "raw"), ("processed/", "EvalAI_processed")):
        expected = official[f"official_vqaEval_on_{key}_predictions"]
        assert scores.metrics[f"{prefix}accuracy"].value == rounded(expected["overall"])
        for field, part in (("answer_type", "perAnswerType"), ("question_type", "perQuestionType")):
            for kind, value in expected[part].items():
                assert scores.metrics[f"{prefix}{field}/{kind}"].value == rounded(value)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_accuracy_by_number_of_matches(matches, expected):
    people = [{"answer": "cat" if i < matches else f"dog {i}", "answer_id": i} for i in range(10)]
    assert vqa.accuracy("Cat.", people) == pytest.approx(expected)


def test_unanimous_people_are_compared_as_written():
    people = [{"answer": "yes", "answer_id": i} for i in range(10)]
    assert (vqa.accuracy("Yes", people), vqa.accuracy("yes", people)) == (0, 1)


def test_equal_answers_without_an_id_leave_together():
    assert vqa.accuracy("yes", [{"answer": "yes"}] * 10) == 0


def test_every_question_needs_one_answer():
    records = vqa.check(annotations(rows(SETS[0])[:2]), "r")
    with pytest.raises(UserError, match="1 of 2 questions have no answer"):
        vqa.score_records([Answer("34602", "a")], records)
    part = vqa.score_records([Answer("34602", "a")], records, partial=True)
    assert part.settings["unanswered"] == 1 and part.metrics["accuracy"].n == 1
    with pytest.raises(UserError, match="belong to no question"):
        vqa.score_records([Answer("1", "a")], records, partial=True)


def test_the_submission_has_every_test_question(tmp_path):
    questions = {"questions": [{"question_id": number, "question": "?"} for number in (7, 3)]}
    (tmp_path / vqa.TEST[1]).write_text(json.dumps(questions))
    counts = vqa.write_submission([Answer("3", "The Two.")], tmp_path, tmp_path / "out" / "s.json")
    assert counts == (2, 1)
    written = json.loads((tmp_path / "out" / "s.json").read_text())
    assert written == [{"question_id": 7, "answer": ""}, {"question_id": 3, "answer": "2"}]
