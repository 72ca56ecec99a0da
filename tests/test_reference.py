"""The program `reference`, and runs that use what it wrote."""

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_RUN, shared

from rlhfv_jax import checkpoint, experiment, metrics, prepare, refcache, settings, trees
from rlhfv_jax.data import buckets, sources
from rlhfv_jax.data.records import SIDES
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import IGNORE


def program(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhfv_jax.reference", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory, coco_records):
    """The program's file for 24 pairs, and the report that it printed."""
    folder = tmp_path_factory.mktemp("reference")
    sources.write_parquet(coco_records[:24], folder / "pairs.parquet")
    tokenizer = shared("data/stories260K/tok512.model")
    flags = [f"--config.{key}={value}" for key, value in SMALL_RUN.items()]
    flags += [f"--config.data.path={folder / 'pairs.parquet'}", f"--config.tokenizer={tokenizer}"]
    line = ["--config=ddpo.py:mini", *flags, f"--out={folder / 'reference.parquet'}", "--format=json"]
    result = program(*line)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(file=folder / "reference.parquet", report=json.loads(result.stdout), line=line)


def test_a_row_holds_each_target_s_log_prob_by_the_model_itself(written, small_run):
    """Each pair alone, without padding or batch, through the model's own forward pass."""
    s = settings.from_dict(small_run({}))
    tokenizer = prepare.load_tokenizer(s)
    model = prepare.build_model(s, tokenizer)
    params = jax.jit(lambda key: vlm.init(model, key))(jax.random.key(s.seed))
    pairs = prepare.load_rows(s.data.path, s, tokenizer)
    rows = pq.read_table(written.file).to_pylist()
    assert [row["id"] for row in rows] == [pair.record.id for pair in pairs.encoded]
    assert written.report["pairs"] == len(rows) == 24
    source = prepare.make_source(pairs, s, tokenizer)
    row, image = rows[17], source[17].image[None]
    for name in SIDES:
        tokens, labels = (np.asarray(row[f"{name}_{what}"], np.int32) for what in ("tokens", "labels"))
        hidden, _ = model.apply({"params": params}, jnp.asarray(tokens[None]), image)
        logits = np.asarray(hidden[0, :-1] @ params["llm"]["head"]["kernel"], np.float64)
        logits = logits[:, : model.config.llm.vocab_size]
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scored = np.flatnonzero(labels != IGNORE)
        assert (labels[scored] == tokens[scored + 1]).all()
        found = np.asarray(row[f"{name}_logps"])
        np.testing.assert_allclose(found[scored], expected[scored, labels[scored]], atol=1e-4)
        assert set(np.asarray(row[f"{name}_weights"])[scored]) <= {1.0, 5.0}


@pytest.mark.slow
def test_a_run_reuses_the_file_without_running_the_model_and_keeps_its_best_state(
    written, small_run, tmp_path, monkeypatch
):
    """A quarter of the pairs is held out by id; nothing is computed anew, and the first loss is ln 2."""

    def never(*_):
        raise AssertionError("the reference was computed")

    monkeypatch.setattr(refcache, "compute", never)
    changes = {"reference_cache": str(written.file), "eval_share": 0.25, "eval_every": 2, "best": "eval/loss"}
    state = experiment.train(small_run(changes), tmp_path / "run")
    lines = metrics.read(tmp_path / "run/metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert lines[0]["tokens"] > 0 and lines[0]["tokens_per_second"] > 0
    evaluated = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert set(evaluated) == {2, 4}
    best = min(evaluated, key=evaluated.get)
    assert checkpoint.find(tmp_path / "run/best").name == str(best)
    assert checkpoint.read_meta(tmp_path / "run/best")["best"] == {"eval/loss": evaluated[best]}
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["data"]["rows"] + manifest["eval_data"]["rows"] == 24 and manifest["eval_data"]["rows"] > 0
    branch = experiment.train(small_run(changes), tmp_path / "branch", resume=str(tmp_path / "run"))
    assert trees.digest(branch.params) == trees.digest(state.params)


@pytest.mark.long
def test_a_file_of_other_weights_is_refused_naming_them(written, small_run, tmp_path):
    config = small_run({"reference_cache": str(written.file), "seed": 7})
    with pytest.raises(UserError, match=r"reference\.parquet was made for something else: params \("):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    with pytest.raises(UserError, match=r"no reference cache at .*missing\.parquet"):
        experiment.train(small_run({"reference_cache": str(tmp_path / "missing.parquet")}), tmp_path / "run")


def test_a_file_is_of_one_view_of_the_images_and_one_dtype(written, small_run):
    refused = {"data.reference_augment": ("crop", "image_transform"), "data.reference_dtype": ("bfloat16", "dtype")}
    for change, (value, fact) in {"dtype": ("float32", ""), **refused}.items():
        s = settings.from_dict(small_run({change: value}))
        tokenizer = prepare.load_tokenizer(s)
        rows = prepare.load_rows(s.data.path, s, tokenizer)
        facts = prepare.reference_facts(
            s, prepare.build_model(s, tokenizer), tokenizer, written.report["parameters_digest"]
        )
        with pytest.raises(UserError, match=rf"something else: {fact} \(") if fact else contextlib.nullcontext():
            refcache.load(written.file, facts, rows.encoded, buckets.rounded(rows.stats.longest_row))


def test_stored_log_probs_and_questions_leave_nothing_to_compute(tmp_path):
    for change, words in (("reference=stored", "nothing to compute"), ("records=questions", "has no pairs")):
        result = program("--config=ddpo.py:mini", f"--config.data.{change}", f"--out={tmp_path / 'out.parquet'}")
        assert result.returncode == 1 and words in result.stderr


@pytest.mark.slow
def test_an_existing_file_keeps_its_log_probs_and_gets_the_weights_of_another_gamma(written):
    before = pq.read_table(written.file).to_pydict()
    again = program(*written.line, "--config.ddpo.gamma=3")
    assert again.returncode == 0 and json.loads(again.stdout)["reused"]
    after = pq.read_table(written.file).to_pydict()
    assert {name for name in before if before[name] != after[name]} == {"chosen_weights", "rejected_weights"}
    refused = program(*written.line, "--config.seed=7")
    assert refused.returncode == 1 and "was made for something else: params" in refused.stderr
    assert program("--config=ddpo.py:mini").returncode == 1
    helped = program("--help")
    assert helped.returncode == 0 and "--config=ddpo.py --out=reference.parquet" in helped.stdout


def test_held_out_pairs_depend_on_their_ids_alone(small_run):
    s = settings.from_dict(small_run({}))
    pairs = prepare.load_rows(s.data.path, s, prepare.load_tokenizer(s))
    train, held = prepare.hold_out(pairs, 0.3)
    ids = [{record.id for record in part.records} for part in (train, held)]
    assert ids[0] | ids[1] == {record.id for record in pairs.records} and not ids[0] & ids[1]
    assert [{pair.record.id for pair in part.encoded} for part in (train, held)] == ids
    fewer = prepare.hold_out(prepare.dataclasses.replace(pairs, records=pairs.records[::-1][:12]), 0.3)
    assert {record.id for record in fewer[1].records} == ids[1] & {r.id for r in pairs.records[::-1][:12]}
    with pytest.raises(UserError, match="leaves 24 to train and 0 to evaluate on"):
        prepare.hold_out(pairs, 1e-9)
