"""SIGTERM, which a cluster sends before it takes a machine away: the loop saves and the program ends with a status.

Exit status 75 (`errors.SAVED`): the state is on disk, and the same command continues. 143 (`errors.UNSAVED`): the grace
was too short to save; the same command continues from the last checkpoint.
"""

import os
import signal
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from rlhfv_jax.errors import UNSAVED


class Watch:
    """Notices SIGTERM while a run trains, and ends the process `grace` seconds later if it is still there.

    A context manager for the main thread. A thread of its own waits for the signal, since Python calls handlers only
    between two of the main thread's instructions, which a compilation keeps apart for minutes. With several processes
    JAX's own service listens and agrees on the step at which all of them stop; the grace is then the cluster's.
    """

    def __init__(self, grace: float):
        self._grace = grace
        self._noticed, self._finished = threading.Event(), threading.Event()
        self._installed = False

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
            return self
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer), signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._wait, args=(reader,), daemon=True).start()
        self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        if self._installed:
            signal.set_wakeup_fd(self._before[0])
            signal.signal(signal.SIGTERM, self._before[1])
            os.close(self._writer)

    def due(self, step: int) -> bool:
        """Whether the run has to save and stop now; asked by every process after every step."""
        if jax.process_count() > 1:
            return _agreed(step)
        return self._noticed.is_set()

    def _wait(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while (number := signals.read(1)) and number[0] != signal.SIGTERM:
                pass
        if not number:
            return
        self._noticed.set()
        print(f"SIGTERM: saving after this step, within {self._grace:g} seconds.", file=sys.stderr, flush=True)
        if not self._finished.wait(self._grace):
            print("error: The state could not be saved in time (config.grace).", file=sys.stderr, flush=True)
            os._exit(UNSAVED)


def _agreed(step: int) -> Any:
    return multihost_utils.reached_preemption_sync_point(step)
