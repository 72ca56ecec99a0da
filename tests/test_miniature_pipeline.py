"""The miniature as a whole: its settings, and all stages of the smoke preset, for the files it promises."""

import contextlib
import dataclasses
import json
import re
import runpy
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import environment
from test_miniature_scoring import regex_reading

from rlhfv_jax import cli
from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import corpus, evaluation, recipe, scoring, seeds, words
from rlhfv_jax.miniature.captions import NOISY
from rlhfv_jax.miniature.page import readings


def test_a_row_of_the_corpus_follows_from_seed_split_and_row_alone():
    tokenizer = words.train_tokenizer()
    length = corpus.row_length(tokenizer, 16)
    source, again = (corpus.TextSource(3, "sft", 50, tokenizer, 16, length, NOISY, 0.3) for _ in range(2))
    rows = [source[row] for row in range(50)]
    for row in reversed(range(50)):
        for a, b in zip(again[row], rows[row], strict=True):
            assert (a == b).all()
    assert all(batch.tokens.shape == (2, length) and batch.lengths.max() <= length for batch in rows)
    other = corpus.TextSource(3, "it_vqa", 50, tokenizer, 16, length, NOISY, 0.3)
    assert (other[0].image != rows[0].image).any()


def test_every_word_of_the_world_is_one_token():
    tokenizer = words.train_tokenizer()
    for word in words.WORDS:
        ids = tokenizer.encode(word)
        assert len(ids) == 2 and tokenizer.decode(ids).strip() == word


def test_the_settings_refuse_what_no_stage_could_use():
    config = config_of("smoke")
    for change, words_of in (
        ({"seeds": 0}, "config.seeds=0 must be positive"),
        ({"evaluation": config["evaluation"] | {"split": "train"}}, "config.evaluation.split='train' is not known"),
        ({"evaluation": config["evaluation"] | {"temperature": 0.0}}, "temperature must be positive"),
        ({"pairs": config["pairs"] | {"cuont": 3}}, "config.pairs.cuont is not a known setting. Did you mean count?"),
    ):
        with pytest.raises(UserError, match=re.escape(words_of)):
            recipe.build(config | change)


def test_the_ablations_are_the_papers_table_3():
    demo = recipe.build(config_of("demo") | {"ablations": True})
    runs = recipe.alignment_runs(demo)
    full = runs["full"]
    assert (full.align, full.count, full.start, full.augment) == (demo.ddpo, 1400, "it_vqa", "none")
    assert runs["full_dpo"] == dataclasses.replace(full, align=demo.dpo)  # vanilla DPO
    assert runs["full_crop"] == dataclasses.replace(full, start="it_vqa_crop", augment="crop")
    assert set(recipe.models(demo)) >= {"base", "it_vqa", *runs}
    assert recipe.scaling_curve(demo) == {0: "base", 200: "ddpo_200", 400: "ddpo_400", 800: "ddpo_800", 1400: "ddpo"}


def test_several_seeds_are_summarized_by_mean_and_range():
    def details(rate):
        one = {"value": rate, "low": rate - 1, "high": rate + 1}
        entry = {"temperatures": {"0.7": dict.fromkeys((metric.key for metric in readings.METRICS), one)}}
        entry |= {"vqa": one, "overgeneralization": {"mean_delta": one}}
        changes = {"ddpo-base": {"response_rate": one}}
        return {"models": {"base": entry, "ddpo": entry}, "differences": changes, "relative": changes}

    summary = seeds.summarize({3: details(10.0), 4: details(40.0), 5: details(25.0)})
    assert summary["seeds"] == [3, 4, 5]
    assert summary["models"]["ddpo"]["vqa"] == {"value": 25.0, "low": 10.0, "high": 40.0}
    assert summary["changes"]["4"]["percent"]["value"] == 40.0


def config_of(preset):
    return runpy.run_path(str(cli.config_folder() / "demo.py"))["get_config"](preset).to_dict()


