"""What the loop says of its own speed, on a model of one number."""

import time

import jax
import jax.numpy as jnp
import pytest

from rlhfv_jax import flops, loop, metrics, train
from rlhfv_jax.errors import UserError
from rlhfv_jax.profiling import Trace
from rlhfv_jax.structs import TrainState

STEPS, PAIRS, WAIT, IDEAL = 6, 4, 0.02, 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and metrics of six steps whose input comes slowly; the third and fourth are traced."""
    folder = tmp_path_factory.mktemp("run")

    @jax.jit
    def step(state, batch):
        return TrainState(state.step + 1, state.params + batch, ()), {"loss": state.params}

    def slow():
        while True:
            time.sleep(WAIT)
            yield jnp.float32(1)

    state = TrainState(jnp.int32(0), jnp.float32(0), ())
    options = {"steps": STEPS, "pairs_per_step": PAIRS, "log_every": 2, "ideal": lambda batch: IDEAL}
    writer = metrics.MetricsWriter(folder)
    trace = Trace(range(2, 4), folder / "profile")
    loop.train(state, step, slow(), writer, lambda state: None, trace=trace, **options)
    writer.close()
    return folder, metrics.read(folder / "metrics.jsonl")


def test_only_the_steps_asked_for_are_traced(run):
    """By the names and numbers that the loop gives its steps."""
    (trace,) = (run[0] / "profile").rglob("*.xplane.pb")
    numbers = set()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == "train":
                    numbers |= {int(value) for name, value in event.stats if name == "step_num"}
    assert numbers == {2, 3}


def test_time_is_split_and_utilization_is_ideal_over_real_time(run):
    for line in run[1]:
        seconds = PAIRS / line["pairs_per_second"]
        assert WAIT <= line["seconds/input"] <= seconds
        assert line["seconds/input"] + line["seconds/device"] <= seconds * (1 + 1e-6)
        assert line["mfu"] == pytest.approx(IDEAL / seconds)
    assert set(metrics.TIMING) >= {name for name in run[1][0] if name not in ("step", "loss")}


def test_peaks_are_found_by_what_jax_calls_the_devices():
    """The longest match: "TPU v5" is v5p, and "TPU v5 lite" is not."""
    assert flops.peak("TPU v5 lite") == 197e12 and flops.peak("TPU v5p") == flops.peak("TPU v5") == 459e12
    assert flops.peak("NVIDIA H200") == 989e12 and flops.peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops.peak(jax.devices()[0].device_kind) is None


@pytest.mark.parametrize("text", ["5", "8:5", "5:5", "a:b"])
def test_steps_that_are_none_are_refused(text):
    assert train._steps("") == range(0) and train._steps("5:8") == range(5, 8)
    with pytest.raises(UserError, match="--profile_steps"):
        train._steps(text)
