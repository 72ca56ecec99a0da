"""LLaVA's forms in PyTorch: the original classes', with CLIP inside or beside, and Hugging Face's `llava-hf`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlhfv_jax.conversion.layout import ROTARY, Hints, Layout, llama_config, llama_json, llama_sizes
from rlhfv_jax.conversion.parts import Made, passed
from rlhfv_jax.conversion.table import LLAMA, Entry
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import clip
from rlhfv_jax.models.clip import ClipConfig
from rlhfv_jax.models.llava import Llava15Config, LlavaConfig

TOWER = "model.vision_tower.vision_tower.vision_model."
HF_TOWER = "vision_tower.vision_model."
BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")  # of a CLIP tower's names
LARGE_336 = "openai/clip-vit-large-patch14-336"


def _tower(root: str) -> Iterator[Entry]:
    """Transformers' CLIPVisionModel; all layers but the last are one stack."""
    yield Entry(f"{root}embeddings.class_embedding", "tower/class_token", "tower_width -> tower_width")
    window = "tower_width color patch_y patch_x -> (patch_y patch_x color) tower_width"
    yield Entry(f"{root}embeddings.patch_embedding.weight", "tower/patch/kernel", window)
    rows = "tower_positions tower_width -> tower_positions tower_width"
    yield Entry(f"{root}embeddings.position_embedding.weight", "tower/positions", rows)
    yield from _norm(f"{root}pre_layrnorm", "tower/pre_norm")
    yield from _norm(f"{root}post_layernorm", "tower/fixed_post_norm")
    yield from _layer(f"{root}encoder.layers.{{tower_layers-1}}", "tower/layers")
    yield from _layer(f"{root}encoder.layers.{{=tower_layers-1}}", "tower/fixed_last_layer")


def _layer(name: str, path: str) -> Iterator[Entry]:
    heads = "(tower_heads tower_head)"
    yield from _norm(f"{name}.layer_norm1", f"{path}/attention_norm")
    yield from _norm(f"{name}.layer_norm2", f"{path}/mlp_norm")
    for part in "qkv":
        kernel = f"{heads} tower_width -> tower_width tower_heads tower_head"
        yield Entry(f"{name}.self_attn.{part}_proj.weight", f"{path}/attention/{part}/kernel", kernel)
        yield Entry(
            f"{name}.self_attn.{part}_proj.bias", f"{path}/attention/{part}/bias", f"{heads} -> tower_heads tower_head"
        )
    kernel = f"tower_width {heads} -> tower_heads tower_head tower_width"
    yield Entry(f"{name}.self_attn.out_proj.weight", f"{path}/attention/o/kernel", kernel)
    yield Entry(f"{name}.self_attn.out_proj.bias", f"{path}/attention/o/bias", "tower_width -> tower_width")
    yield from _linear(f"{name}.mlp.fc1", f"{path}/mlp/up", "tower_width", "tower_ffn")
    yield from _linear(f"{name}.mlp.fc2", f"{path}/mlp/down", "tower_ffn", "tower_width")


def _norm(name: str, path: str) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", f"{path}/scale", "tower_width -> tower_width")
    yield Entry(f"{name}.bias", f"{path}/bias", "tower_width -> tower_width")


def _linear(name: str, path: str, inputs: str, outputs: str) -> Iterator[Entry]:
    square = outputs if inputs != outputs else f"{outputs}_out"
    yield Entry(f"{name}.weight", f"{path}/kernel", f"{square} {inputs} -> {inputs} {square}")
    yield Entry(f"{name}.bias", f"{path}/bias", f"{outputs} -> {outputs}")


def _mlp(first: str, second: str) -> tuple[Entry, ...]:
    """The projector of LLaVA 1.5; a square matrix has two names for its width."""
    up, down = "projector/up", "projector/down"
    return (*_linear(first, up, "tower_width", "width"), *_linear(second, down, "width", "width"))


