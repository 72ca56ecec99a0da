"""The one table that says which PyTorch tensor is which parameter of ours; both directions and the dry run read it.

An entry holds the tensor's name (`{layers}` counts a stack), the parameter's path, and the axes of both as one einops
pattern; read backwards it is the inverse. Axis names are sizes of the model, so an entry also states both shapes. Of a
stack whose last layer is a parameter of its own, `{layers-1}` counts the others, and `{=layers-1}` is its number.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from einops import rearrange

from rlhfv_jax.models.llama import padded

Sizes = Mapping[str, int]
COUNTER = re.compile(r"\{(?P<own>=?)(?P<size>\w+)(?P<less>-1)?\}")


class Entry(NamedTuple):
    """One line of the table."""

    name: str  # in PyTorch's state_dict
    path: str  # of the parameter
    axes: str  # "PyTorch's -> ours", without the leading axis of a stack

    @property
    def stack(self) -> str | None:
        """The size that counts the layers of a stacked parameter, None for one tensor."""
        found = COUNTER.search(self.name)
        return found["size"] if found and not found["own"] else None

    def depth(self, sizes: Sizes) -> int:
        """The layers of a stack."""
        found = COUNTER.search(self.name)
        assert found is not None, self.name
        return sizes[found["size"]] - bool(found["less"])

    def names(self, sizes: Sizes) -> list[str]:
        """The tensors of this parameter, in the order of its leading axis."""
        if COUNTER.search(self.name) is None:
            return [self.name]
        depth = self.depth(sizes)
        indices = range(depth) if self.stack else [depth]
        return [COUNTER.sub(str(index), self.name) for index in indices]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Of the tensors' names, the layer's number as its group."""
        before, *rest = COUNTER.split(self.name)
        return re.compile(f"{re.escape(before)}(\\d+){re.escape(rest[-1])}" if rest else re.escape(before))

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in PyTorch, from sizes by name."""
        return tuple(_product(axis, sizes) for axis in axes(self.axes)[0])

    def our_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The parameter's shape, stack axis first, vocabulary padded."""
        shape = tuple(padded(sizes["vocab"]) if a == ("vocab",) else _product(a, sizes) for a in axes(self.axes)[1])
        return shape if self.stack is None else (self.depth(sizes), *shape)

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


LLAMA = tuple(_llama())
