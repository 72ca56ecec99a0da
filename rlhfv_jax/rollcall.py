"""The line that holds the processes of a run together: who is there, who waits where, and who is gone.

Process 0 keeps a hub; every process, itself included, keeps a TCP connection to it and says JSON lines:

    to the hub      hello (index, count, host), beat, at (a meeting's name, a value), failed (why), done
    from the hub    beat, met (a meeting's name, the value that process 0 brought), over (why the run ends)

A process that dies closes its connection, so the others know within a second; one whose machine or network is gone
misses its beats, so they know within `lost_after`. JAX's own service notices too, but later, and without a sentence.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BEATS = 6  # in the time after which a silent process counts as lost


@dataclass
class _Peer:
    """The hub's end of a connection."""

    line: socket.socket
    unread: bytes = b""
    index: int = -1  # until it has said hello
    host: str = ""
    heard: float = field(default_factory=time.monotonic)
    done: bool = False

    @property
    def name(self) -> str:
        return f"process {self.index} on {self.host}"


@dataclass
class _Meeting:
    deadline: float
    within: float
    value: Any = None
    arrived: set[int] = field(default_factory=set)


class Hub(threading.Thread):
    """Process 0's end of all lines."""

    def __init__(self, port: int, count: int, start_within: float, lost_after: float):
        super().__init__(daemon=True)
        self._count, self._lost_after = count, lost_after
        self._peers: dict[int, _Peer] = {}
        self._meetings: dict[str, _Meeting] = {}
        self._verdict = ""
        self._expect("start", start_within)
        self._server = socket.create_server(("", port), backlog=count)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Answers members until all have left, or one is lost."""
        next_beat = 0.0
        while not (self._peers and all(peer.done for peer in self._peers.values())):
            for key, _ in self._selector.select(timeout=min(0.2, self._lost_after / BEATS)):
                if key.data is None:
                    line, _ = self._server.accept()
                    line.settimeout(self._lost_after)
                    self._selector.register(line, selectors.EVENT_READ, _Peer(line))
                else:
                    self._read(key.data)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._lost_after / BEATS
                self._tell({"beat": None})
            self._check(now)
        self._server.close()

    def _expect(self, name: str, within: float) -> _Meeting:
        return self._meetings.setdefault(name, _Meeting(time.monotonic() + within, within))

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.line.recv(1 << 16)
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(peer.line)
            if peer.index >= 0 and not peer.done:
                self._end(f"{peer.name} ended without a word (killed, out of memory or crashed; see its own output)")
                peer.done = True
            return
        peer.heard = time.monotonic()
        *lines, peer.unread = (peer.unread + received).split(b"\n")
        try:
            for line in lines:
                for what, value in json.loads(line).items():
                    self._hear(peer, what, value)
        except (ValueError, AttributeError, KeyError, TypeError):  # not one of ours
            self._selector.unregister(peer.line)
            peer.line.close()

    def _hear(self, peer: _Peer, what: str, value: Any) -> None:
        if what == "hello":
            self._greet(peer, value)
        elif what == "at":
            meeting = self._expect(value["name"], value["within"])
            meeting.arrived.add(peer.index)
            if peer.index == 0:
                meeting.value = value["value"]
            self._pass(value["name"])
        elif what == "failed":
            self._end(f"{peer.name} stopped: {value}", spare=peer.index)
            peer.done = True
        elif what == "done":
            peer.done = True

    def _greet(self, peer: _Peer, hello: dict[str, Any]) -> None:
        peer.index, peer.host = hello["index"], hello["host"]
        if hello["count"] != self._count:
            self._end(f"{peer.name} is one of {hello['count']} processes, process 0 one of {self._count}")
        elif peer.index in self._peers:
            self._end(f"both {self._peers[peer.index].name} and one on {peer.host} call themselves number {peer.index}")
        else:
            self._peers[peer.index] = peer
            self._meetings["start"].arrived.add(peer.index)
            self._pass("start")
        if self._verdict:  # it came too late to hear
            self._send(peer, {"over": self._verdict})

    def _pass(self, name: str) -> None:
        meeting = self._meetings[name]
        if len(meeting.arrived) == self._count:
            del self._meetings[name]
            self._tell({"met": {"name": name, "value": meeting.value}})

    def _check(self, now: float) -> None:
        for peer in self._peers.values():
            if not peer.done and now - peer.heard > self._lost_after:
                self._end(f"{peer.name} has not been heard of for {self._lost_after:.0f} s")
        for name, meeting in self._meetings.items():
            if now > meeting.deadline:
                absent = [
                    self._peers[index].name if index in self._peers else f"process {index}"
                    for index in range(self._count)
                    if index not in meeting.arrived
                ]
                self._end(f"{' and '.join(absent)} did not come to {name!r} within {meeting.within:.0f} s")

    def _end(self, why: str, spare: int = -1) -> None:
        if not self._verdict:
            self._verdict = why
            self._tell({"over": why}, spare)

    def _tell(self, message: dict[str, Any], spare: int = -1) -> None:
        for peer in list(self._peers.values()):
            if peer.index != spare and not peer.done:
                self._send(peer, message)

    def _send(self, peer: _Peer, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone, which reading finds out
            peer.line.sendall(json.dumps(message).encode() + b"\n")


class Member(threading.Thread):
    """A process's own end of its line; `over(why)` is called in a thread of its own when the run has to end."""

    def __init__(self, line: socket.socket, index: int, count: int, lost_after: float, over: Callable[[str], None]):
        super().__init__(daemon=True)
        self._line, self._lost_after, self._over = line, lost_after, over
        self._turn = threading.Lock()
        self._news = threading.Condition()
        self._met: dict[str, Any] = {}
        self._leaving = False
        self.say("hello", {"index": index, "count": count, "host": socket.gethostname()})

    def run(self) -> None:
        """Reports until the run ends, and ends the process where another was lost."""
        heard = said = time.monotonic()
        unread = b""
        self._line.settimeout(self._lost_after / BEATS)
        while not self._leaving:
            try:
                received = self._line.recv(1 << 16)
            except TimeoutError:
                received = None
            except OSError:
                received = b""
            now = time.monotonic()
            if received:
                heard = now
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
            elif received == b"" and not self._leaving:
                return self._over("process 0 ended without a word (killed, out of memory or crashed)")
            if now - heard > self._lost_after:
                return self._over(f"process 0 has not been heard of for {self._lost_after:.0f} s")
            if now - said >= self._lost_after / BEATS:
                said = now
                self.say("beat", None)

    def _hear(self, message: dict[str, Any]) -> None:
        if "met" in message:
            with self._news:
                self._met[message["met"]["name"]] = message["met"]["value"]
                self._news.notify_all()
        elif "over" in message and not self._leaving:
            self._over(message["over"])

    def say(self, what: str, value: Any) -> None:
        """One line to the hub."""
        with self._turn, contextlib.suppress(OSError):  # the hub is gone, which reading finds out
            self._line.sendall(json.dumps({what: value}).encode() + b"\n")

    def met(self, name: str) -> Any:
        """Waits until all are at the meeting and returns what process 0 brought. The hub's deadline ends the wait."""
        with self._news:
            self._news.wait_for(lambda: name in self._met)
            return self._met.pop(name)

    def leave(self) -> None:
        """Ends the line on purpose: the others do not take it for a loss."""
        self._leaving = True
        self.say("done", None)


def reach(host: str, port: int, within: float) -> socket.socket | None:
    """A connection to the hub, tried again until it is there; None where it is not in time."""
    deadline = time.monotonic() + within
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)
