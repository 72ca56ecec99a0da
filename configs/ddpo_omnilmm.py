"""Dense DPO for OmniLMM-12B (EVA-02 enormous at 448 px, a resampler with 64 queries, Zephyr-7B), on the same pairs.

    --config=ddpo_omnilmm.py          12B
    --config=ddpo_omnilmm.py:mini     the same code on a model that trains on two CPU cores, from random weights

All other keys, with their sources, are those of ddpo.py.
"""

import dataclasses
import runpy
from pathlib import Path

import ml_collections

from rlhfv_jax.models.eva import EvaConfig
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.omnilmm import OmniLMMConfig, omnilmm_12b

ddpo_config = runpy.run_path(str(Path(__file__).with_name("ddpo.py")))["get_config"]  # the config beside this one

MINI = OmniLMMConfig(
    tower=EvaConfig(56, 14, width=64, layers=2, heads=4, ffn=128, grid=2, init_std=None, unroll=2),
    llm=LlamaConfig(0, width=128, layers=2, heads=4, kv_heads=2, ffn=256, init_std=None, unroll=2, window=64),
    image_token=0,
    queries=16,
)


def get_config(preset: str = "12b") -> ml_collections.ConfigDict:
    presets = {"12b": omnilmm_12b(vocab_size=0, image_token=0), "mini": MINI}
    if preset not in presets:
        raise ValueError(f"ddpo_omnilmm.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    model = presets[preset]
    c = ddpo_config("mini" if preset == "mini" else "rlhfv_paper")
    with c.unlocked():
        c.model = ml_collections.ConfigDict(dataclasses.asdict(model))
    # The chat of Zephyr, written out: in front of {question}, between it and {answer}, the end of the turn, and after
    # {again} what stands in front of later questions. Change it to what the tokenizer of your checkpoint says.
    c.data.template = "<|user|>\n{question}</s>\n<|assistant|>\n{answer}</s>{again}\n<|user|>\n"
    c.optim.trainable = "frozen"  # our choice: 4.3 of the 11.6 billion parameters are the tower's
    return c
