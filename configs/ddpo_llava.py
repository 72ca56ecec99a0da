"""Dense DPO for LLaVA 1.0 (CLIP ViT-L/14 at 224 px, a linear projector, Vicuna-7B), on the same pairs.

    --config=ddpo_llava.py          7B
    --config=ddpo_llava.py:mini     the same code on a model that trains on two CPU cores, from random weights

All other keys, with their sources, are those of ddpo.py.
"""

import dataclasses
import runpy
from pathlib import Path

import ml_collections

from rlhfv_jax.models import llava
from rlhfv_jax.models.clip import ClipConfig
from rlhfv_jax.models.llama import LlamaConfig

ddpo_config = runpy.run_path(str(Path(__file__).with_name("ddpo.py")))["get_config"]  # the config beside this one


def get_config(preset: str = "7b") -> ml_collections.ConfigDict:
    presets = {"7b": llava.llava_7b(vocab_size=0, image_token=0), "mini": mini(llava.LlavaConfig)}
    if preset not in presets:
        raise ValueError(f"ddpo_llava.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    model = presets[preset]
    c = ddpo_config("mini" if preset == "mini" else "rlhfv_paper")
    with c.unlocked():
        c.model = ml_collections.ConfigDict(dataclasses.asdict(model))
    c.data.template = model.template
    c.optim.trainable = "frozen"  # the tower stays as it is, in LLaVA's own training too
    return c


def mini(family: type) -> llava.LlavaConfig:
    """The same modules, small enough for two CPU cores; 16 image tokens."""
    return family(
        tower=ClipConfig(56, 14, width=64, layers=3, heads=4, ffn=128, init_std=None),
        llm=LlamaConfig(0, width=128, layers=2, heads=4, kv_heads=4, ffn=256, init_std=None, unroll=2),
        image_token=0,
    )
