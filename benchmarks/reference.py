"""Pairs per second of the reference pass: PyTorch the official way and tuned, our rows, our packed pairs; one run.

    python benchmarks/reference.py --out=reference.json

No gradients: what is timed is the log-probs of both answers under the model. The same converted weights and batch, and
the sum of each answer's log-probs equal before any timing. `features` is `packed` on a frozen tower's cached outputs.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import protocol
import torch
import torch.nn.functional as F
import torch_muffin
from absl import app, flags
from pairs import SMALL, random_pairs

from rlhfv_jax import sharding, steps
from rlhfv_jax.data import packing
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import IGNORE

_PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs of a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds, each of them A B B A.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")


def torch_pass(params: Any, batch: Any, official: bool) -> Callable[[], float]:
    model = torch_muffin.TorchMuffin(SMALL, recompute=False).eval()
    model.load(params)
    b = torch_muffin.arrays(batch, "cpu")
    labels = b["labels"].view(len(b["tokens"]), -1)

    def run() -> float:
        with torch.inference_mode():
            image = b["image"].repeat_interleave(2, 0) if official else b["image"]
            hidden = model(image, b["tokens"], b["attended"])[:, :-1]
            if official:
                found = model.lm.lm_head(hidden).float().log_softmax(-1)
                logps = torch.where(labels == IGNORE, 0.0, found.gather(-1, labels.clamp(min=0)[..., None])[..., 0])
            else:
                scored = labels != IGNORE
                logps = -F.cross_entropy(model.lm.lm_head(hidden[scored]).float(), labels[scored], reduction="none")
            return float(logps.sum())

    return run


def jax_pass(params: Any, batch: Any) -> Callable[[], float]:
    mesh = sharding.make_mesh(fsdp=1)
    forward = steps.reference(vlm.Muffin(SMALL))
    placed = sharding.put(batch, mesh)
    return lambda: float(np.asarray(forward(params, placed), np.float64).sum())


def main(_: list[str]) -> None:
    batch = random_pairs(_PAIRS.value)
    packed = packing.from_rows(batch, image_token=SMALL.image_token, queries=SMALL.tower.queries)
    model = vlm.Muffin(SMALL)
    params = jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0))
    features = np.asarray(jax.jit(lambda image: vlm.tower_outputs(model, params, image))(packed.image))
    contenders = {
        "official": torch_pass(params, batch, official=True),
        "tuned": torch_pass(params, batch, official=False),
        "rows": jax_pass(params, batch),
        "packed": jax_pass(params, packed),
        "features": jax_pass(params, packed._replace(image=features)),
    }
    protocol.gate({name: run() for name, run in contenders.items()}, 1e-5)
    found = {n: protocol.quartiles(s) for n, s in protocol.abba(contenders, _REPEATS.value).items()}
    official = found["official"]["median"]
    rows = [
        {
            "pass": name,
            "seconds": times["median"],
            "q1": times["q1"],
            "q3": times["q3"],
            "pairs/s": _PAIRS.value / times["median"],
            "x official": official / times["median"],
        }
        for name, times in found.items()
    ]
    protocol.report(f"reference log-probs of {_PAIRS.value} pairs", rows, _OUT.value)


if __name__ == "__main__":
    app.run(main)
