"""Dense DPO on preference pairs.

    --config=ddpo.py                   the paper: Muffin 13B, section 4.1
    --config=ddpo.py:release_2023_12   what the released script ran in December 2023, quirks included
    --config=ddpo.py:release_2024_02   what it has run since February 2024, on more data
    --config=ddpo.py:mini              the same code on a model that trains on two CPU cores, from random weights

Any key can be overridden, as in --config.optim.lr=1e-6.
"""

import dataclasses

import ml_collections

from rlhfv_jax.models import vlm


def get_config(preset: str = "rlhfv_paper") -> ml_collections.ConfigDict:
    presets = {
        "rlhfv_paper": rlhfv_paper,
        "release_2023_12": release_2023_12,
        "release_2024_02": release_2024_02,
        "mini": mini,
    }
    if preset not in presets:
        raise ValueError(f"ddpo.py has no preset {preset!r}; choose one of {', '.join(presets)}.")
    return presets[preset]()


def rlhfv_paper() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "ddpo"  # or "sft": supervised fine-tuning on the chosen answers, for a base or a baseline
    c.init_from = ""  # a checkpoint (the policy starts there, and it is the reference), or "random"
    c.model = dataclasses.asdict(vlm.muffin_13b(vocab_size=0, image_token=0))  # these two follow the tokenizer
    c.tokenizer = ""  # a sentencepiece .model file; empty: the one stored with init_from
    c.dtype = "bfloat16"  # of the computation; parameters and optimizer state are float32
    c.remat = "named"  # activations kept for the backward pass: none (all), named, full (recompute)
    c.attention = "xla"  # the language model's; or cudnn, splash, auto (those where rows are long): docs/performance.md
    c.seed = 42  # the released script's

    c.data = ml_collections.ConfigDict()
    c.data.path = ""  # .parquet (published schema), .jsonl, .json, Muffin's .tsv, or the folder of a TFDS build
    c.data.eval_path = ""  # rows of the same kind to evaluate on, optional
    c.data.records = "pairs"  # what path holds; "questions": answered questions, for task=sft
    c.data.origins = ""  # only rows of these origin_dataset values, as "VQAv2,GQA"; empty: all
    c.data.count = 0  # only the first rows of these; 0: all (the paper had 1.4k pairs, the published set has grown)
    c.data.spans = "auto"  # corrected tokens: the annotator's segments where there are any; "diff": never
    c.data.template = "muffin"  # or vicuna_v1_1, llava_v1, words
    c.data.instructions = ()  # for questions: texts with {question} in them, one is picked for each row
    c.data.max_length = 2048  # the released script's
    c.data.too_long = "error"  # our choice; "drop": leave such rows out, "truncate": cut the answer; both are counted
    c.data.augment = "none"  # section 3.2; for Table 3's ablation: "crop" (random windows), "untrustworthy" (released)
    c.data.flip = "safe"  # never mirror an image whose text says left or right; "any": released script
    c.data.reference = "compute"  # the reference's log-probs; "stored": those in the file
    c.data.reference_augment = "none"  # of the images that the reference sees
    c.data.reference_dtype = ""  # of the reference's computation; empty: as dtype
    c.data.layout = "rows"  # "packed": what both answers share is computed once; docs/performance.md, our choice
    c.data.image_features = "compute"  # "cached": a frozen tower's, once; docs/performance.md, our choice
    c.data.buckets = 1  # number of static row lengths, our choice; more pad less and compile more

    c.ddpo = ml_collections.ConfigDict()
    c.ddpo.gamma = 5.0  # weight of corrected tokens, section 4.1
    c.ddpo.beta = 0.5  # section 4.1
    c.ddpo.average = True  # divide a response's score by the sum of its weights, equation 5
    c.ddpo.loss = "sigmoid"  # equation 3; or "ipo", "hinge": this and the next three are our options, docs/losses.md
    c.ddpo.label_smoothing = 0.0  # share of pairs whose answers are thought to be swapped
    c.ddpo.reference_free = False  # without the reference's log-probs
    c.ddpo.nll = 0.0  # weight of the chosen answer's negative log-likelihood per token
    c.ddpo.hunks = "all"  # "corrected segments", section 3.1: insertions and deletions too; "replace": released script
    c.ddpo.min_match = 1  # equal runs shorter than this count as corrected; 3: released script
    c.ddpo.unit = "token"  # what is compared: token, word, or span (the annotator's segments and nothing else)
    c.ddpo.diff_over = "response"  # "row": prompt and tail too, released script
    c.ddpo.autojunk = False  # difflib's frequency rule; True: released script
    c.ddpo.label_mask = "answer"  # y of section 3.1 and one end of turn; "muffin": some of the prompt too, released
    c.reference_cache = ""  # a file that `reference` wrote for this data and init_from; empty: computed at the start

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adamw"  # or "muon", for small models from random weights
    c.optim.lr = 5e-7  # section 4.1
    c.optim.epochs = 7.0  # section 4.1
    c.optim.steps = 0  # instead of epochs
    c.optim.batch_size = 32  # section 4.1
    c.optim.warmup = 0.03  # share of the steps; from here on as the released script, the paper is silent
    c.optim.weight_decay = 0.0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.clip = 1.0  # global gradient norm
    c.optim.trainable = "frozen_A"  # full, frozen_A (BEiT-3's image branch fixed), frozen (tower fixed), lm_only
    c.optim.memory = "fp32"  # of weights and moments; or split, split_sr: docs/scale.md, our choice

    c.lora = ml_collections.ConfigDict()  # our choice throughout: the paper and the release train whole matrices
    c.lora.rank = 0  # 0: no adapters, the parameters themselves train
    c.lora.alpha = 16.0  # adapters count alpha / rank times
    c.lora.targets = r"llm/layers/(attention/[qkvo]|mlp/(gate|up|down))/"  # searched for in the paths of the kernels

    c.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: all devices that are left
    c.gradient_accumulation = 1  # parts of a batch, computed one after another; the update is that of the whole batch

    c.workers = 0  # processes that decode images; 0: threads. Our choice
    c.log_every = 10  # steps between host syncs; every step gets its line in metrics.jsonl
    c.save_every = 100
    c.eval_every = 0  # 0: only at the end
    c.eval_share = 0.0  # share of data.path's rows held out to evaluate on, by a hash of their ids; our choice
    c.best = ""  # also keep the checkpoint that is best by this, as "eval/rewards/accuracies", in best/; our choice
    c.keep = 2  # checkpoints
    c.grace = 300.0  # seconds from SIGTERM to the end of the process, its state saved or not
    c.compilation_cache = "auto"  # compiled/ beside the run's directory; or another directory, or "" for none

    c.evals = ml_collections.ConfigDict()  # questions that the model answers while it trains; our choice throughout
    c.evals.questions = ()  # as ("pope=dev_pope.jsonl",): a benchmark without a judge is scored, any name is written
    c.evals.image_dir = ""  # where their images are; empty: beside each file
    c.evals.references = ""  # the folder with the benchmarks' official files, as for `evaluate`
    c.evals.every = 0  # steps; 0: as eval_every
    c.evals.count = 0  # only the first questions of each file; 0: all
    c.evals.max_new_tokens = 256
    c.evals.num_beams = 1
    c.evals.batch_size = 32  # rows (questions times beams) decoded together
    return c


