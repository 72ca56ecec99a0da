"""OmniLMM's form in PyTorch: timm's Eva and the resampler beside a Mistral."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlhfv_jax.conversion.layout import ROTARY, Hints, Layout, llama_config, llama_json, llama_sizes
from rlhfv_jax.conversion.table import LLAMA, Entry
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import eva
from rlhfv_jax.models.eva import EvaConfig
from rlhfv_jax.models.omnilmm import HEAD, OmniLMMConfig

ADDED = 9  # <im_patch>, <im_start>, <im_end>, and six for boxes
TOWER, RESAMPLER = "model.vision_tower", "model.resampler"


def _tower() -> Iterator[Entry]:
    yield Entry(f"{TOWER}.cls_token", "tower/class_token", "1 1 tower_width -> tower_width")
    rows = "tower_positions tower_width"
    yield Entry(f"{TOWER}.pos_embed", "tower/positions", f"1 {rows} -> {rows}")
    window = "tower_width color patch_y patch_x -> (patch_y patch_x color) tower_width"
    yield Entry(f"{TOWER}.patch_embed.proj.weight", "tower/patch/kernel", window)
    yield Entry(f"{TOWER}.patch_embed.proj.bias", "tower/patch/bias", "tower_width -> tower_width")
    yield from _norm(f"{TOWER}.norm", "tower/final_norm", "tower_width")
    block, ours, heads = f"{TOWER}.blocks.{{tower_layers}}", "tower/layers", "tower_heads tower_head"
    yield from _norm(f"{block}.norm1", f"{ours}/attention_norm", "tower_width")
    yield from _norm(f"{block}.norm2", f"{ours}/mlp_norm", "tower_width")
    fused = f"(qkv {heads}) tower_width -> tower_width qkv {heads}"
    yield Entry(f"{block}.attn.qkv.weight", f"{ours}/attention/qkv/kernel", fused)
    for part in "qv":
        yield Entry(f"{block}.attn.{part}_bias", f"{ours}/attention/{part}/bias", f"({heads}) -> {heads}")
    yield Entry(
        f"{block}.attn.proj.weight", f"{ours}/attention/o/kernel", f"tower_width ({heads}) -> {heads} tower_width"
    )
    yield Entry(f"{block}.attn.proj.bias", f"{ours}/attention/o/bias", "tower_width -> tower_width")
    for name, path, inputs, outputs in (("fc1", "up", "width", "ffn"), ("fc2", "down", "ffn", "width")):
        matrix = f"tower_{outputs} tower_{inputs} -> tower_{inputs} tower_{outputs}"
        yield Entry(f"{block}.mlp.{name}.weight", f"{ours}/mlp/{path}/kernel", matrix)
        yield Entry(f"{block}.mlp.{name}.bias", f"{ours}/mlp/{path}/bias", f"tower_{outputs} -> tower_{outputs}")


def _resampler() -> Iterator[Entry]:
    rows, heads = "queries width -> queries width", "resampler_heads resampler_head"
    yield Entry(f"{RESAMPLER}.pos_embed", "projector/fixed_positions", rows)
    yield Entry(f"{RESAMPLER}.query", "projector/query", rows)
    yield Entry(f"{RESAMPLER}.proj", "projector/out/kernel", "width width_out -> width width_out")  # not transposed
    yield Entry(f"{RESAMPLER}.kv_proj.weight", "projector/keys/kernel", "width tower_width -> tower_width width")
    attention = f"{RESAMPLER}.attn"
    yield Entry(
        f"{attention}.in_proj_weight", "projector/attention/qkv/kernel", f"(qkv {heads}) width -> width qkv {heads}"
    )
    yield Entry(f"{attention}.in_proj_bias", "projector/attention/qkv/bias", f"(qkv {heads}) -> qkv {heads}")
    yield Entry(f"{attention}.out_proj.weight", "projector/attention/o/kernel", f"width ({heads}) -> {heads} width")
    yield Entry(f"{attention}.out_proj.bias", "projector/attention/o/bias", "width -> width")
    for name, path in (("ln_q", "query"), ("ln_kv", "keys"), ("ln_post", "post")):
        yield from _norm(f"{RESAMPLER}.{name}", f"projector/{path}_norm", "width")


def _norm(name: str, path: str, size: str) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", f"{path}/scale", f"{size} -> {size}")
    yield Entry(f"{name}.bias", f"{path}/bias", f"{size} -> {size}")


class OmniLMM(Layout):
    """OmniLMMForCausalLM; shapes say nothing of the images' size, which config.json has."""

    name = "omnilmm"
    family = "omnilmm"
    entries = (*_tower(), *_resampler(), *LLAMA)
    ignored = (ROTARY,)
    marks = ("model.resampler.", "model.vision_tower.blocks.", "model.vision_tower.patch_embed.")
    tokenizer_json = True

    def known_sizes(self, config_json: Mapping[str, Any]) -> dict[str, int]:
        named = {"num_query": "queries", "image_size": "image_size"}
        own = {ours: int(config_json[theirs]) for theirs, ours in named.items() if config_json.get(theirs) is not None}
        return super().known_sizes(config_json) | own

    def derived(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes that follow from others; raises UserError for a width that its heads do not divide."""
        if sizes.get("width", HEAD) % HEAD:
            raise UserError(f"The resampler's width {sizes['width']} is no multiple of its heads' size, {HEAD}.")
        own = {"image_size": eva.enormous().image_size} | dict(sizes)
        return own | {"color": 3, "qkv": 3, "resampler_head": HEAD, "resampler_heads": sizes.get("width", 0) // HEAD}

    def tower_heads(self, width: int) -> int:
        return eva.enormous().heads if width == eva.enormous().width else 0

    def config(self, sizes: Mapping[str, int], hints: Hints) -> OmniLMMConfig:
        llm = llama_config(sizes, hints)
        return OmniLMMConfig(tower_config(sizes), llm, llm.vocab_size - ADDED, queries=sizes["queries"])

    def sizes(self, config: OmniLMMConfig) -> dict[str, int]:
        tower, llm = config.tower, llama_sizes(config.llm)
        own = {
            "queries": config.queries,
            "image_size": tower.image_size,
            "tower_positions": tower.grid**2 + 1,
            "patch_x": tower.patch,
            "patch_y": tower.patch,
            "tower_width": tower.width,
            "tower_layers": tower.layers,
            "tower_heads": tower.heads,
            "tower_head": tower.width // tower.heads,
            "tower_ffn": tower.ffn,
            "width_out": config.llm.width,
        }
        return llm | own | self.derived(llm | own)

    def hf_config(self, config: OmniLMMConfig, dtype: np.dtype) -> dict[str, Any]:
        return llama_json(config.llm, dtype) | {
            "architectures": ["OmniLMMForCausalLM"],
            "model_type": "omnilmm",
            "image_size": config.tower.image_size,
            "mm_use_im_start_end": True,
            "mm_vision_tower": "eva02_enormous_patch14_clip_224.laion2b_plus",
            "num_query": config.queries,
            "pad_token_id": 2,
            "use_mm_proj": True,
        }

    def resized(self, tensors: Tensors, image_size: int) -> tuple[Tensors, dict[str, int]]:
        """Any square will do: positions are interpolated as the model runs."""
        return tensors, {"image_size": image_size}


def tower_config(sizes: Mapping[str, int]) -> EvaConfig:
    """The tower of these sizes; raises UserError where its patches form no square or the windows are none."""
    grid = math.isqrt(sizes["tower_positions"] - 1)
    if grid**2 != sizes["tower_positions"] - 1 or math.isqrt(sizes["queries"]) ** 2 != sizes["queries"]:
        raise UserError(
            f"{TOWER}.pos_embed has {sizes['tower_positions']} rows and {RESAMPLER}.query {sizes['queries']}; expected "
            "one more than a square number, and a square number."
        )
    if sizes["patch_x"] != sizes["patch_y"]:
        windows = f"{sizes['patch_y']} by {sizes['patch_x']}"
        raise UserError(f"{TOWER}.patch_embed.proj.weight has windows of {windows} pixels; expected squares.")
    return EvaConfig(
        image_size=sizes["image_size"],
        patch=sizes["patch_x"],
        width=sizes["tower_width"],
        layers=sizes["tower_layers"],
        heads=sizes["tower_heads"],
        ffn=sizes["tower_ffn"],
        grid=grid,
    )
