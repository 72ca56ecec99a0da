"""What happens to scores between the model and the choice of a token, and what ends an answer: pure functions.

R rows, V' the padded vocabulary. All scores are float32; what must not be chosen is -inf.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhfv_jax.decoding.settings import GenerationSettings


class Controls(NamedTuple):
    """The settings that a compiled program takes as arrays, so that other values compile nothing new."""

    temperature: jax.Array  # float32[]
    top_k: jax.Array  # int32[], V' for no limit
    top_p: jax.Array  # float32[]
    repetition_penalty: jax.Array  # float32[]
    length_penalty: jax.Array  # float32[]
    end_ids: jax.Array  # int32[E], tokens that end an answer
    stop_table: jax.Array  # uint8[N, M + 1, V'], see `stops`
    stop_accepts: jax.Array  # uint8[N], the state in which a stop string is complete


def controls(
    settings: GenerationSettings, vocabulary: int, end_ids: Sequence[int], stop_table: tuple[jax.Array, jax.Array]
) -> Controls:
    """The arrays of the settings, V' = `vocabulary`; stop strings have become `end_ids` or the table.

    `stop_table` as `StopTable`: uint8[N, M + 1, V'] and uint8[N].
    """
    return Controls(
        temperature=jnp.float32(settings.temperature),
        top_k=jnp.int32(settings.top_k or vocabulary),
        top_p=jnp.float32(settings.top_p),
        repetition_penalty=jnp.float32(settings.repetition_penalty),
        length_penalty=jnp.float32(settings.length_penalty),
        end_ids=jnp.asarray(end_ids, jnp.int32),
        stop_table=stop_table[0],
        stop_accepts=stop_table[1],
    )


def no_stop_strings() -> tuple[jax.Array, jax.Array]:
    """The table of no strings, for programs that have none at all. uint8[0, 1, 1] and uint8[0]."""
    return jnp.zeros((0, 1, 1), jnp.uint8), jnp.zeros(0, jnp.uint8)


def seen_tokens(tokens: jax.Array, lengths: jax.Array, vocabulary: int) -> jax.Array:
    """bool[R, V'], which tokens stand in the right-padded prompts int32[R, T]."""
    rows, width = tokens.shape
    real = jnp.arange(width) < lengths[:, None]
    where = jnp.where(real, tokens, vocabulary)  # padding falls outside and is dropped
    return jnp.zeros((rows, vocabulary), bool).at[jnp.arange(rows)[:, None], where].set(True, mode="drop")


def penalize(scores: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Scores of seen tokens divided by the penalty where positive, multiplied where negative (Keskar et al. 2019).

    For logits and for log-probs alike, though for log-probs the penalty has a meaning of its own; as in Hugging Face.

    `scores` float32[R, V'], `seen` bool[R, V'], the penalty a scalar.
    """
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def limit(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Keeps the `top_k` best tokens, and of them those that come before a share `top_p` of their probability is full.

    Ties with the last token kept are kept too, and at least one token is, as in Hugging Face; the rest becomes -inf.

    `logits` float32[R, V']; both limits are scalars.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    kept = jnp.arange(ordered.shape[-1]) < top_k
    probs = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept &= (before < top_p).at[..., 0].set(True)
    last = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < last, -jnp.inf, logits)


def advance_stops(states: jax.Array, tokens: jax.Array, controls: Controls) -> tuple[jax.Array, jax.Array]:
    """The next states of the stop strings' automata, uint8[..., N], and where one of them is complete: bool[...]."""
    strings = jnp.arange(controls.stop_table.shape[0])
    states = controls.stop_table[strings, states, tokens[..., None]]
    return states, jnp.any(states == controls.stop_accepts, axis=-1)


def ends(tokens: jax.Array, controls: Controls) -> jax.Array:
    """bool[...], which tokens are `end_ids`."""
    return jnp.any(tokens[..., None] == controls.end_ids, axis=-1)
