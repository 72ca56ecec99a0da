"""A vision tower, a projector, a language model: the composition that all families share.

As LLaVA (Liu et al. 2023) and Muffin (Yu et al. 2023) put them together:

    image ─► tower ─► [B, Q, E] ─► projector ─► [B, Q, D] ─┐
    tokens ─► embed ─► [R, T, D] ─── splice at the image tokens ─► blocks ─► hidden [R, T, D]

Parameters: tower/..., projector/... (of the family), llm/... (see `llama`).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax.errors import UserError
from rlhfv_jax.models.layers import Dtype
from rlhfv_jax.models.llama import KVCache, Llama, LlamaConfig, head_kernel
from rlhfv_jax.ops.attention import Units, near, tree_mask, whole_units
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import PackedBatch


@dataclass(frozen=True)
class VlmConfig:
    """A model's sizes, and by its class everything in which its family differs from others.

    tower: sizes of the vision tower; whatever the family, they have image_size, patch, width and heads.
    image_token: the id whose embeddings the image replaces; it may lie outside of the vocabulary.
    family: the key of `families.FAMILIES`.
    """

    tower: Any
    llm: LlamaConfig
    image_token: int
    family: str = ""

    # What follows are facts of a family; a subclass states those that differ.
    fit = "squash"  # how pictures become squares, one of `data.images.FITS`
    mean = (0.5, 0.5, 0.5)  # of red, green, blue in [0, 1]; pixels are (value - mean) / std
    std = (0.5, 0.5, 0.5)
    template = "muffin"  # the words around questions and answers, of `data.chat`
    tokenizer = "muffin"  # how a sentencepiece model is read, one of `data.tokenizer.KINDS`
    embeds_image_tokens = True  # whether image tokens and their borders have rows in the vocabulary

    @property
    def image_tokens(self) -> int:
        """Q, the tokens that an image takes in a row."""
        raise NotImplementedError

    def vision_tower(self, dtype: Dtype = jnp.float32, remat: str = "none") -> nn.Module:
        """The module of the parameters under tower/: normalized images [B, S, S, 3] -> [B, Q or P, E]."""
        raise NotImplementedError

    def projector(self, dtype: Dtype = jnp.float32) -> nn.Module:
        """The module of the parameters under projector/: the tower's outputs -> [B, Q, D]."""
        raise NotImplementedError


