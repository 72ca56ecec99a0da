"""How the cost of one update grows with pairs, length of answers and devices, for rows and packed pairs.

    python benchmarks/scaling.py --of=pairs      (1 to 64; rows of 64 pairs need about 22 GiB)
    python benchmarks/scaling.py --of=answer     (32 to 1024 tokens, two pairs)
    JAX_NUM_CPU_DEVICES=8 python benchmarks/scaling.py --of=devices

Memory is what the compiler says the program needs at once (temporaries) beside its state. Simulated devices share the
machine's cores: for them the table has the loss and the work of one device, and no speed.
"""

import sys
from typing import Any

import jax
import protocol
from absl import app, flags
from pairs import SMALL, random_pairs

from rlhfv_jax import losses, optim, sharding, steps
from rlhfv_jax.data import packing
from rlhfv_jax.models import vlm

_OF = flags.DEFINE_enum("of", "pairs", ["pairs", "answer", "devices"], "What grows.")
_MOST = flags.DEFINE_integer("most", 64, "The most pairs of a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Rounds, each of them A B B A.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")
GIB = 2**30


def measure(layout: str, pairs: int, answer: float, devices: int, timed: bool) -> dict[str, Any]:
    batch = random_pairs(pairs, answer=answer)
    if layout == "packed":
        sizes = {"image_token": SMALL.image_token, "queries": SMALL.tower.queries}
        batch = packing.from_rows(batch, groups=devices, **sizes)
    mesh = sharding.make_mesh(fsdp=devices)
    model = vlm.Muffin(SMALL)
    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0))
        updater = steps.Updater(optim.adamw(lambda _: 5e-7), lambda _: 5e-7, optim.trainable_mask(params, "full"))
        state = updater.init(jax.device_put(params, sharding.shardings(params, mesh)))
        placed = sharding.put(batch, mesh)
        step = updater.step(steps.preference_loss(model, losses.Preference(0.5)), mesh, state).lower(state, placed)
        step = step.compile()
        memory = step.memory_analysis()
        state, metrics = step(state, placed)
        found = {"layout": layout, "pairs": pairs, "answer": answer, "devices": devices}
        found |= {"loss": f"{float(metrics['loss']):.6f}", "tokens a device": batch.tokens.size // devices}
        found |= {"GF a device": step.cost_analysis()["flops"] / 1e9, "temp GiB": memory.temp_size_in_bytes / GIB}
        found["state GiB"] = memory.argument_size_in_bytes / GIB
        if timed:

            def call() -> None:
                nonlocal state
                state, _ = step(state, placed)
                jax.block_until_ready(state)

            seconds = protocol.abba({layout: call}, _REPEATS.value, warmup=1)[layout]
            found["pairs/s"] = pairs / protocol.quartiles(seconds)["median"]
    return found


def main(_: list[str]) -> None:
    cases = {
        "pairs": [(pairs, 94.0, 1) for pairs in (1, 2, 4, 8, 16, 32, 64) if pairs <= _MOST.value],
        "answer": [(2, answer, 1) for answer in (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)],
        "devices": [(8, 94.0, devices) for devices in (1, 2, 4, 8)],
    }[_OF.value]
    timed = _OF.value != "devices"
    rows = []
    for case in cases:
        rows += [measure(layout, *case, timed) for layout in ("rows", "packed")]
        print(*(list(row.values()) for row in rows[-2:]), sep="\n", file=sys.stderr, flush=True)
    assert timed or len({round(float(row["loss"]), 4) for row in rows}) == 1, "losses differ between devices"
    protocol.report(f"one update, by {_OF.value}", rows, _OUT.value)


if __name__ == "__main__":
    app.run(main)
