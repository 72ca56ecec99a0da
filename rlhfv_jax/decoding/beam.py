"""Beam search with the semantics of Hugging Face `generate`, two generations of them.

length_norm "generated", as transformers 5: a beam that meets an end token, a stop string or the limit becomes a
hypothesis, if it is among the K best candidates; its score is divided by (generated tokens)^length_penalty. A prompt is
done when its K hypotheses cannot be beaten by the best running beam at the present length (early_stopping False), at
the longest length ("never"), or at once (True).

length_norm "total", as transformers 4.28 and so the released evaluation: scores are divided by
(prompt + generated tokens)^length_penalty, not counting an end token; only end tokens make hypotheses, a stop string
ends the search when every running beam has it, and then, or at the limit, the running beams are hypotheses too. What
can be beaten is judged by the best candidate, even one that has ended, at the length before this token.

Unlike there, what becomes of a prompt never depends on the others of its batch.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from rlhfv_jax.decoding import processors
from rlhfv_jax.decoding.forward import Cache, Inputs, Network, extend
from rlhfv_jax.decoding.processors import Controls
from rlhfv_jax.decoding.sample import Programs, Progress
from rlhfv_jax.decoding.settings import GenerationSettings

NEVER = -1e9  # the score of what must not be chosen; Hugging Face's, since sums with it are compared


class Mode(NamedTuple):
    """What a compiled program does at all; how much of it is in `Controls`."""

    beams: int
    total: bool  # length_norm
    early_stopping: bool | str
    penalized: bool
    log_probs: bool


def mode(settings: GenerationSettings) -> Mode:
    """The mode of settings with beams."""
    return Mode(
        beams=settings.num_beams,
        total=settings.length_norm == "total",
        early_stopping=settings.early_stopping,
        penalized=settings.repetition_penalty != 1,
        log_probs=settings.log_probs,
    )


class Hypotheses(NamedTuple):
    """Finished beams, the best first; P prompts, K beams, N the most new tokens."""

    tokens: jax.Array  # int32[P, K, N]
    log_probs: jax.Array  # float32[P, K, N], the model's own, of those tokens; N = 0 where nobody asks
    scores: jax.Array  # float32[P, K], normalized by length
    lengths: jax.Array  # int32[P, K], an end token included
    ended: jax.Array  # bool[P, K], by an end token or a stop string, not by the limit
    real: jax.Array  # bool[P, K], there is such a hypothesis


class BeamState(NamedTuple):
    """What one step reads and writes; V' is the padded vocabulary."""

    step: jax.Array  # int32[], tokens chosen so far
    limit: jax.Array  # int32[], how many there may be, at most N
    tokens: jax.Array  # int32[P, K, N], the running beams, the best first
    log_probs: jax.Array  # float32[P, K, N], as in Hypotheses
    scores: jax.Array  # float32[P, K], sums of processed log-probs
    stops: jax.Array  # uint8[P, K, stop strings], the states of their automata
    seen: jax.Array  # bool[P, K, V'], tokens of prompt and beam so far; V' = 0 without a penalty
    finished: Hypotheses
    hopeful: jax.Array  # bool[P], a running beam may still become one of the K best
    done: jax.Array  # bool[P]
    prompt_lengths: jax.Array  # int32[P]
    cache: Cache  # of P * K rows


class Candidates(NamedTuple):
    """The best continuations of all beams of a prompt, the best first; C of them."""

    beam: jax.Array  # int32[P, C], which beam is continued
    token: jax.Array  # int32[P, C]
    tokens: jax.Array  # int32[P, C, N]
    log_probs: jax.Array  # float32[P, C, N]
    scores: jax.Array  # float32[P, C]
    stops: jax.Array  # uint8[P, C, stop strings]
    ends: jax.Array  # bool[P, C], the token ends an answer
    stopped: jax.Array  # bool[P, C], a stop string is complete


def programs(network: Network, mode: Mode) -> Programs:
    """As `sample.programs`; `start` needs no seeds, and takes None."""
    return Programs(
        jax.jit(partial(_start, network, mode), static_argnames="slots"),
        jax.jit(partial(_advance, network, mode), static_argnames="width", donate_argnames="state"),
        _progress,
    )


