"""Official numbers of the benchmarks that need no judge, and answer files that must be refused."""

import json

import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import objhal, pope
from rlhfv_jax.evals.answers import Answer, read_answers
from rlhfv_jax.evals.lemmas import noun_lemma
from rlhfv_jax.evals.references import find
from rlhfv_jax.evals.scores import Metric, Scores, read_scores, write_scores
from rlhfv_jax.evals.statistics import compare, ratio
from rlhfv_jax.evals.vocabulary import read_vocabulary, words


def rows(relative):
    return [json.loads(line) for line in shared(f"data/benchmarks/{relative}").read_text().split("\n") if line]


def expected(folder):
    return json.loads(shared(f"data/benchmarks/{folder}/expected.json").read_text())


@pytest.mark.parametrize("name", ["nltk381_noun_lemmas_vocab", "nltk381_synonyms_plurals"])
def test_noun_lemmas_equal_the_official_lemmatizer(name):
    table = json.loads(shared(f"data/benchmarks/lemma/{name}.json").read_text())
    assert {word: noun_lemma(word) for word in table} == table


CHAIR_TOTALS = ("CHAIRs", "CHAIRs_refine", "CHAIRi", "obj_rec", "avg_word_len", "correct_rate", "object_correct_rate")


def check_chair(scores, data, totals):
    found = {name: scores.metrics[name].value for name in CHAIR_TOTALS}
    assert found == pytest.approx({name: totals[name] for name in CHAIR_TOTALS}, abs=1e-9)
    assert scores.settings["correct_objects"] == totals["coco_word_count"]
    assert scores.settings["true_objects"] == totals["gt_word_count"]
    assert scores.settings["answers_with_objects"] == totals["coco_sentence_num"]
    for item, row in zip(scores.items, data, strict=True):
        if "expected" in row:
            assert item["mentioned"] == row["expected"]["generated"]
            assert item["hallucinated"] == row["expected"]["hallucinated"]


def chair_answers(data):
    return [Answer(str(i), row["answer"], image_id=str(row["image_id"])) for i, row in enumerate(data)]


@pytest.mark.parametrize(
    "name",
    [
        "objhal300_minicpm_beam",
        "opera_instructblip_greedy",
        "opera_shikra_greedy",
        "lim_r1-llava1.5-7b",
        "lim_r11-minigptv2",
        "pope_Instruction2_llava",
        "pope_Instruction2_minigpt-4",
        "pope_Instruction1_instructblip",
    ],
)
def test_chair_equals_the_official_scorer_per_row_and_in_total(name):
    data = rows(f"chair/{name}.jsonl")
    vocabulary = read_vocabulary(shared("data/benchmarks/chair"))
    found = [words(objhal.clean(row["answer"]), vocabulary) for row in data]
    truths = [set(row["gt_objects"]) for row in data]
    scores = objhal.score_words(chair_answers(data), found, truths, vocabulary, "lexical")
    check_chair(scores, data, expected("chair")[name]["rlhfv_lexical"])


