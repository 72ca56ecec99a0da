"""MME and SEED-Bench against a second count written from their definitions, and what is refused."""

import json
import random

import pytest

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import mme, seed_bench
from rlhfv_jax.evals.answers import Answer

TEXTS = {
    "yes": ("Yes", "yes.", " Yes, there is", "\nyes"),
    "no": ("No", "no.", "Not at all", " No, it is"),
    "": ("", "maybe"),
}


@pytest.fixture(scope="module")
def mme_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mme")
    (folder / "Your_Results").mkdir()
    for at, subtask in enumerate(mme.SUBTASKS):
        lines = []
        for image in range(3 + at % 4):
            lines += [f"{image}.jpg\tIs it {word}?\t{label}" for word, label in (("red", "Yes"), ("blue", "No"))]
        (folder / "Your_Results" / f"{subtask}.txt").write_text("\n".join(lines) + "\n")
    return folder


def said(records, seed=0, wrong=0.3):
    draw = random.Random(seed)
    answers = []
    for record in records:
        kind = record["label"] if draw.random() > wrong else draw.choice(["yes", "no", ""])
        answers.append(Answer(record["question_id"], draw.choice(TEXTS[kind])))
    return answers


def test_mme_equals_a_count_by_its_definition(mme_files):
    records = mme.questions(mme_files)
    answers = said(records)
    scores = mme.score(answers[::-1], mme_files)
    kind_of = {text: kind for kind, texts in TEXTS.items() for text in texts}
    text = {answer.question_id: answer.text for answer in answers}
    totals = {}
    for subtask in mme.SUBTASKS:
        rights = [kind_of[text[r["question_id"]]] == r["label"] for r in records if r["subtask"] == subtask]
        pairs = list(zip(rights[::2], rights[1::2], strict=True))
        accuracy, plus = 100 * sum(rights) / len(rights), 100 * sum(map(all, pairs)) / len(pairs)
        totals[subtask] = accuracy + plus
        for name, value in (("accuracy", accuracy), ("accuracy_plus", plus), ("score", accuracy + plus)):
            assert scores.metrics[f"{subtask}/{name}"].value == pytest.approx(value)
        assert scores.metrics[f"{subtask}/accuracy_plus"].n == len(pairs)
    for group, names in mme.GROUPS.items():
        metric = scores.metrics[group]
        assert metric.value == pytest.approx(sum(totals[name] for name in names))
        assert metric.low < metric.value < metric.high
    assert scores.settings["neither_yes_nor_no"] == sum(kind_of[value] == "" for value in text.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes", "yes"),
        ("NOT SURE", "no"),
        (" yes", "yes"),
        ("The answer is yes", "other"),
        ("", "other"),
        ("I know", "other"),
    ],
)
def test_mme_reads_only_the_first_four_letters(text, found):
    assert mme.verdict(text) == found


def test_mme_at_its_best_is_2000_and_800(mme_files):
    records = mme.questions(mme_files)
    scores = mme.score([Answer(record["question_id"], record["label"]) for record in records], mme_files)
    assert (scores.metrics["perception"].value, scores.metrics["cognition"].value) == (2000, 800)


def test_mme_in_part_has_no_total_and_pairs_only_of_images_with_both(mme_files):
    some = [Answer("count/0.jpg/1", "Yes"), Answer("count/0.jpg/2", "Yes"), Answer("count/1.jpg/1", "Yes")]
    with pytest.raises(UserError, match="have no answer"):
        mme.score(some, mme_files)
    metrics = mme.score(some, mme_files, partial=True).metrics
    assert metrics["perception"].value is None and "cognition" not in metrics
    assert metrics["count/accuracy"].value == pytest.approx(200 / 3)
    assert (metrics["count/accuracy_plus"].value, metrics["count/accuracy_plus"].n) == (0, 1)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("1.jpg\tIs it?\tYes\n", "1.jpg has 1 questions"),
        ("1.jpg\tIs it?\tMaybe\n", "existence.txt, line 1: expected an image"),
        ("1.jpg Is it? Yes\n", "apart by tabs"),
        ("\n", "holds no question"),
    ],
)
def test_mme_refuses_misshapen_files(tmp_path, lines, says):
    (tmp_path / "existence.txt").write_text(lines)
    with pytest.raises(UserError, match=says):
        mme.questions(tmp_path)


def seed_row(number, answer="A", kind=1, **changes):
    options = {f"choice_{letter}": f"a {letter * 3}" for letter in "abcd"}
    row = {"question_id": number, "question_type_id": kind, "data_type": "image", "answer": answer, **options}
    return row | changes


@pytest.fixture
def seed_file(tmp_path):
    def write(rows, types=None):
        values = {"questions": rows, "question_type": types or {"Scene": 1, "Count": 2}}
        (tmp_path / seed_bench.FILE).write_text(json.dumps(values))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. a bbb", "B"),
        ("(B) a dog", "B"),
        ("a bbb.", "B"),
        ("A BBB", "B"),
        ("A dog", None),
        ("", None),
        ("E", None),
        ("Because", None),
        ("b", None),
        ("B or C", None),
        (" C: so", "C"),
    ],
)
def test_a_choice_is_a_letter_alone_or_before_its_option_or_the_option_itself(text, letter):
    assert seed_bench.choice(text, {"A": "a aaa", "B": "a bbb", "C": "a ccc", "D": "a ddd"}) == letter


def test_seed_bench_by_letter_and_by_type_without_videos(seed_file):
    folder = seed_file([seed_row(1), seed_row(2, "B", 2), seed_row(3, "C", 2), seed_row("v", data_type="video")])
    scores = seed_bench.score([Answer("1", "A."), Answer("2", "a bbb"), Answer("3", "none of these")], folder)
    values = {name: metric.value for name, metric in scores.metrics.items()}
    assert values == pytest.approx({"accuracy": 200 / 3, "type/Scene": 100, "type/Count": 50})
    assert scores.settings["without_letter"] == 1


def test_seed_bench_by_the_likelihood_of_the_options(seed_file):
    folder = seed_file([seed_row(1), seed_row(2, "B")])
    likely = {"A": -0.5, "B": -1.0, "C": -2, "D": -9.5}
    answers = [Answer(name, "", extra={"option_log_probs": likely}) for name in ("1", "2")]
    metrics = seed_bench.score(answers, folder).metrics
    assert {name: metric.value for name, metric in metrics.items()} == {
        "likelihood/accuracy": 50,
        "likelihood/type/Scene": 50,
    }
    with pytest.raises(UserError, match="1 of 2 answers carry"):
        seed_bench.score([answers[0], Answer("2", "B")], folder)
    for bad in ({"A": -1}, {**likely, "B": float("nan")}, {**likely, "B": None}, [1, 2, 3, 4], {**likely, "B": True}):
        with pytest.raises(UserError, match="one finite number"):
            seed_bench.score([Answer("1", "", extra={"option_log_probs": bad})], folder, partial=True)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (seed_row(1, "E"), "an answer A to D"),
        (seed_row(1, kind=7), "question_type_id"),
        (seed_row(1, choice_c=None), "choice_a to choice_d"),
        (seed_row(None), "question_id"),
    ],
)
def test_seed_bench_refuses_misshapen_questions(seed_file, row, says):
    with pytest.raises(UserError, match=says):
        seed_bench.questions(seed_file([seed_row(0), row]))
