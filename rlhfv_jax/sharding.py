"""The device mesh and the one table that says how every array lies on it.

Axes: `data` replicates parameters, `fsdp` shards them and the batch, `tensor` shards heads and feed-forward units.
Parameters and optimizer state follow the same table, since an optimizer's paths end with the parameter's path.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhfv_jax import trees
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import BATCH

AXES = ("data", "fsdp", "tensor")

# First match wins; a path that matches nothing is an error, never silently replicated. L (the layer axis) is never cut.
RULES: tuple[tuple[str, P], ...] = (
    (r"llm/embed/embedding", P("tensor", "fsdp")),  # [V, D]
    (r"llm/head/kernel", P("fsdp", "tensor")),  # [D, V]
    (r"llm/layers/attention/[qkv]/kernel", P(None, "fsdp", "tensor", None)),  # [L, D, N, H]
    (r"llm/layers/attention/o/kernel", P(None, "tensor", None, "fsdp")),  # [L, N, H, D]
    (r"llm/layers/mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"llm/layers/mlp/down/kernel", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"llm/(layers/)?\w+_norm/scale", P()),
    (r"tower/patch/(window/|out/)?kernel", P(None, "fsdp")),  # [3*p*p, D]
    (r"tower/(class_token|query|positions/[AB])", P()),
    (r"tower/layers/attention/[qkv]/[AB]/kernel", P(None, "fsdp", "tensor", None)),
    (r"tower/layers/attention/[qkv]/[AB]/bias", P(None, "tensor", None)),  # [L, N, H]
    (r"tower/layers/attention/o/[AB]/kernel", P(None, "tensor", None, "fsdp")),
    (r"tower/layers/mlp/up/[AB]/kernel", P(None, "fsdp", "tensor")),
    (r"tower/layers/mlp/up/[AB]/bias", P(None, "tensor")),  # [L, F]
    (r"tower/layers/mlp/down/[AB]/kernel", P(None, "tensor", "fsdp")),
    (r"tower/(layers/)?(\w+/)*\w+_norm/[AB]/(scale|bias)", P()),
    (r"tower/(\w+/)*(bias)|tower/layers/(\w+/)*(o|down)/[AB]/bias", P()),
    (r"projector/kernel", P("fsdp", None)),  # [E, D]
    (r"projector/bias", P()),
    (r"probe/(kernel|bias)", P()),  # a small classifier beside the tower, for its warm-up
    (r"ns_coeffs", P()),  # Muon's polynomial, part of its state
)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Any = None) -> Mesh:
    """A mesh over `devices` (default: all of them); one size may be -1, which takes what is left."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    text = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"Mesh sizes are positive, and at most one is -1 (all devices that are left); got {text}.")
    if -1 in sizes:
        taken = -int(np.prod(sizes))
        if len(devices) % taken:
            raise UserError(f"The mesh ({text}) cannot share {len(devices)} devices out evenly; some would idle.")
        sizes[sizes.index(-1)] = len(devices) // taken
    if int(np.prod(sizes)) > len(devices):
        raise UserError(f"The mesh ({text}) needs {int(np.prod(sizes))} devices, but only {len(devices)} are there.")
    # Auto, since make_mesh's default (Explicit) rejects contractions over a sharded axis.
    used = devices[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=used)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of a parameter or optimizer entry; UserError on an unmatched path, an unfit rank or size.

    >>> spec("0/mu/llm/layers/mlp/up/kernel", (40, 5120, 13824), mesh)
    PartitionSpec(None, 'fsdp', 'tensor')
    """
    if not shape:
        return P()
    if path.endswith(("/lora_a", "/lora_b")):
        return _adapter_spec(path, shape, mesh)
    for pattern, rule in RULES:
        if not re.search(rf"(^|/)({pattern})$", path):
            continue
        return _checked(path, shape, rule, mesh)
    raise UserError(f"No sharding rule matches the parameter {path} of shape {shape}; add one to sharding.RULES.")


def _checked(path: str, shape: tuple[int, ...], rule: P, mesh: Mesh) -> P:
    if len(rule) not in (0, len(shape)):
        raise UserError(f"The sharding rule {rule} of {path} names {len(rule)} axes; its shape is {shape}.")
    for axis, (name, size) in enumerate(zip(rule, shape, strict=False)):
        if name is not None and size % mesh.shape[name]:
            raise UserError(
                f"Cannot shard {path}: axis {axis} of shape {shape} is not divisible by mesh axis "
                f"{name}={mesh.shape[name]}. Choose a smaller mesh.{name}."
            )
    return rule


def _adapter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """An adapter lies as its kernel does, its inputs with A and its outputs with B; the rank is never cut.

    >>> spec("llm/layers/mlp/up/lora_b", (40, 16, 13824), mesh)  # [L, r, F]
    PartitionSpec(None, None, 'tensor')
    """
    kernel = f"{path[: -len('lora_a')]}kernel"
    rule = next((rule for pattern, rule in RULES if re.search(rf"(^|/)({pattern})$", kernel)), None)
    if rule is None:
        raise UserError(f"No sharding rule matches {kernel}, the kernel of {path}; add one to sharding.RULES.")
    layers = int("layers/" in path)
    if path.endswith("/lora_a"):
        rule = P(*rule[: len(shape) - 1], None)
    else:
        rule = P(*rule[:layers], None, *rule[len(rule) - (len(shape) - layers - 1) :])
    return _checked(path, shape, rule, mesh)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedShardings for parameters, optimizer state or a whole TrainState (abstract or real)."""
    return trees.map_with_path(lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, mesh)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over data and fsdp, everything else whole."""
    return NamedSharding(mesh, P(BATCH))


def ways(mesh: Mesh) -> int:
    """Shares that the batch axis is cut into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError where the batch cannot be cut evenly over the devices, and there into so many parts."""
    if batch_size % (ways(mesh) * parts):
        cut = f"mesh.data*mesh.fsdp={ways(mesh)}" + (f" times gradient_accumulation={parts}" if parts > 1 else "")
        raise UserError(f"optim.batch_size={batch_size} is not divisible by {cut}; change one of them.")


def shares_here(mesh: Mesh) -> tuple[int, ...]:
    """Which of the `ways` shares of the batch axis lie on devices of this process, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((ways(mesh),)).values()
    return tuple(sorted({(place[0].start or 0) if place else 0 for place in places}))


def put(batch: Any, mesh: Mesh) -> Any:
    """Host arrays (this process's rows, those of `shares_here`) to one global array on the mesh, batch axis sharded."""
    where, here, total = batch_sharding(mesh), shares_here(mesh), ways(mesh)
    if len(here) == total:
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(where, array), batch)

    def place(array: Any) -> jax.Array:
        rows = len(array) // len(here)  # of a share

        def shard(index: Any) -> Any:
            first = here.index((index[0].start or 0) // rows) * rows
            return array[first : first + rows]

        return jax.make_array_from_callback((rows * total, *array.shape[1:]), where, shard)

    return jax.tree.map(place, batch)


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Global arrays as host arrays, whole in every process."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.device_get(tree)


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Pins an activation's layout: `constrain(x, BATCH)` cuts its leading axis and leaves the rest whole.

    Without a mesh (a model applied on its own) it returns `x` unchanged.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))
