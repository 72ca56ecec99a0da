"""PyTorch checkpoints as parameter trees, written for the tests alone: one line a tensor, independent of the package.

Each entry names the PyTorch tensor, our path, the layer it is stacked at (None for one tensor) and an einops pattern
from PyTorch's axes to ours; the pattern read backwards takes our arrays (gradients, say) to PyTorch's layout.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from conftest import shared
from einops import rearrange

from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.muffin import MuffinConfig

MATRIX = "o i -> i o"


class Entry(NamedTuple):
    name: str
    path: str
    layer: int | None
    pattern: str
    sizes: dict[str, int]


def llama_entries(c: LlamaConfig) -> Iterator[Entry]:
    """LlamaForCausalLM's tensors, under llm/."""
    yield Entry("model.embed_tokens.weight", "llm/embed/embedding", None, "v d -> v d", {})
    yield Entry("lm_head.weight", "llm/head/kernel", None, MATRIX, {})
    yield Entry("model.norm.weight", "llm/final_norm/scale", None, "d -> d", {})
    for i in range(c.layers):
        name, path = f"model.layers.{i}", "llm/layers"
        yield Entry(f"{name}.input_layernorm.weight", f"{path}/attention_norm/scale", i, "d -> d", {})
        yield Entry(f"{name}.post_attention_layernorm.weight", f"{path}/mlp_norm/scale", i, "d -> d", {})
        for part, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            weight = f"{name}.self_attn.{part}_proj.weight"
            yield Entry(weight, f"{path}/attention/{part}/kernel", i, "(n h) d -> d n h", {"n": heads})
        output = f"{name}.self_attn.o_proj.weight"
        yield Entry(output, f"{path}/attention/o/kernel", i, "d (n h) -> n h d", {"n": c.heads})
        for part in ("gate", "up", "down"):
            yield Entry(f"{name}.mlp.{part}_proj.weight", f"{path}/mlp/{part}/kernel", i, MATRIX, {})


def tower_entries(c: Beit3Config) -> Iterator[Entry]:
    """The BEiT-3 tower's tensors and the queries, under tower/."""
    root = "model.vision_tower.beit3"
    yield Entry("model.query", "tower/query", None, "q d -> q d", {})
    yield Entry(f"{root}.vision_embed.cls_token", "tower/class_token", None, "1 1 d -> d", {})
    sizes = {"c": 3, "p": c.patch, "q": c.patch}
    yield Entry(f"{root}.vision_embed.proj.weight", "tower/patch/kernel", None, "d c p q -> (p q c) d", sizes)
    yield Entry(f"{root}.vision_embed.proj.bias", "tower/patch/bias", None, "d -> d", {})
    for branch in "AB":
        positions = f"{root}.encoder.embed_positions.{branch}.weight"
        yield Entry(positions, f"tower/positions/{branch}", None, "t d -> t d", {})
        yield from _norm(f"{root}.encoder.layer_norm.{branch}", f"tower/final_norm/{branch}", None)
        for i in range(c.layers):
            name, path = f"{root}.encoder.layers.{i}", "tower/layers"
            yield from _norm(f"{name}.self_attn_layer_norm.{branch}", f"{path}/attention_norm/{branch}", i)
            yield from _norm(f"{name}.self_attn.inner_attn_ln.{branch}", f"{path}/attention/inner_norm/{branch}", i)
            yield from _norm(f"{name}.final_layer_norm.{branch}", f"{path}/mlp_norm/{branch}", i)
            yield from _norm(f"{name}.ffn.{branch}.ffn_layernorm", f"{path}/mlp/inner_norm/{branch}", i)
            heads = {"n": c.heads}
            for part in "qkv":
                torch, ours = f"{name}.self_attn.{part}_proj.{branch}", f"{path}/attention/{part}/{branch}"
                yield Entry(f"{torch}.weight", f"{ours}/kernel", i, "(n h) d -> d n h", heads)
                yield Entry(f"{torch}.bias", f"{ours}/bias", i, "(n h) -> n h", heads)
            torch, ours = f"{name}.self_attn.out_proj.{branch}", f"{path}/attention/o/{branch}"
            yield Entry(f"{torch}.weight", f"{ours}/kernel", i, "d (n h) -> n h d", heads)
            yield Entry(f"{torch}.bias", f"{ours}/bias", i, "d -> d", {})
            for fc, part in (("fc1", "up"), ("fc2", "down")):
                torch, ours = f"{name}.ffn.{branch}.{fc}", f"{path}/mlp/{part}/{branch}"
                yield Entry(f"{torch}.weight", f"{ours}/kernel", i, MATRIX, {})
                yield Entry(f"{torch}.bias", f"{ours}/bias", i, "d -> d", {})