def _progress(state: BeamState, answers: int) -> Progress:
    best = jax.tree.map(lambda x: rearrange(x[:, :answers], "p k ... -> (p k) ..."), state.finished)
    return Progress(
        best.tokens, best.lengths, best.log_probs, repeat(state.done, "p -> (p k)", k=answers), best.ended, best.scores
    )


def _start(
    network: Network,
    mode: Mode,
    params: Any,
    inputs: Inputs,
    seeds: None,
    controls: Controls,
    limit: jax.Array,
    *,
    slots: int,
) -> BeamState:
    logits, cache = network.prefill(params, inputs)
    prompts, vocabulary, beams = *logits.shape, mode.beams
    seen = jnp.zeros((prompts, beams, 0), bool)
    if mode.penalized:
        seen = repeat(processors.seen_tokens(inputs.tokens, inputs.lengths, vocabulary), "p v -> p k v", k=beams)
    tokens = jnp.zeros((prompts, beams, slots), jnp.int32)
    log_probs = jnp.zeros((prompts, beams, slots if mode.log_probs else 0))
    none = jnp.zeros((prompts, beams), bool)
    worst = jnp.full((prompts, beams), NEVER)
    state = BeamState(
        step=jnp.zeros((), jnp.int32),
        limit=jnp.asarray(limit, jnp.int32),
        tokens=tokens,
        log_probs=log_probs,
        scores=worst.at[:, 0].set(0),  # all beams are the same yet: only the first is continued
        stops=jnp.zeros((prompts, beams, controls.stop_table.shape[0]), jnp.uint8),
        seen=seen,
        finished=Hypotheses(tokens, log_probs, worst, jnp.zeros((prompts, beams), jnp.int32), none, none),
        hopeful=jnp.ones(prompts, bool),
        done=jnp.zeros(prompts, bool),
        prompt_lengths=inputs.lengths,
        cache=extend(cache, beams, slots),
    )
    return _choose(mode, state, repeat(logits, "p v -> p k v", k=beams), controls)[0]


def _advance(
    network: Network, mode: Mode, params: Any, state: BeamState, controls: Controls, until: jax.Array, *, width: int
) -> BeamState:
    lengths = repeat(state.prompt_lengths, "p -> (p k)", k=mode.beams)
    first = mode.beams * jnp.arange(state.done.shape[0])[:, None]

    def step(state: BeamState) -> BeamState:
        slot = width + state.step - 1
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2, keepdims=False)
        logits, cache = network.step(params, last.reshape(-1), state.cache, slot, lengths, width)
        logits = rearrange(logits, "(p k) v -> p k v", k=mode.beams)
        state, parents = _choose(mode, state, logits, controls)
        rows = (first + parents).reshape(-1)
        # All beams of a prompt share what the prompt's slots hold, so only the answer's slots move.
        moved = jax.tree.map(lambda x: x.at[:, :, width:].set(x[rows, :, width:]), cache)
        return state._replace(cache=moved)

    def unfinished(state: BeamState) -> jax.Array:
        return (state.step < jnp.minimum(until, state.limit)) & ~state.done.all()

    return jax.lax.while_loop(unfinished, step, state)


def _choose(mode: Mode, state: BeamState, logits: jax.Array, controls: Controls) -> tuple[BeamState, jax.Array]:
    """The next running beams and hypotheses, given logits float32[P, K, V'], and each running beam's parent."""
    found = _candidates(mode, state, logits, controls)
    at_limit = state.step + 1 == state.limit
    hit = found.ends if mode.total else found.ends | found.stopped | at_limit
    scores, chosen = jax.lax.top_k(found.scores + jnp.where(hit, NEVER, 0.0), mode.beams)
    running = jax.tree.map(lambda x: _take(x, chosen), found)._replace(scores=scores)
    seen = state.seen
    if mode.penalized:
        seen = _take(seen, running.beam)
        p, k = jnp.indices(running.token.shape)
        seen = seen.at[p, k, running.token].set(True)
    update = _total if mode.total else _generated
    finished, hopeful, done = update(mode, state, found, running, hit, controls)
    # A prompt that was done stays as it was, however long the others of its batch take.
    finished = jax.tree.map(lambda new, old: jnp.where(_like(state.done, new), old, new), finished, state.finished)
    state = state._replace(
        step=state.step + 1,
        tokens=running.tokens,
        log_probs=running.log_probs,
        scores=running.scores,
        stops=running.stops,
        seen=seen,
        finished=finished,
        hopeful=hopeful,
        done=state.done | done,
    )
    return state, running.beam


