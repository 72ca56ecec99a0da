"""The paper in miniature: from pixels to a report, on two CPU cores. World and annotator are synthetic.

--config=demo.py           the whole pipeline
--config=demo.py:smoke     every stage for a few steps: shows that the code runs, its numbers mean nothing
"""

import dataclasses

import ml_collections

from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.vlm import MuffinConfig


def get_config(preset: str = "demo") -> ml_collections.ConfigDict:
    presets = {"demo": demo, "smoke": smoke}
    if preset not in presets:
        raise ValueError(f"demo.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    return presets[preset]()


def demo() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "miniature"
    c.seed = 0  # of everything: world, weights, order, sampling
    c.seeds = 1  # whole pipelines, with this seed and the next ones, each in a folder of its own
    # Muffin's own modules, small; the convolutional stem, loud positions and Muon are for learning fast from nothing.
    tower = Beit3Config(
        64, 16, 96, 2, 4, 192, queries=16, query_positions=32, init_std=None, position_std=0.5, stem="conv"
    )
    llm = LlamaConfig(0, width=96, layers=2, heads=4, kv_heads=4, ffn=256, init_std=None, unroll=2)
    c.model = dataclasses.asdict(MuffinConfig(tower, llm, image_token=0))  # the tokenizer decides vocabulary and token

    # Text that does not match its image is what teaches the base to hallucinate (paper, section 3.2).
    c.noise = ml_collections.ConfigDict()
    c.noise.absent = 0.18  # share of mentions that name a core object of the place which is not there
    c.noise.vqa = 0.1  # share of short answers given without a look

    c.vision = optimizer("muon", lr=1e-2, steps=400, batch_size=32)  # tower: name what each cell shows
    c.sft = optimizer("muon", lr=1e-2, steps=2400, batch_size=16)  # base: images, each with a caption and questions
    c.it_vqa = optimizer("adamw", lr=3e-4, steps=180, batch_size=16)  # clean questions

    c.pairs = ml_collections.ConfigDict()
    c.pairs.prompts = 2600  # scenes whose answers are sampled for correction
    c.pairs.count = 1400  # pairs kept, as many as the paper has
    c.pairs.temperature = 1.0
    c.pairs.deletions = False  # take wrong objects out instead of replacing them: teaches a model to stop early

    # β multiplies an averaged score here: 10 is near 0.5 times the mean number of scored tokens (24), so that the
    # brake towards the reference is about as strong as in DPO on sums. The literal β is the paper's 0.5. Learning rates
    # and β were chosen on the development split (docs/miniature.md).
    c.ddpo = ml_collections.ConfigDict({"gamma": 5.0, "beta": 10.0, "average": True, "lr": 2e-4})
    c.ddpo_literal = ml_collections.ConfigDict({"gamma": 5.0, "beta": 0.5, "average": True, "lr": 1e-4})
    c.dpo = ml_collections.ConfigDict({"gamma": 1.0, "beta": 0.5, "average": False, "lr": 2e-4})
    c.align = optimizer("adamw", lr=0.0, steps=131, batch_size=32)  # each run has its own learning rate
    c.scaling = True  # DDPO on 200, 400 and 800 pairs too (paper, Fig. 2)
    c.ablations = False  # the paper's Table 3: IT-VQA then DDPO, DPO in its place, and both stages on cropped images

    c.save_every = 100  # steps between checkpoints, in every stage
    c.compilation_cache = "auto"  # compiled/ beside the working directory; or another directory, or "" for none

    c.evaluation = ml_collections.ConfigDict()
    c.evaluation.split = "test"  # or "dev": for choosing settings
    c.evaluation.scenes = 1000
    c.evaluation.temperature = 0.7
    return c


def optimizer(name: str, lr: float, steps: int, batch_size: int) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": name,
            "lr": lr,
            "epochs": 0.0,
            "steps": steps,
            "batch_size": batch_size,
            "warmup": 0.05,
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "clip": 1.0,
            "trainable": "full",
            "memory": "fp32",
        }
    )


def smoke() -> ml_collections.ConfigDict:
    c = demo()
    c.model.tower.layers = c.model.llm.layers = c.model.llm.unroll = 1  # less to compile
    c.vision.steps = 20
    c.sft.steps = 60
    c.it_vqa.steps = 2
    c.align.steps = 2
    c.save_every = 10
    c.scaling = False
    c.pairs.prompts = 250
    c.pairs.count = 8
    c.evaluation.scenes = 250
    return c
