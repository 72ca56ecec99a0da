"""The training loop. Its order is fixed:

    restore or init (the caller) → next batch → step → log the previous steps → evaluate if due → save if due
                                                                                                → stop if told to

Logging lags one step behind the dispatch, so the host never waits for the device except at an evaluation or a save.
A save first puts the metrics of all its steps on disk: a run killed at any moment and started again from its last
checkpoint writes the same lines as one that was never stopped.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from rlhfv_jax.errors import Preempted
from rlhfv_jax.metrics import MetricsWriter, Reporter
from rlhfv_jax.profiling import Clock, Trace
from rlhfv_jax.structs import TrainState

Evaluate = Callable[[int, Any], Mapping[str, float]]
Evaluated = Callable[[TrainState, Mapping[str, float]], None]
CheckFirst = Callable[[Mapping[str, float]], None]
Ideal = Callable[[Any], float]


def train(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    batches: Iterator[Any],
    writer: MetricsWriter,
    save: Callable[[TrainState], None],
    *,
    steps: int,
    pairs_per_step: int,
    log_every: int = 1,
    save_every: int = 0,
    eval_every: int = 0,
    check_first: CheckFirst | None = None,
    evaluate: Evaluate | None = None,
    evaluated: Evaluated | None = None,
    preempted: Callable[[int], bool] = lambda step: False,
    trace: Trace | None = None,
    ideal: Ideal | None = None,
) -> TrainState:
    """Runs from `state.step` to `steps` and saves at the end.

    Args:
      batches: the batches of steps state.step, state.step + 1, ... on the device mesh.
      save: starts a checkpoint of the state it is given.
      log_every: how often metrics leave the device; every step gets its line in any case.
      check_first: sees the metrics of step 0, before anything is saved; may raise.
      save_every, eval_every: in steps; 0 for only at the end. `evaluate(step, params)` returns `eval/...` values,
        or none where nothing is due, and `evaluated(state, values)` sees them once they are on disk.
      preempted: asked after every step, with the number of steps done; where it says yes, the state is saved and
        Preempted raised.
      trace: of the steps that are to be profiled.
      ideal: seconds that a batch's matrix products would take at the devices' peak; gives the metric `mfu`.
    """
    start = int(state.step)
    log = _Log(writer, pairs_per_step, check_first, ideal)
    shown = jax.process_index() == 0
    with Reporter("train", steps, done=start, shown=shown) as reporter, trace or Trace(range(0), Path()) as trace:
        if start >= steps:
            reporter.update(start, "nothing left to do")
        for index in range(start, steps):
            with trace.step(index, state):
                with log.clock.waiting("input"):
                    batch = next(batches)
                with log.clock.waiting("device"):
                    state, metrics = step(state, batch)
            trace.done(index, state)
            log.add(index, metrics, batch)
            done = index + 1
            last = done == steps
            eval_due = evaluate is not None and (last or (eval_every and done % eval_every == 0))
            stop = preempted(done) and not last
            save_due = last or stop or (save_every and done % save_every == 0)
            if eval_due or save_due:
                reporter.update(done, log.write())
            elif done % log_every == 0:
                reporter.update(done - 1, log.write(leave=1))
            if eval_due and evaluate is not None:
                if values := evaluate(done, state.params):
                    writer.write(done, values)
                    if evaluated is not None:
                        writer.flush()
                        evaluated(state, values)
                log.clock.restart()
            if save_due:
                writer.flush()
                save(state)
            if stop:
                raise Preempted(f"Stopped by SIGTERM after {done} of {steps} steps, saved; the same command continues.")
    return state


class _Log:
    """Metrics of steps that have not left the device yet, and the clock that says how fast they went."""

    def __init__(self, writer: MetricsWriter, pairs_per_step: int, check_first: CheckFirst | None, ideal: Ideal | None):
        self._writer, self._pairs, self._check_first, self._ideal = writer, pairs_per_step, check_first, ideal
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._steps, self._seconds = 0, 0.0  # steps since the clock was read, and what they would take at the peak
        self.clock = Clock("input", "device")

    def add(self, index: int, metrics: Mapping[str, jax.Array], batch: Any) -> None:
        self._pending.append((index, metrics))
        self._steps += 1
        self._seconds += self._ideal(batch) if self._ideal else 0.0

    def write(self, leave: int = 0) -> str:
        """Writes a line for every step but the last `leave`, and returns one for a person.

        Every line carries the means since the last call of: pairs and tokens a second; seconds a step that the host
        waited for input, and for the device (to take a step or to finish one); what it had of the devices' peak.
        """
        cut = len(self._pending) - leave
        now, self._pending = self._pending[:cut], self._pending[cut:]
        if not now:
            return ""
        with self.clock.waiting("device"):
            fetched = jax.device_get([values for _, values in now])
        elapsed, waited = self.clock.read()
        a_step = elapsed / self._steps
        speed = {"pairs_per_second": self._pairs / a_step}
        speed |= {f"seconds/{kind}": seconds / self._steps for kind, seconds in waited.items()}
        if "tokens" in fetched[0]:
            speed["tokens_per_second"] = float(sum(values["tokens"] for values in fetched)) / len(now) / a_step
        if self._ideal:
            speed["mfu"] = self._seconds / elapsed
        self._steps, self._seconds = 0, 0.0
        for (index, _), values in zip(now, fetched, strict=True):
            self._writer.write(index, values | speed)
            if index == 0 and self._check_first is not None:
                self._check_first(values)
        return f"loss {float(fetched[-1]['loss']):.4f}  {speed['pairs_per_second']:.1f} pairs/s"
