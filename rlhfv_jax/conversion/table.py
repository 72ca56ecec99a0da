"""The one table that says which PyTorch tensor is which parameter of ours; both directions and the dry run read it.

An entry holds the tensor's name (`{layers}` counts a stack), the parameter's path, and the axes of both as one einops
pattern; read backwards it is the inverse. Axis names are sizes of the model, so an entry also states both shapes.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from einops import rearrange

from rlhfv_jax.models.llama import padded

Sizes = Mapping[str, int]


class Entry(NamedTuple):
    """One line of the table."""

    name: str  # in PyTorch's state_dict
    path: str  # of the parameter
    axes: str  # "PyTorch's -> ours", without the leading axis of a stack

    @property
    def stack(self) -> str | None:
        """The size that counts the layers of a stacked parameter, None for one tensor."""
        found = re.search(r"\{(\w+)\}", self.name)
        return found.group(1) if found else None

    def names(self, sizes: Sizes) -> list[str]:
        """The tensors of this parameter, in the order of its leading axis."""
        if self.stack is None:
            return [self.name]
        return [self.name.format(**{self.stack: index}) for index in range(sizes[self.stack])]

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(_product(axis, sizes) for axis in axes(self.axes)[0])

    def our_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The parameter's shape, stack axis first, vocabulary padded."""
        shape = tuple(padded(sizes["vocab"]) if a == ("vocab",) else _product(a, sizes) for a in axes(self.axes)[1])
        return shape if self.stack is None else (sizes[self.stack], *shape)

    def to_ours(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
        """One PyTorch tensor as one layer of the parameter; rows that pad the vocabulary are zeros."""
        assert tensor.shape == self.torch_shape(sizes), (self.name, tensor.shape)
        array = rearrange(tensor, self.axes, **self._lengths(sizes))
        padding = [
            (0, padded(n) - n if a == ("vocab",) else 0) for a, n in zip(axes(self.axes)[1], array.shape, strict=True)
        ]
        return np.pad(array, padding) if any(right for _, right in padding) else array

    def to_torch(self, array: np.ndarray, sizes: Sizes) -> np.ndarray:
        """The inverse of `to_ours`."""
        assert array.shape == self.our_shape(sizes)[self.stack is not None :], (self.path, array.shape)
        torch, ours = self.axes.split(" -> ")
        kept = tuple(slice(sizes["vocab"]) if axis == ("vocab",) else slice(None) for axis in axes(self.axes)[1])
        return rearrange(array[kept], f"{ours} -> {torch}", **self._lengths(sizes))

    def _lengths(self, sizes: Sizes) -> dict[str, int]:
        return {a: sizes[a] for side in axes(self.axes) for axis in side if len(axis) > 1 for a in axis}


@cache
def axes(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The axes of both sides of a pattern, each as the sizes it is the product of; () for an axis of length 1.

    >>> axes("1 (heads head) -> heads head")
    (((), ('heads', 'head')), (('heads',), ('head',)))
    """
    found = re.compile(r"\(([^)]*)\)|(\S+)")
    sides = [[(group or single).split() for group, single in found.findall(side)] for side in pattern.split(" -> ")]
    return tuple(tuple(tuple(name for name in axis if name != "1") for axis in side) for side in sides)


def _product(axis: tuple[str, ...], sizes: Sizes) -> int:
    result = 1
    for name in axis:
        result *= sizes[name]
    return result


def _llama() -> Iterator[Entry]:
    """Hugging Face's LlamaForCausalLM."""
    matrix = "{} width -> width {}"
    yield Entry("model.embed_tokens.weight", "llm/embed/embedding", "vocab width -> vocab width")
    yield Entry("lm_head.weight", "llm/head/kernel", "vocab width -> width vocab")
    yield Entry("model.norm.weight", "llm/final_norm/scale", "width -> width")
    layer, ours = "model.layers.{layers}", "llm/layers"
    yield Entry(f"{layer}.input_layernorm.weight", f"{ours}/attention_norm/scale", "width -> width")
    yield Entry(f"{layer}.post_attention_layernorm.weight", f"{ours}/mlp_norm/scale", "width -> width")
    for part, heads in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")):
        split = f"({heads} head) width -> width {heads} head"
        yield Entry(f"{layer}.self_attn.{part}_proj.weight", f"{ours}/attention/{part}/kernel", split)
    output = "width (heads head) -> heads head width"
    yield Entry(f"{layer}.self_attn.o_proj.weight", f"{ours}/attention/o/kernel", output)
    for part in ("gate", "up"):
        yield Entry(f"{layer}.mlp.{part}_proj.weight", f"{ours}/mlp/{part}/kernel", matrix.format("ffn", "ffn"))
    yield Entry(f"{layer}.mlp.down_proj.weight", f"{ours}/mlp/down/kernel", "width ffn -> ffn width")


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


LLAMA = tuple(_llama())
TOWER = tuple(_tower())
MUFFIN = (
    Entry("model.query", "tower/query", "queries tower_width -> queries tower_width"),
    *TOWER,
    Entry("model.mm_projector.weight", "projector/kernel", "width tower_width -> tower_width width"),
    Entry("model.mm_projector.bias", "projector/bias", "width -> width"),
    *LLAMA,
)

# Tensors of a checkpoint that carry nothing: a rotary table that the config implies, and what Muffin never reads.
IGNORED = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"model\.vision_tower\.beit3\.text_embed\.weight",
    r"model\.vision_tower\.beit3\.vision_embed\.mask_token",
)
