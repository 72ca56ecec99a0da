"""What a form of a model in PyTorch is, told by example: a LLaMA alone, from which the families' forms derive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhfv_jax.conversion.table import LLAMA, Entry
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.vlm import VlmConfig

Config = VlmConfig | LlamaConfig
ROTARY = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
HF_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn",
    "vocab_size": "vocab",
}


@dataclass(frozen=True)
class Hints:
    """What shapes cannot tell. `sizes` are known otherwise; shapes that say something else are wrong."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    window: int = 0


class Layout:
    """A model's names, shapes and files in PyTorch, and how they and its configuration follow from each other.

    name: of the form; family: of the model, "" for a LLaMA alone, whose form this class itself is.
    entries: the table. ignored: tensors that carry nothing, a rotary table that the config implies, say.
    marks: beginnings of names that tell this form. tower_marks: those of a bare vision tower that it can be built with.
    """

    name = "llama"
    family = ""
    entries: Sequence[Entry] = LLAMA
    ignored: Sequence[str] = (ROTARY,)
    marks: tuple[str, ...] = ()
    tower_marks: tuple[str, ...] = ()
    tokenizer_json = False  # whether a tokenizer.json goes before a tokenizer.model, which lacks the added tokens' ids

    def spelled(self, tensors: Tensors) -> Tensors:
        """The tensors under the table's names, where the form has been written in several spellings."""
        return tensors

    def check(self, tensors: Tensors) -> None:
        """Raises UserError where a whole part of the model is missing, with what to do."""

    def llm_json(self, config_json: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of config.json about the language model."""
        return config_json

    def known_sizes(self, config_json: Mapping[str, Any]) -> dict[str, int]:
        """Sizes that config.json states."""
        llm = self.llm_json(config_json)
        return {ours: int(llm[theirs]) for theirs, ours in HF_SIZES.items() if llm.get(theirs) is not None}

    def derived(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes that are always the same, or follow from the others."""
        del sizes
        return {}

    def tower_heads(self, width: int) -> int:
        """Attention heads of a tower of this width where nothing else tells; 0 for no idea."""
        del width
        return 0

    def config(self, sizes: Mapping[str, int], hints: Hints) -> Config:
        """The model of these sizes; raises UserError where they make none."""
        return llama_config(sizes, hints)

    def sizes(self, config: Any) -> dict[str, int]:
        """Every size that the table speaks of; raises UserError where the model has no such form."""
        return llama_sizes(config)

    def buffers(self, config: Any) -> list[tuple[str, np.ndarray]]:
        """Tensors that the form has besides the table's, and that follow from the configuration."""
        del config
        return []

    def hf_config(self, config: Any, dtype: np.dtype) -> dict[str, Any]:
        """config.json."""
        return llama_json(config, dtype)

    def with_tower(self, tensors: Tensors, tower: Tensors, queries: int, seed: int) -> tuple[Tensors, dict[str, int]]:
        """The tensors with those of a bare tower, and sizes that this changes by how much."""
        raise NotImplementedError

    def resized(self, tensors: Tensors, image_size: int) -> tuple[Tensors, dict[str, int]]:
        """The same model for square images of `image_size` pixels, and sizes known by that.

        Raises UserError for a form that is for one size alone.
        """
        del tensors
        raise UserError(f"--image_size={image_size}: a model of the form {self.name} is for one size of images.")


def llama_config(sizes: Mapping[str, int], hints: Hints) -> LlamaConfig:
    """The language model of these sizes."""
    return LlamaConfig(
        vocab_size=sizes["vocab"],
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        ffn=sizes["ffn"],
        norm_eps=hints.norm_eps,
        rope_theta=hints.rope_theta,
        window=hints.window,
    )


def llama_sizes(llm: LlamaConfig) -> dict[str, int]:
    """The language model's sizes under the table's names."""
    return {
        "vocab": llm.vocab_size,
        "width": llm.width,
        "layers": llm.layers,
        "heads": llm.heads,
        "head": llm.head_size,
        "kv_heads": llm.kv_heads,
        "ffn": llm.ffn,
    }


def llama_json(llm: LlamaConfig, dtype: np.dtype) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM; of a MistralForCausalLM where it has a window."""
    kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if llm.window:
        kind = {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": llm.window,
        }
    return kind | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "initializer_range": 0.02,
        "intermediate_size": llm.ffn,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype.name,
        "vocab_size": llm.vocab_size,
    }
