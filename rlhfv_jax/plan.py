"""Says whether a configuration fits on hardware that is not here, by compiling its very train step for it.

    python -m rlhfv_jax.plan --config=ddpo.py --topology=a100_sxm_80:8
    python -m rlhfv_jax.plan --config=ddpo.py --topology=v5p:2x2x2 --format=json

TPU slices need `pip install 'rlhfv_jax[tpu]'`, NVIDIA GPUs `'rlhfv_jax[cuda]'`; neither needs the hardware.
"""

import json
import os

from absl import flags

from rlhfv_jax import cli, settings
from rlhfv_jax.errors import UserError
from rlhfv_jax.planning import estimate, targets

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "The hardware, as v5p:2x2x2 or a100_sxm_80:8.")
_ROW_LENGTH = flags.DEFINE_integer(
    "row_length", 256, "Tokens of a padded row, image tokens included; a packed pair has 4/3."
)
_PAIRS = flags.DEFINE_integer("pairs", 1400, "Rows of the data, for the number of steps.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "text for people, json for programs.")


def main() -> None:
    cli.run(_main, __doc__ or "", (_CONFIG, _TOPOLOGY, _ROW_LENGTH, _PAIRS, _FORMAT))


def _main() -> None:
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # read when the plugins load
    if not _TOPOLOGY.value:
        raise UserError(f"No --topology was given; choose one of {', '.join(targets.names())}, as v5p:2x2x2.")
    s = settings.from_dict(cli.get_config(_CONFIG))
    figures = estimate.plan(s, targets.find(_TOPOLOGY.value), _ROW_LENGTH.value, _PAIRS.value)
    print(json.dumps(figures) if _FORMAT.value == "json" else _text(figures))


def _text(figures: dict) -> str:
    lines = [f"{name:<16}{f'{value:.2f}' if isinstance(value, float) else value}" for name, value in figures.items()]
    verdict = (
        "fits" if figures["fits"] else ("does not fit: try more devices, --config.remat=full, or --config.lora.rank=64")
    )
    return "\n".join([*lines, verdict])


if __name__ == "__main__":
    main()
