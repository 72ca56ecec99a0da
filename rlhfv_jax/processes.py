"""Several processes as one run: started together, held together, and ended together with a sentence.

`joined(cluster.detect())` starts `jax.distributed` where there are several processes and does nothing where there is
one. Within it, process 0 is the one that writes files, the others follow its decisions (`from_first`), and a process
that is lost or fails ends all others with an error that names it, within `lost_after` seconds.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from rlhfv_jax import rollcall
from rlhfv_jax.cluster import Place
from rlhfv_jax.errors import Preempted, UserError

START_WITHIN = 300.0  # seconds for all processes to appear
LOST_AFTER = 60.0  # seconds of silence after which a process counts as lost
MEET_WITHIN = 1800.0  # seconds for all processes to come to a meeting; the slowest may be reading a large checkpoint
T = TypeVar("T")

_member: rollcall.Member | None = None


def is_first() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


@contextmanager
def joined(place: Place | None, lost_after: float = LOST_AFTER, start_within: float = START_WITHIN) -> Iterator[None]:
    """Within it, this process is the one of `place`; with None it runs alone.

    An exception inside ends the whole run: this process with its own message and exit status 1, the others with one
    that names this process. Nobody is left waiting.
    """
    global _member
    if place is None:
        yield
        if jax.process_count() > 1:
            raise UserError("JAX found other hosts, but was not told of them; see docs/scale.md on several hosts.")
        return
    _member = _start(place, lost_after, start_within)
    try:
        yield
    except (SystemExit, Preempted):
        _leave(lost_after)
        raise
    except BaseException as error:
        _fail(_member, error, lost_after)
    _leave(MEET_WITHIN)


def barrier(name: str, within: float = MEET_WITHIN) -> None:
    """Waits for all processes. One that does not come in time ends the run with an error that names it."""
    from_first(name, lambda: None, within)


def from_first(name: str, decide: Callable[[], T], within: float = MEET_WITHIN) -> T:
    """What `decide()` returns in process 0 (as JSON can say it), in all of them; others do not call it."""
    if _member is None:
        return decide()
    value = decide() if is_first() else None
    _member.say("at", {"name": name, "value": value, "within": within})
    return _member.met(name)


def together(name: str, function: Any) -> Any:
    """A jitted function that, among several processes, runs new shapes only when all have compiled them.

    Its collectives give up on a peer that is late (on CPUs after 30 s), and a compilation may be.
    """
    if _member is None:
        return function
    programs: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in programs:
            programs[key] = function.lower(*args).compile()
            barrier(f"program {len(programs)} of {name}")
        return programs[key](*args)

    return call


def check_shared(folder: Path) -> None:
    """Raises UserError where this process does not see what process 0 writes in the folder."""
    if _member is None:
        return
    mark = folder / ".seen-by-all"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier("the working directory is there")
    if not mark.exists():
        raise UserError(f"{folder} is not the folder that process 0 sees; --workdir must be on a shared file system.")
    barrier("the working directory is seen")
    if is_first():
        mark.unlink()


def _start(place: Place, lost_after: float, start_within: float) -> rollcall.Member:
    port = place.port + 1  # beside the coordinator's
    if place.index == 0:
        try:
            rollcall.Hub(port, place.count, start_within, lost_after).start()
        except OSError as error:
            raise UserError(f"Process 0 cannot listen at port {port} ({error.strerror}).") from error
    line = rollcall.reach("127.0.0.1" if place.index == 0 else place.host, port, start_within)
    if line is None:
        raise UserError(f"Process 0 was not there at {place.host}:{port} within {start_within:.0f} s.")
    member = rollcall.Member(line, place.index, place.count, lost_after, _over)
    member.start()
    member.met("start")
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(start_within),
        # JAX would end this process without a sentence; it is the second line of defense.
        heartbeat_timeout_seconds=int(3 * lost_after) + 40,
    )
    return member


def _over(why: str) -> NoReturn:
    """Ends this process from whatever thread, also while its main thread waits for a collective that never ends."""
    if is_first():
        time.sleep(1.0)  # the hub is here, and has to tell the others
    print(f"error: {why}. This process ends too; the same command continues from the last checkpoint.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def _fail(member: rollcall.Member, error: BaseException, lost_after: float) -> NoReturn:
    """Tells the others why this process ends. Leaving by an exception would wait for them in JAX's own shutdown."""
    if _lost_a_peer(error):
        time.sleep(lost_after)  # who that was is about to be known, and ends this process
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno is not None:
        text = f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    else:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    print(f"error: {text}", file=sys.stderr)
    sys.stderr.flush()
    member.say("failed", text.rstrip("."))
    time.sleep(1.0)  # the hub may be here, and has to tell the others
    os._exit(1)


def _lost_a_peer(error: BaseException | None) -> bool:
    """Whether it came from a collective that has probably lost its other end."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__
    return False


def _leave(within: float) -> None:
    global _member
    if _member is not None:
        barrier("the end", within)
        _member.leave()
        _member = None
        jax.distributed.shutdown()
