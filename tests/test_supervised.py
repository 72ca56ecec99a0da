"""Answered questions: VQAv2's official files, JSONL and TSV, and training on them."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from PIL import Image

from rlhfv_jax import checkpoint, cli, experiment, metrics
from rlhfv_jax.data import encoding, images, pipeline, records, supervised
from rlhfv_jax.data.chat import MUFFIN, encode_turns
from rlhfv_jax.data.records import AnsweredRecord
from rlhfv_jax.data.tfds import vqa_v2
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

PIXELS = base64.b64encode(b"pixels").decode()
GOOD = {"image_base64": PIXELS, "question": "What is it?", "answer": "a dog"}
RECORD = AnsweredRecord("0", b"pixels", (("What is it?", "a dog"),))
INSTRUCTIONS = ("{question} Briefly.", "Short: {question}", "{question}")


def write_jsonl(path: Path, *lines) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        supervised.read(path)
    assert path.name in str(caught.value)
    return str(caught.value)


# Files.


def test_every_form_of_a_jsonl_line_is_the_record(tmp_path):
    turns = [["What is it?", "a dog"]]
    speakers = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}]
    forms = [GOOD, {"image_base64": PIXELS, "turns": turns}, {"image_base64": PIXELS, "conversations": speakers}]
    found = supervised.read(write_jsonl(tmp_path / "qa.jsonl", *forms))
    assert [(r.id, r.image, r.turns) for r in found] == [(str(i), RECORD.image, RECORD.turns) for i in range(3)]


def test_muffins_tsv_of_conversations_and_of_questions(tmp_path):
    speakers = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}] * 2
    lines = []
    for i, value in enumerate((speakers, {"question": "What is it?", "answer": "a dog"})):
        text = base64.b64encode(json.dumps(value).encode()).decode()
        lines.append("\t".join(["vqav2-train", PIXELS, text, "vqav2", "train", str(i), "9"]))
    found = supervised.read(write_jsonl(tmp_path / "vqa-2.tsv", *lines))
    assert [r.turns for r in found] == [(("Where?", "Here."),) * 2, (("What is it?", "a dog"),)]
    assert {r.origin for r in found} == {"vqav2"}


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{", ["row 1", "not valid JSON"]),
        ("[]", ["row 1", "expected a JSON object"]),
        (GOOD | {"answer": ...}, ["row 1, answer", "missing"]),
        (GOOD | {"answer": 3}, ["row 1, answer", "expected text", "int"]),
        (GOOD | {"question": " "}, ["row 1, question", "empty"]),
        (GOOD | {"image_base64": ...}, ["row 1", "image (a path) or image_base64"]),
        (GOOD | {"turns": []}, ["row 1", "at least one turn"]),
        (GOOD | {"turns": [["a", ""]]}, ["row 1", "no empty text"]),
        (GOOD | {"turns": [["a"]]}, ["row 1, turns", "expected a list of [question, answer]"]),
        (GOOD | {"conversations": "hello"}, ["row 1, conversations", "human and gpt turns"]),
        (GOOD | {"id": 0}, ["row 1, id", "used before"]),
    ],
)
def test_a_bad_line_is_refused(tmp_path, line, parts):
    if isinstance(line, dict):
        line = {name: value for name, value in line.items() if value is not ...}
    message = refusal(write_jsonl(tmp_path / "qa.jsonl", GOOD | {"id": 0}, line))
    assert [part for part in parts if part not in message] == []


def test_other_files_are_refused(tmp_path):
    assert "expected a .jsonl or .tsv file" in refusal(write_jsonl(tmp_path / "qa.csv"))
    assert "has no rows" in refusal(write_jsonl(tmp_path / "qa.jsonl"))
    assert "does not exist" in refusal(tmp_path / "none.jsonl")


# Rows.


def test_each_question_gets_one_instruction_of_the_list_and_keeps_it():
    records = [AnsweredRecord(str(i), b"", (("Is it?", "yes"),)) for i in range(60)]
    asked = [encoding.instructed(record, INSTRUCTIONS)[0][0] for record in records]
    assert set(asked) == {"Is it? Briefly.", "Short: Is it?", "Is it?"}
    assert min(asked.count(one) for one in set(asked)) > 8
    assert asked == [encoding.instructed(record, INSTRUCTIONS)[0][0] for record in records]
    longer = AnsweredRecord("0", b"", (("a?", "b"), ("c?", "d")))
    assert encoding.instructed(longer, INSTRUCTIONS) == longer.turns
    assert encoding.instructed(records[0], ()) == records[0].turns


def test_an_example_is_its_conversation_padded(tokenizer, coco_records):
    turns = (("What is it?", "A dog."), ("Which color?", "Brown."))
    record = AnsweredRecord("0", coco_records[0].image, turns)
    examples, stats = encoding.encode_examples([record], tokenizer, MUFFIN, 4)
    tokens, labels, _ = encode_turns(tokenizer, MUFFIN, turns, 4)
    item = pipeline.ExampleSource(examples, 16, tokenizer.pad_id, 400)[0]
    t = len(tokens)
    assert stats.longest_row == t and item.lengths.tolist() == [t]
    np.testing.assert_array_equal(item.tokens[0, :t], tokens)
    np.testing.assert_array_equal(item.labels[0, : t - 1], labels)
    assert (item.labels[0, t - 1 :] == IGNORE).all()
    np.testing.assert_array_equal(item.weights, item.labels != IGNORE)
    np.testing.assert_array_equal(item.image, images.decode(record.image, 16))


def test_long_rows_are_an_error_or_counted(tokenizer):
    records = [
        AnsweredRecord(str(i), b"", (("What?", answer),), where=f"qa.jsonl, row {i}")
        for i, answer in enumerate(["yes", "no " * 200])
    ]
    short = len(encode_turns(tokenizer, MUFFIN, records[0].turns, 4)[0])
    with pytest.raises(UserError, match=r"qa\.jsonl, row 1: the row takes \d+ tokens"):
        encoding.encode_examples(records, tokenizer, MUFFIN, 4, max_length=short + 9)
    for policy, kept in (("drop", 1), ("truncate", 2)):
        options = {"max_length": short + 9, "too_long": policy}
        examples, stats = encoding.encode_examples(records, tokenizer, MUFFIN, 4, **options)
        assert (len(examples), stats.too_long, stats.truncated) == (kept, 2 - kept, kept - 1)
        assert stats.longest_row == (short if policy == "drop" else short + 9)
    with pytest.raises(UserError, match=r"row 0: the row takes .* before the first answer"):
        encoding.encode_examples(records, tokenizer, MUFFIN, 4, max_length=9, too_long="truncate")


# VQAv2's official files, written from captions and foils of real photos.

SIDES = (("chosen", "yes"), ("rejected", "no"))


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """questions.json, annotations.json and COCO-named images, as the VQAv2 download has them."""
    folder = tmp_path_factory.mktemp("vqa")
    photos = shared("data/coco_pairs/images")
    lines = shared("data/coco_pairs/pairs.jsonl").read_text().splitlines()[:40]
    statements = [(pair["image_id"], pair[side], answer) for pair in map(json.loads, lines) for side, answer in SIDES]
    questions, annotations = [], []
    for i, (image, statement, answer) in enumerate(statements):
        number = image * 1000 + i
        (folder / f"COCO_val2014_{image:012d}.jpg").write_bytes((photos / f"{image:012d}.jpg").read_bytes())
        questions.append({"image_id": image, "question": f"Is this true? {statement}", "question_id": number})
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]
        annotations.append(
            {"question_id": number, "image_id": image, "question_type": "is this", "answer_type": "yes/no"}
            | {"answers": people, "multiple_choice_answer": answer}
        )
    header = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    (folder / "questions.json").write_text(json.dumps(header | {"task_type": "Open-Ended", "questions": questions}))
    (folder / "annotations.json").write_text(json.dumps(header | {"annotations": annotations[::-1]}))
    return folder


@pytest.fixture(scope="module")
def build(official, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("tfds")
    return vqa_v2.prepare(official / "questions.json", official / "annotations.json", official, target)


def test_a_vqa_build_reads_back_equal(official, build):
    found = supervised.read(build)
    questions = json.loads((official / "questions.json").read_text())["questions"]
    annotations = json.loads((official / "annotations.json").read_text())["annotations"]
    by_id = {one["question_id"]: one for one in annotations}
    assert len(found) == len(questions) == 80
    for record, asked in zip(found, questions, strict=True):
        answered = by_id[asked["question_id"]]
        assert record.id == str(asked["question_id"])
        assert record.turns == ((asked["question"], answered["multiple_choice_answer"]),)
        assert record.answers == tuple(one["answer"] for one in answered["answers"])
        assert record.image == (official / f"COCO_val2014_{asked['image_id']:012d}.jpg").read_bytes()
    assert supervised.read(build, ["yes/no"], 5) == found[:5]


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("questions", lambda v: v.pop("questions"), ["questions.json", "a list 'questions'"]),
        ("annotations", lambda v: v.pop("annotations"), ["annotations.json", "a list 'annotations'"]),
        ("questions", lambda v: v["questions"].append(3), ["questions.json", "expected a JSON object"]),
        ("questions", lambda v: v["questions"][2].pop("question"), ["question 2, question", "missing"]),
        ("questions", lambda v: v["questions"][2].update(question_id="7"), ["question 2, question_id", "whole number"]),
        (
            "questions",
            lambda v: v["questions"][2].update(image_id=1),
            ["question 2, image_id", "COCO_val2014_000000000001"],
        ),
        ("questions", lambda v: v.pop("data_subtype"), ["question 0, image_id", "there is no 000000", " in "]),
        ("questions", lambda v: v["questions"][2].update(question_id=7), ["question 2, question_id", "no annotation"]),
        (
            "annotations",
            lambda v: v["annotations"][0].update(answers=["yes"]),
            ["annotation 0, answers", "with an answer"],
        ),
        ("annotations", lambda v: v["annotations"][0].pop("multiple_choice_answer"), ["annotation 0, multiple_choice"]),
    ],
)
def test_bad_official_files_are_refused(official, tmp_path, name, change, parts):
    for one in ("questions", "annotations"):
        values = json.loads((official / f"{one}.json").read_text())
        if one == name:
            change(values)
        (tmp_path / f"{one}.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        vqa_v2.prepare(tmp_path / "questions.json", tmp_path / "annotations.json", official, tmp_path / "out")
    assert [part for part in parts if part not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()


# Training.


def sft(path: Path, workdir: Path, steps: int, changes: dict | None = None) -> list[float]:
    """Losses of the shipped config's mini preset, with a smaller model and `changes` by dotted key."""
    config = cli._load(f"{cli.config_folder() / 'sft_vqa.py'}:mini")
    config.data.path = str(path)
    config.tokenizer = str(shared("data/stories260K/tok512.model"))
    config.optim.steps, config.optim.batch_size, config.optim.lr = steps, 4, 3e-3
    config.model.llm.layers = config.model.tower.layers = 1
    config.model.llm.width = config.model.llm.ffn = 32
    config.model.tower.width = config.model.tower.ffn = 16
    config.model.tower.image_size, config.model.tower.queries = 32, 4
    config.mesh.fsdp = 1
    config.update_from_flattened_dict(changes or {})
    experiment.train(config.to_dict(), workdir)
    return [line["loss"] for line in metrics.read(workdir / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_fine_tuning_on_a_vqa_v2_build_ends_with_a_lower_loss(build, tmp_path):
    losses = sft(build, tmp_path / "run", 30)
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["data"]["rows"] == manifest["data"]["pairs"] == len(supervised.read(build))
    assert manifest["data"]["digest"] == records.digest(supervised.read(build))


@pytest.mark.long
def test_held_out_questions_choose_the_best_state(build, tmp_path):
    sft(build, tmp_path / "run", 4, {"eval_share": 0.25, "eval_every": 2, "best": "eval/loss", "data.buckets": 2})
    lines = metrics.read(tmp_path / "run/metrics.jsonl")
    evaluated = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert set(evaluated) == {2, 4}
    assert checkpoint.find(tmp_path / "run/best").name == str(min(evaluated, key=evaluated.get))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    parts = [manifest[name]["rows"] for name in ("data", "eval_data")]
    assert sum(parts) == len(supervised.read(build)) and min(parts) > 0


def nlvr(path: Path, count: int) -> Path:
    """NLVR's human sentences on rendered scenes as yes/no questions, in our JSONL."""
    scenes = np.load(shared("data/nlvr/dev_perm0.npz"))
    lines = shared("data/nlvr/dev.json").read_text().splitlines()[:count]
    rows = []
    for index, line in zip(scenes["index"], map(json.loads, lines), strict=False):
        stream = io.BytesIO()
        Image.fromarray(scenes["palette"][index]).save(stream, "PNG")
        answer = {"true": "yes", "false": "no"}[line["label"]]
        rows.append(
            {"id": line["identifier"], "question": f"{line['sentence']} Is that true?", "answer": answer}
            | {"image_base64": base64.b64encode(stream.getvalue()).decode()}
        )
    return write_jsonl(path, *rows)


@pytest.mark.long
def test_fine_tuning_on_nlvrs_sentences_ends_with_a_lower_loss(tmp_path):
    losses = sft(nlvr(tmp_path / "nlvr.jsonl", 400), tmp_path / "run", 60, {"data.buckets": 2})
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
