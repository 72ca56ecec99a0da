"""Greedy decoding and temperature sampling with a static KV cache, one program for a batch of mixed prompt lengths."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhfv_jax.models import vlm
from rlhfv_jax.models.llama import KVCache, empty_cache, head_kernel


class DecodingState(NamedTuple):
    """What one step of decoding reads and writes; R rows, N new tokens, S = T + N cache slots."""

    step: jax.Array  # int32[], tokens written so far
    tokens: jax.Array  # int32[R, N], the answer; `pad_id` after its end
    last: jax.Array  # int32[R], the token to feed next
    done: jax.Array  # bool[R], the row has ended
    cache: KVCache


def sampler(
    model: vlm.Muffin, *, max_new_tokens: int, temperature: float, stop_id: int, pad_id: int
) -> Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """The jitted program `(params, image, tokens, lengths, seeds) -> int32[R, N]`.

    Args of the program:
      image: uint8[B, S, S, 3]; R is a multiple of B, as in `vlm.Muffin`.
      tokens: int32[R, T] prompts, right-padded.
      lengths: int32[R], real tokens of each prompt.
      seeds: uint32[R]; a row's answer depends on its own seed and prompt, not on its neighbors or the batch size.

    The answer ends before `stop_id`, which is not part of it; `pad_id` fills the rest. Temperature 0 is greedy.
    """

    def forward(params: Any, *args: Any, **kwargs: Any) -> Any:
        return model.apply({"params": params}, *args, **kwargs)

    def choose(logits: jax.Array, seeds: jax.Array, step: jax.Array) -> jax.Array:
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)
        return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)

    def next_logits(params: Any, hidden: jax.Array) -> jax.Array:
        head = head_kernel(params["llm"])
        logits = jnp.einsum("rd,dv->rv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return jnp.where(jnp.arange(head.shape[1]) < model.config.llm.vocab_size, logits, -jnp.inf)

    def decode(params: Any, image: jax.Array, tokens: jax.Array, lengths: jax.Array, seeds: jax.Array) -> jax.Array:
        rows, prompt = tokens.shape
        slots = jnp.arange(prompt + max_new_tokens)
        real = slots < lengths[:, None]  # bool[R, S], prompt slots that hold a token

        # Prefill: causal over the prompt's own slots.
        cache = empty_cache(model.config.llm, rows, prompt + max_new_tokens, model.dtype)
        mask = real[:, None] & (slots <= jnp.arange(prompt)[:, None])
        hidden, cache = forward(params, tokens, image, mask=mask, cache=cache)
        last_hidden = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        first = choose(next_logits(params, last_hidden), seeds, jnp.zeros((), jnp.int32))

        def write(state: DecodingState, token: jax.Array) -> DecodingState:
            done = state.done | (token == stop_id)
            written = state.tokens.at[:, state.step].set(jnp.where(done, pad_id, token))
            return state._replace(step=state.step + 1, tokens=written, last=token, done=done)

        def step(state: DecodingState) -> DecodingState:
            # The token written last sits in cache slot prompt + step - 1, at position length + step - 1 of its row.
            newest = prompt + state.step - 1
            mask = real | ((slots >= prompt) & (slots <= newest))
            hidden, cache = forward(
                params,
                state.last[:, None],
                positions=(lengths + state.step - 1)[:, None],
                mask=mask[:, None],
                cache=state.cache,
            )
            token = choose(next_logits(params, hidden[:, 0]), seeds, state.step)
            return write(state._replace(cache=cache), token)

        blank = jnp.full((rows, max_new_tokens), pad_id, jnp.int32)
        state = DecodingState(jnp.zeros((), jnp.int32), blank, first, jnp.zeros(rows, bool), cache)
        state = write(state, first)
        return jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & ~s.done.all(), step, state).tokens

    return jax.jit(decode)
