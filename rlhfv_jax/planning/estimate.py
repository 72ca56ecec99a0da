"""Compiles the train step of a configuration for a target and reads memory, work and collectives off the result."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhfv_jax import experiment, lora, prepare, settings, sharding, steps
from rlhfv_jax.data import packing
from rlhfv_jax.errors import UserError
from rlhfv_jax.flops import dot_flops
from rlhfv_jax.models import vlm
from rlhfv_jax.planning import alternatives, roofline, schedule
from rlhfv_jax.planning.targets import GIB, Target
from rlhfv_jax.settings import Settings
from rlhfv_jax.structs import PackedBatch, PairBatch, SftBatch

VOCABULARY = (32_004, 32_001)  # tokens and the image token of LLaMA's tokenizer, where none is read


def plan(s: Settings, target: Target, row_length: int, pairs: int) -> dict[str, Any]:
    """Figures of one train step on the target, per device; rows have `row_length` tokens.

    `pairs` is the number of rows of the data, which the run's length in steps follows from where it is in epochs.
    """
    mesh = sharding.make_mesh(s.mesh.data, s.mesh.fsdp, s.mesh.tensor, devices=target.devices)
    sharding.check_batch_size(s.optim.batch_size, mesh, s.gradient_accumulation)
    total_steps = s.optim.steps or math.ceil(s.optim.epochs * pairs / s.optim.batch_size)
    step, state = train_step(s, mesh, total_steps)  # outside the mesh: what runs at once needs devices that are here
    with jax.set_mesh(mesh):
        packed = s.data.layout == "packed"
        groups = sharding.ways(mesh) * s.gradient_accumulation
        batch = packed_batch_of(s, row_length, groups) if packed else batch_of(s, row_length)
        traced = step.trace(state, batch)
        started = time.perf_counter()
        try:
            compiled = traced.lower().compile(compiler_options=target.options or None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            why = " ".join(str(error).split())[:400]
            return {"topology": target.name, "fits": False, "capacity_gib": target.capacity_gib, "compiler": why}
        seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    text = program_text(compiled, target)
    sent = None if text is None else schedule.collectives(text, mesh.size)
    flops = dot_flops(traced.jaxpr.jaxpr)
    peak = memory.peak_memory_in_bytes / GIB
    return {
        "topology": target.name,
        "fits": peak <= target.capacity_gib,
        "peak_gib": peak,
        "capacity_gib": target.capacity_gib,
        "argument_gib": memory.argument_size_in_bytes / GIB,
        "temp_gib": memory.temp_size_in_bytes / GIB,
        "alias_gib": memory.alias_size_in_bytes / GIB,
        "state_gib": state_bytes(state, mesh) / GIB,
        "flops_per_step": flops,
        "collectives": None if sent is None else schedule.summary(sent),
        "compile_seconds": seconds,
        "steps": total_steps,
        "row_length": row_length,
        "estimate": target.chip
        and roofline.estimate(flops, state_bytes(state.opt_state, mesh), sent, target.chip, mesh.size, total_steps),
    }


def search(s: Settings, target: Target, row_length: int, pairs: int) -> list[dict[str, Any]]:
    """What of `alternatives.CHANGES` fits on the target, each compiled; the last one does where any does."""
    mesh = sharding.make_mesh(s.mesh.data, s.mesh.fsdp, s.mesh.tensor, devices=target.devices)

    def state_gib(s: Settings) -> float:
        return state_bytes(train_step(s, mesh, 1)[1], mesh) / GIB

    def compiled(s: Settings) -> dict[str, Any]:
        return plan(s, target, row_length, pairs)

    return alternatives.search(s, sharding.ways(mesh), state_gib, compiled, target.capacity_gib)


def train_step(s: Settings, mesh: Mesh, total_steps: int) -> tuple[Any, Any]:
    """The jitted step that `train` runs with these settings, and its abstract state."""
    vocabulary, image_token = VOCABULARY
    if s.model.llm.vocab_size:
        vocabulary, image_token = s.model.llm.vocab_size, s.model.image_token
    model = vlm.Vlm(
        settings.with_vocabulary(s.model, vocabulary, image_token), jnp.dtype(s.dtype), s.remat, s.attention
    )
    base = vlm.abstract_params(model.config)
    if s.lora.rank:  # a base that does not train is kept as it is computed with
        base = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(s.dtype)), base)
    params = jax.eval_shape(lambda base: prepare.with_adapters(s, base), base)
    loss_fn = steps.preference_loss(model, s.ddpo) if s.task == "ddpo" else steps.sft_loss(model)
    if s.lora.rank:
        loss_fn = lora.at_scale(loss_fn, s.lora.scale)
    updater = experiment.make_updater(s.optim, params, total_steps)
    state = jax.eval_shape(updater.init, params)
    return updater.step(loss_fn, mesh, state, s.gradient_accumulation), state


def batch_of(s: Settings, length: int) -> PairBatch | SftBatch:
    """The shapes of a batch whose rows have `length` tokens. Raises UserError where image and text do not fit."""
    if length < s.model.image_tokens + 2:
        raise UserError(f"--row_length={length} has no room for the {s.model.image_tokens} image tokens and a text.")
    b = s.optim.batch_size
    rows = 2 if s.task == "ddpo" else 1
    of = jax.ShapeDtypeStruct
    fields = {
        "image": images_of(s),
        "tokens": of((b, rows, length), jnp.int32),
        "labels": of((b, rows, length - 1), jnp.int32),
        "weights": of((b, rows, length - 1), jnp.float32),
        "lengths": of((b, rows), jnp.int32),
        "row": of((b,), jnp.int32),
        "valid": of((b,), jnp.bool_),
    }
    if s.task == "ddpo":
        return PairBatch(**fields, ref_logps=of((b, 2, length - 1), jnp.float32))
    return SftBatch(**fields)


def images_of(s: Settings) -> jax.ShapeDtypeStruct:
    """The images of a batch, or what a frozen tower said of them."""
    b, size = s.optim.batch_size, s.model.tower.image_size
    if s.data.image_features == "cached":
        return jax.ShapeDtypeStruct((b, *vlm.tower_shape(s.model)), jnp.dtype(s.dtype))
    return jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8)


def packed_batch_of(s: Settings, length: int, groups: int) -> PackedBatch:
    """The shapes of packed pairs whose rows have `length` tokens: a unit has 4/3 of them, 6 of 10 with a target.

    These are the paper's pairs (226 tokens a row, 294 a unit, 162 targets), rounded up.
    """
    b, t = s.optim.batch_size, -(-4 * length // 3)
    room = b // groups
    sizes = packing.Sizes(room * t, (t,) * room, room * t * 6 // 10)
    n, r, k = sizes.tokens, sizes.targets, length // 2
    of, integer, real = jax.ShapeDtypeStruct, jnp.int32, jnp.float32
    return PackedBatch(
        image=images_of(s),
        tokens=of((groups, n), integer),
        positions=of((groups, n), integer),
        slots=of((groups, room * s.model.image_tokens), integer),
        blocks=tuple(of((groups, count, width), integer) for count, width in sizes.blocks),
        place=of((groups, n), integer),
        segment=of((groups, room, t), jnp.int8),
        head=of((groups, r), integer),
        labels=of((groups, r), integer),
        pick=of((b, 2, k), integer),
        weights=of((b, 2, k), real),
        lengths=of((b, 2), integer),
        ref_logps=of((b, 2, k), real),
        row=of((b,), integer),
        valid=of((b,), jnp.bool_),
    )


def state_bytes(state: Any, mesh: Mesh) -> int:
    """Bytes of the state on one device, by the sharding table."""
    where = sharding.shardings(state, mesh)
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, state, where)
    return sum(jax.tree.leaves(sizes))


def program_text(compiled: Any, target: Target) -> str | None:
    """The scheduled program; None where neither JAX can print it nor the compiler has written it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        written = list(target.dump.glob("*.after_optimizations.txt")) if target.dump else []
        return max(written, key=lambda path: path.stat().st_mtime).read_text() if written else None