def command(folder, cache):
    arguments = [sys.executable, "-m", "rlhfv_jax.train", "--config=demo.py:smoke", f"--workdir={folder}"]
    return {
        "args": arguments,
        "env": environment(cache, as_for_users=True),
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def smoke(cache, tmp_path_factory):
    """A whole run of the smoke preset: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    result = subprocess.run(**command(folder, cache), timeout=600)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def files(folder):
    """Every file whose bytes a run promises to repeat: results, answers, replies, pairs."""
    found = [folder / "results.json", *folder.glob("answers/*"), *folder.glob("vqa/*"), *folder.glob("pairs/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_the_smoke_preset_runs_every_stage_and_writes_what_it_promises(smoke):
    folder, printed = smoke
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"base", "it_vqa", "dpo", "ddpo"}
    assert all(set(row) == set(evaluation.RESULTS) for row in results.values())
    page = (folder / "report.html").read_text()
    rate = f"{results['ddpo']['response_rate']:.1f}"
    assert rate in page and rate in printed and "synthetic" in printed
    assert page.count("data:image/png") >= 12


@pytest.mark.slow
def test_a_models_answers_are_read_alike_by_the_scorer_and_by_regular_expressions(smoke):
    scenes = corpus.scenes(0, "test", 250)
    lines = [json.loads(line) for line in (smoke[0] / "answers" / "ddpo.jsonl").read_text().splitlines()]
    assert len(lines) == 250 and [line["id"] for line in lines] == list(range(250))
    errors = 0
    for line, scene in zip(lines, scenes, strict=True):
        found = scoring.score(line["text"], scene)
        assert line["objects"] == [group.name for group in scene.groups]
        assert line["mentioned"] == [mention.object.word for mention in found.mentions]
        assert line["hallucinated"] == [error.claim.word for error in found.objects]
        other = regex_reading(line["text"], scene)
        names = ("objects", "numbers", "colors", "positions", "places", "mentions")
        assert {name: len(getattr(found, name)) for name in names} == {name: other[name] for name in names}
        assert found.covered == other["covered"]
        errors += len(found.errors)
    assert errors > 250


@pytest.mark.slow
def test_the_pairs_on_disk_differ_only_in_their_segments(smoke):
    records = sources.read(smoke[0] / "pairs" / "8.parquet")
    assert len(records) == 8
    for record in records:
        kept = []
        for text, segments in zip((record.chosen, record.rejected), record.segments, strict=True):
            for segment in sorted(segments, key=lambda one: -one.start):
                text = text[: segment.start] + text[segment.end :]
            kept.append(re.sub(r"[\s,]+", " ", text))  # a deletion takes a comma along
        assert kept[0] == kept[1]


@pytest.mark.long
def test_a_second_start_changes_nothing(smoke, cache):
    before = files(smoke[0])
    subprocess.run(**command(smoke[0], cache), check=True, timeout=600)
    assert files(smoke[0]) == before


@pytest.mark.long
def test_the_loop_of_answers_corrections_and_training_closes_by_its_commands(smoke, cache, tmp_path):
    """docs/loop.md, small: the oracle types into a running server, and what it typed trains the model that answered."""

    def rlhfv(*given: str) -> str:
        line = [sys.executable, "-m", "rlhfv_jax", *given]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment(cache, as_for_users=True), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    base = f"--checkpoint={smoke[0] / 'base'}"
    sampling = ("--temperature=1", "--max_new_tokens=34", "--batch_size=100")
    rlhfv("oracle", "--questions=asked/questions.jsonl", "--count=200")
    rlhfv("generate", base, "--questions=asked/questions.jsonl", "--answers=asked/answers.jsonl", *sampling)
    rlhfv("annotate", "--project=work", "--import=asked/answers.jsonl", "--questions=asked/questions.jsonl")
    token = json.loads(rlhfv("annotate", "--project=work", "--add_person=Oracle", "--format=json"))["token"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "rlhfv_jax", "annotate", "--project=work", f"--port={port}"]
    server = subprocess.Popen(line, cwd=tmp_path, env=environment(cache, as_for_users=True), stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        address = f"--server=http://127.0.0.1:{port}"
        done = json.loads(rlhfv("oracle", address, f"--token={token}", "--format=json"))
    finally:
        server.terminate()
        server.wait()
    assert sum(done.values()) == 200 and done["corrected"] >= 2
    rlhfv("annotate", "--project=work", "--export=pairs.parquet")
    pairs = sources.read(tmp_path / "pairs.parquet")
    assert len(pairs) == done["corrected"] and all(pair.segments[1] for pair in pairs)
    given = (f"--config.init_from={smoke[0] / 'base'}", "--config.data.path=pairs.parquet")
    rlhfv("train", "--config=loop.py:smoke", *given, "--config.optim.batch_size=2", "--workdir=next")
    for name, checkpoint in (("before", base), ("after", "--checkpoint=next")):
        rlhfv("generate", checkpoint, "--questions=asked/questions.jsonl", f"--answers={name}.jsonl", *sampling)
    scored = json.loads(rlhfv("oracle", "--score=before.jsonl,after.jsonl", "--format=json"))
    assert scored["answers"] == 200 and list(scored["differences"]) == ["after.jsonl"]


STAGES = ("warm up the tower", "train base", "tune it_vqa", "sample and correct", "align ddpo", "align dpo", "evaluate")


@pytest.mark.long
def test_killed_in_every_stage_and_started_again_the_numbers_are_those_of_an_uninterrupted_run(smoke, cache, tmp_path):
    for at, stage in enumerate(STAGES):
        process = subprocess.Popen(**command(tmp_path, cache))
        assert process.stderr is not None
        for line in process.stderr:
            if line == f"── {stage}\n":
                break
        else:
            pytest.fail(f"The run ended before the stage {stage}.")
        time.sleep(0.3 + 0.4 * at % 1.1)  # somewhere inside it
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{stage} was over before the kill"
    result = subprocess.run(**command(tmp_path, cache), timeout=600)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path) == files(smoke[0])
