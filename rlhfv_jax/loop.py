"""The training loop. Its order is fixed:

    restore or init (the caller) → next batch → step → log the previous steps → evaluate if due → save if due

Logging lags one step behind the dispatch, so the host never waits for the device except at an evaluation or a save.
A save first puts the metrics of all its steps on disk: a run killed at any moment and started again from its last
checkpoint writes the same lines as one that was never stopped.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from rlhfv_jax.metrics import MetricsWriter, Reporter
from rlhfv_jax.structs import TrainState

Evaluate = Callable[[int, Any], Mapping[str, float]]
Evaluated = Callable[[TrainState, Mapping[str, float]], None]


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
    check_first: Callable[[Mapping[str, float]], None] | None = None,
    evaluate: Evaluate | None = None,
    evaluated: Evaluated | None = None,
) -> TrainState:
    """Runs from `state.step` to `steps` and saves at the end.

    Args:
      batches: the batches of steps state.step, state.step + 1, ... on the device mesh.
      save: starts a checkpoint of the state it is given.
      log_every: how often metrics leave the device; every step gets its line in any case.
      check_first: sees the metrics of step 0, before anything is saved; may raise.
      save_every, eval_every: in steps; 0 for only at the end. `evaluate(step, params)` returns `eval/...` values,
        or none where nothing is due, and `evaluated(state, values)` sees them once they are on disk.
    """
    start = int(state.step)
    pending: list[tuple[int, Mapping[str, jax.Array]]] = []
    clock = time.perf_counter()

    def log(entries: list[tuple[int, Mapping[str, jax.Array]]]) -> str:
        nonlocal clock
        if not entries:
            return ""
        fetched = jax.device_get(entries)
        now = time.perf_counter()
        rate = pairs_per_step * len(fetched) / (now - clock)
        speed = {"pairs_per_second": rate}
        if "tokens" in fetched[0][1]:
            speed["tokens_per_second"] = float(sum(values["tokens"] for _, values in fetched)) / (now - clock)
        clock = now
        for index, values in fetched:
            writer.write(index, values | speed)
            if index == 0 and check_first is not None:
                check_first(values)
        return f"loss {float(fetched[-1][1]['loss']):.4f}  {rate:.1f} pairs/s"

    with Reporter("train", steps, done=start, shown=jax.process_index() == 0) as reporter:
        for index in range(start, steps):
            batch = next(batches)
            state, metrics = step(state, batch)
            pending.append((index, metrics))
            done = index + 1
            if done % log_every == 0:
                note = log(pending[:-1])
                pending = pending[-1:]
                reporter.update(done - 1, note)
            last = done == steps
            eval_due = evaluate is not None and (last or (eval_every and done % eval_every == 0))
            save_due = last or (save_every and done % save_every == 0)
            if eval_due or save_due:
                note = log(pending)
                pending = []
                reporter.update(done, note)
            if eval_due and evaluate is not None:
                if values := evaluate(done, state.params):
                    writer.write(done, values)
                    if evaluated is not None:
                        writer.flush()
                        evaluated(state, values)
                clock = time.perf_counter()
            if save_due:
                writer.flush()
                save(state)
    return state
