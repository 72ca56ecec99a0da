"""The store: one SQLite file, many readers, one writer thread that commits waiting work together.

Work handed to `write` is acknowledged only once its commit is on the disk (WAL, synchronous=FULL), and what waits
meanwhile shares the next commit: fifty people's saves cost a few syncs a second, not fifty.
"""

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from rlhfv_jax.annotation import schema
from rlhfv_jax.errors import UserError

T = TypeVar("T")
FILE = "annotations.sqlite"
REMOTE = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "ceph", "lustre")
BATCH = 256  # pieces of work that share a commit at most


class Full(Exception):
    """The disk is full: nothing was written."""


class Busy(Exception):
    """Another process holds the file, or the disk fails: nothing was written."""


class Store:
    """An open project directory. `write(work)` runs work(connection) in the writer's transaction; `read` reads."""

    def __init__(self, folder: str | Path, create: bool = True):
        self.folder = Path(folder)
        self.path = self.folder / FILE
        if not create and not self.path.is_file():
            raise UserError(f"{self.folder} holds no annotation project ({FILE} is missing).")
        self._prepare()
        self._work: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future] | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._writer = self.connect()
        self._thread = threading.Thread(target=self._run, name="annotation-writer", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if kind := remote_file_system(self.folder):
            raise UserError(f"{self.folder} is on a {kind} file system, where SQLite loses data; use a local disk.")
        new = not self.path.exists()
        try:
            with contextlib.closing(self.connect()) as connection:
                if new:
                    self.path.chmod(0o600)
                connection.execute("PRAGMA journal_mode = WAL")
                schema.migrate(connection, self.path)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} is not a usable store ({error}).") from error

    def connect(self) -> sqlite3.Connection:
        """A new connection, for use in one thread at a time."""
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @property
    def read(self) -> sqlite3.Connection:
        """This thread's connection for reading."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self.connect()
        return self._local.connection

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        """Queues work; the future resolves after the commit, or with Full, Busy, or what the work itself raised."""
        future: Future[T] = Future()
        self._work.put((work, future))
        return future

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs work in a transaction and returns its value once it is on the disk."""
        return self.submit(work).result()

    def close(self) -> None:
        """Waits for what is queued, then closes the writer."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        while (first := self._work.get()) is not None:
            batch = [first]
            closing = False
            while len(batch) < BATCH:
                try:
                    more = self._work.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    closing = True
                    break
                batch.append(more)
            self._commit(batch)
            if closing:
                return

    def _commit(self, batch: list[tuple[Callable[[sqlite3.Connection], Any], Future]]) -> None:
        """One transaction; a piece of work that raises is rolled back alone, a failed commit fails every piece."""
        connection = self._writer
        done: list[tuple[Future, Any]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                connection.execute("SAVEPOINT piece")
                try:
                    done.append((future, work(connection)))
                except sqlite3.OperationalError:
                    raise
                except Exception as error:
                    connection.execute("ROLLBACK TO piece")
                    future.set_exception(error)
                connection.execute("RELEASE piece")
            connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            failure = _failure(error)
            for _, future in batch:
                if not future.done():
                    future.set_exception(failure)
            return
        for future, value in done:
            future.set_result(value)


def _failure(error: Exception) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return Full(str(error)) if "full" in str(error) else Busy(str(error))
    return error


@contextlib.contextmanager
def opened(folder: str | Path, create: bool = True) -> Iterator[Store]:
    """The store of a project directory, closed at the end."""
    store = Store(folder, create)
    try:
        yield store
    finally:
        store.close()


def now() -> float:
    """The server's clock in seconds; no other clock is ever stored."""
    return time.time()


def remote_file_system(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """The kind of network file system the folder lies on; empty for a local one, or where it cannot be told."""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return ""
    place = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        _, mount, name, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if (place == mount or place.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, name
    return kind if kind.startswith(REMOTE) else ""
