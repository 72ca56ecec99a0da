"""Mutated answer files into every benchmark: a sentence, or a score of what was kept, never another error."""

import functools
import json
import math
from pathlib import Path

import pytest
from conftest import shared
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import benchmarks, mme, over_generalization, seed_bench, statistics
from rlhfv_jax.evals.judge import Judge, Waiting
from rlhfv_jax.evals.scores import write_scores

AMBER = (1, 2, 1005, 1006, 6100, 9000, 12000, 15000)


def write_json(path: Path, values):
    path.write_text(json.dumps(values))


def lines_of(relative, count):
    return [json.loads(line) for line in shared(f"data/benchmarks/{relative}").read_text().split("\n")[:count]]


def prepare(folder, kept=None):
    """A small folder of official files and the answers to them, by benchmark; `kept` restricts the questions."""
    base = shared("data/benchmarks")
    keep = kept if kept is not None else lambda name: True
    answers = {}
    for name in ("instances_val2014.json", "captions_val2014.json"):
        (folder / name).write_bytes((base / "raw80" / name).read_bytes())
    write_json(folder / "instances_train2014.json", {"categories": [], "annotations": []})
    write_json(folder / "captions_train2014.json", {"annotations": []})
    for name in ("chair/synonyms_refine.txt", "amber/relation.json", "amber/safe_words.txt"):
        (folder / Path(name).name).write_bytes((base / name).read_bytes())
    answers["object_halbench"] = [
        {"question_id": i, "text": row["answer"], "image_id": row["image_id"]}
        for i, row in enumerate(lines_of("raw80/qa90_gpt4.jsonl", 12))
    ]
    answers["over_generalization"] = answers["object_halbench"]
    answers["pope"] = []
    for at, setting in enumerate(("adversarial", "popular", "random")):
        rows = [{"question_id": i, "text": "?", "label": ("yes", "no")[i % 2]} for i in range(4)]
        answers["pope"] += [{"question_id": f"{setting}/{i}", "text": ("Yes", "No")[i * at % 2]} for i in range(4)]
        rows = [row for row in rows if keep(f"{setting}/{row['question_id']}")]
        (folder / f"coco_pope_{setting}.json").write_text("\n".join(map(json.dumps, rows)))
    annotations = json.loads((base / "amber" / "annotations.json").read_text())
    rows = [row for row in annotations if row["id"] in AMBER and keep(str(row["id"]))]
    write_json(folder / "annotations.json", rows)
    texts = {1: "A person on the grass under the sky.", 2: "A man paddles a boat with a bird."}
    answers["amber"] = [{"id": i, "response": texts.get(i, ("Yes", "No")[i % 2])} for i in AMBER]
    people = lines_of("vqa/vizwiz_human_noisy_first800.jsonl", 10)
    for row in people:
        row["answers"] = [{"answer": text, "answer_id": i} for i, text in enumerate(row["answers"], 1)]
    kept_people = [row for row in people if keep(str(row["question_id"]))]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": kept_people})
    answers["vqav2"] = [{"question_id": row["question_id"], "answer": row["prediction"]} for row in people]
    for subtask in mme.SUBTASKS:
        (folder / f"{subtask}.txt").write_text("1.jpg\tIs it?\tYes\n1.jpg\tIs it not?\tNo\n")
    answers["mme"] = [{"question_id": f"{name}/1.jpg/{i}", "text": "Yes"} for name in mme.SUBTASKS[:6] for i in (1, 2)]
    options = {f"choice_{letter}": f"a {letter}" for letter in "abcd"}
    rows = [
        {"question_id": i, "question_type_id": i % 2, "data_type": "image", "answer": "ABCD"[i % 4], **options}
        for i in range(8)
        if keep(str(i))
    ]
    write_json(folder / seed_bench.FILE, {"questions": rows, "question_type": {"Even": 0, "Odd": 1}})
    answers["seed_bench"] = [{"question_id": i, "text": "AB"[i % 2]} for i in range(8)]
    answers["mhumaneval"] = [
        {
            "response_id": f"r{i}",
            "response": "a cat",
            "segments": [SEGMENT] * (i % 2),
        }
        for i in range(6)
    ]
    (folder / "mmhal-bench_answer_template.json").write_bytes(
        (base / "mmhal" / "mmhal-bench_answer_template.json").read_bytes()
    )
    (folder / "eval_gpt_mmhal.py").write_text("template = '{} {} {} {}'\n")
    answers["mmhal"] = [{"question_id": i, "text": "a cat"} for i in range(6)]
    for name in ("qa90_questions", "qa90_gpt4_answer", "caps_boxes_coco2014_val_80"):
        (folder / f"{name}.jsonl").write_bytes((base / "llava_bench" / f"{name}.jsonl").read_bytes())
    rules = base / "llava_bench" / "rule_conv_detail_complex.json"
    (folder / "rule.json").write_bytes(rules.read_bytes())
    first = lines_of("llava_bench/qa90_questions.jsonl", 5)
    answers["llava_bench"] = [{"question_id": row["question_id"], "text": "a cat"} for row in first]
    return answers


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return folder, prepare(folder)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    few = functools.partial(statistics.resampled_sums, resamples=5)
    monkeypatch.setattr(statistics, "resampled_sums", few)
    monkeypatch.setattr(over_generalization, "resampled_sums", few)


