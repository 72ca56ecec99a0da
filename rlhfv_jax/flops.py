"""Matrix products counted in a traced program, and the rate at which a device could do them."""

import math
from typing import Any

import jax
import jax.extend

# Dense bfloat16 products a second at a device's peak, in 10**12, by how its kind begins; the vendors' figures.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def peak(kind: str) -> float | None:
    """Operations a second of a device of this kind (`jax.Device.device_kind`); None where it is not known, as of CPUs.

    >>> peak("TPU v5 lite")
    197000000000000.0
    """
    begins = [name for name in PEAK_TFLOPS if kind.startswith(name)]
    return PEAK_TFLOPS[max(begins, key=len)] * 1e12 if begins else None


def dot_flops(jaxpr: Any) -> int:
    """Multiplications and additions of all matrix products of a jaxpr, those in a scan as often as it turns.

    XLA's own cost analysis counts the body of a loop once.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contract, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contract)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * sum(dot_flops(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total
