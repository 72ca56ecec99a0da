"""The program as a user runs it: real photos, separate processes, kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from conftest import environment, shared

from rlhfv_jax import adapters, checkpoint, compilation, metrics
from rlhfv_jax.data import sources

STEPS = 10
# The mini preset with a smaller batch and model: the same programs, compiled faster.
SMALL = (
    "--config.optim.batch_size=4",
    f"--config.optim.steps={STEPS}",
    "--config.save_every=3",
    "--config.log_every=2",
    "--config.model.llm.width=32",
    "--config.model.llm.ffn=32",
    "--config.model.tower.width=16",
    "--config.model.tower.ffn=16",
    "--config.model.tower.image_size=32",
    "--config.model.tower.queries=4",
)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, coco_records) -> Path:
    """24 of the pairs on real photos, written by the project's own writer."""
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    sources.write_parquet(coco_records[::5][:24], path)
    return path


@pytest.fixture(scope="module")
def command(parquet, programs):
    """Builds the command line and the environment; all processes of this file share one compilation cache."""

    def build(workdir: Path, *extra: str, data: Path = parquet) -> dict:
        tokenizer = shared("data/stories260K/tok512.model")
        arguments = ["--config=ddpo.py:mini", f"--config.data.path={data}", f"--config.tokenizer={tokenizer}"]
        line = [sys.executable, "-m", "rlhfv_jax.train", *arguments, *SMALL, f"--workdir={workdir}", *extra]
        return {"args": line, "env": environment(programs), "stderr": subprocess.PIPE, "text": True}

    return build


def run(command: dict, timeout: float = 300) -> str:
    """Runs it to success; returns what it wrote on stderr."""
    result = subprocess.run(**command, timeout=timeout)
    assert result.returncode == 0, result.stderr
    return result.stderr


