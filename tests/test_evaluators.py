"""Questions asked while a model trains: the answers are those of the checkpoint of that step, whatever stops it."""

import base64
import json
import shutil

import jax
import pytest
from conftest import SMALL_RUN, shared
from jax.experimental.compilation_cache import compilation_cache

from rlhfv_jax import checkpoint, cli, evaluators, experiment, metrics, selection, settings, sharding
from rlhfv_jax.data import sources
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import benchmarks
from rlhfv_jax.generation import questions
from rlhfv_jax.models import vlm
from rlhfv_jax.reporting.runs import read_run
from rlhfv_jax.structs import TrainState

TOKENS = 12
QUESTIONS = ("Is there a dog in the picture?", "Is there a person?", "What is this?", "Describe the picture in detail.")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Runs of this file compile the same programs: the first does, the others read them."""
    names = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    names |= {"jax_persistent_cache_min_compile_time_secs": 0.2, "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in names}
    for values in (names, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is names:
            yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory, coco_records):
    """POPE's three files, small, as the references; the same questions with pictures, and under other ids."""
    folder = tmp_path_factory.mktemp("asked")
    rows = []
    for setting in ("adversarial", "popular", "random"):
        lines = [
            {"question_id": i, "image": "x.jpg", "text": text, "label": "yes" if i % 2 else "no"}
            for i, text in enumerate(QUESTIONS)
        ]
        (folder / f"coco_pope_{setting}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows += [(f"{setting}/{line['question_id']}", line["text"]) for line in lines]
    pictures = [base64.b64encode(record.image).decode() for record in coco_records[:5]]
    lines = [
        {"question_id": name, "prompt": text, "image": pictures[i % 5], "image_id": i % 5}
        for i, (name, text) in enumerate(rows)
    ]
    (folder / "pope.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [{**line, "question_id": f"sample {i}"} for i, line in enumerate(lines)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


@pytest.fixture(scope="module")
def configured(asked, coco_records, tmp_path_factory):
    """Builds the configuration of a small run that asks; takes changes by dotted key."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    sources.write_parquet(coco_records[:24], pairs)

    def build(changes):
        config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
        tokenizer = str(shared("data/stories260K/tok512.model"))
        small = SMALL_RUN | {"tokenizer": tokenizer, "data.path": str(pairs), "save_every": 2, "log_every": 1}
        small |= {
            "evals.questions": (f"pope={asked / 'pope.jsonl'}", f"samples={asked / 'samples.jsonl'}"),
            "evals.references": str(asked),
            "evals.every": 2,
            "evals.max_new_tokens": TOKENS,
            "evals.batch_size": 16,
            "optim.lr": 3e-2,  # so that answers change within a few steps
        }
        config.update_from_flattened_dict(small | changes)
        return config.to_dict()

    return build


@pytest.fixture(scope="module")
def finished(configured, tmp_path_factory):
    """A run of four steps that asks after two and four; its checkpoints of both are kept."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    experiment.train(configured({"eval_share": 0.2, "eval_every": 4}), workdir)
    return workdir


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(workdir):
    found = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.TIMING} for line in found]


def from_disk(step, asked):
    """What the checkpoint itself answers, read back on one device."""
    engine = Engine.load(step, mesh=sharding.make_mesh(fsdp=1, devices=jax.devices()[:1]))
    rows = questions.read(asked / "pope.jsonl").rows
    prompts = [engine.prompt(row.text, evaluators._image(row)) for row in rows]
    found = engine.answer(prompts, GenerationSettings(max_new_tokens=TOKENS, stop=engine.stop))
    return [[row.id, answer.text, list(answer.token_ids)] for row, [answer] in zip(rows, found, strict=True)]


def told(folder):
    return [[line["question_id"], line["text"], line["token_ids"]] for line in lines(folder / "answers.jsonl")]


@pytest.mark.slow
def test_the_answers_are_those_of_the_checkpoint_of_that_step(finished, asked):
    for step in (2, 4):
        expected = from_disk(finished / f"checkpoints/{step}", asked)
        assert told(finished / f"evals/pope/{step}") == expected
        assert [line[1:] for line in told(finished / f"evals/samples/{step}")] == [line[1:] for line in expected]
    assert told(finished / "evals/pope/2") != told(finished / "evals/pope/4")
    assert {path.name for path in (finished / "evals/samples/4").iterdir()} == {"answers.jsonl"}


