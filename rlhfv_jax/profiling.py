"""Where a run's time goes: traces of chosen steps, and how long the host waits for what."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rlhfv_jax.errors import UserError


class Trace:
    """A profiler trace of the steps in `steps`, written to `folder`; a context manager around the loop."""

    def __init__(self, steps: range, folder: Path):
        self._steps, self._folder, self._running = steps, folder, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    @contextmanager
    def step(self, index: int, state: Any) -> Iterator[None]:
        """Around a step; starts with an idle device, and ends when the last step's work is done."""
        if index in self._steps and not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=index):
            yield

    def done(self, index: int, state: Any) -> None:
        """After a step, with the state that it gave."""
        if self._running and index + 1 not in self._steps:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False


class Clock:
    """Seconds since the last reading, and the parts of them that were spent in `waiting`."""

    def __init__(self, *kinds: str):
        self._kinds = kinds
        self.restart()

    def restart(self) -> None:
        """Starts the seconds of the next interval."""
        self._start = time.perf_counter()
        self._waited = dict.fromkeys(self._kinds, 0.0)

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """Counts the seconds inside as waiting for what is named."""
        start = time.perf_counter()
        yield
        self._waited[kind] += time.perf_counter() - start

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds, and those of each kind; starts anew."""
        found = time.perf_counter() - self._start, self._waited
        self.restart()
        return found


def read_steps(text: str) -> range:
    """`5:8` as steps 5, 6 and 7, nothing as none. Raises UserError on anything else."""
    found = re.fullmatch(r"(\d+):(\d+)", text or "0:0")
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if text and not steps:
        raise UserError(f"--profile_steps={text} names no steps; write 5:8 for steps 5, 6 and 7.")
    return steps
