"""Random pairs with the paper's statistics, and the models that benchmarks run on."""

import numpy as np

from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.vlm import MuffinConfig
from rlhfv_jax.structs import IGNORE, PairBatch

QUERIES, PROMPT, SEGMENTS = 64, 132, 2.65  # image tokens; prompt with them (tokens); corrected segments of an answer
IMAGE_TOKEN, VOCABULARY = 4000, 4096

# Small enough for two CPU cores, large enough that matrix products take the time.
SMALL = MuffinConfig(
    Beit3Config(224, 16, width=192, layers=4, heads=4, ffn=768, queries=QUERIES, query_positions=QUERIES + 4, unroll=4),
    LlamaConfig(VOCABULARY, width=256, layers=6, heads=4, kv_heads=4, ffn=688, unroll=6),
    IMAGE_TOKEN,
)


def random_pairs(count: int, seed: int = 0, answer: float = 94.0, spread: float = 0.45, size: int = 224) -> PairBatch:
    """Answers of lognormal length (mean tokens, coefficient of variation), corrected in a few places; batch rows are
    padded to the longest, rounded up to 8."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(spread**2))
    rows, corrected = [], []
    for _ in range(count):
        prompt = rng.integers(3, 3900, PROMPT)
        prompt[52 : 52 + QUERIES] = IMAGE_TOKEN
        length = max(int(rng.lognormal(np.log(answer) - sigma**2 / 2, sigma)), 4)
        chosen = rng.integers(3, 3900, length)
        rejected, marks = chosen.copy(), np.zeros(length, bool)
        for start in rng.integers(0, length, max(rng.poisson(SEGMENTS), 1)):
            marks[start : start + rng.integers(1, 5)] = True
        rejected[marks] = rng.integers(3, 3900, marks.sum())
        more = rng.integers(0, 4)  # the two seldom have the same length
        tail = rng.integers(3, 3900, more)
        sides = [(chosen, marks), (np.concatenate([rejected, tail]), np.concatenate([marks, np.ones(more, bool)]))]
        rows.append([np.concatenate([prompt, text]) for text, _ in sides])
        corrected.append([mark for _, mark in sides])
    length = -(-max(len(row) for pair in rows for row in pair) // 8) * 8
    tokens = np.zeros((count, 2, length), np.int32)
    labels = np.full((count, 2, length - 1), IGNORE, np.int32)
    weights = np.zeros((count, 2, length - 1), np.float32)
    lengths = np.zeros((count, 2), np.int32)
    for b in range(count):
        for s in range(2):
            row = rows[b][s]
            lengths[b, s] = len(row)
            tokens[b, s, : len(row)] = row
            labels[b, s, PROMPT - 1 : len(row) - 1] = row[PROMPT:]
            weights[b, s, PROMPT - 1 : len(row) - 1] = np.where(corrected[b][s], 5.0, 1.0)
    return PairBatch(
        image=rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        tokens=tokens,
        labels=labels,
        weights=weights,
        lengths=lengths,
        ref_logps=np.where(labels == IGNORE, 0.0, -8.0 - rng.random(labels.shape)).astype(np.float32),
        row=np.arange(count, dtype=np.int32),
        valid=np.ones(count, bool),
    )
