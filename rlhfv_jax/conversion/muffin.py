"""Muffin's form in PyTorch, and a fresh Muffin from its parts."""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhfv_jax.conversion.layout import ROTARY, Hints, Layout, llama_config, llama_json, llama_sizes
from rlhfv_jax.conversion.parts import Made, passed, shape_of
from rlhfv_jax.conversion.table import LLAMA, Entry
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import beit3
from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.muffin import MuffinConfig

ROOT = "model.vision_tower.beit3."
POSITIONS = f"{ROOT}encoder.embed_positions.A.weight"
ADDED = 4  # [PAD], <im_patch>, <im_start>, <im_end>
BOS, EOS = 0, 2  # in BEiT-3's own vocabulary
INIT_STD = 0.02


def _tower() -> Iterator[Entry]:
    """torchscale's BEiT-3, as Muffin holds it."""
    root, kept = "model.vision_tower.beit3", "tower_width -> tower_width"
    yield Entry(f"{root}.vision_embed.cls_token", "tower/class_token", "1 1 tower_width -> tower_width")
    window = "tower_width color patch_y patch_x -> (patch_y patch_x color) tower_width"
    yield Entry(f"{root}.vision_embed.proj.weight", "tower/patch/kernel", window)
    yield Entry(f"{root}.vision_embed.proj.bias", "tower/patch/bias", kept)
    layer, ours = f"{root}.encoder.layers.{{tower_layers}}", "tower/layers"
    heads = "(tower_heads tower_head)"
    for branch, rows in (("A", "image_positions"), ("B", "query_positions")):
        positions = f"{rows} tower_width -> {rows} tower_width"
        yield Entry(f"{root}.encoder.embed_positions.{branch}.weight", f"tower/positions/{branch}", positions)
        norms = (
            (f"{root}.encoder.layer_norm.{branch}", f"tower/final_norm/{branch}", "tower_width"),
            (f"{layer}.self_attn_layer_norm.{branch}", f"{ours}/attention_norm/{branch}", "tower_width"),
            (f"{layer}.self_attn.inner_attn_ln.{branch}", f"{ours}/attention/inner_norm/{branch}", "tower_width"),
            (f"{layer}.final_layer_norm.{branch}", f"{ours}/mlp_norm/{branch}", "tower_width"),
            (f"{layer}.ffn.{branch}.ffn_layernorm", f"{ours}/mlp/inner_norm/{branch}", "tower_ffn"),
        )
        for name, path, size in norms:
            yield Entry(f"{name}.weight", f"{path}/scale", f"{size} -> {size}")
            yield Entry(f"{name}.bias", f"{path}/bias", f"{size} -> {size}")
        for part in "qkv":
            name, path = f"{layer}.self_attn.{part}_proj.{branch}", f"{ours}/attention/{part}/{branch}"
            yield Entry(
                f"{name}.weight", f"{path}/kernel", f"{heads} tower_width -> tower_width tower_heads tower_head"
            )
            yield Entry(f"{name}.bias", f"{path}/bias", f"{heads} -> tower_heads tower_head")
        name, path = f"{layer}.self_attn.out_proj.{branch}", f"{ours}/attention/o/{branch}"
        yield Entry(f"{name}.weight", f"{path}/kernel", f"tower_width {heads} -> tower_heads tower_head tower_width")
        yield Entry(f"{name}.bias", f"{path}/bias", kept)
        for part, path, inputs, outputs in (("fc1", "up", "width", "ffn"), ("fc2", "down", "ffn", "width")):
            name, path = f"{layer}.ffn.{branch}.{part}", f"{ours}/mlp/{path}/{branch}"
            matrix = f"tower_{outputs} tower_{inputs} -> tower_{inputs} tower_{outputs}"
            yield Entry(f"{name}.weight", f"{path}/kernel", matrix)
            yield Entry(f"{name}.bias", f"{path}/bias", f"tower_{outputs} -> tower_{outputs}")


MUFFIN = (
    Entry("model.query", "tower/query", "queries tower_width -> queries tower_width"),
    *_tower(),
    Entry("model.mm_projector.weight", "projector/kernel", "width tower_width -> tower_width width"),
    Entry("model.mm_projector.bias", "projector/bias", "width -> width"),
    *LLAMA,
)