def _norm(name: str, path: str, layer: int | None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", f"{path}/scale", layer, "d -> d", {})
    yield Entry(f"{name}.bias", f"{path}/bias", layer, "d -> d", {})


def muffin_entries(c: MuffinConfig) -> Iterator[Entry]:
    yield from tower_entries(c.tower)
    yield Entry("model.mm_projector.weight", "projector/kernel", None, MATRIX, {})
    yield Entry("model.mm_projector.bias", "projector/bias", None, "d -> d", {})
    yield from llama_entries(c.llm)


def to_params(tensors: Mapping[str, np.ndarray], entries: Iterator[Entry], padded_vocab: int, pad: float = 0.0) -> dict:
    """The nested parameter tree; every tensor must be used and every entry be there. `pad` fills the padding rows."""
    unused = {name for name in tensors if not name.endswith("rotary_emb.inv_freq")}
    flat: dict[str, Any] = {}
    for name, path, layer, pattern, sizes in entries:
        unused.remove(name)
        array = rearrange(np.asarray(tensors[name]), pattern, **sizes)
        if path in ("llm/embed/embedding", "llm/head/kernel"):
            axis = 0 if path.startswith("llm/embed") else 1
            widths = [(0, padded_vocab - array.shape[a] if a == axis else 0) for a in range(2)]
            array = np.pad(array, widths, constant_values=pad)
        if layer is None:
            flat[path] = array
        else:
            flat.setdefault(path, []).append(array)
            assert len(flat[path]) == layer + 1, f"{name} is out of order"
    assert not unused, f"not mapped: {sorted(unused)}"
    tree: dict = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = np.stack(value) if isinstance(value, list) else value
    return tree


def to_torch(params: Mapping, entries: Iterator[Entry], vocab_size: int) -> dict[str, np.ndarray]:
    """The inverse: PyTorch names and layouts for any tree like the parameters, padding rows cut off."""
    tensors = {}
    for name, path, layer, pattern, sizes in entries:
        node: Any = params
        for part in path.split("/"):
            node = node[part]
        array = np.asarray(node if layer is None else node[layer])
        if path == "llm/embed/embedding":
            array = array[:vocab_size]
        if path == "llm/head/kernel":
            array = array[:, :vocab_size]
        source, target = (side.strip() for side in pattern.split("->"))
        tensors[name] = rearrange(array, f"{target} -> {source}", **sizes)
    return tensors


TINY_MUFFIN = MuffinConfig(
    tower=Beit3Config(image_size=64, patch=16, width=64, layers=2, heads=4, ffn=256, queries=8),
    llm=LlamaConfig(32_004, width=24, layers=2, heads=4, kv_heads=4, ffn=64),
    image_token=32_001,
)


@cache
def tiny_muffin(pad: float = 0.0) -> dict:
    """Parameters of fixtures/tiny-muffin, the checkpoint that all golden files come from."""
    import torch

    state = torch.load(shared("fixtures/tiny-muffin/pytorch_model.bin"), weights_only=True)
    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    return to_params(tensors, muffin_entries(TINY_MUFFIN), TINY_MUFFIN.llm.padded_vocab, pad)
