"""Orbax checkpoints: parameters, optimizer state and a JSON record as separate items, restored strictly.

A run's `checkpoints/<step>/` holds `params`, `opt_state`, `meta` (model sizes, tokenizer digest, seed, ...) and
`checksums`. Nothing here is silently partial: an entry that is missing, extra or of another shape or dtype is an error
naming it, and so is one with a flipped bit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rlhfv_jax import bits, sharding, trees
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import TrainState

HOST = "pinned_host"  # the memory kind of arrays that a device reaches but does not hold

# Metrics of an evaluation on rows that can choose a run's best checkpoint, and whether more of them is better.
BEST = {
    "eval/loss": False,
    "eval/nll/chosen": False,
    "eval/rewards/accuracies": True,
    "eval/rewards/margins": True,
}


class Checkpoints:
    """The checkpoints of one run, written in the background; use as a context manager, which waits for the last."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder).absolute()
        # What a killed run left half-written takes as much room as a checkpoint.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        with _naming_failure(self.folder):
            self._manager = _manager(self.folder, options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with _naming_failure(self.folder):
            self._manager.wait_until_finished()
            self._manager.close()

    def latest(self) -> int | None:
        """The newest complete step, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing the state under its own step. Raises UserError where a later step is there already."""
        arrays = {"params": state.params, "opt_state": state.opt_state}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {"meta": ocp.args.JsonSave(meta), "checksums": ocp.args.JsonSave(_checksums(arrays))}
        with _naming_failure(self.folder):
            saved = self._manager.save(int(state.step), args=ocp.args.Composite(**items))
        if not saved:
            raise UserError(
                f"The checkpoint of step {int(state.step)} was not written: {self.folder} already holds step "
                f"{self.latest()}."
            )


class Best:
    """The state with the best value of one metric so far, in a directory of its own."""

    def __init__(self, folder: Path, metric: str, higher: bool):
        self._folder, self._metric, self._higher = folder, metric, higher
        # A run that continues starts from what it had found before, and comes by those steps again.
        self._value, self._step = None, -1
        if exists(folder):
            self._value, self._step = read_meta(folder)["best"][metric], int(find(folder).name)

    def offer(self, state: TrainState, values: Mapping[str, float], meta: Mapping[str, Any]) -> None:
        """Saves the state where the metric is better than ever before; returns when it is on disk.

        Values without the metric, of an evaluation at another cadence or of a rate of nothing, choose nothing.
        """
        if self._metric not in values:
            return
        value = float(values[self._metric])
        if int(state.step) <= self._step:
            return
        if self._value is None or (value > self._value if self._higher else value < self._value):
            self._value = value
            with Checkpoints(self._folder, keep=1) as checkpoints:
                checkpoints.save(state, {**meta, "best": {self._metric: value}})


def find(path: str | Path) -> Path:
    """The step directory meant by a run's directory, its `checkpoints` directory, or a step directory itself.

    Raises UserError where there is none.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"There is no checkpoint at {path}: the directory does not exist.")
    if path.name.isdecimal() and (path / "params").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal() and (p / "params").is_dir()]
    if not steps:
        raise UserError(f"There is no checkpoint at {path}: expected checkpoints/<step>/params below it.")
    return folder / str(max(steps))


def exists(path: str | Path) -> bool:
    """Whether `find(path)` would find a checkpoint."""
    try:
        find(path)
    except UserError:
        return False
    return True


def restore(path: str | Path, abstract: TrainState, mesh: Mesh) -> TrainState:
    """The whole state of the checkpoint that `find(path)` names, on the mesh; `abstract` gives its structure."""
    folder = find(path)
    items = _restore(folder, {"params": abstract.params, "opt_state": abstract.opt_state}, mesh)
    step = jax.device_put(jnp.int32(int(folder.name)), sharding.shardings(abstract.step, mesh))
    return TrainState(step, items["params"], items["opt_state"])


def restore_params(path: str | Path, abstract: Any, mesh: Mesh, dtype: Any = None) -> Any:
    """Only the parameters of the checkpoint that `find(path)` names, laid out on the mesh.

    Their dtypes must be those of `abstract`; with `dtype` they are cast to it while they are read, whatever they are.
    """
    return _restore(find(path), {"params": abstract}, mesh, dtype)["params"]


def stored_params(path: str | Path) -> Any:
    """What the checkpoint that `find(path)` names says of its parameters: a tree of leaves with shape and dtype."""
    folder = find(path)
    with _reader(folder) as manager, _naming_damage(folder):
        return manager.item_metadata(int(folder.name))["params"].tree


def read_meta(path: str | Path) -> dict[str, Any]:
    """The JSON record of the checkpoint that `find(path)` names."""
    folder = find(path)
    with _reader(folder) as manager, _naming_damage(folder):
        return manager.restore(int(folder.name), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes Orbax and TensorStore raise into one sentence."""
    try:
        yield
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The checkpoint {folder} is damaged or incomplete ({first_line[:200]}).") from error


@contextmanager
def _naming_failure(folder: Path) -> Iterator[None]:
    """Turns what a full disk makes Orbax and TensorStore raise into one sentence; earlier checkpoints stay whole."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"A checkpoint could not be written in {folder}; is the disk full, or read-only? Those before it "
            f"are whole, and the same command continues from the last of them ({first_line[:200]})."
        ) from error


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "opt_state": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
        "checksums": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_names=tuple(handlers), item_handlers=handlers)


def _reader(folder: Path) -> ocp.CheckpointManager:
    return _manager(folder.parent, ocp.CheckpointManagerOptions(read_only=True))


def _restore(folder: Path, abstract: dict[str, Any], mesh: Mesh, dtype: Any = None) -> dict[str, Any]:
    """Restores the named items; every entry must exist with its shape and dtype, and nothing else may be there.

    With `dtype`, entries are compared by shape alone and cast to it.
    """
    step = int(folder.name)
    where = {name: sharding.shardings(tree, mesh) for name, tree in abstract.items()}
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s), abstract, where)
    with _reader(folder) as manager:
        with _naming_damage(folder):
            stored = manager.item_metadata(step)
            found = {name: stored[name].tree for name in target}
            stored_types = jax.tree.map(lambda x: x.dtype, found)
        if dtype is not None:
            found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), found)
        if lines := trees.diff(target, found):
            more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise UserError(f"The checkpoint {folder} does not fit this run: {'; '.join(lines[:5])}{more}.")
        args = {name: ocp.args.StandardRestore(tree) for name, tree in target.items()}
        with _naming_damage(folder):
            restored = dict(manager.restore(step, args=ocp.args.Composite(**args)).items())
    absent = [path for path, leaf in trees.paths(restored) if not isinstance(leaf, jax.Array)]
    if absent:
        raise UserError(f"The checkpoint {folder} did not restore {absent[0]}.")
    if (folder / "checksums").is_dir():  # a converted checkpoint has none
        unchanged = {path for path, leaf in trees.paths(stored_types) if leaf == dict(trees.paths(target))[path].dtype}
        _verify(folder, {path: leaf for path, leaf in trees.paths(restored) if path in unchanged})
    return restored


def _verify(folder: Path, arrays: dict[str, jax.Array]) -> None:
    """Raises UserError where an array is not the one that was saved; those that were cast are not among `arrays`."""
    with _reader(folder) as manager, _naming_damage(folder):
        saved = manager.restore(int(folder.name), args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))[
            "checksums"
        ]
    for path, value in _checksums(arrays).items():
        if saved.get(path) != value:
            raise UserError(f"The checkpoint {folder} is damaged: {path} is not what was saved.")


def _checksums(tree: Any) -> dict[str, int]:
    """`bits.checksum` of every array, by path; those in a host's memory go through the devices one by one."""
    arrays = dict(trees.paths(tree))
    hosted = {path for path, x in arrays.items() if isinstance(x, jax.Array) and x.sharding.memory_kind == HOST}
    sums = _checksum_tree({path: x for path, x in arrays.items() if path not in hosted})
    for path in hosted:
        sums |= _checksum_tree({path: jax.device_put(arrays[path], arrays[path].sharding.with_memory_kind("device"))})
    return {path: int(value) for path, value in jax.device_get(sums).items()}


@jax.jit
def _checksum_tree(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: bits.checksum(array) for path, array in arrays.items()}