class Muffin(Layout):
    """The released class's state_dict."""

    name = "muffin"
    family = "muffin"
    entries = MUFFIN
    ignored = (ROTARY, rf"{re.escape(ROOT)}(text_embed\.weight|vision_embed\.mask_token)")
    marks = ("model.vision_tower.beit3.", "model.mm_projector.weight", "model.mm_projector.bias", "model.query")
    tower_marks = ("beit3.",)

    def known_sizes(self, config_json: Mapping[str, Any]) -> dict[str, int]:
        sizes = super().known_sizes(config_json)
        if config_json.get("num_query") is not None:
            sizes["queries"] = int(config_json["num_query"])
        named = re.fullmatch(r"beit3_(base|large)_patch(\d+)_(\d+)", str(config_json.get("mm_vision_tower", "")))
        if named:
            tower = beit3.SIZES[named.group(1)](int(named.group(3)))
            sizes |= {"tower_layers": tower.layers, "tower_width": tower.width, "tower_heads": tower.heads}
            sizes |= {"tower_ffn": tower.ffn, "image_positions": tower.patches + 3, "patch_x": int(named.group(2))}
            sizes["patch_y"] = sizes["patch_x"]
        return sizes

    def derived(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"color": 3}

    def tower_heads(self, width: int) -> int:
        return width // 64 if width in (beit3.base().width, beit3.large().width) else 0

    def config(self, sizes: Mapping[str, int], hints: Hints) -> MuffinConfig:
        # The released added tokens: [PAD], <im_patch>, <im_start>, <im_end>, the last four.
        return MuffinConfig(tower_config(sizes), llama_config(sizes, hints), sizes["vocab"] - 3)

    def sizes(self, config: MuffinConfig) -> dict[str, int]:
        """Sizes by name, from the model; raises UserError for a tower that PyTorch's Muffin cannot have."""
        tower = config.tower
        if tower.stem != "linear":
            raise UserError("The vision tower has a convolutional stem, which PyTorch's Muffin does not have.")
        return llama_sizes(config.llm) | {
            "image_positions": tower.patches + 3,
            "query_positions": tower.query_positions,
            "queries": tower.queries,
            "patch_x": tower.patch,
            "patch_y": tower.patch,
            "color": 3,
            "tower_width": tower.width,
            "tower_layers": tower.layers,
            "tower_heads": tower.heads,
            "tower_head": tower.width // tower.heads,
            "tower_ffn": tower.ffn,
        }

    def buffers(self, config: MuffinConfig) -> list[tuple[str, np.ndarray]]:
        """The `inv_freq` tables that Muffin's transformers (4.28) saves; a LLaMA of today has none."""
        head, theta = config.llm.head_size, config.llm.rope_theta
        table = (1.0 / theta ** (np.arange(0, head, 2, dtype=np.float32) / np.float32(head))).astype(np.float32)
        return [(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", table) for i in range(config.llm.layers)]

    def hf_config(self, config: MuffinConfig, dtype: np.dtype) -> dict[str, Any]:
        """As released, with its own keys."""
        tower = config.tower
        named = {beit3.base().width: "base", beit3.large().width: "large"}.get(tower.width, "tiny")
        return llama_json(config.llm, dtype) | {
            "architectures": ["Beit3LlavaLlamaForCausalLM"],
            "model_type": "beit3_llava",
            "bos_token_id": 0,  # as released, though the tokenizer's are 1 and 2
            "eos_token_id": 1,
            "pad_token_id": -1,
            "freeze_mm_mlp_adapter": False,
            "fully_tune": True,
            "max_sequence_length": 2048,
            "mm_use_im_start_end": True,
            "mm_vision_tower": f"beit3_{named}_patch{tower.patch}_{tower.image_size}",
            "num_query": tower.queries,
            "tune_mm_mlp_adapter": False,
            "use_cache": False,
            "use_mm_proj": True,
        }

    def with_tower(self, tensors: Tensors, tower: Tensors, queries: int, seed: int) -> tuple[Tensors, dict[str, int]]:
        return build_muffin(tensors, tower, queries, seed), {"vocab": ADDED}

    def resized(self, tensors: Tensors, image_size: int) -> tuple[Tensors, dict[str, int]]:
        return resize_images(tensors, image_size), {}


def tower_config(sizes: Mapping[str, int]) -> Beit3Config:
    """The vision tower of these sizes; raises UserError where the patches form no square or the windows are none."""
    side = math.isqrt(sizes["image_positions"] - 3)
    root = "model.vision_tower.beit3"
    if side**2 != sizes["image_positions"] - 3:
        name = f"{root}.encoder.embed_positions.A.weight"
        raise UserError(f"{name} has {sizes['image_positions']} rows; expected 3 more than a square number of patches.")
    if sizes["patch_x"] != sizes["patch_y"]:
        name = f"{root}.vision_embed.proj.weight"
        raise UserError(f"{name} has windows of {sizes['patch_y']} by {sizes['patch_x']} pixels; expected squares.")
    if sizes["query_positions"] < sizes["queries"] + beit3.POSITION_OFFSET:
        name = f"{root}.encoder.embed_positions.B.weight"
        raise UserError(
            f"{name} has {sizes['query_positions']} rows, too few for the {sizes['queries']} queries of model.query."
        )
    return Beit3Config(
        image_size=side * sizes["patch_x"],
        patch=sizes["patch_x"],
        width=sizes["tower_width"],
        layers=sizes["tower_layers"],
        heads=sizes["tower_heads"],
        ffn=sizes["tower_ffn"],
        queries=sizes["queries"],
        query_positions=sizes["query_positions"],
    )


def build_muffin(llm: Tensors, tower: Tensors, queries: int, seed: int) -> Made:
    """Muffin as its training starts: LLaMA, BEiT-3, fresh queries and projector.

    The first and last query are the embeddings of BEiT-3's `bos` and `eos`, the others truncated normal; the rows of
    the four added tokens are the mean of the others, as where the reference resizes embeddings; the projector is a
    fresh linear map with bias 0.

    Raises UserError where a part is not what it should be.
    """
    if "lm_head.weight" not in llm.shapes or "model.embed_tokens.weight" not in llm.shapes:
        raise UserError("The language model has no model.embed_tokens.weight and lm_head.weight; expected a LLaMA.")
    if "beit3.text_embed.weight" not in tower.shapes:
        raise UserError(
            "The tower has no beit3.text_embed.weight; expected a bare BEiT-3 (beit3_large_patch16_224.pth)."
        )
    if queries < 2:
        raise UserError(f"--queries={queries}: the first and the last query have their own start, so at least 2.")
    vocab, width = shape_of(llm, "model.embed_tokens.weight")
    _, tower_width = shape_of(tower, "beit3.text_embed.weight")
    seeds = np.random.default_rng(seed).integers(0, 2**63, 2)
    tensors = passed(llm)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = ((vocab + ADDED, width), partial(_with_mean_rows, llm, name))
    tensors |= passed(tower, lambda name: ROOT + name.removeprefix("beit3."))
    text = partial(tower.read, "beit3.text_embed.weight")
    tensors["model.query"] = ((queries, tower_width), lambda: _queries(text(), queries, seeds[0]))
    bound = tower_width**-0.5  # torch's Linear
    tensors["model.mm_projector.weight"] = (
        (width, tower_width),
        lambda: np.random.default_rng(seeds[1]).uniform(-bound, bound, (width, tower_width)).astype(np.float32),
    )
    tensors["model.mm_projector.bias"] = ((width,), lambda: np.zeros(width, np.float32))
    return Made(tensors)


def resize_images(tensors: Tensors, image_size: int) -> Tensors:
    """The same model for square images of `image_size` pixels: its image positions interpolated bicubically.

    Raises UserError for a size that is no multiple of the patches'.
    """
    window = tensors.shapes.get(f"{ROOT}vision_embed.proj.weight")
    positions = tensors.shapes.get(POSITIONS)
    if window is None or positions is None:
        raise UserError(f"--image_size={image_size}: the checkpoint has no vision tower with known shapes.")
    if image_size < 1 or image_size % window[-1]:
        raise UserError(f"--image_size={image_size} is not a positive multiple of the patch size {window[-1]}.")
    patches = (image_size // window[-1]) ** 2
    if patches + 3 == positions[0]:
        return tensors

    def resized() -> np.ndarray:
        return np.asarray(beit3.interpolate_positions(jnp.asarray(tensors.read(POSITIONS), jnp.float32), patches))

    return Made(passed(tensors) | {POSITIONS: ((patches + 3, positions[1]), resized)})


def _queries(text_embed: np.ndarray, queries: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, INIT_STD, (queries, text_embed.shape[1]))
    while (far := np.abs(values) > 2 * INIT_STD).any():
        values[far] = rng.normal(0.0, INIT_STD, int(far.sum()))
    values[0], values[-1] = text_embed[BOS], text_embed[EOS]
    return values.astype(np.float32)


def _with_mean_rows(tensors: Tensors, name: str) -> np.ndarray:
    table = tensors.read(name)
    mean = table.mean(axis=0, dtype=np.float32, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, ADDED, axis=0)])
