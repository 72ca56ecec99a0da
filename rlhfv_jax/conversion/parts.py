"""Sources of tensors made of others: renamed, put together, computed.

Made here rather than in the models, so that whatever is built converts, exports and verifies through the one table.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from rlhfv_jax.conversion.torch_files import Shape, Tensors
from rlhfv_jax.errors import UserError


class Made:
    """Tensors given by functions."""

    def __init__(self, tensors: Mapping[str, tuple[Shape, Callable[[], np.ndarray]]]):
        self._tensors = tensors
        self.shapes = {name: shape for name, (shape, _) in tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor: made anew, or read from the part that has it."""
        return self._tensors[name][1]()


def passed(tensors: Tensors, rename: Callable[[str], str] = lambda name: name) -> dict:
    """The tensors of a source as `Made` takes them."""
    return {rename(name): (shape, partial(tensors.read, name)) for name, shape in tensors.shapes.items()}


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
    """The shape of a tensor; raises UserError where only names are known."""
    shape = tensors.shapes[name]
    if shape is None:
        raise UserError(f"The shape of {name} is not known; give a checkpoint or a list with shapes.")
    return shape
