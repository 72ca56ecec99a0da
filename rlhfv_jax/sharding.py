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

# By what a parameter is called, in whatever model: the axes behind the layer axis L, which is never cut. First match
# wins; a path that matches nothing is an error, never silently replicated. Multiway copies (/A, /B) lie alike.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),  # [V, D]
    (r"head/kernel", P("fsdp", "tensor")),  # [D, V]
    (r"attention/[qkv]/kernel", P("fsdp", "tensor", None)),  # [D, N, H]
    (r"attention/[qkv]/bias", P("tensor", None)),  # [N, H]
    (r"attention/qkv/kernel", P("fsdp", None, "tensor", None)),  # [D, 3, N, H]
    (r"attention/qkv/bias", P(None, "tensor", None)),  # [3, N, H]
    (r"attention/o/kernel", P("tensor", None, "fsdp")),  # [N, H, D]
    (r"(mlp|projector)/(gate|up)/kernel", P("fsdp", "tensor")),  # [D, F]
    (r"(mlp|projector)/up/bias", P("tensor")),  # [F]
    (r"(mlp|projector)/down/kernel", P("tensor", "fsdp")),  # [F, D]
    (r"patch/(window/|out/)?kernel", P(None, "fsdp")),  # [3*p*p, D]
    (r"projector/((keys|out)/)?kernel", P("fsdp", None)),  # [E, D]
    (r"\w+_norm/(scale|bias)|(o|down|patch|window|out|projector)/bias", P()),
    (r"class_token|query|(fixed_)?positions", P()),
    (r"probe/(kernel|bias)", P()),  # a small classifier beside the tower, for its warm-up
    (r"ns_coeffs", P()),  # Muon's polynomial, part of its state
)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Any = None) -> Mesh:
    """A mesh over `devices` (default: all of them); one size may be -1, which takes what is left.

    Raises UserError for sizes that do not fit the devices.
    """
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
    rule = _rule(path)
    if rule is None:
        raise UserError(f"No sharding rule matches the parameter {path} of shape {shape}; add one to sharding.RULES.")
    return _checked(path, shape, rule, mesh)


def _rule(path: str) -> P | None:
    """The table's rule for a parameter, its layer axis included."""
    name = re.sub(r"/[AB](/|$)", r"\1", path)
    rule = next((rule for pattern, rule in RULES if re.search(rf"(^|/)({pattern})$", name)), None)
    return P(None, *rule) if rule and "layers/" in path else rule


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
    rule = _rule(kernel)
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