def release_2023_12() -> ml_collections.ConfigDict:
    """The released script as of December 2023; its reference passes had images and model in float16."""
    c = rlhfv_paper()
    c.data.spans = "diff"
    c.data.too_long = "truncate"
    c.data.augment = "untrustworthy"
    c.data.flip = "any"
    c.data.reference_dtype = "float16"
    c.ddpo.average = False
    c.ddpo.hunks = "replace"
    c.ddpo.min_match = 3
    c.ddpo.diff_over = "row"
    c.ddpo.autojunk = True
    c.ddpo.label_mask = "muffin"
    c.optim.epochs = 0.0
    c.optim.steps = 320
    c.optim.trainable = "full"  # the script names parameters to freeze, and under FSDP no name matches
    return c


def release_2024_02() -> ml_collections.ConfigDict:
    """The released script since February 2024: the reference sees a random view of each image, once."""
    c = release_2023_12()
    c.data.reference_augment = "untrustworthy"
    c.data.reference_dtype = "bfloat16"
    c.ddpo.gamma = 1.1
    c.ddpo.beta = 0.1
    c.optim.steps = 2160
    c.optim.batch_size = 8
    return c


def mini() -> ml_collections.ConfigDict:
    c = rlhfv_paper()
    c.init_from = "random"
    c.model = dataclasses.asdict(vlm.muffin_mini(vocab_size=0, image_token=0))
    c.dtype = "float32"
    c.remat = "none"
    c.data.max_length = 512
    c.optim.lr = 1e-3  # random weights, so nothing is there to preserve
    c.optim.epochs = 0.0
    c.optim.steps = 100
    c.optim.batch_size = 16
    c.optim.trainable = "full"
    c.log_every = 1
    c.save_every = 20
    return c
