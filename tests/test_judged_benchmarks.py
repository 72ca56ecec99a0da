"""The benchmarks with a judge or annotators: prompts byte for byte, and the official numbers from the same replies."""

import hashlib
import json

import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import extraction, llava_bench, mhumaneval, mmhal, tagging, vocabulary
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.judge import OFFICIAL, Judgment


def rows(name):
    return [json.loads(line) for line in shared(f"data/benchmarks/{name}").read_text().splitlines()]


def values(name):
    return json.loads(shared(f"data/benchmarks/{name}").read_text())


def text(name):
    return shared(f"data/benchmarks/{name}").read_text()


def sha(words):
    return hashlib.sha256(words.encode()).hexdigest()


def judged(contents, parse, way=OFFICIAL):
    verdicts, unjudged = {}, {}
    for name, content in contents.items():
        try:
            verdicts[name] = parse(content)
        except ValueError as error:
            unjudged[name] = str(error)
    return Judgment(verdicts, contents, unjudged, {"model": "m", "served": ["m-1"], "parse": way, "unjudged": unjudged})


def mmhal_items():
    return mmhal.questions(values("mmhal/mmhal-bench_answer_template.json"), "the template")


def answers_of(pairs):
    return {str(name): Answer(str(name), said) for name, said in pairs}


@pytest.mark.parametrize("name", ["prompt_golden_llava_7b", "blip2_gpt4o", "blip2_gpt4o_mutated"])
def test_mmhal_prompts_are_the_released_ones_byte_for_byte(name):
    template = mmhal.check_template(text("mmhal/judge_prompt_template.txt"), "the template")
    for item, row in zip(mmhal_items(), rows(f"mmhal/{name}.jsonl"), strict=True):
        (message,) = mmhal.request(item, row["model_answer"], template).messages
        assert message["role"] == "user" and sha(message["content"]) == row["prompt_sha256"]
        assert message["content"] == row.get("prompt", message["content"])


@pytest.mark.parametrize("name", ["blip2_gpt4o", "blip2_gpt4o_mutated"])
def test_mmhal_numbers_are_the_official_ones(name):
    given, expected = rows(f"mmhal/{name}.jsonl"), values("mmhal/expected.json")[name]
    judgment = judged({str(row["index"]): row["review"] for row in given}, mmhal.parse)
    scores = mmhal.score(mmhal_items(), answers_of((row["index"], row["model_answer"]) for row in given), judgment)
    got = {key: metric.value for key, metric in scores.metrics.items()}
    assert round(got["informativeness"], 2) == expected["informativeness_pct"]
    assert round(got["rating"], 2) == expected["average_score"]
    assert round(got["hallucination_rate"] / 100, 2) == expected["hallucination_rate"]
    assert [round(got[f"rating/{kind}"], 2) for kind in mmhal.TYPES] == expected["per_type"]
    assert len(judgment.unjudged) == expected["warnings"] and scores.metrics["rating"].n == 96
    ratings = {str(row["index"]): judgment.verdicts.get(str(row["index"]), 0) for row in given}
    assert ratings == {str(row["index"]): row["expected_rating"] for row in given}


def test_a_rating_that_cannot_be_read_is_left_out_and_listed_unless_the_official_way_is_asked_for():
    given = rows("mmhal/blip2_gpt4o_mutated.jsonl")
    judgment = judged({str(row["index"]): row["review"] for row in given}, mmhal.parse, "strict")
    scores = mmhal.score(mmhal_items(), answers_of((row["index"], row["model_answer"]) for row in given), judgment)
    assert scores.metrics["rating"].n == 96 - 63 and len(scores.settings["judging"]["unjudged"]) == 63
    assert [item["rating"] for item in scores.items].count(None) == 63


def test_mmhal_refuses_another_order_and_another_count():
    template = values("mmhal/mmhal-bench_answer_template.json")
    with pytest.raises(UserError, match="has 95 items"):
        mmhal.questions(template[:-1], "q.json")
    with pytest.raises(UserError, match=r"q\.json, item 0 is of type 'adversarial'"):
        mmhal.questions([template[1], template[0], *template[2:]], "q.json")


def llava_items():
    names = ("qa90_questions", "qa90_gpt4_answer", "caps_boxes_coco2014_val_80")
    return llava_bench.questions(*(rows(f"llava_bench/{name}.jsonl") for name in names))


def test_llava_bench_prompts_are_the_released_ones_byte_for_byte():
    rules = values("llava_bench/rule_conv_detail_complex.json")
    items = {item.id: item for item in llava_items()}
    golden = rows("llava_bench/prompt_golden.jsonl")
    assert len(items) == llava_bench.ITEMS and len(golden) == 45
    for row in golden:
        system, user = llava_bench.request(items[str(row["question_id"])], row["answer2"], rules).messages
        assert sha(user["content"]) == row["prompt_sha256"]
        assert user["content"] == row.get("prompt", user["content"])
        assert system["content"] == values("llava_bench/expected.json")["judge_call"]["system"]


