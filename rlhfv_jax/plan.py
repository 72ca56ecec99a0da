"""Says whether a configuration fits on hardware that is not here, by compiling its very train step for it.

    python -m rlhfv_jax.plan --config=ddpo.py --topology=a100_sxm_80:8
    python -m rlhfv_jax.plan --config=ddpo.py --topology=v5p:2x2x2 --format=json

TPU slices need `pip install 'rlhfv_jax[tpu]'`, NVIDIA GPUs `'rlhfv_jax[cuda]'`; neither needs the hardware.
"""

import json
import os
from typing import Any

from absl import flags

from rlhfv_jax import cli, settings
from rlhfv_jax.errors import UserError
from rlhfv_jax.planning import alternatives, estimate, targets

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "The hardware, as v5p:2x2x2 or a100_sxm_80:8.")
_ROW_LENGTH = flags.DEFINE_integer(
    "row_length", 256, "Tokens of a padded row, image tokens included; a packed pair has 4/3."
)
_PAIRS = flags.DEFINE_integer("pairs", 1400, "Rows of the data, for the number of steps.")
_ALTERNATIVES = flags.DEFINE_bool(
    "alternatives", True, "Where it does not fit, compile milder settings until one does."
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "text for people, json for programs.")


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", (_CONFIG, _TOPOLOGY, _ROW_LENGTH, _PAIRS, _ALTERNATIVES, _FORMAT))


def _main() -> None:
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # read when the plugins load
    if not _TOPOLOGY.value:
        raise UserError(f"No --topology was given; choose one of {', '.join(targets.names())}, as v5p:2x2x2.")
    s = settings.from_dict(cli.get_config(_CONFIG))
    target = targets.find(_TOPOLOGY.value)
    figures = estimate.plan(s, target, _ROW_LENGTH.value, _PAIRS.value)
    if not figures["fits"] and _ALTERNATIVES.value:
        figures["alternatives"] = estimate.search(s, target, _ROW_LENGTH.value, _PAIRS.value)
    print(json.dumps(figures) if _FORMAT.value == "json" else text(figures))


def text(figures: dict) -> str:
    """The figures for a person, one a line, and the verdict."""
    lines = []
    for name, value in figures.items():
        if name in ("collectives", "estimate") and value:
            lines.append(name)
            lines += [f"  {inner:<26}{_shown(figure)}" for inner, figure in value.items()]
        elif name != "alternatives":
            lines.append(f"{name:<28}{_shown(value)}")
    return "\n".join([*lines, alternatives.verdict(figures)])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['count']:6d} times  {value['gib']:8.2f} GiB sent  {value['overlapped']:4.0%} under products"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
