"""AdamW with warm-up and cosine decay, and which parameters train at all."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

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


def trainable_mask(params: Any, name: str) -> Any:
    """A tree of bools like `params`: true where the parameter trains. Names: full, frozen_A, frozen, lm_only."""
    if name not in FROZEN:
        raise UserError(f"optim.trainable={name!r} is not known; choose one of {', '.join(FROZEN)}.")
    pattern = FROZEN[name]
    return trees.map_with_path(lambda path, _: pattern is None or not re.match(pattern, path), params)


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
        return trees.map_with_path(lambda path, leaf: path.endswith(("kernel", "embedding")), params)

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decays),
    )


def global_norm(tree: Any) -> jax.Array:
    """float32[], the norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
