"""LLaVA 1.0 and 1.5 (Liu et al. 2023): CLIP's patches, a projector, LLaMA. Every patch is an image token."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhfv_jax.models import clip, llama
from rlhfv_jax.models.clip import Clip, ClipConfig
from rlhfv_jax.models.layers import Dtype, Linear, gelu
from rlhfv_jax.models.vlm import VlmConfig


@dataclass(frozen=True)
class LlavaConfig(VlmConfig):
    """LLaVA 1.0: one linear projector; its image tokens have borders and rows in the vocabulary, as Muffin's.

    Pictures are padded to squares, in training too: the released training crops their centers (data.fit=crop).
    """

    tower: ClipConfig
    family: str = "llava"

    fit = "pad"
    mean, std = clip.MEAN, clip.STD
    template = "llava_v0"

    @property
    def image_tokens(self) -> int:
        return self.tower.patches

    def vision_tower(self, dtype: Dtype = jnp.float32, remat: str = "none") -> Clip:
        return Clip(self.tower, dtype, remat, name="tower")

    def projector(self, dtype: Dtype = jnp.float32) -> nn.Module:
        return Linear([self.tower.width], [self.llm.width], True, self.llm.init_std, dtype, name="projector")


@dataclass(frozen=True)
class Llava15Config(LlavaConfig):
    """LLaVA 1.5: a projector of two layers; image tokens are places without rows in the vocabulary."""

    family: str = "llava15"

    template = "llava_v1"
    tokenizer = "llava"
    embeds_image_tokens = False

    def projector(self, dtype: Dtype = jnp.float32) -> nn.Module:
        return Projector(self.tower.width, self.llm.width, self.llm.init_std, dtype, name="projector")


class Projector(nn.Module):
    """[B, P, E] -> [B, P, D]: up, exact GELU, down. Parameters: {up [E, D], down [D, D]}/{kernel, bias [D]}."""

    inputs: int
    outputs: int
    init_std: float | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gelu(Linear([self.inputs], [self.outputs], True, self.init_std, self.dtype, name="up")(x))
        return Linear([self.outputs], [self.outputs], True, self.init_std, self.dtype, name="down")(x)


def llava_7b(vocab_size: int = 32_004, image_token: int = 32_001) -> LlavaConfig:
    """LLaVA 1.0: CLIP ViT-L/14 at 224 px, 256 image tokens, Vicuna-7B v0."""
    return LlavaConfig(clip.large(224), llama.llama_7b(vocab_size), image_token)


def llava15_7b(vocab_size: int = 32_000, image_token: int = 32_001) -> Llava15Config:
    """LLaVA 1.5: CLIP ViT-L/14 at 336 px, 576 image tokens, Vicuna-7B v1.5."""
    return Llava15Config(clip.large(336), llama.vicuna_7b(vocab_size), image_token)


def llava15_13b(vocab_size: int = 32_000, image_token: int = 32_001) -> Llava15Config:
    """The same with Vicuna-13B v1.5."""
    return Llava15Config(clip.large(336), llama.vicuna_13b(vocab_size), image_token)
