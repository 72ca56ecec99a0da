"""What benchmarks/real_photos.py claims, held: pairs on real photos, a language model that was really trained."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment, shared

from rlhfv_jax.data import sources

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_photos.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_photos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    return shared("data/coco_pairs/pairs.jsonl")


def test_no_photo_is_on_both_sides_of_the_split(script, data, tmp_path):
    counts = script.split_by_photo(data, tmp_path)
    train, held = (sources.read(tmp_path / f"{name}.parquet") for name in ("train", "held_out"))
    assert counts == {"train": len(train), "held_out": len(held)} == {"train": 81, "held_out": 49}
    assert not {record.image for record in train} & {record.image for record in held}


@pytest.mark.parametrize(
    "method", [pytest.param("ddpo", marks=pytest.mark.slow), pytest.param("dpo", marks=pytest.mark.long)]
)
def test_loss_falls_from_ln_2_training_pairs_are_told_apart_and_a_repeat_is_bitwise_equal(
    data, programs, tmp_path, method
):
    model = shared("data/stories260K/stories260K.bin")
    command = [sys.executable, str(SCRIPT), f"--data={data}", f"--llm={model}", f"--workdir={tmp_path}", "--seeds=1"]
    command += [f"--tokenizer={model.with_name('tok512.model')}", "--steps=54", f"--methods={method}", "--format=json"]
    variables = environment(programs, as_for_users=True)  # XLA's costly passes pay for themselves here
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    figures = report["methods"][method][0]
    assert figures["first_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert figures["last_loss"] < 0.5 * np.log(2)
    assert figures["train_accuracy"] >= 0.9
    assert 0 <= figures["held_out_accuracy"] <= 1
    assert report["repeated_bitwise"] == {method: True}