@pytest.mark.slow
def test_the_metrics_are_the_benchmarks_own_on_the_written_answers(finished, asked):
    evaluated = {line["step"]: line for line in metrics.read(finished / "metrics.jsonl") if "eval/pope/tokens" in line}
    assert set(evaluated) == {2, 4}
    assert "eval/loss" not in evaluated[2] and "eval/rewards/margins" in evaluated[4]  # the rows' own cadence
    for step, line in evaluated.items():
        folder = finished / f"evals/pope/{step}"
        scores = benchmarks.score("pope", folder / "answers.jsonl", benchmarks.Way(asked, partial=True))
        expected = {f"eval/pope/{name}": metric.value for name, metric in scores.metrics.items()}
        known = {name: value for name, value in expected.items() if value is not None}
        assert {name: line[name] for name in known} == pytest.approx(known) and "eval/pope/mean_f1" in known
        answers = lines(folder / "answers.jsonl")
        assert line["eval/pope/tokens"] == pytest.approx(sum(len(one["token_ids"]) for one in answers) / 12)
        cut = sum(one["finish_reason"] == "length" for one in answers)
        assert line["eval/pope/cut"] == pytest.approx(100 * cut / 12)
        stored = json.loads((folder / "scores.json").read_text())
        assert stored["metrics"]["mean_f1"]["value"] == known["eval/pope/mean_f1"]
        assert (
            read_run("step", folder).metric("pope", "mean_f1") == scores.metrics["mean_f1"]
        )  # `report` takes any step
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {name: facts["questions"] for name, facts in manifest["evals"].items()} == {"pope": 12, "samples": 12}


