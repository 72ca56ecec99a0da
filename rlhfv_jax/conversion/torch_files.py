"""PyTorch checkpoints on disk: names and shapes at once, tensors only when asked for and then memory-mapped.

a directory      pytorch_model*.bin or *.safetensors, in one file or in shards with an index; config.json beside them
a file           .bin, .pt, .pth or .safetensors
a list           .txt with one `name <tab> (shape)` a line, for a dry run; or an index alone, which has names only
"""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from rlhfv_jax.errors import UserError

Shape = tuple[int, ...] | None
NAMES = ("model.safetensors", "pytorch_model.bin")  # in a directory; the first that is there, in shards or in one piece
POINTER = b"version https://git-lfs."


class Tensors(Protocol):
    """Named tensors. `shapes`: known without reading; None where only the name is known."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shapes by name; None where only the name is known."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor's values, in its own dtype (bfloat16 as ml_dtypes has it), memory-mapped where possible."""
        ...


class Shards:
    """Tensors in one or several files, opened lazily: `openers[file]()` gives names to functions that read."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files  # name -> file
        self._open: dict[Path, Any] = {}
        self.shapes: dict[str, Shape] = {}
        for path in dict.fromkeys(files.values()):
            held = self._file(path)
            self.shapes |= {name: held.shapes[name] for name in held.shapes if files.get(name) == path}
        if missing := [name for name in files if name not in self.shapes]:
            raise UserError(f"The index says that {missing[0]} is in {files[missing[0]]}, but it is not.")

    def read(self, name: str) -> np.ndarray:
        """One tensor, memory-mapped where the file allows."""
        return self._file(self._files[name]).read(name)

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
        return self._open[path]


class SafetensorsFile:
    """One .safetensors file."""

    def __init__(self, path: Path):
        safetensors = require("safetensors")
        require("torch")
        try:
            self._file = safetensors.safe_open(path, framework="pt")
        except Exception as error:
            raise _unreadable(path, error) from error
        self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def read(self, name: str) -> np.ndarray:
        """One tensor, memory-mapped."""
        return as_numpy(self._file.get_tensor(name))


class TorchFile:
    """One file of torch.save: a state_dict, or a dict that holds one as "model" or "state_dict"."""

    def __init__(self, path: Path):
        torch = require("torch")
        try:
            # Files of before torch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:
            raise _unreadable(path, error) from error
        for key in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise UserError(f"{path} does not hold a state_dict (names to tensors).")
        self._state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, memory-mapped where the file allows."""
        return as_numpy(self._state[name])


class NamesOnly:
    """A list of names and shapes, for dry runs; there is nothing to read."""

    def __init__(self, shapes: Mapping[str, Shape]):
        self.shapes = shapes

    def read(self, name: str) -> np.ndarray:
        """Raises UserError: there is nothing to read."""
        raise UserError(f"Only names and shapes are known, so {name} cannot be read: use --dry_run.")


def open_tensors(path: Path) -> Tensors:
    """The checkpoint at `path`; raises UserError that says what was expected where there is none."""
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}: no such file or directory.")
    if path.suffix == ".txt":
        return NamesOnly(read_list(path))
    if path.name.endswith(".index.json"):
        return _open_index(path)
    held = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
    return Shards(dict.fromkeys(held.shapes, path))


def _open_directory(folder: Path) -> Tensors:
    for name in NAMES:
        if (index := folder / f"{name}.index.json").is_file():
            return _open_index(index)
        if (folder / name).is_file():
            return open_tensors(folder / name)
    raise UserError(
        f"There is no PyTorch checkpoint in {folder}: expected {', '.join(NAMES)}, or shards with an index."
    )


def _open_index(path: Path) -> Tensors:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path} has no weight_map (tensor names to files).")
    files = {name: path.parent / file for name, file in weight_map.items()}
    absent = sorted({file for file in files.values() if not file.is_file()})
    if len(absent) == len(set(files.values())):
        return NamesOnly(dict.fromkeys(files))
    if absent:
        raise UserError(f"The shard {absent[0]} is missing; {path.name} names it.")
    return Shards(files)


def read_list(path: Path) -> dict[str, Shape]:
    """`name (4, 8) ...` a line, separated by white space; the rest of a line, and lines from # on, are left out.

    Raises UserError for any other line.
    """
    shapes: dict[str, Shape] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.match(r"(\S+)\s+[\[(]([\d,\s]*)[\])]", line)
        if found is None:
            raise UserError(f"{path}, line {number}: expected `name (shape)`, as in `lm_head.weight (32004, 5120)`.")
        if found.group(1) in shapes:
            raise UserError(f"{path}, line {number}: {found.group(1)} stands there twice.")
        shapes[found.group(1)] = tuple(int(n) for n in re.findall(r"\d+", found.group(2)))
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError where it is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object.")
    return value


def as_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor's memory as an array; NumPy has no bfloat16 of its own, so its bits are reinterpreted."""
    torch = require("torch")
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def require(module: str) -> Any:
    """Imports torch or safetensors; raises UserError with the command that installs them."""
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(
            f"Conversion needs {module}, which is not installed; install it with: pip install 'rlhfv_jax[convert]'"
        ) from error


def _is_pointer(path: Path) -> bool:
    """Whether the file is what Git leaves where LFS did not fetch it."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _unreadable(path: Path, error: Exception) -> UserError:
    if _is_pointer(path):
        return UserError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`.")
    first = (str(error).splitlines() or [type(error).__name__])[0]
    reason = re.split(r"\.(?:\s|$)", first)[0][:200]  # what torch says next is advice about torch
    return UserError(f"Cannot read {path} as PyTorch weights ({reason}).")
