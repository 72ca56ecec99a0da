"""One round of the loop on the miniature (docs/loop.md): DDPO on corrections that came out of `annotate`.

    --config=loop.py --config.init_from=runs/mini/base --config.data.path=pairs.parquet

Model and settings are those of demo.py; all other keys, with their sources, are those of ddpo.py.
"""

import runpy
from pathlib import Path

import ml_collections

ddpo_config, demo_config = (
    runpy.run_path(str(Path(__file__).with_name(name)))["get_config"] for name in ("ddpo.py", "demo.py")
)


def get_config(preset: str = "demo") -> ml_collections.ConfigDict:
    """`demo` or `smoke`, as the model was trained."""
    demo = demo_config(preset)
    c = ddpo_config("mini")
    c.init_from = ""  # the model whose answers were corrected
    c.model = demo.model
    c.data.template = "words"
    c.data.max_length = 64
    c.ddpo.gamma, c.ddpo.beta, c.ddpo.average = demo.ddpo.gamma, demo.ddpo.beta, demo.ddpo.average
    c.optim = demo.align  # as many steps as there, however many pairs
    c.optim.lr = demo.ddpo.lr
    c.mesh.fsdp = 1
    c.log_every = 20
    return c
