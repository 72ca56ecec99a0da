"""Dense DPO for LLaVA 1.5 (CLIP ViT-L/14 at 336 px, a projector of two layers, Vicuna v1.5), on the same pairs.

    --config=ddpo_llava15.py          7B; 576 image tokens
    --config=ddpo_llava15.py:13b      13B
    --config=ddpo_llava15.py:mini     the same code on a model that trains on two CPU cores, from random weights

All other keys, with their sources, are those of ddpo.py.
"""

import dataclasses
import runpy
from pathlib import Path

import ml_collections

from rlhfv_jax.models import llava

beside = Path(__file__).parent
ddpo_config = runpy.run_path(str(beside / "ddpo.py"))["get_config"]
mini = runpy.run_path(str(beside / "ddpo_llava.py"))["mini"]


def get_config(preset: str = "7b") -> ml_collections.ConfigDict:
    presets = {
        "7b": llava.llava15_7b(vocab_size=0, image_token=0),
        "13b": llava.llava15_13b(vocab_size=0, image_token=0),
        "mini": mini(llava.Llava15Config),
    }
    if preset not in presets:
        raise ValueError(f"ddpo_llava15.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    model = presets[preset]
    c = ddpo_config("mini" if preset == "mini" else "rlhfv_paper")
    with c.unlocked():
        c.model = ml_collections.ConfigDict(dataclasses.asdict(model))
    c.data.template = model.template
    c.optim.trainable = "frozen"  # the tower stays as it is, in LLaVA's own training too
    return c
