"""Parameter trees as flat paths: the names that conversion, sharding and checkpoints share."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def paths(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields `("llm/layers/mlp/up/kernel", leaf)` for every leaf, in the tree's own order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_str(path), leaf


def path_str(path: Any) -> str:
    """A parameter's path as text, parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps `function(path, leaf)` over the tree."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_str(path), leaf), tree)


def kernel_axes(path: str, rank: int) -> tuple[int, int]:
    """How many axes of a kernel of `rank` axes are layers, and how many are inputs; the rest are outputs.

    >>> kernel_axes("llm/layers/attention/o/kernel", 4)  # [L, N, H, D]
    (1, 2)
    """
    layers = int("layers/" in path)
    return layers, rank - layers - 1 if "/o/" in path else 1


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves given by path; the inverse of `dict(paths(tree))`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def count(tree: Any) -> int:
    """Number of scalars in the tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def diff(expected: Any, found: Any) -> list[str]:
    """One line for every leaf that is missing, unexpected, or of another shape or dtype; empty when the trees agree.

    Leaves need `shape` and `dtype` only, so abstract trees compare with real ones.
    """
    want, have = dict(paths(expected)), dict(paths(found))
    lines = [f"{p}: missing (expected {_form(want[p])})" for p in want if p not in have]
    lines += [f"{p}: unexpected ({_form(have[p])})" for p in have if p not in want]
    lines += [
        f"{p}: expected {_form(want[p])}, found {_form(have[p])}"
        for p in want
        if p in have and _form(want[p]) != _form(have[p])
    ]
    return lines


def _form(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def split(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Two trees of the same structure: leaves where `mask` is true, and the others; None stands for an absent leaf.

    optax and jax.grad skip None, so the second tree costs neither gradients nor optimizer state.
    """
    chosen = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    others = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)
    return chosen, others


def join(first: Any, second: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)


def digest(tree: Any) -> str:
    """sha256 over paths, shapes, dtypes and bytes: equal for equal parameters, whatever their sharding."""
    sha = hashlib.sha256()
    for path, leaf in sorted(paths(tree), key=lambda item: item[0]):
        sha.update(f"{path} {_form(leaf)}".encode())
        for piece in _pieces(leaf):
            sha.update(np.ascontiguousarray(piece).tobytes())
    return sha.hexdigest()


def _pieces(leaf: Any) -> Iterator[np.ndarray]:
    """The values of an array in order; those on other hosts are fetched an entry of a stacked axis at a time."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        yield np.asarray(jax.device_get(leaf))
        return
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
    if leaf.ndim < 3:
        yield np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(leaf))
        return
    entry = jax.jit(lambda x, i: x[i], out_shardings=everywhere)
    for i in range(leaf.shape[0]):
        yield np.asarray(entry(leaf, np.int32(i)))