class Vlm(nn.Module):
    """Images and tokens to hidden states.

    Args of `__call__`:
      tokens: int32[R, T]; R is a multiple of B, and row r belongs to image r // (R // B), so that a pair's two rows
        share one encoding. A row holds Q image tokens, or none (then its image is ignored); `check_image_tokens` says
        so where it does not, and is called here for tokens that are values, not traced.
      image: uint8[B, S, S, 3], or float32 already normalized; or [B, P, E], what the tower says
        of it (`tower_outputs`); None for text-only rows and later decoding steps.
      positions, lengths, mask, cache: as in `Llama`.
      slots: int32[R, P*Q], for buffers of P = B // R pairs each: where in its row every image token stands, T for none.

    Returns:
      hidden [R, T, D] and the cache.
    """

    config: VlmConfig
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
            seen = image if image.ndim == 3 else c.vision_tower(self.dtype, self.remat)(normalize(image, c))
            features = c.projector(self.dtype)(seen)
            if slots is None:
                features = jnp.repeat(features, tokens.shape[0] // image.shape[0], axis=0)

            def edit(embeds: jax.Array) -> jax.Array:
                if slots is not None:
                    return paste(embeds, features, slots)
                return splice(embeds, features, tokens == c.image_token)

        return Llama(c.llm, self.dtype, self.remat, self.backend, name="llm")(
            tokens, positions, lengths, mask, cache, edit
        )


def tower_outputs(model: Vlm, params: Any, image: jax.Array) -> jax.Array:
    """uint8[B, S, S, 3] -> [B, P, E] in the model's dtype, which the model takes in the image's place."""
    tower = model.config.vision_tower(model.dtype)
    outputs: Any = tower.apply({"params": params["tower"]}, normalize(image, model.config))
    return outputs


def tower_shape(config: VlmConfig) -> tuple[int, int]:
    """(P, E), what leaves the tower for one image."""
    size = config.tower.image_size
    image = jnp.zeros((1, size, size, 3))
    made: Any = jax.eval_shape(lambda key: config.vision_tower().init_with_output(key, image)[0], jax.random.key(0))
    return made.shape[1:]


def encode(config: VlmConfig, params: Any, image: jax.Array, dtype: Dtype = jnp.float32) -> jax.Array:
    """uint8[B, S, S, 3] -> [B, Q, D], what stands in for the image tokens' embeddings."""
    seen = tower_outputs(Vlm(config, dtype), params, image)
    features: Any = config.projector(dtype).apply({"params": params["projector"]}, seen)
    return features


def normalize(image: jax.Array, config: VlmConfig) -> jax.Array:
    """uint8 -> float32, as ToTensor and Normalize(mean, std); float images pass. [B, S, S, 3] either way."""
    if image.dtype != jnp.uint8:
        return image
    return (image.astype(jnp.float32) / 255.0 - jnp.asarray(config.mean)) / jnp.asarray(config.std)


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


def check_image_tokens(tokens: Any, config: VlmConfig, lengths: Any = None) -> None:
    """Raises UserError naming the first row whose number of image tokens is neither 0 nor the tower's.

    tokens: int[R, T], on the host; lengths: int[R], what lies beyond is padding and not counted.
    """
    slots = np.asarray(tokens) == config.image_token
    if lengths is not None and not isinstance(lengths, jax.core.Tracer):
        slots &= np.arange(slots.shape[1]) < np.asarray(lengths)[:, None]
    counts, queries = slots.sum(axis=1), config.image_tokens
    wrong = np.flatnonzero((counts != 0) & (counts != queries))
    if wrong.size:
        raise UserError(
            f"Row {wrong[0]} has {counts[wrong[0]]} image tokens (id {config.image_token}), but the vision tower "
            f"yields {queries}: a row holds exactly that many, or none."
        )


def init(model: Vlm, key: jax.Array) -> Any:
    """Fresh float32 parameters; wrap in jax.jit with out_shardings to create them in place, or in jax.eval_shape.

    The key is a scalar of JAX's.
    """
    size = model.config.tower.image_size
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    return model.init(key, jnp.zeros((1, model.config.image_tokens), jnp.int32), image)["params"]


def log_probs(model: Vlm, params: Any, image: Any, tokens: Any, labels: Any, lengths: Any) -> jax.Array:
    """Per-target log-probs of right-padded rows, [R, T], [R, T-1], [R] -> float32[R, T-1]."""
    hidden, _ = model.apply({"params": params}, tokens, image, lengths=lengths)
    return token_log_probs(hidden[:, :-1], head_kernel(params["llm"]), labels, model.config.llm.vocab_size)


def packed_log_probs(model: Vlm, params: Any, batch: PackedBatch) -> jax.Array:
    """float32[B, 2, K], the log-prob of every target of chosen and rejected; 0 where there is none."""
    units = Units(batch.blocks, batch.place, _unit_mask(batch, model.config.llm.window))
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.image, positions=batch.positions, mask=units, slots=batch.slots
    )
    predicting = jax.vmap(lambda rows, index: rows[index])(hidden, batch.head)
    logps = token_log_probs(predicting, head_kernel(params["llm"]), batch.labels, model.config.llm.vocab_size)
    pick = batch.pick.reshape(len(logps), -1)
    picked = jax.vmap(lambda row, index: row.at[index].get(mode="fill", fill_value=0.0))(logps, pick)
    return picked.reshape(batch.pick.shape)


def _unit_mask(batch: PackedBatch, window: int) -> jax.Array:
    """bool[B, T, T]: who sees whom in a unit, within the window by their positions in their own rows."""
    mask = tree_mask(batch.segment)
    if not 0 < window < mask.shape[-1]:
        return mask
    place = whole_units(batch.blocks, batch.tokens.shape[1])
    positions = jax.vmap(lambda row, index: row.at[index].get(mode="fill", fill_value=0))(batch.positions, place)
    flat = positions.reshape(mask.shape[:2])
    return mask & near(flat, flat, window)


def abstract_params(config: VlmConfig | LlamaConfig) -> Any:
    """Shapes and dtypes of the model's parameters, without making any; a LLaMA alone stands under `llm` too."""
    key = jax.random.key(0)
    if isinstance(config, LlamaConfig):
        tokens = jnp.zeros((1, 1), jnp.int32)
        return {"llm": jax.eval_shape(lambda key: Llama(config).init(key, tokens)["params"], key)}
    return jax.eval_shape(lambda key: init(Vlm(config), key), key)
