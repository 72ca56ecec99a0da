"""What a run measures of itself: before its first update, and on rows that it does not train on."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhfv_jax import losses, sharding, steps
from rlhfv_jax.data import pipeline
from rlhfv_jax.errors import UserError
from rlhfv_jax.settings import Settings


def check_reference(metrics: Mapping[str, float], s: Settings) -> None:
    """Before the first update the policy is the reference: rewards are 0, so the loss is known (ln 2 for DDPO).

    Raises UserError on anything else, which is a wrong cache or a wrong model and would be trained towards.
    """
    tolerance = 1e-3 if s.dtype == "float32" else 2e-2
    expected = float(losses.pair_losses(jnp.zeros(1), s.ddpo)[0]) + s.ddpo.nll * metrics["nll/chosen"]
    off = max(abs(metrics["loss"] - expected), abs(metrics["rewards/chosen"]), abs(metrics["rewards/rejected"]))
    if not off <= tolerance:
        raise UserError(
            f"The policy does not agree with its own reference log-probs before the first update (loss "
            f"{metrics['loss']:.6f} instead of {expected:.6f}, rewards {metrics['rewards/chosen']:.2e} and "
            f"{metrics['rewards/rejected']:.2e} instead of 0). Delete the run's reference/ directory and start again."
        )


def evaluate(
    measure: Callable[[Any, Any], steps.Totals], params: Any, source: Any, s: Settings, mesh: Mesh
) -> dict[str, float]:
    """Means over all rows of the source, as `eval/...`; the sums stay on the device until the last batch."""
    totals: steps.Totals | None = None
    shares = pipeline.Shares(sharding.shares_here(mesh), sharding.ways(mesh))
    for batch in pipeline.ordered_batches(source, s.optim.batch_size, shares=shares):
        now = measure(params, sharding.put(batch, mesh))
        totals = now if totals is None else jax.tree.map(jnp.add, totals, now)
    weight, sums = jax.device_get(totals)
    return {f"eval/{name}": float(total / weight) for name, total in sums.items()}
