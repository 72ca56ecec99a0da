"""Muffin from its parts, and towers for other image sizes: sources of tensors under Muffin's own names.

Made here rather than in the models, so that whatever is built converts, exports and verifies through the one table.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np

from rlhfv_jax.conversion.torch_files import Shape, Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import beit3

ROOT = "model.vision_tower.beit3."
POSITIONS = f"{ROOT}encoder.embed_positions.A.weight"
ADDED = 4  # [PAD], <im_patch>, <im_start>, <im_end>
BOS, EOS = 0, 2  # in BEiT-3's own vocabulary
INIT_STD = 0.02


class Made:
    """Tensors given by functions."""

    def __init__(self, tensors: Mapping[str, tuple[Shape, Callable[[], np.ndarray]]]):
        self._tensors = tensors
        self.shapes = {name: shape for name, (shape, _) in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name][1]()


def passed(tensors: Tensors, rename: Callable[[str], str] = lambda name: name) -> dict:
    """The tensors of a source as `Made` takes them."""
    return {rename(name): (shape, partial(tensors.read, name)) for name, shape in tensors.shapes.items()}


def build_muffin(llm: Tensors, tower: Tensors, queries: int, seed: int) -> Made:
    """Muffin as its training starts: LLaMA, BEiT-3, fresh queries and projector.

    The first and last query are the embeddings of BEiT-3's `bos` and `eos`, the others truncated normal; the rows of
    the four added tokens are the mean of the others, as where the reference resizes embeddings; the projector is a
    fresh linear map with bias 0.
    """
    if "lm_head.weight" not in llm.shapes or "model.embed_tokens.weight" not in llm.shapes:
        raise UserError("The language model has no model.embed_tokens.weight and lm_head.weight; expected a LLaMA.")
    if "beit3.text_embed.weight" not in tower.shapes:
        raise UserError(
            "The tower has no beit3.text_embed.weight; expected a bare BEiT-3 (beit3_large_patch16_224.pth)."
        )
    if queries < 2:
        raise UserError(f"--queries={queries}: the first and the last query have their own start, so at least 2.")
    vocab, width = _shape(llm, "model.embed_tokens.weight")
    _, tower_width = _shape(tower, "beit3.text_embed.weight")
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
    """The same model for square images of `image_size` pixels: its image positions interpolated bicubically."""
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


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    shape = tensors.shapes[name]
    if shape is None:
        raise UserError(f"The shape of {name} is not known; give a checkpoint or a list with shapes.")
    return shape
