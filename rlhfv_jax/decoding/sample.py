"""Greedy decoding and sampling: a documented state, one pure step, and two programs around it.

`start` reads the prompts and chooses the first tokens; `advance` takes steps until every row has ended or a given step
is reached. Calling it once gives whole answers, calling it step by step gives a stream, and it is the same program.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhfv_jax.decoding import processors
from rlhfv_jax.decoding.forward import Cache, Inputs, Network, extend
from rlhfv_jax.decoding.processors import Controls
from rlhfv_jax.decoding.settings import GenerationSettings


class Mode(NamedTuple):
    """What a compiled program does at all; how much of it is in `Controls`."""

    sampled: bool  # else greedy
    limited: bool  # by top_k or top_p
    penalized: bool
    log_probs: bool
    rows: int  # answers to each prompt


def mode(settings: GenerationSettings) -> Mode:
    """The mode of settings without beams."""
    return Mode(
        sampled=settings.temperature > 0,
        limited=settings.top_k > 0 or settings.top_p < 1,
        penalized=settings.repetition_penalty != 1,
        log_probs=settings.log_probs,
        rows=settings.num_answers,
    )


class DecodingState(NamedTuple):
    """What one step reads and writes; R rows, N the most new tokens, V' the padded vocabulary."""

    step: jax.Array  # int32[], tokens chosen so far
    limit: jax.Array  # int32[], how many there may be, at most N
    tokens: jax.Array  # int32[R, N], the answers, 0 after their ends
    log_probs: jax.Array  # float32[R, N], of those tokens; N = 0 where nobody asks
    lengths: jax.Array  # int32[R], tokens of the answers, the one that ends them included
    done: jax.Array  # bool[R], the answer has ended
    last: jax.Array  # int32[R], the token to feed next
    stops: jax.Array  # uint8[R, stop strings], the states of their automata
    seen: jax.Array  # bool[R, V'], tokens of prompt and answer so far; V' = 0 without a penalty
    prompt_lengths: jax.Array  # int32[R]
    seeds: jax.Array  # uint32[R]
    cache: Cache


class Progress(NamedTuple):
    """What a state says of its answers, R of them."""

    tokens: jax.Array  # int32[R, N]
    lengths: jax.Array  # int32[R]
    log_probs: jax.Array  # float32[R, N], or N = 0
    done: jax.Array  # bool[R], nothing about the answer will change
    ended: jax.Array  # bool[R], where done: by an end token or a stop string
    scores: jax.Array | None  # float32[R], what beams are ranked by


class Programs(NamedTuple):
    """`start(params, inputs, seeds, controls, limit, slots=N) -> state`, seeds uint32[R], slots static.

    `advance(params, state, controls, until, width=T) -> state`, which consumes the state it is given.
    `progress(state, answers) -> Progress`, for so many answers to a prompt.
    """

    start: Any
    advance: Any
    progress: Any


def programs(network: Network, mode: Mode) -> Programs:
    """The jitted programs; they compile once for every set of shapes."""
    return Programs(
        jax.jit(partial(_start, network, mode), static_argnames="slots"),
        jax.jit(partial(_advance, network, mode), static_argnames="width", donate_argnames="state"),
        _progress,
    )


def _progress(state: DecodingState, answers: int) -> Progress:
    return Progress(state.tokens, state.lengths, state.log_probs, state.done, state.done, None)


def _start(
    network: Network,
    mode: Mode,
    params: Any,
    inputs: Inputs,
    seeds: jax.Array,
    controls: Controls,
    limit: jax.Array,
    *,
    slots: int,
) -> DecodingState:
    logits, cache = network.prefill(params, inputs)
    logits, lengths = (jnp.repeat(x, mode.rows, axis=0) for x in (logits, inputs.lengths))
    rows = logits.shape[0]
    seen = jnp.zeros((rows, 0), bool)
    if mode.penalized:
        seen = processors.seen_tokens(inputs.tokens, inputs.lengths, logits.shape[1])
        seen = jnp.repeat(seen, mode.rows, axis=0)
    state = DecodingState(
        step=jnp.zeros((), jnp.int32),
        limit=jnp.asarray(limit, jnp.int32),
        tokens=jnp.zeros((rows, slots), jnp.int32),
        log_probs=jnp.zeros((rows, slots if mode.log_probs else 0)),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
        stops=jnp.zeros((rows, controls.stop_table.shape[0]), jnp.uint8),
        seen=seen,
        prompt_lengths=lengths,
        seeds=seeds,
        cache=extend(cache, mode.rows, slots),
    )
    return _choose(mode, state, logits, controls)


def _advance(
    network: Network, mode: Mode, params: Any, state: DecodingState, controls: Controls, until: jax.Array, *, width: int
) -> DecodingState:
    def step(state: DecodingState) -> DecodingState:
        slot = width + state.step - 1  # of the token chosen last
        logits, cache = network.step(params, state.last, state.cache, slot, state.prompt_lengths, width)
        return _choose(mode, state._replace(cache=cache), logits, controls)

    def unfinished(state: DecodingState) -> jax.Array:
        return (state.step < jnp.minimum(until, state.limit)) & ~state.done.all()

    return jax.lax.while_loop(unfinished, step, state)


def _choose(mode: Mode, state: DecodingState, logits: jax.Array, controls: Controls) -> DecodingState:
    """Writes the next token of every row that has not ended, given its logits float32[R, V']."""
    rows = jnp.arange(logits.shape[0])
    scores = processors.penalize(logits, state.seen, controls.repetition_penalty) if mode.penalized else logits
    if mode.sampled:
        scores = scores / controls.temperature
        if mode.limited:
            scores = processors.limit(scores, controls.top_k, controls.top_p)
        # A row's randomness is its own: it depends on its seed and on how far its answer is, on nothing else.
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), state.step))(state.seeds)
        token = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
    else:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    stops, stopped = processors.advance_stops(state.stops, token, controls)
    seen, log_probs, open_rows = state.seen, state.log_probs, ~state.done
    if mode.penalized:
        seen = seen.at[rows, token].set(True)
    if mode.log_probs:
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        log_probs = log_probs.at[:, state.step].set(jnp.where(open_rows, chosen, 0))
    return state._replace(
        step=state.step + 1,
        tokens=state.tokens.at[:, state.step].set(jnp.where(open_rows, token, 0)),
        log_probs=log_probs,
        lengths=state.lengths + open_rows,
        done=state.done | stopped | processors.ends(token, controls),
        last=token,
        stops=stops,
        seen=seen,
    )