@pytest.mark.long
def test_a_run_that_continues_gives_the_same_numbers(finished, configured, tmp_path):
    """From its checkpoint of step 2, with what it had written of step 4 half gone, half there."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/4")
    shutil.rmtree(run / "evals/pope/4")
    experiment.train(configured({"eval_share": 0.2, "eval_every": 4}), run)
    assert comparable(run) == comparable(finished)
    for name in ("pope", "samples"):
        assert told(run / f"evals/{name}/4") == told(finished / f"evals/{name}/4")


@pytest.mark.slow
def test_killed_in_an_evaluation_and_started_again_it_gives_the_same_numbers(
    finished, configured, tmp_path, monkeypatch
):
    config = configured({"eval_share": 0.2, "eval_every": 4})
    call = evaluators.Evaluators.__call__

    def killed(self, step, params):
        if step == 4:
            raise KeyboardInterrupt
        return call(self, step, params)

    with monkeypatch.context() as patch:
        patch.setattr(evaluators.Evaluators, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run/evals/pope/4").exists()
    experiment.train(config, tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished)
    for step in (2, 4):
        assert told(tmp_path / f"run/evals/pope/{step}") == told(finished / f"evals/pope/{step}")


@pytest.mark.long
def test_adapters_answer_merged_and_choose_the_best_step(finished, configured, asked, tmp_path, monkeypatch):
    changes = {
        "init_from": str(finished),
        "lora.rank": 4,
        "evals.questions": (f"pope={asked / 'pope.jsonl'}",),
        "best": "eval/pope/mean_f1",
    }
    call, given = evaluators.Evaluators.__call__, {2: 60.0, 4: 40.0}

    def known(self, step, params):
        return call(self, step, params) | {"eval/pope/mean_f1": given[step]}

    monkeypatch.setattr(evaluators.Evaluators, "__call__", known)
    experiment.train(configured(changes), tmp_path / "run")
    for step in (2, 4):
        assert told(tmp_path / f"run/evals/pope/{step}") == from_disk(tmp_path / f"run/checkpoints/{step}", asked)
    assert told(tmp_path / "run/evals/pope/4") != told(finished / "evals/pope/4")
    assert checkpoint.find(tmp_path / "run/best").name == "2"
    assert checkpoint.read_meta(tmp_path / "run/best")["best"] == {"eval/pope/mean_f1": 60.0}


@pytest.mark.slow
def test_parameters_cut_over_a_mesh_answer_as_whole_ones(finished, configured, asked, tmp_path):
    """Four shares of the parameters and two of the heads answer as one device did, one step after another."""
    s = settings.from_dict(configured({"evals.questions": (f"pope={asked / 'pope.jsonl'}",)}))
    config = settings.model_of(checkpoint.read_meta(finished))
    tokenizer = MuffinTokenizer.from_file(shared("data/stories260K/tok512.model"))
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        ours = evaluators.Evaluators(s, config, tokenizer, mesh, tmp_path)
        for step in (2, 4, 2):
            params = checkpoint.restore_params(finished / f"checkpoints/{step}", vlm.abstract_params(config), mesh)
            assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
            ours(step, params)
            assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
            assert told(tmp_path / f"pope/{step}") == told(finished / f"evals/pope/{step}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evals.questions": ("mmhal={folder}/pope.jsonl",)}, "mmhal needs a judge"),
        ({"evals.questions": ("x={folder}/none.jsonl",)}, "none.jsonl does not exist"),
        ({"evals.questions": ("x={folder}/broken.jsonl",)}, "broken.jsonl, question 1: "),
        ({"evals.questions": ("x={folder}/reserved.jsonl",)}, "reserved.jsonl, question 1: "),
        ({"evals.questions": ("x={folder}/surrogate.jsonl",)}, "surrogate.jsonl, question 1: "),
        ({"evals.questions": ("pope={folder}/samples.jsonl",)}, "pope cannot be scored: pope: 12 answers belong to no"),
        ({"evals.references": "{folder}/none"}, "is no folder; coco_pope_adversarial.json is looked for there"),
        ({"best": "eval/pope/f1"}, "config.best=eval/pope/f1 is no metric of these questions; there are eval/pope/adv"),
    ],
)
def test_what_cannot_be_asked_or_scored_stops_the_run_before_it_trains(configured, asked, tmp_path, changes, says):
    (asked / "broken.jsonl").write_text('{"question_id": 1, "prompt": "a", "image": "/9j/' + "A" * 60 + '"}\n')
    (asked / "reserved.jsonl").write_text('{"question_id": 1, "prompt": "a <im_patch> b"}\n')
    (asked / "surrogate.jsonl").write_text('{"question_id": 1, "prompt": "a \\ud800"}\n')
    put = {
        key: tuple(one.format(folder=asked) for one in value)
        if isinstance(value, tuple)
        else value.format(folder=asked)
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=r"(?s).*") as error:
        experiment.train(configured(put), tmp_path / "run")
    assert says in str(error.value)
    assert not (tmp_path / "run/metrics.jsonl").exists() and not (tmp_path / "run/checkpoints").exists()


@pytest.mark.long
def test_a_run_does_not_go_on_with_other_questions(finished, configured, asked, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    manifest["evals"]["pope"]["digest"] = "0" * 64
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="'pope' have changed since this run began"):
        experiment.train(configured({"eval_share": 0.2, "eval_every": 4}), tmp_path / "run")


def test_each_evaluation_has_its_own_steps_and_all_have_the_last(configured):
    def due(eval_every, every, total, rows=True, asked=True):
        s = settings.from_dict(configured({"eval_every": eval_every, "evals.every": every}))
        parts = [lambda params: {"rows": params}, lambda step, params: {"asked": params}]
        often, evaluate = evaluators.together(s, parts[0] if rows else None, parts[1] if asked else None, total)
        # As the training loop calls it.
        steps = [step for step in range(1, total + 1) if step == total or (often and step % often == 0)]
        return {step: sorted(found) for step in steps if (found := evaluate(step, 0))}

    both = ["asked", "rows"]
    assert due(4, 6, 13) == {4: ["rows"], 6: ["asked"], 8: ["rows"], 12: both, 13: both}
    assert due(0, 3, 7) == {3: ["asked"], 6: ["asked"], 7: both}
    assert due(3, 0, 7) == {3: both, 6: both, 7: both}
    assert due(0, 0, 5) == {5: both}
    assert due(2, 3, 4, rows=False) == {3: ["asked"], 4: ["asked"]}
    s = settings.from_dict(configured({}))
    assert evaluators.together(s, None, None, 5) == (0, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evals.questions": ("pope",)}, "'pope' is not NAME=FILE"),
        ({"evals.questions": ("rewards=x",)}, "'rewards=x' is not NAME=FILE"),
        ({"evals.questions": ("a/b=x",)}, "'a/b=x' is not NAME=FILE"),
        ({"evals.questions": ("a=x", "a=y")}, "the name 'a' stands twice"),
        ({"evals.batch_size": 0}, "config.evals.batch_size=0 must be positive"),
        ({"best": "eval/other/f1"}, "config.best='eval/other/f1' is not known"),
        ({"best": "eval/pope/random/yes_ratio"}, "a METRIC of which more is better or worse"),
        ({"best": "eval/loss"}, "needs rows to evaluate on"),
    ],
)
def test_settings_refuse_evaluations_that_mean_nothing(configured, changes, says):
    with pytest.raises(UserError) as error:
        settings.from_dict(configured(changes))
    assert says in str(error.value)


def test_a_lower_rate_of_hallucination_and_a_higher_score_are_better(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint.Checkpoints, "__init__", lambda self, *_, **__: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "__exit__", lambda *_: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda self, state, meta: saved.append(meta["best"]))
    for metric, better in (("eval/object_halbench/resp", min), ("eval/vqav2/processed/accuracy", max)):
        saved.clear()
        higher = selection.higher_is_better(metric)
        keeper = checkpoint.Best(tmp_path / "none", metric, higher)
        for step, value in enumerate((30.0, 20.0, 40.0, None, 35.0)):
            keeper.offer(TrainState(step, None, None), {} if value is None else {metric: value}, {})
        assert saved[-1] == {metric: better(20.0, 30.0, 40.0)}
    assert selection.higher_is_better("eval/pope/random/yes_ratio") is None
    assert selection.higher_is_better("eval/loss") is False
