"""Fifty updates on a CPU against a committed trajectory: loss and gradient norm of every step.

A change of these numbers is a change of the mathematics, or of a library under it, and needs a reason in the commit
that makes it. `PYTHONPATH=. python tests/test_trajectory.py` from the project's root writes the file anew.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import PREFERENCE, pairs

from rlhfv_jax import optim, sharding, steps
from rlhfv_jax.models import vlm

FILE = Path(__file__).with_name("trajectory.json")
STEPS = 50


def follow(config, params) -> dict[str, list[float]]:
    """Dense DPO on eight batches of random pairs, six times over; the reference is where it starts."""
    model = vlm.Vlm(config)
    schedule = optim.schedule(1e-3, STEPS, 0.1)
    updater = steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(params, "frozen_A"))
    mesh = sharding.make_mesh(fsdp=1)
    with jax.set_mesh(mesh):
        copies = jax.tree.map(jnp.array, params)  # the step donates what it is given
        params = jax.device_put(copies, sharding.shardings(params, mesh))
        reference = steps.reference(model)
        batches = [sharding.put(pairs(seed), mesh) for seed in range(8)]
        batches = [batch._replace(ref_logps=reference(params, batch)) for batch in batches]
        state = updater.init(params)
        step = updater.step(steps.preference_loss(model, PREFERENCE), mesh, state)
        lines = []
        for index in range(STEPS):
            state, metrics = step(state, batches[index % 8])
            lines.append(jax.device_get({name: metrics[name] for name in ("loss", "grad_norm")}))
    return {name: [float(line[name]) for line in lines] for name in ("loss", "grad_norm")}


def test_fifty_steps_follow_the_committed_trajectory(tiny_config, tiny_params):
    """The largest difference, and the mean one, which catches a drift to one side."""
    committed, found = json.loads(FILE.read_text()), follow(tiny_config, tiny_params)
    assert committed["loss"][0] == pytest.approx(np.log(2), abs=1e-6) and committed["loss"][-1] < 0.6
    for name in ("loss", "grad_norm"):
        difference = np.array(found[name]) - np.array(committed[name])
        assert np.abs(difference).max() < 1e-4, name  # weights off by 1e-6 move it by 4e-6
        assert abs(difference.mean()) < 1e-5, name


if __name__ == "__main__":
    import conftest

    config = conftest.tiny_config.__wrapped__()
    trajectory = follow(config, conftest.tiny_params.__wrapped__(config))
    FILE.write_text(json.dumps(trajectory, indent=1) + "\n")