WEIRD = st.sampled_from(
    [
        *("", " ", "\u2028", "é漢字🙂", "\x00", "\\", '"', "no", "Yes.", "A", "a dog. " * 300, "1,000", "\u0627\u0644"),
        *("\ud800", None, True, 5, 1.5, math.nan, math.inf, -1, 10**30, [], {}, ["a"], {"a": 1}, [[]], "../x", "١"),
    ]
)
SEGMENT = {"type": "object", "start": 2, "end": 5, "text": "cat"}
EXTRA = ("prompt", "model_id", "error", "option_log_probs", "source", "annotator", "image_id", "text")


def mutations(fields):
    """Up to three changes of a file: mostly of the fields that its lines have."""
    row = st.integers(0, 11)
    field = st.one_of(st.sampled_from(sorted(fields)), st.sampled_from(EXTRA))
    segment = st.builds(lambda name, value: [{**SEGMENT, name: value}], st.sampled_from(sorted(SEGMENT)), WEIRD)
    kinds = [
        st.tuples(st.just("set"), row, field, WEIRD),
        st.tuples(st.just("delete"), row, field, st.none()),
        st.tuples(st.sampled_from(["drop", "repeat"]), row, st.none(), st.none()),
    ]
    if "segments" in fields:
        kinds.append(st.tuples(st.just("set"), row, st.just("segments"), segment))
    return st.lists(st.one_of(kinds), max_size=3)


BYTES = st.sampled_from(
    ["as it is"] * 4 + ["bom", "crlf", "cut", "list", "latin", "utf16", "blank lines", "nothing", "deep", "comma"]
)


def mutated(rows, changes):
    rows = [dict(row) for row in rows]
    for kind, at, field, value in changes:
        if not rows:
            break
        at %= len(rows)
        if kind == "set":
            rows[at][field] = value
        elif kind == "delete":
            rows[at].pop(field, None)
        elif kind == "drop":
            rows.pop(at)
        else:
            rows.insert(0, rows[at])
    return rows


def encoded(rows, how):
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    return {
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "cut": text.encode()[:-9],
        "list": json.dumps(rows).encode(),
        "latin": text.encode() + b'{"question_id": "\xe9"}\n',
        "utf16": text.encode("utf-16"),
        "blank lines": text.replace("\n", "\n\n  \n").encode(),
        "nothing": b"",
        "deep": text.encode() + b"[" * 100_000,
        "comma": text.replace("}\n", "},\n").encode(),
    }.get(how, text.encode())


