"""The line between processes: everyone meets, and whoever does not is named. Threads and sockets of 127.0.0.1."""

import queue
import socket
import time

import pytest

from rlhfv_jax import rollcall

LOST_AFTER = 0.6


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Group:
    """A hub and some of its members; what each is told at the end stands in `ends`."""

    def __init__(self, count: int, start_within: float = 5.0):
        self.port, self.count, self.ends = free_port(), count, queue.Queue()
        rollcall.Hub(self.port, count, start_within, LOST_AFTER).start()

    def member(self, index: int, beats: bool = True, count: int = 0) -> rollcall.Member:
        line = rollcall.reach("127.0.0.1", self.port, 5)
        assert line is not None
        over = lambda why: self.ends.put((index, why))  # noqa: E731
        member = rollcall.Member(line, index, count or self.count, LOST_AFTER, over)
        if beats:
            member.start()
        return member

    def end(self) -> tuple[int, str]:
        return self.ends.get(timeout=10)


@pytest.fixture
def three():
    group = Group(3)
    members = [group.member(i) for i in range(3)]
    for member in members:
        member.met("start")
    return group, members


def test_all_meet_and_get_what_the_first_brings(three):
    group, members = three
    for name in ("one", "two"):
        for member in reversed(members):
            member.say("at", {"name": name, "value": name * 2 if member is members[0] else "not this", "within": 5})
        assert [member.met(name) for member in members] == [name * 2] * 3
    for member in members:
        member.leave()
    time.sleep(2 * LOST_AFTER)
    assert group.ends.empty()  # leaving is not a loss


def test_a_killed_process_is_named_to_the_others_at_once(three):
    group, members = three
    started = time.monotonic()
    members[2]._line.shutdown(socket.SHUT_RDWR)  # what the kernel does for a process that is killed
    told = dict(group.end() for _ in range(3))
    assert all("process 2 on" in told[i] and "ended without a word" in told[i] for i in (0, 1))
    assert time.monotonic() - started < LOST_AFTER + 2


def test_a_silent_process_is_named_after_the_bound():
    group = Group(2)
    first, silent = group.member(0), group.member(1, beats=False)
    first.met("start")
    started = time.monotonic()
    index, why = group.end()
    assert index == 0 and "process 1 on" in why and "has not been heard of for" in why
    assert LOST_AFTER * 0.5 < time.monotonic() - started < 5 * LOST_AFTER + 2
    silent.leave()


def test_who_fails_tells_why_and_is_not_told(three):
    group, members = three
    members[1].say("failed", "the disk is full")
    told = dict(group.end() for _ in range(2))
    assert set(told) == {0, 2} and all(why.endswith("stopped: the disk is full") for why in told.values())


def test_who_does_not_come_to_a_meeting_is_named(three):
    group, members = three
    members[0].say("at", {"name": "save 7", "value": None, "within": 0.5})
    _, why = group.end()
    hosts = [f"process {i} on {socket.gethostname()}" for i in (1, 2)]
    assert why == f"{hosts[0]} and {hosts[1]} did not come to 'save 7' within 0 s"


def test_who_does_not_start_is_named_by_number():
    group = Group(3, start_within=0.5)
    group.member(0)
    _, why = group.end()
    assert why == "process 1 and process 2 did not come to 'start' within 0 s"


@pytest.mark.parametrize(("index", "count", "words"), [(0, 2, "call themselves number 0"), (1, 3, "is one of 3 proc")])
def test_processes_that_were_numbered_wrongly_are_told(index, count, words):
    group = Group(2)
    group.member(0)
    time.sleep(0.1)
    group.member(index, count=count)
    assert words in group.end()[1]


def test_a_stranger_at_the_port_changes_nothing():
    group = Group(1)
    stranger = socket.create_connection(("127.0.0.1", group.port))
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    member = group.member(0)
    member.met("start")
    assert stranger.recv(10) == b""
    time.sleep(2 * LOST_AFTER)
    assert group.ends.empty()
    member.leave()


def test_the_first_process_is_missed_by_the_others():
    assert rollcall.reach("127.0.0.1", free_port(), 0.3) is None