@pytest.mark.parametrize(
    "name", [*(f"llava15_13b_eval{i}" for i in (1, 2, 3)), "vicuna_review_bard", "vicuna_review_llama-13b"]
)
def test_llava_bench_numbers_are_the_official_ones(name):
    given, expected = rows(f"llava_bench/{name}.jsonl"), values("llava_bench/expected.json")[name]["rlhfv_summary"]
    judgment = judged({str(row["question_id"]): row["content"] for row in given}, llava_bench.parse)
    for row in given:
        assert list(judgment.verdicts.get(str(row["question_id"]), (-1, -1))) == row["expected_scores"]
    pairs = [(row["category"], judgment.verdicts.get(str(row["question_id"]))) for row in given]
    for category, numbers in expected.items():
        if category != "_skipped":
            group = [pair for kind, pair in pairs if pair is not None and category in ("all", kind)]
            assert llava_bench.summary(group).value == numbers["relative"], category
    assert len(judgment.unjudged) == expected["_skipped"]


def test_llava_bench_reads_verdicts_as_the_released_parser():
    for case in values("llava_bench/parse_cases.json"):
        if case["expected_scores"][0] == -1:
            with pytest.raises(ValueError):
                llava_bench.parse(case["content"])
        else:
            assert list(llava_bench.parse(case["content"])) == case["expected_scores"]


def test_llava_bench_scores_by_category_and_as_a_whole():
    items = llava_items()
    second = {"conv": 5.0, "detail": 4.0, "complex": 3.0}
    contents = {item.id: f"8 {second[item.category]}\nfine" for item in items}
    scores = llava_bench.score(items, answers_of((item.id, "a") for item in items), judged(contents, llava_bench.parse))
    got = {key: (metric.value, metric.n) for key, metric in scores.metrics.items()}
    assert got == {"conv": (62.5, 30), "detail": (50.0, 30), "complex": (37.5, 30), "all": (50.0, 90)}


def extraction_rows():
    return rows("objhal_gpt_path/beam_first120.jsonl")


def test_extraction_prompts_are_the_released_ones_byte_for_byte():
    template = extraction.check_template(text("objhal_gpt_path/extraction_prompt_template.txt"), "the template")
    for row in extraction_rows():
        (message,) = extraction.request("a", row["question"], row["answer"], template).messages
        assert message["role"] == "system" and sha(message["content"]) == row["prompt_sha256"]


def test_extraction_replies_are_read_as_by_the_released_parser():
    for case in values("objhal_gpt_path/parse_cases.json"):
        if "error" in case:
            with pytest.raises(ValueError):
                extraction.parse_any(case["content"])
        else:
            assert extraction.parse_any(case["content"]) == case["parsed"]
        if not isinstance(case.get("parsed"), list):
            with pytest.raises(ValueError):
                extraction.parse(case["content"])


def test_the_chat_model_path_is_the_official_one_given_its_replies():
    given, expected = extraction_rows(), values("objhal_gpt_path/expected.json")["beam_first120"]
    tagged = {}
    for row in given:  # short answers have no tags: nobody asks about them
        if not extraction.needs_judge(row["answer"]):
            continue
        tagged |= dict(zip(("a " + one for one in row["extracted"]), row["spacy_tokens_of_a_plus_text"], strict=True))
    words = vocabulary.read_vocabulary(shared("data/benchmarks/chair"))
    answers = [Answer(str(at), row["answer"], image_id=str(row["image_id"])) for at, row in enumerate(given)]
    judgment = judged({str(at): row["judge_reply"] for at, row in enumerate(given)}, extraction.parse)
    truths = [set(row["gt_objects"]) for row in given]
    scores = extraction.score(answers, truths, words, judgment, tagged.__getitem__, "recorded")
    for row, item in zip(given, scores.items, strict=True):
        assert item["mentioned"] == row["expected"]["generated"]
        assert item["hallucinated"] == row["expected"]["hallucinated"]
        if extraction.needs_judge(row["answer"]):
            assert extraction.objects(row["extracted"], tagged.__getitem__, words.doubles) == row["expected"]["objs"]
    for name in ("CHAIRs", "CHAIRs_refine", "CHAIRi", "obj_rec", "avg_word_len", "correct_rate", "object_correct_rate"):
        assert scores.metrics[name].value == pytest.approx(expected[name], abs=1e-12), name
    assert scores.settings["answers"] == expected["sentence_num"]
    assert scores.settings["answers_with_objects"] == expected["coco_sentence_num"]
    assert scores.settings["correct_objects"] == expected["coco_word_count"]
    assert scores.settings["true_objects"] == expected["gt_word_count"]


def mentioned(tagger):
    """The object words of each of the 120 answers by this tagger, and those of the official run."""
    words = vocabulary.read_vocabulary(shared("data/benchmarks/chair"))
    found, official = [], []
    for row in extraction_rows():
        extracted = row["extracted"] if extraction.needs_judge(row["answer"]) else []
        found.append(vocabulary.in_vocabulary(extraction.objects(extracted, tagger.tagged, words.doubles), words))
        official.append([word for word, _ in row["expected"]["generated"]])
    return found, official


