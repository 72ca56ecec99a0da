"""Pages followed literally: their commands in order, in an empty folder, on small inputs of the same form.

What is changed is written here and nowhere else: the reader's files are small ones, a 13B config gets the sizes of the
tiny checkpoint and two steps, and what cannot run on a small machine is left out with its reason (`CANNOT`).
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import shared
from doc_commands import ALL, ROOT, Command, blocks

from rlhfv_jax import checkpoint, cli, settings
from rlhfv_jax.data import sources

CANNOT = {  # a program or tool, and words that its command has: why it is not run here
    ("make", ""): "CI runs the targets themselves",
    ("source", ""): "the test has its interpreter",
    ("pip", ""): "tests/test_wheel.py installs the package",
    ("hf", ""): "13B weights",
    ("rlhfv", "--help"): "tests/test_cli.py",
    ("plan", ""): "compilers of hardware that is not here; tests/test_plan.py plans where they are",
    ("evaluate", "object_halbench"): "COCO's annotations; tests/test_evaluate.py",
    ("report", "scores/rlhfv"): "of the scores above; tests/test_report.py",
}
SETTINGS = ["optim.steps=2", "optim.epochs=0", "optim.batch_size=4", "mesh.fsdp=1", "dtype=float32", "remat=none"]
SERVERS = {"serve": "/health", "annotate": "/"}


def reason(command: Command) -> str:
    """Why the command is not run here, or nothing."""
    name, line = command.program or command.words[0], " ".join(command.words)
    return next((why for (who, words), why in CANNOT.items() if who == name and words in line), "")


class Desk:
    """An empty folder in which a page's commands run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}

    def put(self, name: str, source: Path) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    def follow(self, page: str) -> int:
        """Runs what can run; returns how many commands did."""
        ran = 0
        for command in (command for command in ALL if command.page == page and not reason(command)):
            starts_server = command.program in SERVERS and not re.search(
                "--(import|add_person|stats|export)", str(command)
            )
            self.serve(command) if starts_server else self.run(command)
            ran += 1
        return ran

    def words(self, command: Command) -> list[str]:
        if not command.program:
            return [word if word != command.words[1] else str(ROOT / word) for word in command.words]
        words = [sys.executable, "-m", f"rlhfv_jax.{command.program}", *command.arguments]
        if command.value("config") and command.program in ("train", "reference"):
            words += [f"--config.{one}" for one in SETTINGS] + self.sizes(command)
        if command.program == "convert" and command.value("model") == "muffin_13b":
            words.append(f"--src={shared('fixtures/muffin13b_keys.txt')}")
        elif command.program == "convert" and command.value("direction") == "to_orbax":
            words.append("--tower_heads=4")
        return words

    def sizes(self, command: Command) -> list[str]:
        """The overrides that give the config's model the sizes of the checkpoint it starts from."""
        start = command.value("config.init_from")
        if command.value("config").endswith(":mini"):
            return []  # from random weights, small as it is
        if not (self.folder / start / "checkpoints").is_dir() and not (self.folder / start / "0").is_dir():
            start = next(iter(sorted((self.folder / "checkpoints").glob("*"))), self.folder).as_posix()
        stored = dataclasses.asdict(settings.model_of(checkpoint.read_meta(self.folder / start)))
        ours = cli._load(str(cli.config_folder() / command.value("config"))).to_dict()["model"]
        pairs = ((f"{part}.{key}", value) for part in ("tower", "llm") for key, value in stored[part].items())
        known = {f"{part}.{key}": ours[part].get(key) for part in ("tower", "llm") for key in ours[part]}
        changed = {key: value for key, value in pairs if known.get(key) != value and key != "llm.vocab_size"}
        return [f"--config.model.{key}={value}" for key, value in changed.items() if value is not None]

    def run(self, command: Command) -> None:
        if command.program == "generate":
            (self.folder / command.value("answers")).parent.mkdir(parents=True, exist_ok=True)
        environment = self.environment | command.environment
        result = subprocess.run(
            self.words(command), capture_output=True, text=True, cwd=self.folder, env=environment, timeout=900
        )
        assert result.returncode == 0, f"{command.where}: {result.stderr[-2000:]}"

    def serve(self, command: Command) -> None:
        """Starts a server, asks it once, stops it."""
        words = [*self.words(command), "--port=0"]
        environment = self.environment | command.environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(words, cwd=self.folder, env=environment, **pipes) as server:
            try:
                said, end = "", time.monotonic() + 300
                while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
                    assert time.monotonic() < end and server.poll() is None, f"{command.where}: {said}"
                    said += server.stdout.readline()
                assert self.status(found[0] + SERVERS[command.program], end) == 200, command.where
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(60)

    @staticmethod
    def status(address: str, end: float) -> int:
        """The status of an answer; an address may be printed before anybody listens there."""
        while True:
            try:
                with urllib.request.urlopen(address, timeout=60) as reply:
                    return reply.status
            except urllib.error.URLError:
                assert time.monotonic() < end, f"nobody listens at {address}"
                time.sleep(0.5)


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def pairs(tmp_path_factory, coco_records) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    sources.write_parquet(coco_records[:12], path)
    return path


