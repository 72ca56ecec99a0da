"""Checkpoints of karpathy/llama2.c (.bin): small LLaMAs such as stories260K, as tensors under Hugging Face's names.

Seven int32 (width, ffn, layers, heads, key-value heads, vocabulary, sequence), then float32 in the order below. Its
rotary pairs are neighbors (0,1), (2,3), ...; Hugging Face's are halves (0,H/2), ..., so rows of q and k change places.
"""

from pathlib import Path

import numpy as np
from einops import rearrange

from rlhfv_jax.conversion.torch_files import Shape
from rlhfv_jax.errors import UserError

HEADER = 7 * 4
NORM_EPS = 1e-5


def is_llama2c(path: Path) -> bool:
    """Whether the file's size is what its first seven numbers imply."""
    if path.suffix != ".bin" or not path.is_file() or path.stat().st_size < HEADER:
        return False
    try:
        return Llama2c(path) is not None
    except UserError:
        return False


class Llama2c:
    """The file, memory-mapped; `sizes` holds what its header says."""

    def __init__(self, path: Path):
        width, ffn, layers, heads, kv_heads, vocab, length = (int(n) for n in np.fromfile(path, "<i4", 7))
        untied = vocab < 0  # the format's mark for a head of its own
        vocab = abs(vocab)
        sizes = (width, ffn, layers, heads, kv_heads, vocab, length)
        if min(sizes) < 1 or max(sizes) > 2**24 or width % heads or heads % kv_heads:
            raise UserError(f"{path} is no llama2.c checkpoint: its header reads {sizes}.")
        head = width // heads
        kv_width = kv_heads * head
        parts: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (vocab, width),
            "input_layernorm.weight": (layers, width),
            "self_attn.q_proj.weight": (layers, width, width),
            "self_attn.k_proj.weight": (layers, kv_width, width),
            "self_attn.v_proj.weight": (layers, kv_width, width),
            "self_attn.o_proj.weight": (layers, width, width),
            "post_attention_layernorm.weight": (layers, width),
            "mlp.gate_proj.weight": (layers, ffn, width),
            "mlp.down_proj.weight": (layers, width, ffn),
            "mlp.up_proj.weight": (layers, ffn, width),
            "model.norm.weight": (width,),
            "rotary": (2, length, head // 2),
        }
        if untied:
            parts["lm_head.weight"] = (vocab, width)
        count = sum(int(np.prod(shape)) for shape in parts.values())
        if path.stat().st_size != HEADER + 4 * count:
            raise UserError(
                f"{path} is no llama2.c checkpoint: {path.stat().st_size} bytes, expected {HEADER + 4 * count}."
            )
        values = np.memmap(path, "<f4", "r", HEADER, (count,))
        self.sizes = {"heads": heads, "kv_heads": kv_heads}
        self._tensors: dict[str, np.ndarray] = {}
        start = 0
        for name, shape in parts.items():
            array = values[start : start + int(np.prod(shape))].reshape(shape)
            start += array.size
            if name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
                array = rearrange(array, "l (n half pair) d -> l (n pair half) d", pair=2, half=head // 2)
            if name.startswith(("model.", "lm_head.")):
                self._tensors[name] = array
            elif name != "rotary":
                self._tensors |= {f"model.layers.{i}.{name}": layer for i, layer in enumerate(array)}
        self.shapes: dict[str, Shape] = {name: array.shape for name, array in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, by its name in LLaMA's PyTorch form."""
        return np.asarray(self._tensors[name])
