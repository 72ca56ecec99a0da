"""The program: what it prints, what it refuses, and that nothing half-written is ever taken for a checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import shared

from rlhfv_jax import checkpoint, settings, streaming
from rlhfv_jax.conversion import job, sizes, to_orbax, torch_files, verify
from rlhfv_jax.conversion.job import Options
from rlhfv_jax.errors import UserError

COMMAND = [sys.executable, "-m", "rlhfv_jax.convert"]


def convert(*arguments: str, environment: dict | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | (environment or {})
    )


@pytest.fixture(scope="module")
def source() -> str:
    return str(shared("fixtures/tiny-muffin/pytorch_model.bin"))


@pytest.fixture(scope="module")
def keys() -> str:
    return str(shared("fixtures/muffin13b_keys.txt"))


def test_the_readmes_command_converts_and_prints_json(tmp_path, source):
    arguments = ["--direction=to_orbax", f"--src={source}", f"--dst={tmp_path / 'o'}", "--tower_heads=4", "--verify"]
    result = convert(*arguments, "--format=json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["model"], report["tensors"], report["verified"]) == ("muffin", 113, 113)
    assert checkpoint.find(tmp_path / "o").name == "0"
    assert result.stderr == ""


def test_help_shows_an_example_and_every_flag():
    result = convert("--help")
    assert result.returncode == 0
    for words in ("python -m rlhfv_jax.convert --direction=to_orbax", "--tower_heads", "--dry_run", "--verify"):
        assert words in result.stdout


def test_a_dry_run_needs_neither_weights_nor_destination(keys, tmp_path):
    result = convert(f"--src={keys}", "--dry_run", "--model=muffin_13b")
    assert result.returncode == 0 and "13,628,976,128" in result.stdout
    lines = Path(keys).read_text().replace("model.norm.weight\t(5120,)", "model.norm.weight\t(5121,)")
    (tmp_path / "wrong.txt").write_text(lines)
    wrong = convert(f"--src={tmp_path / 'wrong.txt'}", "--dry_run")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1 and "model.norm.weight has shape (5121,), expected (5120,)" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--direction=to_torch", "--heads=4"], "--heads means nothing with --direction=to_torch"),
        (["--layout=llava_hf"], "--layout means nothing with --direction=to_orbax"),
        (["--queries=8"], "--queries needs --tower=PATH"),
    ],
)
def test_a_flag_that_would_not_be_read_is_refused(source, flags, words):
    result = convert(f"--src={source}", *flags)
    assert result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"src": "nowhere"}, "There is no checkpoint at nowhere"),
        ({"dst": ""}, "No destination"),
        ({"dtype": "float64"}, "--dtype=float64 is not known; choose one of float32"),
        ({"model": "muffin_14b"}, "--model=muffin_14b is not known"),
        ({"model": "muffin_13b"}, "is missing (expected (1024,))"),
        ({"tokenizer": "none.model"}, "Cannot read the tokenizer none.model"),
        ({"tower_heads": 0}, "give it as --tower_heads"),
        ({"tower_heads": 5}, "tower's width 64 cannot be cut into 5 attention heads: give another --tower_heads"),
        ({"heads": 7}, "tiny-muffin/pytorch_model.bin comes with 4; leave the flag out."),
        ({"ignore": ("a[",)}, "--ignore=a[ is no regular expression: unterminated character set"),
        ({"model": "llava15_7b"}, "is a muffin by the names of its tensors, and --model=llava15_7b a llava15"),
        ({"tower": "none.pth"}, "There is no checkpoint at none.pth"),
    ],
)
def test_what_cannot_be_converted_gets_one_sentence_and_leaves_nothing(tmp_path, source, changes, words):
    options = {"src": source, "dst": str(tmp_path / "out"), "tower_heads": 4} | changes
    with pytest.raises(UserError) as error:
        job.run_to_orbax(Options(**options))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, source):
    other = str(shared("data/stories260K/tok512.model"))
    with pytest.raises(UserError, match="The tokenizer has 516 tokens, added ones included, but the model 32004"):
        job.run_to_orbax(Options(source, str(tmp_path / "out"), tower_heads=4, tokenizer=other))


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path, source):
    shutil.copy(source, tmp_path / "pytorch_model.bin")  # without config.json, which has the number
    with pytest.raises(UserError, match="model's width 24 cannot be cut into 7 attention heads: give another --heads"):
        job.run_to_orbax(Options(str(tmp_path), str(tmp_path / "out"), tower_heads=4, heads=7))


def test_a_checkpoint_without_a_tokenizer_says_how_to_give_one(tmp_path, source):
    shutil.copy(source, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"There is no tokenizer in .*: give one as --tokenizer=FILE\.model"):
        job.run_to_orbax(Options(str(tmp_path), str(tmp_path / "out"), tower_heads=4, heads=4))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("pytorch_model.bin", b"PK\x03\x04 no archive", "as PyTorch weights"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "as PyTorch weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b"[1]", "is not a JSON object"),
        ("model.safetensors.index.json", b"{", "Cannot read"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, words):
    (tmp_path / file).write_bytes(content)
    if content.endswith(b"{}") and file.endswith(".safetensors"):
        (tmp_path / file).write_bytes(content[:-2])
    with pytest.raises(UserError, match=words):
        torch_files.open_tensors(tmp_path)


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path):
    import torch

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"a": torch.zeros(1), "b": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(UserError, match="Cannot read"):
        torch_files.open_tensors(tmp_path / "trap.bin")
    assert not (tmp_path / "trapped").exists()


def test_a_missing_shard_is_named(tmp_path, source):
    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "one.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"The shard .*two\.bin is missing"):
        torch_files.open_tensors(tmp_path)
    index["weight_map"]["b"] = "one.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"says that b is in .*one\.bin, but it is not"):
        torch_files.open_tensors(tmp_path)


@pytest.mark.parametrize("line", ["model.query", "model.query 64, 1024", "a (1,)\na (1,)"])
def test_a_line_that_is_no_name_and_shape_is_named(tmp_path, line):
    (tmp_path / "keys.txt").write_text(f"# comment\n{line}\n")
    with pytest.raises(UserError, match=r"keys\.txt, line [23]: "):
        torch_files.open_tensors(tmp_path / "keys.txt")


def test_a_destination_in_use_is_not_touched(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(UserError, match="out already exists; choose another destination"):
        job.run_to_orbax(Options(source, str(tmp_path / "out"), tower_heads=4))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, source, monkeypatch):
    """A read that fails after some layers are written, in both directions."""
    job.run_to_orbax(Options(source, str(tmp_path / "good"), tower_heads=4))
    before = sorted(path.name for path in tmp_path.iterdir())
    layer, calls = to_orbax.layer, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 20:
            raise OSError(28, "No space left on device", "somewhere")
        return layer(*arguments)

    monkeypatch.setattr(to_orbax, "layer", failing)
    with pytest.raises(OSError, match="No space left"):
        job.run_to_orbax(Options(source, str(tmp_path / "out"), tower_heads=4))
    assert len(calls) > 20 and sorted(path.name for path in tmp_path.iterdir()) == before
    monkeypatch.setattr(streaming.StoredArray, "entries", lambda self: failing(*calls[0]))
    with pytest.raises(OSError, match="No space left"):
        job.run_to_torch(Options(str(tmp_path / "good"), str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("direction", ["to_orbax", pytest.param("to_torch", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_leaves_no_destination(tmp_path, source, direction):
    """A limit on the size of a file stands for it: the same failed write."""
    job.run_to_orbax(Options(source, str(tmp_path / "good"), tower_heads=4))
    start = {"to_orbax": [source, "--tower_heads=4"], "to_torch": [str(tmp_path / "good")]}[direction]
    command = [*COMMAND, f"--direction={direction}", f"--dst={tmp_path / 'out'}", "--src", *start]
    limited = ["bash", "-c", 'ulimit -f 900 && exec "$@"', "-", *command]  # in units of 1024 bytes
    result = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["to_orbax", "to_torch"])
def test_a_killed_conversion_leaves_no_directory_that_looks_finished(tmp_path, source, direction):
    """Killed without warning as soon as it has begun to write; the same command then succeeds."""
    job.run_to_orbax(Options(source, str(tmp_path / "good"), tower_heads=4))
    start = {"to_orbax": [source, "--tower_heads=4"], "to_torch": [str(tmp_path / "good")]}[direction]
    out = tmp_path / "out"
    command = [*COMMAND, f"--direction={direction}", f"--dst={out}", "--src", *start]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / ".out.unfinished"
    deadline = time.monotonic() + 60
    while not unfinished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not out.exists():  # else it was faster than the signal
        assert unfinished.exists() and not checkpoint.exists(unfinished)
        assert not (unfinished / "model.safetensors.index.json").exists()
        assert convert(*command[3:]).returncode == 0
    assert not unfinished.exists() and out.is_dir()


def test_verification_finds_one_changed_bit(tmp_path, source):
    """In either copy: a stored layer, and a written tensor."""
    import torch

    job.run_to_orbax(Options(source, str(tmp_path / "orbax"), tower_heads=4))
    plan = sizes.plan_of(settings.model_of(checkpoint.read_meta(tmp_path / "orbax")))
    stored = streaming.StoredArrays(tmp_path / "orbax")
    assert verify.to_orbax_side(torch_files.open_tensors(Path(source)), stored, plan, tmp_path) == 113
    state = torch.load(source, weights_only=True)
    name = "model.layers.1.mlp.up_proj.weight"
    state[name].view(torch.int32)[3, 5] ^= 1
    torch.save(state, tmp_path / "flipped.bin")
    flipped = torch_files.open_tensors(tmp_path / "flipped.bin")
    with pytest.raises(UserError, match=f"Verification failed: {name}"):
        verify.to_orbax_side(flipped, stored, plan, tmp_path)
    with pytest.raises(UserError, match=f"Verification failed: {name}"):
        verify.to_torch_side(stored, flipped, plan, tmp_path)


def test_what_fails_verification_never_gets_its_name(tmp_path, source, monkeypatch):
    """A tensor that reads differently the second time, in either direction."""
    job.run_to_orbax(Options(source, str(tmp_path / "good"), tower_heads=4))
    read, seen = torch_files.Shards.read, set()

    def changing(self, name):
        array = read(self, name)
        again = name == "model.query" and (name in seen or "unfinished" in str(self._files[name]))
        seen.add(name)
        return array + 1 if again else array

    monkeypatch.setattr(torch_files.Shards, "read", changing)
    for run, src in ((job.run_to_orbax, source), (job.run_to_torch, str(tmp_path / "good"))):
        with pytest.raises(UserError, match=r"Verification failed: model\.query"):
            run(Options(src, str(tmp_path / "out"), tower_heads=4, verify=True))
        assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("module", ["torch", "safetensors"])
def test_without_its_packages_the_program_says_how_to_install_them(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise ImportError")
    source = shared("fixtures/tiny-muffin/model.safetensors")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = convert(f"--src={source}", f"--dst={tmp_path / 'out'}", environment=environment)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"needs {module}, which is not installed" in result.stderr
    assert "pip install 'rlhfv_jax[convert]'" in result.stderr


def test_a_checkpoint_of_the_miniature_says_why_it_has_no_form_in_pytorch(tmp_path, source):
    """Its tower has a convolutional stem."""
    job.run_to_orbax(Options(source, str(tmp_path / "orbax"), tower_heads=4))
    record = checkpoint.read_meta(tmp_path / "orbax")
    record["model"]["tower"]["stem"] = "conv"
    with pytest.raises(UserError, match="convolutional stem"):
        sizes.plan_of(settings.model_of(record))
