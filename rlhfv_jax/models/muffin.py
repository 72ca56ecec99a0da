"""Muffin (Yu et al. 2023): BEiT-3 with queries, one linear projector, LLaMA."""

from dataclasses import dataclass

import jax.numpy as jnp

from rlhfv_jax.models import beit3, llama
from rlhfv_jax.models.beit3 import Beit3, Beit3Config
from rlhfv_jax.models.layers import Dtype, Linear
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.vlm import VlmConfig


@dataclass(frozen=True)
class MuffinConfig(VlmConfig):
    """The queries' outputs stand in for `<im_patch>`; pictures are squashed to squares with values in [-1, 1]."""

    tower: Beit3Config
    family: str = "muffin"

    @property
    def image_tokens(self) -> int:
        return self.tower.queries

    def vision_tower(self, dtype: Dtype = jnp.float32, remat: str = "none") -> Beit3:
        return Beit3(self.tower, dtype, remat, name="tower")

    def projector(self, dtype: Dtype = jnp.float32) -> Linear:
        widths = [self.tower.width], [self.llm.width]
        return Linear(*widths, use_bias=True, init_std=self.llm.init_std, dtype=dtype, name="projector")


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
