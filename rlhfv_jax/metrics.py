"""Metrics of a run: one JSON line a step, TensorBoard events, and what a person sees while it goes."""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlhfv_jax.errors import UserError

# Everything else in a line is a function of config and data alone.
TIMING = ("pairs_per_second", "tokens_per_second", "seconds/input", "seconds/device", "mfu")


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events in a run's directory.

    A line with `step` s describes the batch of step s, seen before its update; an evaluation line (keys `eval/...`)
    with `step` s describes the state after s updates. Opening at `start` drops what a killed run wrote beyond its last
    checkpoint, so the file always reads like that of an uninterrupted run. Of several processes one `writes`; the
    others' writers only look at the loss.
    """

    def __init__(self, workdir: Path, start: int = 0, writes: bool = True):
        self._writes = writes
        self.path = workdir / "metrics.jsonl"
        if not writes:
            return
        kept = [line for line in _complete_lines(self.path) if _before(line, start)]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        self._events = _tensorboardx().SummaryWriter(str(workdir / "tensorboard"), purge_step=start, write_to_disk=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line. Raises UserError on a loss that is not finite: nothing after it can be right."""
        line = {"step": step} | {name: float(value) for name, value in values.items()}
        if self._writes:
            # JSON knows no NaN and no infinity; null stands for both.
            self._file.write(json.dumps({k: v if math.isfinite(v) else None for k, v in line.items()}) + "\n")
            for name, value in values.items():
                self._events.add_scalar(name, float(value), step)
        loss = line.get("loss", line.get("eval/loss", 0.0))
        if not math.isfinite(loss):
            self.flush()
            raise UserError(
                f"The loss at step {step} is {loss}. The last checkpoint is from before; lower optim.lr, or look at "
                f"the steps before it in {self.path}."
            )

    def flush(self) -> None:
        """Puts everything written so far on disk."""
        if not self._writes:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes both files; what was written is on the disk."""
        if self._writes:
            self.flush()
            self._file.close()
            self._events.close()


def _tensorboardx() -> Any:
    """tensorboardX, kept from importing PyTorch where that is installed: two seconds and 200 MB for no use here."""
    absent = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]  # None: importing it fails
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if absent:
            del sys.modules["torch"]


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return _complete_lines(Path(path))


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Parsed lines; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # a complete line ends in a newline, so the last item is not one


def _before(line: Mapping[str, Any], start: int) -> bool:
    evaluated = any(name.startswith("eval/") for name in line)
    return line["step"] <= start if evaluated and start else line["step"] < start


class Reporter:
    """Progress for a person: a bar on a terminal, a plain line every few seconds elsewhere. A context manager.

    Of several processes one shows it.
    """

    def __init__(
        self, description: str, total: int, done: int = 0, unit: str = "steps", every: float = 10.0, shown: bool = True
    ):
        self._description, self._total, self._done, self._unit, self._every = description, total, done, unit, every
        self._shown = shown
        self._last = 0.0
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Reporter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if not self._shown:
            return
        if done >= self._total or now - self._last >= self._every:
            self._last = now
            print(
                f"{self._description}: {done}/{self._total} {self._unit}  {note}".rstrip(), file=sys.stderr, flush=True
            )
