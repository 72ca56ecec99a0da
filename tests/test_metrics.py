"""metrics.jsonl of a resumed run reads like that of an uninterrupted one."""

import json
import math
import struct
import subprocess
import sys

import pytest

from rlhfv_jax import metrics
from rlhfv_jax.errors import UserError


def write(workdir, steps, start=0, evaluate=()) -> None:
    writer = metrics.MetricsWriter(workdir, start)
    for step in steps:
        writer.write(step, {"loss": 1 / (step + 1), "lr": 1e-3})
        if step + 1 in evaluate:
            writer.write(step + 1, {"eval/loss": 0.5 + step})
    writer.close()


def records(path):
    """Payloads of a TFRecord file: length, checksum, payload, checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 12 + length + 4
    assert at == len(data)


def test_every_value_is_written(tmp_path):
    write(tmp_path, range(3), evaluate=(2,))
    assert metrics.read(tmp_path / "metrics.jsonl") == [
        {"step": 0, "loss": 1.0, "lr": 1e-3},
        {"step": 1, "loss": 0.5, "lr": 1e-3},
        {"step": 2, "eval/loss": 1.5},
        {"step": 2, "loss": 1 / 3, "lr": 1e-3},
    ]


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_resumed_run_reads_like_an_uninterrupted_one(tmp_path, start):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    write(whole, range(10), evaluate=(2, 4, 6, 8))
    write(resumed, range(7), evaluate=(2, 4, 6))
    write(resumed, range(start, 10), start=start, evaluate=(2, 4, 6, 8))
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_starting_anew_drops_everything(tmp_path):
    write(tmp_path, range(5), evaluate=(2,))
    write(tmp_path, range(2))
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + torn)
    assert [line["step"] for line in metrics.read(path)] == [0, 1, 2]
    write(tmp_path, range(3, 5), start=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["loss", "eval/loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_earlier_lines_on_disk(tmp_path, name, value):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(0, {"loss": 1.0})
    with pytest.raises(UserError, match=r"loss at step 1 is -?(nan|inf).*metrics\.jsonl"):
        writer.write(1, {name: value})
    assert metrics.read(tmp_path / "metrics.jsonl")[0] == {"step": 0, "loss": 1.0}


def test_another_value_may_be_not_finite(tmp_path):
    """A ratio over an empty set is NaN, and no reason to stop."""
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(0, {"loss": 1.0, "rewards/margins": math.nan})
    writer.close()
    value = metrics.read(tmp_path / "metrics.jsonl")[0]["rewards/margins"]
    assert value is None or math.isnan(value)


def test_every_line_is_standard_json(tmp_path):
    """NaN is no JSON: jq, pandas and JavaScript refuse or change it."""
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(0, {"loss": 1.0, "rewards/margins": math.inf})
    writer.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_flushed_lines_are_on_disk(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(0, {"loss": 1.0})
    writer.flush()
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_events_hold_every_scalar(tmp_path):
    write(tmp_path, range(3), evaluate=(2,))
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in path.name
    payloads = list(records(path))
    assert b"brain.Event" in payloads[0]
    for name, count in (("loss", 4), ("lr", 3), ("eval/loss", 1)):
        assert sum(name.encode() in payload for payload in payloads) == count
    assert any(struct.pack("<f", 1 / 3) in payload for payload in payloads)


def test_a_missing_file_has_no_lines(tmp_path):
    assert metrics.read(tmp_path / "none.jsonl") == []


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with metrics.Reporter("training", total=100, every=0.0) as reporter:
        reporter.update(50, "loss 0.5")
        reporter.update(100)
    assert capsys.readouterr().err == "training: 50/100 steps  loss 0.5\ntraining: 100/100 steps\n"


def test_programs_do_not_load_pytorch_for_tensorboard(tmp_path):
    pytest.importorskip("torch")
    code = f"""
import sys
from pathlib import Path
import rlhfv_jax.train
from rlhfv_jax.metrics import MetricsWriter
writer = MetricsWriter(Path({str(tmp_path)!r}))
writer.write(0, {{"loss": 1.0}})
writer.close()
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