def test_without_a_model_of_english_few_answers_get_other_objects(monkeypatch):
    monkeypatch.setattr(tagging, "spacy_model", lambda: None)
    monkeypatch.setattr(tagging, "_nltk", lambda: None)
    found, official = mentioned(tagging.object_tagger())
    assert sum(one != other for one, other in zip(found, official, strict=True)) <= 14


def test_the_spacy_model_of_the_official_run_gives_its_objects():
    found = tagging.spacy_model()
    if found is None or not found[0].startswith("en_core_web_sm"):
        pytest.skip("the official run here was with en_core_web_sm, which is not installed or not the best one")
    ours, official = mentioned(tagging.object_tagger())
    assert ours == official


@pytest.mark.parametrize(
    ("word", "base"), [("men", "man"), ("Vases", "vase"), ("smartphones", "smartphone"), ("glasses", "glass")]
)
def test_plurals_get_the_word_that_people_would_say(word, base):
    assert tagging.singular(word) == base


def test_mhumaneval_is_the_hand_worked_case():
    case = values("tables/mhumaneval_hand_case.json")
    export = [{"response_id": row["response"], "segments": row["segments"]} for row in case["labels"]]
    scores = mhumaneval.score(mhumaneval.labels(export, "hand"))
    assert {name: scores.metrics[name].value for name in case["expected"]} == case["expected"]


def labels_with(counts, total=146):
    """An export with so many answers of each type; `all` is made up by answers with another type."""
    export = []
    for at in range(total):
        kinds = [kind for kind in ("object", "position", "number") if at < counts[kind]]
        if not kinds and at < counts["all"]:
            kinds = ["others"]
        segments = [{"type": kind} for kind in kinds]
        export.append({"response_id": f"r{at}", "segments": segments, "source": "mmhal" if at < 96 else "objhal"})
    return export


def test_every_mhumaneval_percentage_of_tables_1_and_3_is_a_count_of_146_but_one():
    printed = {name: row["printed"] for name, row in values("tables/paper_table1.json")["models"].items()}
    third = values("tables/paper_table3.json")
    printed |= {name: dict(zip(third["columns"], row, strict=True)) for name, row in third["rows"].items()}
    exceptions, checked = set(), 0
    for model, row in printed.items():
        wanted = {kind: row[f"mhe_{kind}"] for kind in ("object", "position", "number", "all")}
        counts = {kind: round(value * 146 / 100) for kind, value in wanted.items()}
        metrics = mhumaneval.score(mhumaneval.labels(labels_with(counts), model)).metrics
        for kind, value in wanted.items():
            checked += 1
            if round(metrics[kind].value, 1) != value:
                exceptions.add((model, kind, value))
    # 50 of 146 is 34.25, which rounds to 34.2.
    assert exceptions == {("w/ IT-VQA only", "object", 34.3)} and checked == 4 * 12


def test_every_human_mmhal_rate_of_tables_1_and_3_is_a_count_of_96_but_one():
    rates = {
        name: row["printed"]["mmhal_resp_human"] for name, row in values("tables/paper_table1.json")["models"].items()
    }
    third = values("tables/paper_table3.json")
    rates |= {name: row[third["columns"].index("mmhal_resp")] for name, row in third["rows"].items()}
    exceptions = set()
    for model, rate in rates.items():
        count = round(rate * 96 / 100)
        counts = {"object": count, "position": 0, "number": 0, "all": count}
        got = mhumaneval.score(mhumaneval.labels(labels_with(counts), model)).metrics["mmhal_resp"]
        assert got.n == 96
        if abs(got.value - rate) > 0.05 + 1e-9:
            exceptions.add((model, rate))
    assert exceptions == {("InstructBLIP", 64.4)}  # 62 of 96 is 64.6


OTHER_TEXT = {"type": "object", "start": 2, "end": 5, "text": "dog"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"segments": []}, "response_id"),
        ({"response_id": "a"}, "segments"),
        ({"response_id": "a", "segments": [{"type": "mood"}]}, "'mood'"),
        (
            {
                "response_id": "a",
                "response": "a cat",
                "segments": [{"type": "object", "start": 2, "end": 5, "text": "dog"}],
            },
            "'dog'",
        ),
        ({"response_id": "a", "segments": [], "source": "web"}, "'web'"),
    ],
)
def test_labels_that_cannot_be_right_are_refused_with_their_row(row, words):
    with pytest.raises(UserError, match=f"export.jsonl, row 2: .*{words}"):
        mhumaneval.labels([{"response_id": "first", "segments": []}, row], "export.jsonl")


def test_an_answer_labeled_twice_needs_the_choice_of_an_annotator():
    twice = [
        {"response_id": "a", "annotator": name, "segments": [{"type": "objects"}] * count}
        for name, count in (("ann", 1), ("bob", 2))
    ]
    with pytest.raises(UserError, match="labeled before"):
        mhumaneval.labels(twice, "export.jsonl")
    assert mhumaneval.labels(twice, "export.jsonl", "bob")[0].types == ("object", "object")
