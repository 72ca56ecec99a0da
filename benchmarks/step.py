"""Pairs per second of one DDPO update: PyTorch the official way and tuned, our rows, our packed pairs; one run.

    python benchmarks/step.py --out=step.json

The same weights, converted, the same batch, the same loss (checked before any timing). `official`: two rows a pair, an
image for each, all logits, checkpointing, AdamW. `tuned`: one image a pair, logits of the targets alone, nothing
recomputed, torch.compile where --compile says so. Ours run as they are, XLA with --xla, which the JSON repeats. Last,
the rate of one large matrix product with either library, and how much of it our steps reach.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import protocol
import torch
import torch_muffin
from absl import app, flags
from pairs import SMALL, random_pairs

from rlhfv_jax import flops, losses, optim, sharding, steps
from rlhfv_jax.data import packing
from rlhfv_jax.models import vlm

_PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs of a batch.")
_ANSWER = flags.DEFINE_float("answer", 94.0, "Mean tokens of an answer.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds, each of them A B B A.")
_COMPILE = flags.DEFINE_bool("compile", True, "torch.compile in the tuned step.")
# XLA as of jax 0.10 takes YNNPACK for matrix products on a CPU; Eigen's need fewer copies, and 512 bits the CPU has.
_XLA = flags.DEFINE_string(
    "xla", "--xla_cpu_experimental_ynn_fusion_type= --xla_cpu_prefer_vector_width=512", "XLA's flags, on a CPU."
)
_ONLY = flags.DEFINE_list("only", "official,tuned,rows,packed", "Contenders.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")
BETA, LR = 0.5, 5e-7
LOSS = steps.preference_loss(vlm.Vlm(SMALL), losses.Preference(BETA))


def torch_step(params: Any, batch: Any, name: str) -> Callable[[], float]:
    official = name == "official"
    model = torch_muffin.TorchMuffin(SMALL, recompute=official)
    model.load(params)
    b = torch_muffin.arrays(batch, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=not official)
    loss_fn = torch_muffin.official_loss if official else torch_muffin.tuned_loss
    if not official and _COMPILE.value:
        model.lm.model = torch.compile(model.lm.model)
        model.tower = torch.compile(model.tower)

    def step() -> float:
        loss = loss_fn(model, b, BETA)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def products(params: Any, batch: Any) -> int:
    """Operations of the matrix products of loss and gradient."""
    return flops.dot_flops(jax.make_jaxpr(jax.grad(lambda p: LOSS(p, batch)[0]))(params).jaxpr)


def jax_step(params: Any, batch: Any) -> Callable[[], float]:
    mesh = sharding.make_mesh(fsdp=1)
    with jax.set_mesh(mesh):
        updater = steps.Updater(optim.adamw(lambda _: LR), lambda _: LR, optim.trainable_mask(params, "full"))
        state = updater.init(jax.device_put(jax.tree.map(jnp.array, params), sharding.shardings(params, mesh)))
        update = updater.step(LOSS, mesh, state)
        placed = sharding.put(batch, mesh)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = update(state, placed)
            jax.block_until_ready(state)
            return float(metrics["loss"])

    return step


def ceilings(size: int = 2048, calls: int = 9) -> dict[str, float]:
    """Operations a second of a float32 product of two square matrices, as PyTorch and as XLA do it: medians."""
    ours = jnp.full((size, size), 0.5)
    theirs = torch.full((size, size), 0.5)
    multiply = jax.jit(jnp.matmul)
    contenders: dict[str, Callable[[], Any]] = {
        "torch": lambda: theirs @ theirs,
        "xla": lambda: multiply(ours, ours).block_until_ready(),
    }
    seconds = protocol.abba(contenders, calls)
    return {name: 2 * size**3 / protocol.quartiles(values)["median"] for name, values in seconds.items()}


def main(_: list[str]) -> None:
    # Read when JAX first computes; of two that differ the later counts, which is the user's.
    os.environ["XLA_FLAGS"] = f"{_XLA.value} {os.environ.get('XLA_FLAGS', '')}".strip()
    batch = random_pairs(_PAIRS.value, answer=_ANSWER.value)
    packed = packing.from_rows(batch, image_token=SMALL.image_token, queries=SMALL.tower.queries)
    params = jax.jit(lambda key: vlm.init(vlm.Vlm(SMALL), key))(jax.random.key(0))
    makers: dict[str, Callable[[], Callable[[], float]]] = {
        "official": lambda: torch_step(params, batch, "official"),
        "tuned": lambda: torch_step(params, batch, "tuned"),
        "rows": lambda: jax_step(params, batch),
        "packed": lambda: jax_step(params, packed),
    }
    contenders = {name: makers[name]() for name in _ONLY.value}
    first = {name: step() for name, step in contenders.items()}
    protocol.gate(first, 1e-5)
    seconds = protocol.abba(contenders, _REPEATS.value)
    medians = {name: protocol.quartiles(values) for name, values in seconds.items()}
    rows = [
        {
            "step": name,
            "seconds": found["median"],
            "q1": found["q1"],
            "q3": found["q3"],
            "pairs/s": _PAIRS.value / found["median"],
            **{f"x {other}": medians[other]["median"] / found["median"] for other in medians},
        }
        for name, found in medians.items()
    ]
    tokens = {"real rows": int(batch.lengths.sum()), "rows": batch.tokens.size, "packed": packed.tokens.size}
    rates, batches = ceilings(), {"rows": batch, "packed": packed}
    reached = {name: products(params, batches[name]) / medians[name]["median"] for name in batches if name in medians}
    print("GF/s:", {name: f"{rate / 1e9:.0f}" for name, rate in (rates | reached).items()})
    facts = {"losses": first, "tokens": tokens, "xla": os.environ["XLA_FLAGS"], "rates": rates | reached}
    protocol.report(f"one update of {_PAIRS.value} pairs", rows, _OUT.value, **facts)


if __name__ == "__main__":
    app.run(main)
