"""Whether a program is one of several processes, and which, as its environment says; a pure function of it.

Several processes are found in this order, else the program runs alone:

    given       JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (or the flags of `train` that stand for them)
    SLURM       the variables of `srun`, for a step of several tasks
    TPU pods    TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, as GKE sets them; with MEGASCALE_* several slices
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhfv_jax.errors import UserError

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
PORT = 8476  # of the coordinator, where none is given; the next one is `processes`' own
SLURM = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID")


@dataclass(frozen=True)
class Place:
    """One process among several: where process 0 listens, how many there are, and which one this is.

    `devices` are the GPUs of its host that are its own; None for all that it sees.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None

    @property
    def host(self) -> str:
        """The host of the coordinator."""
        return self.coordinator.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port of the coordinator."""
        return int(self.coordinator.rpartition(":")[2])


def detect(environment: Mapping[str, str] = os.environ, gpus: int | None = None) -> Place | None:
    """This process's place among several, or None where it runs alone.

    `gpus` is the number that this process sees (by default as the environment and /dev say). Raises UserError where
    the environment says only half of it, or contradicts itself.
    """
    slurm, tpu = _slurm(environment, gpus), _tpu(environment)
    if not any(environment.get(name) for name in (COORDINATOR, COUNT, INDEX)):
        return slurm or tpu
    values = {name: environment.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if slurm is not None:
        found = {COORDINATOR: slurm.coordinator, COUNT: str(slurm.count), INDEX: str(slurm.index)}
        values = {name: value or found[name] for name, value in values.items()}
    if missing := [name for name, value in values.items() if not value]:
        given = ", ".join(name for name, value in values.items() if value)
        raise UserError(f"{given} says that there are several processes, but {' and '.join(missing)} is missing.")
    count, index = _number(COUNT, values[COUNT]), _number(INDEX, values[INDEX])
    if not index < count:
        raise UserError(f"{INDEX}={index} must be below {COUNT}={count}; processes are counted from 0.")
    address = values[COORDINATOR] if re.search(r":\d+$", values[COORDINATOR]) else f"{values[COORDINATOR]}:{PORT}"
    local = environment.get(LOCAL_DEVICES)
    devices = tuple(_number(LOCAL_DEVICES, part) for part in local.split(",")) if local else None
    return Place(address, count, index, devices or (slurm.devices if slurm else None)) if count > 1 else None


def _number(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"{name}={text!r} is not a number.")
    return int(text)


def _slurm(environment: Mapping[str, str], gpus: int | None) -> Place | None:
    if not all(environment.get(name) for name in SLURM):
        return None
    count = int(environment["SLURM_STEP_NUM_TASKS"])
    if count < 2:
        return None
    # Every job its own port, so that two on one node do not meet.
    port = int(environment["SLURM_JOB_ID"]) % 2048 * 2 + 61440 - 4096
    host = first_host(environment["SLURM_STEP_NODELIST"])
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    devices = own_devices(
        _visible_gpus(environment) if gpus is None else gpus,
        int(tasks[0]) if tasks else 1,
        int(environment.get("SLURM_LOCALID", 0)),
    )
    return Place(f"{host}:{port}", count, int(environment["SLURM_PROCID"]), devices)


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list.

    >>> first_host("node[007-015,020],other3")
    'node007'
    """
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    assert match is not None, f"{nodes!r} is no node list"
    return match[1] + (match[2] or "")


def own_devices(gpus: int, tasks: int, local: int) -> tuple[int, ...] | None:
    """The GPUs of one of `tasks` processes of a host that each see `gpus`; None without GPUs.

    A process that sees one GPU was given it by SLURM; several are shared out evenly. JAX alone would give every task
    of SLURM the one GPU with its number, also where the task is the only one of its host.

    Raises UserError where they cannot be shared out evenly.
    """
    if gpus == 0:
        return None
    if gpus == 1 or tasks == 1:
        return tuple(range(gpus))
    if gpus % tasks:
        raise UserError(f"{gpus} GPUs cannot be shared out evenly among the {tasks} SLURM tasks of a node.")
    each = gpus // tasks
    return tuple(range(local * each, (local + 1) * each))


def _visible_gpus(environment: Mapping[str, str]) -> int:
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([part for part in visible.split(",") if part.strip()])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _tpu(environment: Mapping[str, str]) -> Place | None:
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    count = len(hosts) * slices
    if count < 2:
        return None
    if not environment.get("TPU_WORKER_ID"):
        raise UserError(f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts, but TPU_WORKER_ID does not say which is this.")
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0] or hosts[0]
    index = int(environment.get("MEGASCALE_SLICE_ID") or 0) * len(hosts) + int(environment["TPU_WORKER_ID"])
    return Place(f"{first}:{PORT}", count, index)
