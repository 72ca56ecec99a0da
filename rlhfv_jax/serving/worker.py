"""One thread that owns the engine and answers whoever waits, in batches.

The engine is not for several threads, and a batch of requests costs little more than one of them. So requests leave
their prompt here; those of equal settings are decoded together, whatever their seeds, oldest first.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from rlhfv_jax.decoding.batch import Delta, Prompt
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.serving.refusal import Refusal

STREAM_EVERY = 4  # tokens between two looks at a batch in which somebody reads along
WHOLE_EVERY = 16  # in which nobody does; answers that have ended leave then, and clients that have left are noticed


class Ticket:
    """One request in the worker's hands. `deliver` is called from the worker's thread, with pieces or one Refusal."""

    def __init__(
        self, prompt: Prompt, settings: GenerationSettings, stream: bool, deliver: Callable[[Delta | Refusal], None]
    ):
        self.prompt, self.settings, self.stream = prompt, settings, stream
        self.arrived = time.monotonic()
        self._deliver = deliver
        self._open = settings.num_answers  # answers that have not ended
        self._left = False

    @property
    def over(self) -> bool:
        """Nobody waits for anything more: all is delivered, or the client has left."""
        return self._left or not self._open

    def leave(self) -> None:
        """The client will read nothing more."""
        self._left = True

    def give(self, item: Delta | Refusal) -> None:
        """Delivers a piece or the refusal that ends everything, unless nobody waits."""
        if self.over:
            return
        if isinstance(item, Refusal):
            self._open = 0
        elif item.answer is not None:
            self._open -= 1
        self._deliver(item)


class Worker:
    """Gathers tickets for up to `window` seconds from the arrival of the oldest, or until a batch is full."""

    def __init__(self, engine: Engine, window: float = 0.02):
        self._engine, self._window = engine, window
        self._waiting: list[Ticket] = []
        self._decoded: list[Ticket] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Tickets that are not being decoded yet."""
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> None:
        """Raises Refusal where the server stops."""
        with self._changed:
            if self._closed:
                raise _stopping()
            self._waiting.append(ticket)
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """Forgets a ticket; a batch in which nobody waits any more is given up."""
        with self._changed:
            ticket.leave()
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def stop(self) -> None:
        """Refuses everybody, those too whose batch is being decoded; the thread ends when it notices."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            for ticket in (*self._decoded, *self._waiting):
                ticket.give(_stopping())

    def close(self) -> None:
        """Stops, and returns when the thread has ended."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[Ticket]:
        """The next batch as soon as there is one; nothing where the worker is closed."""
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                batch, full = self._gathered()
                left = self._waiting[0].arrived + self._window - time.monotonic()
                if full or left <= 0:
                    self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
                    self._decoded = batch
                    return batch
                self._changed.wait(left)
            return []

    def _gathered(self) -> tuple[list[Ticket], bool]:
        """Whoever can be decoded with the oldest ticket, and whether there is room for no more."""
        settings = self._waiting[0].settings
        most = max(1, self._engine.batch_size // settings.num_answers)
        batch = [ticket for ticket in self._waiting if ticket.settings == settings][:most]
        return batch, len(batch) == most

    def _answer(self, batch: Sequence[Ticket]) -> None:
        every = STREAM_EVERY if any(ticket.stream for ticket in batch) else WHOLE_EVERY
        try:
            for deltas in self._engine.stream([ticket.prompt for ticket in batch], batch[0].settings, every):
                for delta in deltas:
                    batch[delta.row].give(delta)
                if all(ticket.over for ticket in batch):
                    break
        except Exception as error:  # whatever a device may raise, the next batch is another one
            logging.getLogger(__name__).exception("A batch of %d requests failed.", len(batch))
            failure = Refusal(500, f"The engine failed on this request's batch ({type(error).__name__}).")
            for ticket in batch:
                ticket.give(failure)


def _stopping() -> Refusal:
    return Refusal(503, "The server is shutting down.", code="shutting_down")