def test_chair_from_raw_annotations_equals_the_official_scorer(tmp_path):
    folder = shared("data/benchmarks/raw80")
    for name in ("instances_val2014.json", "captions_val2014.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "instances_train2014.json").write_text('{"categories": [], "annotations": []}')
    (tmp_path / "captions_train2014.json").write_text('{"annotations": []}')
    synonyms = shared("data/benchmarks/chair/synonyms_refine.txt")
    (tmp_path / synonyms.name).write_bytes(synonyms.read_bytes())
    data = rows("raw80/qa90_gpt4.jsonl")
    with pytest.raises(UserError, match="expected 300 to 300"):
        objhal.score(chair_answers(data), tmp_path)
    scores = objhal.score(chair_answers(data), tmp_path, partial=True)
    assert [item["truth"] for item in scores.items] == [sorted(row["expected"]["gt_objects"]) for row in data]
    check_chair(scores, data, expected("raw80")["qa90_gpt4"])


def test_pope_equals_the_official_scorer():
    data = rows("pope/llava15_13b.jsonl")
    ids = [f"{row['category']}/{row['question_id']}" for row in data]
    records = [
        {"question_id": identity, "label": row["label"], "setting": row["category"]}
        for identity, row in zip(ids, data, strict=True)
    ]
    answers = [Answer(identity, row["answer"]) for identity, row in zip(ids, data, strict=True)]
    scores = pope.score_records(answers[::-1], records)
    assert [item["predicted"] for item in scores.items] == [row["expected_pred"] for row in data]
    official = expected("pope")["llava15_13b"]
    for setting in pope.SETTINGS:
        for ours, theirs in {"accuracy": "acc"}.items() | {(n, n) for n in ("precision", "recall", "f1", "yes_ratio")}:
            value = scores.metrics[f"{setting}/{ours}"].value
            assert value == pytest.approx(100 * official[setting][theirs], abs=1e-9)
    mean = scores.metrics["mean_f1"]
    assert mean.value == pytest.approx(100 * official["mean_f1"], abs=1e-9)
    widths = [scores.metrics[f"{setting}/f1"].high - scores.metrics[f"{setting}/f1"].low for setting in pope.SETTINGS]
    # Three means drawn apart: the width of the mean is the root of the sum of squares over three.
    assert mean.high - mean.low == pytest.approx(sum(w**2 for w in widths) ** 0.5 / 3, rel=0.15)
    with pytest.raises(UserError, match="have no answer"):
        pope.score_records(answers[1:], records)


@pytest.mark.parametrize(
    "text",
    [
        '{"question_id": 1, "text": "a"}\n{"question_id": "1", "text": "b"}',
        '{"question_id": 1',
        '{"text": "a"}',
        '{"question_id": 1}',
        '{"question_id": 1, "text": null}',
        "[1]",
        '{"question_id": true, "text": "a"}',
    ],
)
def test_a_hostile_answer_file_is_refused(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError):
        read_answers(tmp_path / "a.jsonl")


def test_answers_keep_line_separators_and_list_errors(tmp_path):
    lines = [{"question_id": 1, "text": "a\u2028b"}, {"question_id": 2, "error": "timeout"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    found = read_answers(tmp_path / "a.jsonl")
    assert found.answers[0].text == "a\u2028b" and found.failed == ("2",)


def test_scores_read_back_as_written(tmp_path):
    scores = Scores("x", {"a": Metric(1.5, None, None, 3)}, {"k": 1}, "judge", [{"text": "é\u2028\ud800"}])
    write_scores(scores, tmp_path / "out")
    assert read_scores(tmp_path / "out") == scores


def test_the_interval_of_a_mean_is_near_the_normal_one():
    metric = ratio([0.0, 1.0] * 500)
    assert metric.low == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.006)
    assert metric.high == pytest.approx(0.5 + 1.96 * 0.5 / 1000**0.5, abs=0.006)


def test_a_paired_comparison_sees_a_constant_gain_and_no_gain():
    gain = compare([0.0] * 30, [1.0] * 30)
    assert (gain.difference, gain.low, gain.high, gain.n) == (1, 1, 1, 30) and gain.p < 0.001
    assert compare([0, 1] * 20, [1, 0] * 20).p > 0.5


def test_a_rate_of_nothing_is_null_in_valid_json(tmp_path):
    assert ratio([0, 0], [0, 0]) == Metric(None, None, None, 2)
    write_scores(Scores("x", {"a": ratio([])}), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"]["a"]["value"] is None
    assert read_scores(tmp_path).metrics["a"].value is None


def test_the_rate_of_each_object_is_of_its_mentions():
    vocabulary = read_vocabulary(shared("data/benchmarks/chair"))
    answers = [Answer(str(i), "a", image_id=str(i)) for i in range(3)]
    named = [["dog", "puppy", "cup"], ["dog"], []]
    metrics = objhal.score_words(answers, named, [{"cup"}, {"dog"}, set()], vocabulary, "lexical").metrics
    rates = {name: (metric.value, metric.n) for name, metric in metrics.items() if name.startswith("object/")}
    assert rates == {"object/dog": (pytest.approx(200 / 3), 3), "object/cup": (0, 1)}


def test_object_halbench_refuses_a_question_answered_twice():
    with pytest.raises(UserError, match="two answers"):
        objhal.check_answers([Answer("1", "a", image_id="1")] * 2, partial=True)


def test_an_official_file_is_found_below_and_its_source_named_when_missing(tmp_path):
    with pytest.raises(UserError, match=r"f\.json is missing; it comes from its site"):
        find(tmp_path, "f.json", "its site")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "f.json").write_text("[]")
    assert find(tmp_path, ("g.json", "f.json"), "its site") == tmp_path / "a" / "f.json"
    (tmp_path / "b" / "f.json").write_text("[]")
    with pytest.raises(UserError, match="leave one"):
        find(tmp_path, "f.json", "its site")
