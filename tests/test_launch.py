"""The launch files: sound shell, sound Kubernetes objects, and commands that reach the program with its place."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from rlhfv_jax import cluster

FILES = sorted((Path(__file__).parents[1] / "launch").glob("*.sh"))
JOBSETS = [path for path in FILES if path.stem.startswith("jobset")]


def dry_run(path: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/user"}
    line = ["bash", str(path), "--dry-run", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def test_every_place_has_a_file():
    assert [path.stem for path in FILES] == ["jobset-gpu", "jobset-tpu", "slurm-node", "slurm-nodes", "tpu-vm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_sound_shell_and_edited_in_at_most_five_places(path):
    found = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), str(path)], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stdout
    assert 1 <= path.read_text().count("# EDIT") <= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_program_with_more_flags_and_does_nothing(path, tmp_path):
    text = dry_run(path, "--config.seed=7", "--config.data.path=it's here.parquet")
    assert "rlhfv_jax.train" in text and "--config.seed=7" in text and "--workdir=" in text


def pods(path: Path) -> tuple[dict, dict]:
    """The JobSet that a dry run prints, and the Job in it, which Kubernetes has a schema for."""
    text = dry_run(path, "--config.data.path=it's here.parquet")
    whole = yaml.safe_load(re.fullmatch(r"kubectl apply -f - <<'YAML'\n(.*)\nYAML\n", text, re.DOTALL)[1])
    (replicated,) = whole["spec"]["replicatedJobs"]
    name = f"{whole['metadata']['name']}-{replicated['name']}-0"
    return whole, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, **replicated["template"]}


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_a_jobset_holds_a_job_of_kubernetes_own_schema(path):
    whole, job = pods(path)
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(whole["spec"]) <= {"failurePolicy", "replicatedJobs", "network", "successPolicy"}
    kubernetes_validate.validate(job, "1.30", strict=True)
    spec = job["spec"]
    assert spec["completions"] == spec["parallelism"] == 2 and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    assert "--config.data.path=it's here.parquet" in container["args"]


def test_the_gpu_jobsets_variables_are_a_place_among_its_pods():
    whole, job = pods(FILES[0])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", "1") for entry in container["env"]}  # the index comes from the pod
    place = cluster.detect(environment)
    assert place is not None and (place.count, place.index) == (job["spec"]["completions"], 1)
    assert place.host == f"{job['metadata']['name']}-0.{whole['metadata']['name']}"  # pod 0 of the set's own subdomain


def edited(path: Path, folder: Path, **settings: str) -> Path:
    """A copy with settings changed, as a user changes them."""
    text = path.read_text()
    for name, value in settings.items():
        text, count = re.subn(rf"^{name}=.*", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1
    copy = folder / path.name
    copy.write_text(text)
    return copy


def tool(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


def run(path: Path, folder: Path, **extra: str) -> subprocess.CompletedProcess:
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": "/home/user"} | extra
    return subprocess.run(["bash", str(path), "--config.seed=7"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("stem", ["slurm-node", "slurm-nodes"])
@pytest.mark.parametrize(("status", "queued_again"), [(0, False), (1, False), (75, True)])
def test_a_slurm_job_submits_itself_and_queues_again_when_it_was_preempted(tmp_path, stem, status, queued_again):
    (path,) = [path for path in FILES if path.stem == stem]
    python = tool(tmp_path, "my-python", f'echo "$@" >> {tmp_path}/ran; exit {status}')
    path = edited(path, tmp_path, PYTHON=str(python))
    tool(tmp_path, "sbatch", f'echo "$@" > {tmp_path}/submitted')
    tool(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    tool(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/queued')
    assert run(path, tmp_path).returncode == 0 and not (tmp_path / "ran").exists()
    submitted = shlex.split((tmp_path / "submitted").read_text())
    assert submitted[-2:] == [str(path), "--config.seed=7"] and "--ntasks-per-node=1" in submitted
    assert run(path, tmp_path, SLURM_JOB_ID="12").returncode == status
    ran = (tmp_path / "ran").read_text()
    assert ran.startswith("-m rlhfv_jax.train --workdir=") and ran.rstrip().endswith("--config.seed=7")
    assert (tmp_path / "queued").exists() == queued_again


@pytest.mark.parametrize("endpoints", ["10.0.0.1,10.0.0.2,10.0.0.3", "a:1:10.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3"])
def test_every_host_of_a_tpu_slice_finds_its_place_from_the_metadata(tmp_path, endpoints):
    (path,) = [path for path in FILES if path.stem == "tpu-vm"]
    python = tool(tmp_path, "my-python", f'env > {tmp_path}/environment; echo "$@" > {tmp_path}/ran')
    path = edited(path, tmp_path, PYTHON=str(python))
    tool(tmp_path, "gcloud", 'for a in "$@"; do case $a in --command=*) bash -c "${a#--command=}";; esac; done')
    answers = f"*agent-worker-number) echo -n 2;; *worker-network-endpoints) echo -n {endpoints};; *) exit 22;;"
    tool(tmp_path, "curl", f'case "${{@: -1}}" in {answers} esac')
    result = run(path, tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "environment").read_text().splitlines()
    place = cluster.detect(dict(line.split("=", 1) for line in lines if line.startswith("JAX_")))
    assert place == cluster.Place("10.0.0.1:8476", 3, 2)
    assert (tmp_path / "ran").read_text().rstrip().endswith("--config.seed=7")
