"""Real processes with JAX's CPU collectives on 127.0.0.1: they train as one does, and end together."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import SMALL_RUN, environment, shared

from rlhfv_jax import checkpoint, metrics, sharding, trees
from rlhfv_jax.data import sources

STEPS = 4
OPTIONS = SMALL_RUN | {
    "mesh.fsdp": -1,
    "optim.steps": STEPS,
    "save_every": 2,
    "eval_share": 0.2,
    "model.llm.layers": 1,
    "model.tower.layers": 1,
}


def free_port() -> int:
    """The lower of two neighbors that are free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        try:
            socket.create_server(("127.0.0.1", port + 1)).close()
        except OSError:
            continue
        return port


@pytest.fixture(scope="module")
def start(coco_records, programs, tmp_path_factory):
    """Starts a run of so many processes on 24 pairs of real photos, of one device each."""
    folder = tmp_path_factory.mktemp("processes")
    sources.write_parquet(coco_records[::5][:24], folder / "pairs.parquet")
    config = [
        "--config=ddpo.py:mini",
        f"--config.data.path={folder / 'pairs.parquet'}",
        f"--config.tokenizer={shared('data/stories260K/tok512.model')}",
        *(f"--config.{name}={value}" for name, value in OPTIONS.items()),
    ]

    def begin(count: int, workdir: Path, *extra: str) -> list[subprocess.Popen]:
        line = [sys.executable, "-m", "rlhfv_jax.train", *config, f"--workdir={workdir}", "--lost_after=60", *extra]
        several = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
        return [
            subprocess.Popen(
                [*line, *several, *([f"--process={i}"] if count > 1 else [])],
                env=environment(programs) | {"JAX_NUM_CPU_DEVICES": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]

    return begin


def finish(processes: list[subprocess.Popen]) -> list[str]:
    try:
        said = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def comparable(workdir: Path) -> list[dict]:
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in metrics.TIMING} for line in lines]


def check_equal_to_rounding(found: list[dict], wanted: list[dict]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        noise = {"rewards/accuracies", "rewards/margins"} if one["step"] == 0 else set()  # 0 but for rounding
        for name in other.keys() - noise:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), (one["step"], name)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(1, workdir))
    return workdir


def check_as_one(start, alone: Path, workdir: Path, count: int) -> None:
    """Several processes: one's metrics; one set of files; a checkpoint that one process restores and continues."""
    said = finish(start(count, workdir))
    check_equal_to_rounding(comparable(workdir), comparable(alone))
    assert sum("train: " in text for text in said) == 1  # one speaks
    assert len(list((workdir / "tensorboard").iterdir())) == len(list((workdir / "reference").iterdir())) // 2 == 1
    abstract = checkpoint.stored_params(workdir)
    one, many = (checkpoint.restore_params(run, abstract, sharding.make_mesh(fsdp=1)) for run in (alone, workdir))
    for (path, a), (_, b) in zip(trees.paths(one), trees.paths(many), strict=True):
        assert abs(a - b).max() < 1e-4, path
    finish(start(1, workdir.with_name("continued"), f"--resume={workdir}/checkpoints/2"))
    check_equal_to_rounding(comparable(workdir.with_name("continued")), comparable(alone)[-3:])


@pytest.mark.slow
def test_two_processes_train_save_and_continue_as_one(start, alone, tmp_path):
    check_as_one(start, alone, tmp_path / "run", 2)


@pytest.mark.long
def test_four_processes_train_save_and_continue_as_one(start, alone, tmp_path):
    check_as_one(start, alone, tmp_path / "run", 4)


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_with_its_name_and_the_checkpoints_stay(start, alone, tmp_path):
    workdir = tmp_path / "run"
    processes = start(2, workdir, "--config.optim.steps=4000", "--config.save_every=2")
    try:
        deadline = time.monotonic() + 300
        while not checkpoint.exists(workdir) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        said = processes[0].communicate(timeout=90)[1]
        assert time.monotonic() - killed < 60
        assert processes[0].returncode == 1
        assert "error: process 1 on" in said and "ended without a word" in said, said
    finally:
        for process in processes:
            process.kill()
    before = int(checkpoint.find(workdir).name)
    mesh = sharding.make_mesh(fsdp=1)
    checkpoint.restore_params(workdir, checkpoint.stored_params(workdir), mesh)
    assert before >= 2 and before % 2 == 0


# What holds the processes together, without a model.

SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from rlhfv_jax import processes
    from rlhfv_jax.cluster import Place
    from rlhfv_jax.errors import UserError

    index, port, what, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    with processes.joined(Place(f"127.0.0.1:{port}", 2, index), lost_after=6.0, start_within=60.0):
        import jax
        from jax.experimental import multihost_utils
        assert jax.process_count() == 2 and processes.is_first() == (index == 0)
        assert processes.from_first("a number", lambda: index + 40) == 40
        if what == "unshared":
            folder = folder / str(index)
            folder.mkdir()
        processes.check_shared(folder)
        (folder / f"here{index}").touch()
        if index == 1 and what == "fail":
            raise UserError("The disk is full.")
        if index == 1 and what == "bug":
            raise ZeroDivisionError("oh")
        if what in ("kill", "stop", "fail", "bug"):
            multihost_utils.sync_global_devices("never") if index == 0 else time.sleep(100)
        if what == "late":
            processes.barrier("a save", within=1.0) if index == 0 else time.sleep(100)
"""


def pair(what: str, folder: Path) -> list[subprocess.Popen]:
    port = str(free_port())
    line = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    return [
        subprocess.Popen(
            [*line, str(index), port, what, str(folder)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        pytest.param("end", None, None, marks=pytest.mark.slow),
        ("kill", "process 1 on HOST ended without a word", None),
        ("stop", "process 1 on HOST has not been heard of for 6 s", None),
        ("fail", "process 1 on HOST stopped: The disk is full.", "error: The disk is full."),
        pytest.param(
            "bug",
            "process 1 on HOST stopped: ZeroDivisionError: oh.",
            "error: ZeroDivisionError: oh",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "late",
            "process 1 on HOST did not come to 'a save' within 1 s",
            "did not come to 'a save'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "unshared", "process 1 on HOST stopped: ", "must be on a shared file system", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_end_together_and_say_whose_fault_it_is(tmp_path, what, first, second):
    both = pair(what, tmp_path)
    try:
        if what in ("kill", "stop"):
            deadline = time.monotonic() + 120
            while not (tmp_path / "here0").exists() or not (tmp_path / "here1").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            both[1].send_signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        changed = time.monotonic()
        said = both[0].communicate(timeout=120)[1]
        if what in ("kill", "stop"):
            assert time.monotonic() - changed < 30  # the bound of 6 s on a loaded machine
        assert both[0].returncode == (0 if first is None else 1), said
        assert first is None or first.replace("HOST", socket.gethostname()) in said, said
        if second is not None or what == "end":
            other = both[1].communicate(timeout=60)[1]
            assert both[1].returncode == (0 if what == "end" else 1), other
            assert second is None or second in other
    finally:
        for process in both:
            process.kill()
            process.wait()


def test_the_miniature_does_not_run_in_several_processes(tmp_path):
    line = [sys.executable, "-m", "rlhfv_jax.train", "--config=demo.py:smoke", f"--workdir={tmp_path}"]
    several = ["--coordinator=127.0.0.1:1", "--processes=2", "--process=0"]
    result = subprocess.run([*line, *several], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "runs in one process" in result.stderr
