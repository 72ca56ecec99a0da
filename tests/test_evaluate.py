"""`evaluate` as a user runs it: official numbers from files in a folder, and one sentence where something is wrong."""

import json
import os
import subprocess
import sys

import pytest
from conftest import shared
from fake_endpoint import FakeEndpoint


def evaluate(*options, status=0):
    command = [sys.executable, "-m", "rlhfv_jax.evaluate", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def rows(name):
    return [json.loads(line) for line in shared(f"data/benchmarks/{name}").read_text().split("\n") if line]


def expected(folder):
    return json.loads(shared(f"data/benchmarks/{folder}/expected.json").read_text())


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def value(out, metric):
    return json.loads((out / "scores.json").read_text())["metrics"][metric]["value"]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The official files by their official names, as a user has them."""
    folder = tmp_path_factory.mktemp("references")
    for name in ("instances_val2014.json", "captions_val2014.json"):
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / name).write_bytes(shared(f"data/benchmarks/raw80/{name}").read_bytes())
    (folder / "annotations" / "instances_train2014.json").write_text('{"categories": [], "annotations": []}')
    (folder / "annotations" / "captions_train2014.json").write_text('{"annotations": []}')
    for name in (
        "chair/synonyms_refine.txt",
        "amber/annotations.json",
        "amber/relation.json",
        "amber/safe_words.txt",
        "mmhal/mmhal-bench_answer_template.json",
        "llava_bench/qa90_questions.jsonl",
        "llava_bench/qa90_gpt4_answer.jsonl",
        "llava_bench/caps_boxes_coco2014_val_80.jsonl",
    ):
        path = shared(f"data/benchmarks/{name}")
        (folder / path.name).write_bytes(path.read_bytes())
    rules = shared("data/benchmarks/llava_bench/rule_conv_detail_complex.json")
    (folder / "rule.json").write_bytes(rules.read_bytes())
    template = shared("data/benchmarks/mmhal/judge_prompt_template.txt").read_text()
    (folder / "eval_gpt_mmhal.py").write_text(f"import sys\n\ntemplate = {template!r}\n")
    template = shared("data/benchmarks/objhal_gpt_path/extraction_prompt_template.txt").read_text()
    (folder / "eval_gpt_obj_halbench.py").write_text(f"import sys\n\nprompt_template = {template!r}\n")
    people = rows("vqa/vizwiz_human_noisy_first800.jsonl")
    for row in people:
        row["answers"] = [{"answer": text, "answer_id": i} for i, text in enumerate(row["answers"], 1)]
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": people}))
    by_setting = {}
    for row in rows("pope/llava15_13b.jsonl"):
        question = {"question_id": row["question_id"], "text": "?", "label": row["label"]}
        by_setting.setdefault(row["category"], []).append(question)
    for setting, questions in by_setting.items():
        write(folder / f"coco_pope_{setting}.json", questions)
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    raw = [
        {"question_id": i, "prompt": row["question"], "text": row["answer"], "image_id": row["image_id"]}
        for i, row in enumerate(rows("raw80/qa90_gpt4.jsonl"))
    ]
    write(folder / "object_halbench.jsonl", raw)
    pope = [
        {"question_id": f"{row['category']}/{row['question_id']}", "text": row["answer"]}
        for row in rows("pope/llava15_13b.jsonl")
    ]
    write(folder / "pope.jsonl", pope)
    yes = json.loads(shared("data/benchmarks/amber/disc_all_yes.json").read_text())
    described = [{"id": 1, "response": "A dog."}]
    write(folder / "amber.jsonl", described + [{"id": int(name), "response": text} for name, text in yes.items()])
    vqa = [
        {"question_id": row["question_id"], "answer": row["prediction"]}
        for row in rows("vqa/vizwiz_human_noisy_first800.jsonl")
    ]
    write(folder / "vqav2.jsonl", vqa)
    return folder


def test_all_benchmarks_with_answers_give_the_official_numbers(references, answers, tmp_path):
    options = (f"--answers={answers}", f"--references={references}", f"--out={tmp_path}")
    done = evaluate("--benchmark=all", "--format=json", "--partial", *options)
    assert sorted(json.loads(done.stdout)) == ["amber", "object_halbench", "over_generalization", "pope", "vqav2"]
    assert "no answers to mme, seed_bench, mmhal, llava_bench, mhumaneval" in done.stderr
    chair = expected("raw80")["qa90_gpt4"]
    assert value(tmp_path / "object_halbench", "resp") == pytest.approx(100 * chair["CHAIRs_refine"], abs=1e-9)
    assert value(tmp_path / "object_halbench", "mention") == pytest.approx(100 * chair["CHAIRi"], abs=1e-9)
    mean_f1 = expected("pope")["llava15_13b"]["mean_f1"]
    assert value(tmp_path / "pope", "mean_f1") == pytest.approx(100 * mean_f1, abs=1e-9)
    disc = expected("amber")["disc_all_yes"]["Descriminative Task"]
    assert value(tmp_path / "amber", "discriminative/f1") == disc["F1"]
    official = expected("vqa")["vizwiz_human_noisy_first800"]["official_vqaEval_on_raw_predictions"]
    assert value(tmp_path / "vqav2", "accuracy") == pytest.approx(official["overall"], abs=0.005 + 1e-9)  # rounded
    assert len((tmp_path / "vqav2" / "items.jsonl").read_text().splitlines()) == 800


def test_a_comparison_is_ours_less_the_other(references, answers, tmp_path):
    lines = [json.loads(line) for line in (answers / "vqav2.jsonl").read_text().splitlines()]
    write(tmp_path / "empty.jsonl", [{**line, "answer": ""} for line in lines])
    options = ("--benchmark=vqav2", f"--references={references}", f"--out={tmp_path / 'out'}")
    done = evaluate(*options, f"--answers={answers / 'vqav2.jsonl'}", f"--compare={tmp_path / 'empty.jsonl'}")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["settings"]["compared"]["differences"]["accuracy"]["difference"] == pytest.approx(68.625)
    assert "accuracy less that of" in done.stdout and "95 % interval" in done.stdout


def test_a_judge_is_asked_once_and_its_ratings_are_the_score(references, tmp_path):
    given = rows("mmhal/blip2_gpt4o.jsonl")
    said = write(tmp_path / "a.jsonl", [{"question_id": row["index"], "text": row["model_answer"]} for row in given])
    options = ("--benchmark=mmhal", f"--answers={said}", f"--references={references}", f"--out={tmp_path / 'out'}")
    assert "needs a judge" in evaluate(*options, status=1).stderr
    with FakeEndpoint(lambda body: "Rating: 4" if "dog" in body["messages"][0]["content"] else "Rating: 1") as server:
        asked = (*options, f"--judge_url={server.url}", "--judge_model=m", "--concurrency=16")
        evaluate(*asked)
        prompts = [call.body["messages"][0]["content"] for call in server.answered()]
        evaluate(*asked)
        assert len(server.calls) == 96
    share = sum("dog" in prompt for prompt in prompts) / 96
    assert value(tmp_path / "out", "rating") == pytest.approx(1 + 3 * share)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["judge"] == "fake-judge-2024-01-01"


def listed(body):
    """The objects of an answer as a chat model may list them: its longer words."""
    answer = body["messages"][0]["content"].split("[Start of Examiner's Answer]")[1].split("[End of")[0]
    return json.dumps([word.strip(".,") for word in answer.split() if len(word) > 3][:12])


def test_object_halbench_by_a_chat_model_is_asked_once_for_both_of_its_tables(references, answers, tmp_path):
    said = answers / "object_halbench.jsonl"
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / said.name).write_bytes(said.read_bytes())
    options = ("--benchmark=all", "--partial", f"--references={references}", f"--answers={tmp_path / 'answers'}")
    with FakeEndpoint(listed) as server:
        asked = (*options, f"--judge_url={server.url}", "--judge_model=m", "--concurrency=16", f"--out={tmp_path}")
        evaluate(*asked)
        prompts = [call.body["messages"][0]["content"] for call in server.answered()]
    given = rows("raw80/qa90_gpt4.jsonl")
    long = [row for row in given if len(row["answer"].split()) > 3]
    assert sorted(prompts) == sorted(set(prompts)) and len(prompts) == len(long)
    template = shared("data/benchmarks/objhal_gpt_path/extraction_prompt_template.txt").read_text()
    assert set(prompts) == {
        template.replace("{question}", row["question"]).replace("{answer}", row["answer"].strip()) for row in long
    }
    found = json.loads((tmp_path / "object_halbench" / "scores.json").read_text())
    assert found["judge"] == "fake-judge-2024-01-01" and found["settings"]["path"] == "chat model"
    table = json.loads((tmp_path / "over_generalization" / "scores.json").read_text())
    assert table["judge"] == found["judge"] and table["settings"]["scene_images"]["street"] == 9


def test_prompts_for_a_judge_elsewhere_and_its_replies_give_the_score(references, tmp_path):
    golden = rows("llava_bench/prompt_golden.jsonl")[:9]
    said = write(tmp_path / "a.jsonl", [{"question_id": row["question_id"], "text": row["answer2"]} for row in golden])
    options = ("--benchmark=llava_bench", "--partial", "--judge=none", "--judge_model=m", f"--references={references}")
    options = (*options, f"--answers={said}", f"--out={tmp_path / 'out'}")
    evaluate(*options)
    assert not (tmp_path / "out" / "scores.json").exists()
    prompts = [json.loads(line) for line in (tmp_path / "out" / "judge_prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 9
    replies = [{"key": row["key"], "model": "m", "served": "person", "content": "8 6"} for row in prompts]
    write(tmp_path / "out" / "judge_replies.jsonl", replies)
    evaluate(*options)
    assert value(tmp_path / "out", "all") == 75.0


def test_labels_of_people_are_scored(tmp_path):
    case = json.loads(shared("data/benchmarks/tables/mhumaneval_hand_case.json").read_text())
    labels = [{"response_id": row["response"], "segments": row["segments"]} for row in case["labels"]]
    options = ("--benchmark=mhumaneval", f"--answers={write(tmp_path / 'l.jsonl', labels)}", f"--out={tmp_path}")
    assert "MHumanEval has 146" in evaluate(*options, status=1).stderr
    evaluate(*options, "--partial")
    assert {name: value(tmp_path, name) for name in case["expected"]} == case["expected"]


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("pope", '{"question_id": "popular/1", "text": "yes"}', "questions have no answer"),
        ("pope", '{"question_id": "popular/1"', "line 1: not JSON"),
        ("vqav2", '{"question_id": 0, "error": "timeout"}', "hold an error"),
        ("object_halbench", '{"question_id": 0, "text": "a", "image_id": 1}', "expected 300 to 300"),
        ("amber", '{"id": 1005, "response": "No"}', "yes/no questions have no answer"),
        ("pop", '{"question_id": 0, "text": "a"}', "is none of object_halbench, over_generalization"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_no_scores(references, tmp_path, name, line, says):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    options = (f"--benchmark={name}", f"--answers={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'out'}")
    done = evaluate(*options, f"--references={references}", status=1)
    assert says in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_missing_official_file_is_named_with_its_source(tmp_path):
    said = write(tmp_path / "a.jsonl", [{"question_id": 1, "text": "a"}])
    options = ("--benchmark=vqav2", f"--answers={said}", f"--references={tmp_path}", f"--out={tmp_path / 'out'}")
    assert (
        "v2_mscoco_val2014_annotations.json is missing; it comes from visualqa.org"
        in evaluate(*options, status=1).stderr
    )


def test_the_submission_is_written_without_scoring(tmp_path):
    questions = {"questions": [{"question_id": 7}, {"question_id": 3}]}
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(questions))
    said = write(tmp_path / "a.jsonl", [{"question_id": 3, "text": "Two."}])
    out = tmp_path / "s.json"
    evaluate("--benchmark=vqav2", f"--answers={said}", f"--references={tmp_path}", f"--submission={out}")
    assert json.loads(out.read_text()) == [{"question_id": 7, "answer": ""}, {"question_id": 3, "answer": "2"}]
