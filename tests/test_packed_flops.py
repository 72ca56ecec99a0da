"""The work of a step on packed pairs and on rows, counted from the traced programs of the 13B model; nothing runs."""

import functools

import jax
import numpy as np
import pytest

from rlhfv_jax import losses, steps
from rlhfv_jax.data import packing
from rlhfv_jax.models import vlm
from rlhfv_jax.models.beit3 import Beit3
from rlhfv_jax.planning.estimate import dot_flops
from rlhfv_jax.structs import IGNORE, PairBatch

# The paper's pairs: 64.4 words and 2.65 corrected segments an answer, so the first edit is expected after 1/3.65 of it.
B, PROMPT, ANSWER, FIRST_EDIT = 8, 132, 94, 26
MODEL = vlm.Muffin(vlm.muffin_13b())


def typical_pairs() -> PairBatch:
    rng = np.random.default_rng(0)
    length = PROMPT + ANSWER
    tokens = rng.integers(10, 31_000, (B, 2, length)).astype(np.int32)
    tokens[:, 1, : PROMPT + FIRST_EDIT] = tokens[:, 0, : PROMPT + FIRST_EDIT]
    tokens[:, 1, PROMPT + FIRST_EDIT] = tokens[:, 0, PROMPT + FIRST_EDIT] + 1
    tokens[:, :, 51:115] = MODEL.config.image_token
    labels = np.where(np.arange(length - 1) >= PROMPT - 1, tokens[:, :, 1:], IGNORE).astype(np.int32)
    weights = (labels != IGNORE).astype(np.float32)
    lengths = np.full((B, 2), length, np.int32)
    image = np.zeros((B, 448, 448, 3), np.uint8)
    row, valid = np.arange(B, dtype=np.int32), np.ones(B, bool)
    return PairBatch(image, tokens, labels, weights, lengths, np.zeros_like(weights), row, valid)


@functools.cache
def params():
    return jax.eval_shape(lambda key: vlm.init(MODEL, key), jax.random.key(0))


def work(batch, image_twice: bool = False) -> int:
    """Matrix products of loss and gradient. `image_twice`: every row has an encoding of its own, as is usual."""
    loss = steps.preference_loss(MODEL, losses.Preference(0.5))

    def twice(p, b):
        rows = b.tokens.reshape(2 * B, -1), b.labels.reshape(2 * B, -1), b.lengths.reshape(2 * B)
        logps = vlm.log_probs(MODEL, p, np.repeat(b.image, 2, axis=0), *rows).reshape(b.labels.shape)
        return losses.preference(logps, b.ref_logps, b.weights, b.valid, losses.Preference(0.5))

    return dot_flops(jax.make_jaxpr(jax.grad(twice if image_twice else loss, has_aux=True))(params(), batch).jaxpr)


def vision(images: int) -> int:
    tower = Beit3(MODEL.config.tower)
    shapes = params()["tower"], jax.ShapeDtypeStruct((images, 448, 448, 3), np.float32)
    function = jax.grad(lambda p, image: tower.apply({"params": p}, image).sum())
    return dot_flops(jax.make_jaxpr(function)(*shapes).jaxpr)


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    pairs = typical_pairs()
    packed = packing.from_rows(pairs, image_token=MODEL.config.image_token, queries=64)
    return {"official": work(pairs, image_twice=True), "rows": work(pairs), "packed": work(packed)}


def test_packed_pairs_take_at_most_two_thirds_of_the_work_of_rows(counted):
    assert counted["packed"] <= 0.65 * counted["official"]
    assert counted["packed"] <= 0.67 * counted["rows"]  # no padding in either, and one encoding a pair in both


def test_the_image_is_encoded_once_a_pair(counted):
    """All that rows with one encoding a pair save is half of the tower's and the projector's work."""
    saved, half = counted["official"] - counted["rows"], vision(2 * B) - vision(B)
    projector = 3 * 2 * B * 64 * 1024 * 5120
    assert vision(2 * B) == 2 * vision(B)
    assert saved == pytest.approx(half + projector, rel=0.02)
