"""Orbax checkpoints written and read a block at a time, for parameters that do not fit in memory together.

The layout is that of `checkpoint`: what is written here, `checkpoint.restore_params` reads, and the other way round.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from rlhfv_jax import checkpoint, trees
from rlhfv_jax.errors import UserError

CHUNK_BYTES = 64 * 2**20  # of one stored chunk; compressing and decompressing need a few of these at a time
Block = tuple[int | None, np.ndarray]  # an index of the leading axis (None: everything) and what stands there


@dataclass(frozen=True)
class StreamedArray:
    """An array that exists only block by block, while it is written; `stacked`: a block is one entry of axis 0."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    blocks: Callable[[], Iterator[Block]]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize


class _StreamHandler(ocp.type_handlers.NumpyHandler):
    """Writes StreamedArrays as Orbax writes NumPy arrays, one block of one array at a time."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn = asyncio.Lock()
        self._failed = False

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: tensorstore.Context) -> None:
        async with self._turn:  # Orbax starts all arrays at once
            if self._failed:
                return  # the first failure is raised; nothing may be under way when its event loop closes
            self._failed = True
            store = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
            for index, block in value.blocks():
                target = store if index is None else store[index]
                await target.write(block, can_reference_source_data_indefinitely=True)
            self._failed = False


@contextmanager
def finished_directory(path: str | Path) -> Iterator[Path]:
    """A directory to write into that takes its name only when the block ends without an error.

    Raises UserError where `path` already holds something. What an interrupted earlier run left is removed.
    """
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists; choose another destination, or remove it.")
    temporary = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        path.rmdir()
    os.replace(temporary, path)


def write(folder: Path, arrays: Mapping[str, StreamedArray], meta: Mapping[str, Any], step: int = 0) -> None:
    """Writes `folder`/checkpoints/`step` with the arrays as `params` (keyed by path) and the JSON record `meta`.

    At most one block is in memory at a time. A block with an index must be a whole entry of the leading axis.
    """
    registry = ocp.type_handlers.create_type_handler_registry((StreamedArray, _StreamHandler()))
    tree = trees.nest(arrays)
    # Chunks never span two entries of a stacked array's leading axis, so that a block is written, and read, alone.
    save_args = trees.map_with_path(
        lambda path, _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if arrays[path].stacked else ()), tree
    )
    target = folder / "checkpoints" / str(step)
    # One item after the other: of two that write at once, one would go on after the other's failure.
    with _naming_failure(folder):
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
            writer.save(target / "meta", args=ocp.args.JsonSave(dict(meta)))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
            writer.save(target / "params", args=ocp.args.PyTreeSave(tree, save_args))


@contextmanager
def _naming_failure(folder: Path) -> Iterator[None]:
    """Turns what a full disk makes TensorStore raise into one sentence; the blocks' own errors pass."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # Orbax's threads log each failure once more, with a page of traceback
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        where = folder.parent
        raise UserError(f"The checkpoint could not be written in {where}; is the disk full? ({reason})") from error
    finally:
        logging.disable(disabled)


class StoredArrays(Mapping[str, "StoredArray"]):
    """The parameters of the checkpoint that `checkpoint.find(path)` names, by path, read only when asked."""

    def __init__(self, path: str | Path):
        self.folder = checkpoint.find(path) / "params"
        self._stored = dict(trees.paths(checkpoint.stored_params(path)))
        self._context = ocp.type_handlers.get_ts_context(use_ocdbt=True)

    def __getitem__(self, path: str) -> "StoredArray":
        stored = self._stored[path]
        name, folder = path.replace("/", "."), epath.Path(self.folder)
        info = ocp.type_handlers.ParamInfo(
            name=name, parent_dir=folder, is_ocdbt_checkpoint=True, ts_context=self._context
        )
        spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
        return StoredArray(tuple(stored.shape), np.dtype(stored.dtype), spec, self._context)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    spec: dict[str, Any]
    context: tensorstore.Context

    def read(self) -> np.ndarray:
        """The whole array."""
        return self._open().read().result()

    def entries(self) -> Iterator[np.ndarray]:
        """Its entries along axis 0; the whole is in memory only where it was stored in one piece."""
        store = self._open()
        if (store.chunk_layout.read_chunk.shape or (None,))[0] == 1:
            for index in range(self.shape[0]):
                yield store[index].read().result()
        else:
            yield from store.read().result()

    def _open(self) -> tensorstore.TensorStore:
        return tensorstore.open(tensorstore.Spec(self.spec), open=True, context=self.context).result()
