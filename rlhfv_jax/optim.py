"""AdamW (Loshchilov and Hutter 2019) with warm-up and cosine decay, and which parameters train at all."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from rlhfv_jax import trees
from rlhfv_jax.errors import UserError

# Paths that stay frozen under each name. The paper does not say what trains; the released code meant to freeze
# BEiT-3's image branch (A) and patch embedding, which is `frozen_A`.
FROZEN: dict[str, str | None] = {
    "full": None,
    "frozen_A": r"tower/(.*/)?A/|tower/(patch/|class_token|positions/A)",
    "frozen": r"tower/",
    "lm_only": r"tower/|projector/",
}

# Under this name lies what belongs to a checkpoint and never trains: constants, and what the model does not read.
FIXED = r"(^|.*/)fixed_"

MATRICES = ("kernel", "embedding", "lora_a", "lora_b")  # the ends of the paths that weight decay applies to


def trainable_mask(params: Any, name: str) -> Any:
    """A tree of bools like `params`: true where the parameter trains. Names: full, frozen_A, frozen, lm_only.

    Where there are LoRA adapters, they alone train; raises UserError on one beside a parameter that `name` freezes.
    """
    if name not in FROZEN:
        raise UserError(f"optim.trainable={name!r} is not known; choose one of {', '.join(FROZEN)}.")
    pattern = FROZEN[name]
    mask = {
        path: not re.match(FIXED, path) and (pattern is None or not re.match(pattern, path))
        for path, _ in trees.paths(params)
    }
    if name == "frozen_A" and not any("/A/" in path for path in mask):
        raise UserError("optim.trainable=frozen_A is about BEiT-3's image branch; this model's tower has no branches.")
    adapted = [path for path in mask if path.endswith(("/lora_a", "/lora_b"))]
    if frozen := [path for path in adapted if not mask[path]]:
        raise UserError(f"lora.targets adapts {frozen[0]}, which optim.trainable={name} freezes; change one of them.")
    return trees.map_with_path(lambda path, _: path in adapted if adapted else mask[path], params)


def schedule(lr: float, total_steps: int, warmup: float) -> optax.Schedule:
    """Linear warm-up over the first `warmup` share of the steps, then a cosine to zero, as Hugging Face's trainer."""
    warmup_steps = min(int(-(-warmup * total_steps // 1)), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup_steps else lr, lr, warmup_steps, total_steps)


def adamw(
    learning_rate: optax.Schedule | float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a global norm of `clip`; matrices decay, vectors (norms, biases) do not."""

    def decays(params: Any) -> Any:
        return trees.map_with_path(lambda path, _: path.endswith(MATRICES), params)

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decays),
    )


def muon(
    learning_rate: optax.Schedule, *, b2: float, eps: float, clip: float, adam_share: float = 0.2
) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, the projector and the stem, Adam at `adam_share` of the rate for the rest.

    For small models from random weights, which it trains in far fewer steps; not used by the paper.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.contrib.muon(
            learning_rate,
            adam_b2=b2,
            eps=eps,
            adam_learning_rate=lambda step: adam_share * jnp.asarray(learning_rate(step)),
            muon_weight_dimension_numbers=lambda params: trees.map_with_path(_matrix_axes, params),
        ),
    )


def _matrix_axes(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a kernel are its input and its output; None for what is no linear map between hidden spaces."""
    if not path.endswith("/kernel") or path.startswith("llm/head"):
        return None
    layers, inputs = trees.kernel_axes(path, leaf.ndim)
    axes = tuple(range(layers, leaf.ndim))  # a stacked layer axis is a batch of matrices
    return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])


def global_norm(tree: Any) -> jax.Array:
    """float32[], the norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
