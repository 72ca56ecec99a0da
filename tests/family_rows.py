"""Pairs of random token rows for a model of any family, without a tokenizer."""

import numpy as np

from rlhfv_jax.models.vlm import VlmConfig
from rlhfv_jax.structs import IGNORE, PairBatch


def pair_batch(config: VlmConfig, pairs: int, length: int, seed: int = 0) -> PairBatch:
    """An image and a question each, then two answers that part after a shared beginning; lengths differ."""
    rng = np.random.default_rng(seed)
    size, first = config.tower.image_size, config.image_tokens + 4
    tokens = rng.integers(3, 90, (pairs, 2, length)).astype(np.int32)
    tokens[:, 1, : first + 3] = tokens[:, 0, : first + 3]
    tokens[:, :, 1 : 1 + config.image_tokens] = config.image_token
    lengths = rng.integers(length - 3, length + 1, (pairs, 2)).astype(np.int32)
    labels = np.full((pairs, 2, length - 1), IGNORE, np.int32)
    place = np.arange(length - 1)
    scored = (place >= first) & (place < lengths[..., None] - 1)
    labels[scored] = tokens[:, :, 1:][scored]
    return PairBatch(
        image=rng.integers(0, 256, (pairs, size, size, 3)).astype(np.uint8),
        tokens=tokens,
        labels=labels,
        weights=np.where(scored, rng.choice([1.0, 5.0], scored.shape), 0.0).astype(np.float32),
        lengths=lengths,
        ref_logps=np.zeros(labels.shape, np.float32),
        row=np.arange(pairs, dtype=np.int32),
        valid=np.ones(pairs, bool),
    )
