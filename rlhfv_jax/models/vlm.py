"""Muffin: BEiT-3 with queries, one linear projector, LLaMA. Composition only.

    image ─► tower ─► [B, Q, E] ─► projector ─► [B, Q, D] ─┐
    tokens ─► embed ─► [R, T, D] ─── splice at the image tokens ─► blocks ─► hidden [R, T, D]

Parameters: tower/..., projector/{kernel [E, D], bias [D]}, llm/... (see `beit3` and `llama`).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax.errors import UserError
from rlhfv_jax.models import beit3, llama
from rlhfv_jax.models.beit3 import Beit3, Beit3Config
from rlhfv_jax.models.layers import Dtype, Linear
from rlhfv_jax.models.llama import KVCache, Llama, LlamaConfig, head_kernel
from rlhfv_jax.ops.attention import Units, tree_mask
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import PackedBatch


@dataclass(frozen=True)
class MuffinConfig:
    """The model's sizes and the token id whose embeddings the image replaces (`<im_patch>`)."""

    tower: Beit3Config
    llm: LlamaConfig
    image_token: int


class Muffin(nn.Module):
    """Images and tokens to hidden states.

    Args of `__call__`:
      tokens: int32[R, T]; R is a multiple of B, and row r belongs to image r // (R // B), so that a pair's two rows
        share one encoding. A row holds Q image tokens, or none (then its image is ignored); `check_image_tokens` says
        so where it does not, and is called here for tokens that are values, not traced.
      image: uint8[B, S, S, 3] or float32 already in [-1, 1]; or [B, Q, E], what the tower says of it (`tower_outputs`);
        None for text-only rows and later decoding steps.
      positions, lengths, mask, cache: as in `Llama`.
      slots: int32[R, P*Q], for buffers of P = B // R pairs each: where in its row every image token stands, T for none.

    Returns:
      hidden [R, T, D] and the cache.
    """

    config: MuffinConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    backend: str = "xla"  # of the language model's attention; the tower's 849 tokens without padding suit XLA

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array | None = None,
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
        mask: jax.Array | Units | None = None,
        cache: KVCache | None = None,
        slots: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        edit = None
        if image is not None:
            if slots is None:
                check_rows(tokens.shape[0], image.shape[0])
            if slots is None and not isinstance(tokens, jax.core.Tracer):
                check_image_tokens(tokens, c, lengths)
            seen = image if image.ndim == 3 else tower(c, self.dtype, self.remat)(normalize(image))
            features = projector(c, self.dtype)(seen)
            if slots is None:
                features = jnp.repeat(features, tokens.shape[0] // image.shape[0], axis=0)

            def edit(embeds: jax.Array) -> jax.Array:
                if slots is not None:
                    return paste(embeds, features, slots)
                return splice(embeds, features, tokens == c.image_token)

        return Llama(c.llm, self.dtype, self.remat, self.backend, name="llm")(
            tokens, positions, lengths, mask, cache, edit
        )


def tower(config: MuffinConfig, dtype: Dtype = jnp.float32, remat: str = "none") -> Beit3:
    """The module of the parameters under tower/: images in [-1, 1] -> [B, Q, E]."""
    return Beit3(config.tower, dtype, remat, name="tower")


def tower_outputs(model: Muffin, params: Any, image: jax.Array) -> jax.Array:
    """uint8[B, S, S, 3] -> [B, Q, E] in the model's dtype, which the model takes in the image's place."""
    outputs: Any = tower(model.config, model.dtype).apply({"params": params["tower"]}, normalize(image))
    return outputs


def projector(config: MuffinConfig, dtype: Dtype = jnp.float32) -> Linear:
    """The module of the parameters under projector/: [B, Q, E] -> [B, Q, D]."""
    std = config.llm.init_std
    return Linear([config.tower.width], [config.llm.width], use_bias=True, init_std=std, dtype=dtype, name="projector")


def normalize(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1], as ToTensor and Normalize(0.5, 0.5); float images pass."""
    if image.dtype != jnp.uint8:
        return image
    return (image.astype(jnp.float32) / 255.0 - 0.5) / 0.5


def splice(embeds: jax.Array, features: jax.Array, slots: jax.Array) -> jax.Array:
    """Puts the k-th feature of a row where its k-th slot is.

    embeds [R, T, D], features [R, Q, D], slots bool[R, T] -> [R, T, D]. Shapes stay static, and rows without slots
    are unchanged. That a row has Q slots or none cannot be seen in a traced program: see `check_image_tokens`.
    """
    order = jnp.clip(jnp.cumsum(slots, axis=1) - 1, 0, features.shape[1] - 1)
    placed = jax.vmap(lambda rows, index: rows[index])(features, order)  # whole rows: their gradient is a cheap scatter
    return jnp.where(slots[..., None], placed.astype(embeds.dtype), embeds)


def paste(embeds: jax.Array, features: jax.Array, slots: jax.Array) -> jax.Array:
    """Puts each pair's features where its buffer has room for them: embeds [G, N, D], features [B, Q, D],
    slots int32[G, P*Q] -> [G, N, D]; a slot of N is nowhere."""
    features = features.reshape(*slots.shape, -1).astype(embeds.dtype)
    put = jax.vmap(lambda rows, at, values: rows.at[at].set(values, mode="drop"))
    return put(embeds, slots, features)


def check_rows(rows: int, images: int) -> None:
    """Raises UserError where the rows cannot be shared out over the images."""
    if images == 0 or rows % images:
        raise UserError(f"{rows} rows of tokens cannot belong to {images} images; rows must be a multiple of images.")


def check_image_tokens(tokens: Any, config: MuffinConfig, lengths: Any = None) -> None:
    """Raises UserError naming the first row whose number of image tokens is neither 0 nor the tower's queries.

    tokens: int[R, T], on the host; lengths: int[R], what lies beyond is padding and not counted.
    """
    slots = np.asarray(tokens) == config.image_token
    if lengths is not None and not isinstance(lengths, jax.core.Tracer):
        slots &= np.arange(slots.shape[1]) < np.asarray(lengths)[:, None]
    counts, queries = slots.sum(axis=1), config.tower.queries
    wrong = np.flatnonzero((counts != 0) & (counts != queries))
    if wrong.size:
        raise UserError(
            f"Row {wrong[0]} has {counts[wrong[0]]} image tokens (id {config.image_token}), but the vision tower "
            f"yields {queries}: a row holds exactly that many, or none."
        )


def init(model: Muffin, key: jax.Array) -> Any:
    """Fresh float32 parameters; wrap in jax.jit with out_shardings to create them in place, or in jax.eval_shape."""
    size = model.config.tower.image_size
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    return model.init(key, jnp.zeros((1, model.config.tower.queries), jnp.int32), image)["params"]


def log_probs(model: Muffin, params: Any, image: Any, tokens: Any, labels: Any, lengths: Any) -> jax.Array:
    """Per-target log-probs of right-padded rows, [R, T], [R, T-1], [R] -> float32[R, T-1]."""
    hidden, _ = model.apply({"params": params}, tokens, image, lengths=lengths)
    return token_log_probs(hidden[:, :-1], head_kernel(params["llm"]), labels, model.config.llm.vocab_size)


def packed_log_probs(model: Muffin, params: Any, batch: PackedBatch) -> jax.Array:
    """float32[B, 2, K], the log-prob of every target of chosen and rejected; 0 where there is none."""
    units = Units(batch.unit, batch.place, tree_mask(batch.segment))
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.image, positions=batch.positions, mask=units, slots=batch.slots
    )
    predicting = jax.vmap(lambda rows, index: rows[index])(hidden, batch.head)
    logps = token_log_probs(predicting, head_kernel(params["llm"]), batch.labels, model.config.llm.vocab_size)
    pick = batch.pick.reshape(len(logps), -1)
    picked = jax.vmap(lambda row, index: row.at[index].get(mode="fill", fill_value=0.0))(logps, pick)
    return picked.reshape(batch.pick.shape)


def muffin_13b(vocab_size: int = 32_004, image_token: int = 32_001) -> MuffinConfig:
    """The released model: BEiT-3 large at 448 px with 64 queries, Vicuna-13B."""
    return MuffinConfig(beit3.large(448, 64), llama.llama_13b(vocab_size), image_token)


def muffin_mini(vocab_size: int, image_token: int) -> MuffinConfig:
    """The same modules, small enough for two CPU cores."""
    return MuffinConfig(
        tower=Beit3Config(
            64, 16, width=64, layers=2, heads=4, ffn=128, queries=16, query_positions=32, init_std=None, unroll=2
        ),
        llm=LlamaConfig(vocab_size, width=128, layers=2, heads=4, kv_heads=4, ffn=256, init_std=None, unroll=2),
        image_token=image_token,
    )
