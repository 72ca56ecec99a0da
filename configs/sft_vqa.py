"""Supervised fine-tuning on answered questions, as VQAv2: the paper's second ingredient (section 3.2, Table 3).

    --config=sft_vqa.py          Muffin 13B; no hyper-parameters of this stage are published, so these are our choice
    --config=sft_vqa.py:mini     the same code on a model that trains on two CPU cores, from random weights

--config.data.path is the folder of a TFDS build of VQAv2 (docs/data.md) or a .jsonl file of questions and answers.
"""

import runpy
from pathlib import Path

import ml_collections

INSTRUCTIONS = (  # ours; the released data has four of its own
    "{question}\nAnswer with one word or a short phrase.",
    "{question} Give a short answer.",
    "Look at the image and answer briefly: {question}",
    "Answer in at most three words. {question}",
)

ddpo_config = runpy.run_path(str(Path(__file__).with_name("ddpo.py")))["get_config"]  # the config beside this one


def get_config(preset: str = "vqa") -> ml_collections.ConfigDict:
    presets = {"vqa": "rlhfv_paper", "mini": "mini"}
    if preset not in presets:
        raise ValueError(f"sft_vqa.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    c = ddpo_config(presets[preset])
    c.task = "sft"
    c.data.records = "questions"
    c.data.instructions = INSTRUCTIONS
    if preset == "vqa":
        c.optim.lr = 2e-5  # the released instruction tuning's
        c.optim.epochs = 1.0
        c.optim.batch_size = 512  # the released instruction tuning's
        c.optim.trainable = "full"
    return c