def comparable(workdir: Path) -> list[dict]:
    """The metrics without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name not in metrics.TIMING}
        for line in metrics.read(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run(command(workdir))
    return workdir


def test_every_step_has_one_line_and_the_loss_starts_at_ln_2(finished):
    lines = comparable(finished)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert lines[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert all(abs(value) < 1e6 for line in lines for value in line.values())  # NaN fails this too
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_manifest_names_data_versions_and_recipe(finished, parquet):
    manifest = json.loads((finished / "manifest.json").read_text())
    records = sources.read(parquet)
    assert manifest["data"]["rows"] == len(records) == 24
    assert manifest["data"]["digest"] == sources.digest(records)
    assert manifest["data"]["path"] == str(parquet)
    assert manifest["recipe"] == json.loads((finished / "config.json").read_text())
    assert {"jax", "flax", "rlhfv_jax", "python"} <= set(manifest["versions"])


# Seconds after the given line appears: before the first checkpoint, around its write, and later.
@pytest.mark.parametrize(
    ("line", "delay"),
    [pytest.param(1, 0.0, marks=pytest.mark.long), (3, 0.02), pytest.param(6, 0.2, marks=pytest.mark.long)],
)
def test_killed_at_any_step_and_started_again_the_metrics_equal_the_uninterrupted_runs(
    finished, command, tmp_path, line, delay
):
    workdir = tmp_path / "killed"
    process = subprocess.Popen(**command(workdir))
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= line:
            time.sleep(delay)
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(command(workdir))
    assert comparable(workdir) == comparable(finished)


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def unfinished(workdir: Path) -> set[Path]:
    """Checkpoints that are being written, or were when their writer was killed."""
    return set((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_75_and_the_same_command_continues(finished, command, tmp_path):
    """Once while the first step compiles, when no handler written in Python would run."""
    workdir = tmp_path / "preempted"
    process = subprocess.Popen(**command(workdir))
    wait_for((workdir / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors
    assert f"after 1 of {STEPS} steps, saved" in errors and "Traceback" not in errors
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    run(command(workdir))
    assert comparable(workdir) == comparable(finished)


def test_a_grace_too_short_for_the_save_ends_the_process_in_time():
    """Whatever its main thread does, here a sleep inside C."""
    program = "import ctypes, os, signal; from rlhfv_jax import preemption\n"
    program += "with preemption.Watch(0.1): os.kill(os.getpid(), signal.SIGTERM); ctypes.CDLL(None).sleep(60)"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 143 and "could not be saved in time" in ended.stderr


def sums(workdir: Path) -> dict:
    """The checksums of every array of the last checkpoint, optimizer state included."""
    return json.loads((checkpoint.find(workdir) / "checksums" / "metadata").read_text())


TEN_KILLS = ("start", "save", "step", "save", "step", "save", "save", "step", "save", "save", "sigterm")


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(("save", "save", "step", "sigterm"), marks=pytest.mark.slow),
        pytest.param(TEN_KILLS, marks=pytest.mark.long, id="ten_times"),
    ],
)
def test_killed_at_random_moments_a_run_ends_with_the_same_metrics_and_parameters(command, tmp_path, moments):
    """SIGKILL while it starts, between steps, and while it writes checkpoints; then SIGTERM while it writes one."""
    options = (f"--config.optim.steps={8 * len(moments)}", "--config.save_every=2")
    run(command(tmp_path / "whole", *options), timeout=900)
    workdir, dice, torn = tmp_path / "killed", random.Random(0), 0
    for moment in moments:
        process = subprocess.Popen(**command(workdir, *options))
        before = unfinished(workdir)
        lines = len(metrics.read(workdir / "metrics.jsonl"))
        if moment == "start":
            time.sleep(dice.uniform(1, 8))
        elif moment == "step":
            wait_for(lambda lines=lines: len(metrics.read(workdir / "metrics.jsonl")) > lines, process)
            time.sleep(dice.uniform(0, 0.3))
        else:
            wait_for(lambda before=before: unfinished(workdir) - before, process)
            time.sleep(dice.uniform(0, 0.03))
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGTERM if moment == "sigterm" else signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == (75 if moment == "sigterm" else -signal.SIGKILL), errors
        torn += bool(unfinished(workdir))
    print(f"{torn} of {len(moments) - 1} kills hit a checkpoint that was being written")
    assert torn >= len(moments) // 4
    run(command(workdir, *options), timeout=900)
    assert comparable(workdir) == comparable(tmp_path / "whole")
    assert sums(workdir) == sums(tmp_path / "whole") and not unfinished(workdir)
    assert adapters.digest(workdir) == adapters.digest(tmp_path / "whole")


def test_programs_are_kept_beside_the_run_and_where_the_config_says(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    try:
        for setting, found in (("auto", tmp_path / "compiled"), ("", None), (f"{tmp_path}/mine", tmp_path / "mine")):
            jax.config.update("jax_compilation_cache_dir", None)
            compilation.keep_programs(setting, tmp_path / "run")
            assert jax.config.jax_compilation_cache_dir == (str(found) if found else None)
            assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        compilation.keep_programs("auto", tmp_path / "run")
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_finished_run_started_again_says_so_and_adds_nothing(finished, command):
    before = (finished / "metrics.jsonl").read_bytes()
    assert "nothing left to do" in run(command(finished))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_run_is_not_continued_with_other_settings_or_against_the_users_word(finished, command):
    other = subprocess.run(**command(finished, "--config.ddpo.beta=0.1"), timeout=300)
    assert other.returncode == 1 and "ddpo.beta: 0.5 against 0.1" in other.stderr
    never = subprocess.run(**command(finished, "--resume=never"), timeout=300)
    assert never.returncode == 1 and "already holds a run" in never.stderr


@pytest.mark.long
def test_resume_from_a_checkpoint_of_another_run_continues_its_numbers(finished, command, tmp_path):
    step = min(int(path.name) for path in (finished / "checkpoints").iterdir())
    run(command(tmp_path / "branch", f"--resume={finished}/checkpoints/{step}"))
    assert comparable(tmp_path / "branch") == comparable(finished)[step:]


@pytest.mark.long
def test_a_model_trained_by_sft_is_a_starting_point_for_ddpo(command, tmp_path, parquet):
    run(command(tmp_path / "sft", "--config.task=sft", f"--config.data.eval_path={parquet}", "--config.eval_every=5"))
    lines = comparable(tmp_path / "sft")
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [5, STEPS]
    assert evaluations[1]["eval/loss"] < evaluations[0]["eval/loss"] < 7
    run(command(tmp_path / "ddpo", f"--config.init_from={tmp_path / 'sft'}", "--config.tokenizer="))
    first = comparable(tmp_path / "ddpo")[0]
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)


# The released recipe of February 2024, on the small model.
RELEASED = (
    "--config.data.spans=diff",
    "--config.data.augment=untrustworthy",
    "--config.data.flip=any",
    "--config.data.reference_augment=untrustworthy",
    "--config.data.reference_dtype=bfloat16",
    "--config.ddpo.hunks=replace",
    "--config.ddpo.min_match=3",
    "--config.ddpo.diff_over=row",
    "--config.ddpo.autojunk=True",
    "--config.ddpo.label_mask=muffin",
    "--config.ddpo.gamma=1.1",
    "--config.ddpo.beta=0.1",
    "--config.ddpo.average=False",
)


@pytest.mark.long
def test_the_released_recipe_trains_and_resumes_with_buckets_and_workers(command, tmp_path):
    """The reference saw other views than the policy, so the first loss is near ln 2 and not at it."""
    options = (*RELEASED, "--config.data.buckets=2", "--config.workers=1")
    run(command(tmp_path / "whole", *options))
    lines = comparable(tmp_path / "whole")
    assert 1e-6 < abs(lines[0]["loss"] - 0.6931471805599453) < 0.3
    assert len(json.loads((tmp_path / "whole/manifest.json").read_text())["row_lengths"]) == 2
    step = min(int(path.name) for path in (tmp_path / "whole/checkpoints").iterdir())
    run(command(tmp_path / "branch", *options, f"--resume={tmp_path}/whole/checkpoints/{step}"))
    assert comparable(tmp_path / "branch") == lines[step:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_base64": "bm90IGFuIGltYWdl"}, ("row 1", "image", "not a readable image")),
        ({"chosen": ""}, ("row 1", "chosen", "empty")),
        ({"rejected": "A dog."}, ("row 1", "chosen and rejected", "equal")),
        ({"question": "What is <im_patch>?"}, ("row 1", "reserved token <im_patch>")),
    ],
)
def test_bad_rows_stop_the_program_before_training_naming_file_row_and_field(
    command, tmp_path, coco_records, change, words
):
    path = tmp_path / "bad.jsonl"
    sources.write_jsonl(coco_records[:2], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1] |= {"chosen": "A dog.", "rejected": "A cat."} | change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = subprocess.run(**command(tmp_path / "run", data=path), timeout=300)
    assert result.returncode == 1
    assert all(word in result.stderr for word in ("error: ", "bad.jsonl", *words)), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