def write_questions(folder: Path, records: list[sources.PreferenceRecord]) -> None:
    rows = []
    for record in records:
        (folder / f"{record.id}.jpg").write_bytes(record.image)
        rows.append(json.dumps({"question_id": record.id, "prompt": record.question, "image": f"{record.id}.jpg"}))
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n")


def test_what_is_left_out_is_left_out_for_a_reason_that_some_command_needs():
    lines = [(command.program or command.words[0], " ".join(command.words)) for command in ALL]
    for who, words in CANNOT:
        assert any(who == name and words in line for name, line in lines), (who, words)


@pytest.mark.slow
def test_the_page_on_data_shows_rows_and_its_python_runs(desk, pairs):
    desk.put("pairs.parquet", pairs)
    desk.put("tokenizer.model", shared("data/stories260K/tok512.model"))
    assert desk.follow("docs/data.md") == 2


@pytest.mark.slow
def test_the_launch_files_of_the_page_on_scale_print_their_commands(desk):
    assert desk.follow("docs/scale.md") == 5


@pytest.mark.long
def test_the_page_on_released_weights_with_a_tiny_model_of_the_same_classes(desk, pairs, coco_records):
    desk.put("RLHF-V_SFT", shared("fixtures/tiny-muffin"))
    desk.put("RLHF-V-Dataset.parquet", pairs)
    write_questions(desk.folder, coco_records[:2])
    assert desk.follow("docs/released.md") == 11
    lines = (desk.folder / "runs/rlhfv/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and "0.693" in lines[0]
    assert list((desk.folder / "RLHF-V-ours").glob("*.safetensors"))


@pytest.mark.long
def test_the_page_for_starting_on_what_the_miniature_leaves(desk, pairs):
    smoke = [sys.executable, "-m", "rlhfv_jax.train", "--config=demo.py:smoke", "--workdir=runs/demo"]
    subprocess.run(smoke, check=True, cwd=desk.folder, env=desk.environment, timeout=1800)
    folder = desk.folder / "runs/demo/pairs"
    (few,) = folder.glob("*.parquet")
    few.rename(folder / "200.parquet")  # the smoke run has fewer
    (folder / f"{few.stem}.segments.jsonl").rename(folder / "200.segments.jsonl")
    desk.put("pairs.parquet", pairs)
    desk.put("tokenizer.model", shared("data/stories260K/tok512.model"))
    for _, block in blocks(ROOT / "docs/start.md", "python"):
        subprocess.run([sys.executable, "-c", block], check=True, cwd=desk.folder, env=desk.environment, timeout=300)
    assert desk.follow("docs/start.md") == 9