class Llava(Layout):
    """LlavaLlamaForCausalLM of LLaVA 1.0: a linear projector."""

    name = "llava"
    family = "llava"
    model = LlavaConfig
    root = TOWER
    entries = (*_tower(TOWER), *_linear("model.mm_projector", "projector", "tower_width", "width"), *LLAMA)
    ignored = (ROTARY, r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.position_ids")
    marks = ("model.vision_tower.vision_tower.", "model.mm_projector.weight", "model.mm_projector.bias")
    tower_marks = ("vision_model.", "embeddings.class_embedding")

    def check(self, tensors: Tensors) -> None:
        """Raises UserError for a checkpoint without its CLIP."""
        if not any(name.startswith(self.root) for name in tensors.shapes):
            raise UserError(f"The checkpoint has no vision tower {self.root}*; give the folder of its CLIP as --tower.")

    def known_sizes(self, config_json: Mapping[str, Any]) -> dict[str, int]:
        sizes = super().known_sizes(config_json)
        name = str(config_json.get("mm_vision_tower", "")).rpartition("/")[2]
        if name in ("clip-vit-large-patch14", "clip-vit-large-patch14-336"):
            sizes |= tower_sizes(clip.large(336 if name.endswith("336") else 224))
        return sizes

    def derived(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"color": 3}

    def tower_heads(self, width: int) -> int:
        return width // 64 if width == clip.large().width else 0

    def config(self, sizes: Mapping[str, int], hints: Hints) -> LlavaConfig:
        llm = llama_config(sizes, hints)
        return self.model(tower_config(sizes, self.root), llm, self.image_token(llm.vocab_size))

    def image_token(self, vocab_size: int) -> int:
        """The second of the four added tokens, the last of the vocabulary."""
        return vocab_size - 3

    def sizes(self, config: LlavaConfig) -> dict[str, int]:
        llm = llama_sizes(config.llm)
        return llm | tower_sizes(config.tower) | {"width_out": config.llm.width}

    def hf_config(self, config: LlavaConfig, dtype: np.dtype) -> dict[str, Any]:
        """The reference reads CLIP from the folder that `mm_vision_tower` names, not from the checkpoint."""
        return llama_json(config.llm, dtype) | {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "image_aspect_ratio": "pad",
            "mm_hidden_size": config.tower.width,
            "mm_projector_type": "linear",
            "mm_use_im_patch_token": True,
            "mm_use_im_start_end": True,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": LARGE_336 if config.tower.image_size == 336 else LARGE_336.removesuffix("-336"),
            "pad_token_id": 0,
            "use_mm_proj": True,
        }

    def with_tower(self, tensors: Tensors, tower: Tensors, queries: int, seed: int) -> tuple[Tensors, dict[str, int]]:
        """A CLIP from its own folder takes the place of the one inside, as where the reference loads it."""
        del queries, seed
        own = {name: value for name, value in passed(tensors).items() if not name.startswith(self.root)}
        bare = {name.removeprefix("vision_model."): value for name, value in passed(tower).items()}
        return Made(own | {self.root + name: value for name, value in bare.items() if name.startswith(BARE)}), {}


class Llava15(Llava):
    """LlavaLlamaForCausalLM of LLaVA 1.5: a projector of two layers, no rows for image tokens."""

    name = "llava15"
    family = "llava15"
    model = Llava15Config
    entries = (*_tower(TOWER), *_mlp("model.mm_projector.0", "model.mm_projector.2"), *LLAMA)
    marks = ("model.vision_tower.vision_tower.", "model.mm_projector.0.", "model.mm_projector.2.")

    def image_token(self, vocab_size: int) -> int:
        """The tokenizer's second added token, behind the vocabulary."""
        return vocab_size + 1

    def hf_config(self, config: LlavaConfig, dtype: np.dtype) -> dict[str, Any]:
        own = {"mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False}
        return super().hf_config(config, dtype) | own


class LlavaHf(Llava15):
    """Transformers' LlavaForConditionalGeneration, as `llava-hf` publishes LLaVA 1.5."""

    name = "llava_hf"
    root = HF_TOWER
    entries = (
        *_tower(HF_TOWER),
        *_mlp("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
        *(entry._replace(name=f"language_model.{entry.name}") for entry in LLAMA),
    )
    ignored = (rf"language_model\.{ROTARY}", r"vision_tower\.vision_model\.embeddings\.position_ids")
    marks = ("vision_tower.", "multi_modal_projector.", "language_model.")

    def spelled(self, tensors: Tensors) -> Tensors:
        """Newer transformers write the tower without `vision_model.`."""

        def rename(name: str) -> str:
            bare = name.removeprefix("vision_tower.")
            return HF_TOWER + bare if bare != name and bare.startswith(BARE) else name

        return Made(passed(tensors, rename))

    def llm_json(self, config_json: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values that a published text_config leaves out are LlamaConfig's own."""
        text = config_json.get("text_config", {})
        return {"num_attention_heads": 32, "hidden_size": 4096, "rms_norm_eps": 1e-6} | text if text else {}

    def known_sizes(self, config_json: Mapping[str, Any]) -> dict[str, int]:
        sizes = Layout.known_sizes(self, config_json)
        heads = config_json.get("vision_config", {}).get("num_attention_heads")
        return sizes | ({} if heads is None else {"tower_heads": int(heads)})

    def hf_config(self, config: LlavaConfig, dtype: np.dtype) -> dict[str, Any]:
        tower, text = config.tower, llama_json(config.llm, dtype)
        vision = {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "hidden_size": tower.width,
            "image_size": tower.image_size,
            "intermediate_size": tower.ffn,
            "layer_norm_eps": tower.norm_eps,
            "num_attention_heads": tower.heads,
            "num_hidden_layers": tower.layers,
            "patch_size": tower.patch,
        }
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "bos_token_id": text["bos_token_id"],
            "eos_token_id": text["eos_token_id"],
            "image_seq_length": tower.patches,
            "image_token_index": min(32_000, config.llm.vocab_size - 1),  # <image>, the first behind LLaMA's own
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": dtype.name,
            "vision_config": vision,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }


def tower_sizes(tower: ClipConfig) -> dict[str, int]:
    """The tower's sizes under the table's names."""
    return {
        "tower_positions": tower.patches + 1,
        "patch_x": tower.patch,
        "patch_y": tower.patch,
        "color": 3,
        "tower_width": tower.width,
        "tower_layers": tower.layers,
        "tower_heads": tower.heads,
        "tower_head": tower.width // tower.heads,
        "tower_ffn": tower.ffn,
    }


def tower_config(sizes: Mapping[str, int], root: str) -> ClipConfig:
    """The tower of these sizes; raises UserError where the patches form no square or the windows are none."""
    side = math.isqrt(sizes["tower_positions"] - 1)
    if side**2 != sizes["tower_positions"] - 1:
        raise UserError(
            f"{root}embeddings.position_embedding.weight has {sizes['tower_positions']} rows; expected one more than a "
            "square number of patches."
        )
    if sizes["patch_x"] != sizes["patch_y"]:
        windows = f"{sizes['patch_y']} by {sizes['patch_x']}"
        raise UserError(f"{root}embeddings.patch_embedding.weight has windows of {windows} pixels; expected squares.")
    return ClipConfig(
        image_size=side * sizes["patch_x"],
        patch=sizes["patch_x"],
        width=sizes["tower_width"],
        layers=sizes["tower_layers"],
        heads=sizes["tower_heads"],
        ffn=sizes["tower_ffn"],
    )