NAMES = tuple(benchmarks.BENCHMARKS)
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", NAMES)
def test_every_mutation_is_one_sentence_or_a_score_of_numbers(name, official, tmp_path):
    folder, answers = official
    judge = Judge("m", None) if name in ("mmhal", "llava_bench") else None

    @FUZZ
    @given(mutations(answers[name][0]), BYTES, st.booleans())
    @example([("set", 0, "text", "\ud800")], "as it is", True)
    @example([("set", 1, "segments", ["a"])], "as it is", True)
    def check(changes, how, partial):
        path = tmp_path / "answers.jsonl"
        path.write_bytes(encoded(mutated(answers[name], changes), how))
        way = benchmarks.Way(folder, partial, judge, tmp_path / "replies.jsonl", tmp_path / "prompts.jsonl")
        try:
            scores = benchmarks.score(name, path, way)
        except Waiting:
            assert judge is not None  # the prompts were written
            return
        except UserError as error:
            assert str(error).strip() and "\n" not in str(error)
            return
        write_scores(scores, tmp_path / "out")
        for metric, found in scores.metrics.items():
            assert found.value is None or math.isfinite(found.value), metric
            # Rates lie between 0 and 100; a difference may be negative, and two are no rates.
            bounded = not metric.endswith(("delta", "avg_word_len", "segments", "/score")) and found.value is not None
            assert not bounded or 0 <= found.value <= 100 or metric in mme.GROUPS, metric
        assert len({item["question_id"] for item in scores.items}) == len(scores.items)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_an_unmutated_file_scores(name, official, tmp_path):
    folder, answers = official
    judge = Judge("m", None) if name in ("mmhal", "llava_bench") else None
    path = tmp_path / "answers.jsonl"
    path.write_bytes(encoded(answers[name], "as it is"))
    way = benchmarks.Way(folder, True, judge, tmp_path / "replies.jsonl", tmp_path / "prompts.jsonl")
    if judge is not None:
        with pytest.raises(Waiting):
            benchmarks.score(name, path, way)
        prompts = (tmp_path / "prompts.jsonl").read_text().splitlines()
        reply = {"mmhal": "Rating: 4", "llava_bench": "8 6"}[name]
        lines = [{"key": json.loads(row)["key"], "model": "m", "served": "m", "content": reply} for row in prompts]
        (tmp_path / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = benchmarks.score(name, path, way)
    assert len(scores.items) == len(answers[name])


@pytest.mark.parametrize("name", ["pope", "amber", "vqav2", "seed_bench"])
def test_dropping_answers_in_part_equals_scoring_a_benchmark_of_the_kept_questions(name, official, tmp_path):
    folder, answers = official
    field = "id" if name == "amber" else "question_id"
    for step in (2, 3):
        kept = [row for at, row in enumerate(answers[name]) if at % step]
        ids = {str(row[field]) for row in kept}
        part, smaller = tmp_path / f"part{step}.jsonl", tmp_path / f"smaller{step}"
        smaller.mkdir()
        prepare(smaller, lambda question, ids=ids: question in ids)
        part.write_bytes(encoded(kept, "as it is"))
        dropped = benchmarks.score(name, part, benchmarks.Way(folder, partial=True))
        whole = benchmarks.score(name, part, benchmarks.Way(smaller))
        assert dropped.metrics == whole.metrics and dropped.items == whole.items
        unanswered = len(answers[name]) - len(kept)
        assert dropped.settings["unanswered"] + dropped.settings.get("descriptions_unanswered", 0) == unanswered
        assert whole.settings["unanswered"] == 0


def test_dropping_answers_of_object_halbench_leaves_the_counts_of_the_kept_ones(official, tmp_path):
    folder, answers = official
    rows = answers["object_halbench"]
    paths = [tmp_path / name for name in ("all.jsonl", "part.jsonl")]
    for path, kept in zip(paths, (rows, rows[1::2]), strict=True):
        path.write_bytes(encoded(kept, "as it is"))
    every, some = (benchmarks.score("object_halbench", path, benchmarks.Way(folder, partial=True)) for path in paths)
    assert list(some.items) == list(every.items)[1::2]
    wrong = sum(len(item["hallucinated"]) for item in some.items)
    named = sum(len(item["mentioned"]) for item in some.items)
    assert some.metrics["mention"].value == pytest.approx(100 * wrong / named)
    assert some.metrics["resp"].value == pytest.approx(
        100 * sum(bool(item["hallucinated"]) for item in some.items) / sum(bool(i["mentioned"]) for i in some.items)
    )
