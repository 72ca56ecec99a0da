"""Which process of how many, from nothing but an environment."""

import pytest

from rlhfv_jax import cluster
from rlhfv_jax.cluster import Place
from rlhfv_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008],other3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
GIVEN = {cluster.COORDINATOR: "host:1234", cluster.COUNT: "4", cluster.INDEX: "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.svc,w-1.svc", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # sbatch's own script, without srun
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        GIVEN | {cluster.COUNT: "1", cluster.INDEX: "0"},
    ],
)
def test_a_program_that_is_alone_is_left_alone(environment):
    assert cluster.detect(environment, gpus=8) is None


def test_given_numbers_win_and_a_missing_port_is_filled_in():
    assert cluster.detect(GIVEN | GKE) == Place("host:1234", 4, 2)
    assert cluster.detect(GIVEN | {cluster.COORDINATOR: "host", cluster.LOCAL_DEVICES: "0,1"}) == Place(
        f"host:{cluster.PORT}", 4, 2, (0, 1)
    )
    place = cluster.detect(GIVEN)
    assert place is not None and (place.host, place.port) == ("host", 1234)


def test_a_slurm_step_says_everything():
    place = cluster.detect(SLURM, gpus=8)
    assert place is not None
    assert (place.host, place.count, place.index, place.devices) == ("node007", 16, 11, (3,))
    assert 1024 < place.port < 65535
    other = cluster.detect(SLURM | {"SLURM_JOB_ID": "4098"}, gpus=8)
    assert other is not None and other.port not in (place.port, place.port + 1)
    given = cluster.detect(SLURM | {cluster.COORDINATOR: "mine:5"}, gpus=8)
    assert given is not None and (given.coordinator, given.index) == ("mine:5", 11)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("a1,b2", "a1"), ("n[001-015],x", "n001"), ("n[3,7-9]", "n3"), ("gpu-a[09]", "gpu-a09")],
)
def test_the_coordinator_is_the_first_host_of_the_list(nodes, first):
    assert cluster.first_host(nodes) == first


@pytest.mark.parametrize(
    ("gpus", "tasks", "local", "devices"),
    [(0, 8, 3, None), (8, 8, 3, (3,)), (1, 8, 3, (0,)), (8, 1, 0, tuple(range(8))), (8, 4, 1, (2, 3))],
)
def test_every_gpu_of_a_node_belongs_to_one_task(gpus, tasks, local, devices):
    """Also one task for eight GPUs, of which JAX by itself would take the first alone."""
    assert cluster.own_devices(gpus, tasks, local) == devices


def test_tpu_hosts_and_slices_are_counted_through():
    assert cluster.detect(GKE) == Place(f"w-0.svc:{cluster.PORT}", 2, 1)
    slices = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "first:8080"}
    assert cluster.detect(GKE | slices) == Place(f"first:{cluster.PORT}", 6, 5)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({cluster.COORDINATOR: "host:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID is missing"),
        (GIVEN | {cluster.INDEX: "4"}, "JAX_PROCESS_ID=4 must be below JAX_NUM_PROCESSES=4"),
        (GIVEN | {cluster.COUNT: "four"}, "JAX_NUM_PROCESSES='four' is not a number"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID does not say"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3"}, "8 GPUs cannot be shared out evenly among the 3"),
    ],
)
def test_half_an_environment_is_an_error_that_names_the_other_half(environment, words):
    with pytest.raises(UserError, match=words):
        cluster.detect(environment, gpus=8)