def _candidates(mode: Mode, state: BeamState, logits: jax.Array, controls: Controls) -> Candidates:
    vocabulary = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    processed = log_probs
    if mode.penalized:
        processed = processors.penalize(log_probs, state.seen, controls.repetition_penalty)
    totals = rearrange(processed + state.scores[..., None], "p k v -> p (k v)")
    # Enough that K are left to run on when the best ones all end.
    count = mode.beams * (2 if mode.total else max(2, 1 + controls.end_ids.shape[0]))
    scores, index = jax.lax.top_k(totals, count)
    beam, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    tokens = _take(state.tokens, beam).at[:, :, state.step].set(token)
    kept = _take(state.log_probs, beam)
    if mode.log_probs:
        own = jnp.take_along_axis(rearrange(log_probs, "p k v -> p (k v)"), index, axis=1)
        kept = kept.at[:, :, state.step].set(own)
    stops, stopped = processors.advance_stops(_take(state.stops, beam), token, controls)
    return Candidates(beam, token, tokens, kept, scores, stops, processors.ends(token, controls), stopped)


def _generated(mode, state, found, running, hit, controls):
    """Transformers 5: (hypotheses, hopeful, done)."""
    length, penalty = state.step + 1, controls.length_penalty
    full = state.finished.real.all(axis=1)
    new = hit & (jnp.arange(hit.shape[1]) < mode.beams)
    barred = ~new | ~state.hopeful[:, None]
    if mode.early_stopping is True:
        barred |= full[:, None]
    scores = found.scores / length**penalty + jnp.where(barred, NEVER, 0.0)
    finished = _merge(state.finished, found, scores, length, found.ends | found.stopped, new)
    best_length: Any = length
    if mode.early_stopping == "never":
        best_length = jnp.where(penalty > 0, state.limit, length)
    reachable = running.scores[:, :1] / best_length**penalty
    worst = jnp.where(finished.real, finished.scores.min(axis=1, keepdims=True), NEVER)
    hopeful = state.hopeful & jnp.any(reachable > worst, axis=1)
    done = ~hopeful | hit.all(axis=1)
    if mode.early_stopping is True:
        done |= finished.real.all(axis=1)
    return finished, hopeful, done


def _total(mode, state, found, running, hit, controls):
    """Transformers 4.28: (hypotheses, hopeful, done)."""
    penalty = controls.length_penalty
    before = (state.prompt_lengths + state.step)[:, None]
    new = hit & (jnp.arange(hit.shape[1]) < mode.beams)
    scores = jnp.where(new, found.scores / before**penalty, NEVER)
    finished = _merge(state.finished, found, scores, state.step + 1, found.ends, new)
    full = finished.real.all(axis=1)
    if mode.early_stopping is True:
        done = full
    else:
        length: Any = before[:, 0]
        if mode.early_stopping == "never":
            length = jnp.where(penalty > 0, state.prompt_lengths + state.limit, length)
        done = full & (finished.scores.min(axis=1) >= found.scores[:, 0] / length**penalty)
    over = ~done & (running.stopped.all(axis=1) | (state.step + 1 == state.limit))
    scores = jnp.where(over[:, None], running.scores / (before + 1) ** penalty, NEVER)
    new = jnp.broadcast_to(over[:, None], scores.shape)
    finished = _merge(finished, running, scores, state.step + 1, running.stopped, new)
    return finished, state.hopeful, done | over


def _merge(old: Hypotheses, found: Candidates, scores: jax.Array, length: Any, ended: jax.Array, new: jax.Array):
    """The K best of the old hypotheses and the candidates that have become new ones."""
    lengths = jnp.broadcast_to(length, scores.shape).astype(jnp.int32)
    added = Hypotheses(found.tokens, found.log_probs, scores, lengths, ended, new)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, added)
    _, best = jax.lax.top_k(both.scores, old.scores.shape[1])
    return jax.tree.map(lambda x: _take(x, best), both)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[P, A, ...], index int[P, B] -> [P, B, ...]."""
    return jax.vmap(lambda rows, i: rows[i])(x, index)


def _like(flags: jax.Array, x: jax.Array) -> jax.Array:
    """bool[P] with axes added to stand beside x[P, ...]."""
    return flags.reshape(flags.shape + (1,) * (x.ndim - 1))
