"""A checkpoint in PyTorch's form as a configuration and parameters, through the conversion table."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhfv_jax import trees
from rlhfv_jax.conversion import job, sizes, to_orbax
from rlhfv_jax.conversion.layout import Config


def load(source: Path, image_token: int | None = None, **options) -> tuple[Config, dict]:
    """The model, with this image token, and its parameters in float32; no tokenizer is asked for."""
    tensors, hints = job._open(source, job.Options(str(source), **options))
    plan = sizes.plan(tensors.shapes, hints)
    to_orbax.check_targets(plan)
    arrays = {}
    for entry in plan.entries:
        layers = [to_orbax.layer(tensors, entry, name, plan, np.dtype(np.float32)) for name in entry.names(plan.sizes)]
        arrays[entry.path] = np.stack(layers) if entry.stack else layers[0]
    config = plan.config if image_token is None else replace(plan.config, image_token=image_token)
    return config, trees.nest(arrays)
