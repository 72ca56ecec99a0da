"""How long a step may take, from what it multiplies, updates and sends, and from what the hardware can do at best.

An estimate and no measurement: it assumes the shares of the published peaks below, no waiting for input, and that what
the compiled schedule sends under matrix products is hidden up to their time.
"""

from typing import Any

from rlhfv_jax.planning.schedule import Collective
from rlhfv_jax.planning.targets import Chip

OF_PRODUCTS = 0.5  # of the peak in bfloat16, what a training step of this size usually reaches
OF_MEMORY = 0.8
OF_LINKS = 0.75
ASSUMES = (
    f"{OF_PRODUCTS:.0%} of the peak in matrix products, {OF_MEMORY:.0%} of the memory's bandwidth in the update, "
    f"{OF_LINKS:.0%} of the links' in one direction, input never late"
)


def estimate(
    flops: float, moment_bytes: int, sent: list[Collective] | None, chip: Chip, devices: int, steps: int
) -> dict[str, Any]:
    """Seconds of one step and hours of the run.

    Args:
      flops: matrix products of the whole step, on all devices.
      moment_bytes: optimizer state of one device. An AdamW update moves four times as much: moments, parameters and
        gradients are read and written.
      sent: the program's collectives, None where they could not be read; the estimate is then without them.
    """
    compute = flops / devices / (chip.flops * OF_PRODUCTS)
    update = 4 * moment_bytes / (chip.memory * OF_MEMORY)
    hidden = _seconds([one for one in sent or [] if one.products], chip)
    exposed = _seconds([one for one in sent or [] if not one.products], chip)
    step = max(compute, hidden) + exposed + update
    return {
        "step_seconds": step,
        "compute_seconds": compute,
        "update_seconds": update,
        "network_seconds": None if sent is None else hidden + exposed,
        "exposed_network_seconds": None if sent is None else exposed,
        "run_hours": step * steps / 3600,
        "mfu": flops / devices / chip.flops / step,
        "assumes": ASSUMES if sent is not None else f"{ASSUMES}; what devices send each other is not counted",
    }


def _seconds(sent: list[Collective], chip: Chip) -> float:
    return sum(one.sent * one.turns for one in sent) / (chip.links * OF_LINKS)
