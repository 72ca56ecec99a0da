"""Orbax → PyTorch: a Hugging Face directory with config.json, tokenizer, safetensors shards and their index.

The shards are written here, without torch: a safetensors file is the length of a JSON header, the header, and the
tensors' bytes in its order, so that one layer at a time suffices.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rlhfv_jax.conversion.sizes import Plan
from rlhfv_jax.models import beit3
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.streaming import StoredArray, finished_directory

DTYPES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.float16): "F16"}


class Tensor(NamedTuple):
    """A tensor to be written, as a safetensors header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    stored: Mapping[str, StoredArray],
    plan: Plan,
    destination: Path,
    dtype: np.dtype,
    files: Mapping[str, bytes],
    shard_bytes: int,
    check: Callable[[Path], Any],
) -> Any:
    """Writes the directory, with `files` beside the weights.

    Nothing stands at `destination` until all of it does and passes `check`; returns what `check` says of the directory.
    """
    shards = split(listed(plan, dtype), shard_bytes)
    with finished_directory(destination) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        values = tensors(stored, plan, dtype)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            write_safetensors(folder / name, shard, values)
            weight_map |= {tensor.name: name for tensor in shard}
        if len(shards) > 1:
            total = sum(tensor.nbytes for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        return check(folder)


def listed(plan: Plan, dtype: np.dtype) -> list[Tensor]:
    """Every tensor of the directory, in the order of `tensors`."""
    named = [(name, entry) for entry in plan.entries for name in entry.names(plan.sizes)]
    weights = [Tensor(name, entry.torch_shape(plan.sizes), dtype) for name, entry in named]
    return weights + [Tensor(name, table.shape, table.dtype) for name, table in rotary_tables(plan)]


def split(tensors: Sequence[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    """The tensors in their order, cut into shards of at most `shard_bytes` (or one tensor)."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def rotary_tables(plan: Plan) -> list[tuple[str, np.ndarray]]:
    """The `inv_freq` buffers that Muffin's transformers (4.28) saves; a LLaMA of today has none."""
    if isinstance(plan.config, LlamaConfig):
        return []
    head, theta = plan.config.llm.head_size, plan.config.llm.rope_theta
    table = (1.0 / theta ** (np.arange(0, head, 2, dtype=np.float32) / np.float32(head))).astype(np.float32)
    return [(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", table) for i in range(plan.config.llm.layers)]


def tensors(stored: Mapping[str, StoredArray], plan: Plan, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every PyTorch tensor, read layer by layer."""
    for entry in plan.entries:
        array = stored[entry.path]
        layers = array.entries() if entry.stack else iter([array.read()])
        for name, values in zip(entry.names(plan.sizes), layers, strict=True):
            yield name, np.ascontiguousarray(entry.to_torch(values, plan.sizes), dtype)
    yield from rotary_tables(plan)


def write_safetensors(path: Path, shard: Sequence[Tensor], values: Iterator[tuple[str, np.ndarray]]) -> None:
    """One file, its tensors taken from `values` as they come."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for alignment
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in shard:
            name, array = next(values)
            assert (name, array.shape, array.dtype) == tensor, (name, tensor)
            file.write(array.view(np.uint8).data)


def hf_config(plan: Plan, dtype: np.dtype) -> dict[str, Any]:
    """config.json: LlamaForCausalLM, or the released Muffin's class with its own keys."""
    llm = plan.config if isinstance(plan.config, LlamaConfig) else plan.config.llm
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "initializer_range": 0.02,
        "intermediate_size": llm.ffn,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype.name,
        "vocab_size": llm.vocab_size,
    }
    if isinstance(plan.config, LlamaConfig):
        return config
    tower = plan.config.tower
    named = {beit3.base().width: "base", beit3.large().width: "large"}.get(tower.width, "tiny")
    return config | {
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
