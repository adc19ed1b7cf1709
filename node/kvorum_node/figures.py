"""What a node counts of itself, since its process was started: exposition.py and GetStatus tell it.

Rules: plain numbers, owned by the event loop, so nothing is locked. What is on the way of every
call is counted once for all calls that share a message, an entry or a turn. No decision
rests on a figure. What the node knows anyway, such as positions and sizes, is not kept here.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

from kvorum.errors import Code
from kvorum_node.raft.types import Index, NodeId

clock: Final = perf_counter
"""In seconds. The event loop's own clock may count in milliseconds, which is too coarse here."""

SECONDS: Final = tuple(0.0001 * 2**step for step in range(18))
"""Bounds of how long something takes: 0.1 ms, 0.2 ms, ... 13 s."""
SIZES: Final = tuple(float(2**step) for step in range(15))
"""Bounds of how many there are together: 1, 2, 4, ... 16,384."""

NODE_FAILURES: Final = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
    }
)
"""The node's fault, or a limit. The others say what is wrong with the call."""


class Histogram:
    """How many were at most so large. Fixed bounds, so that two readings can be subtracted."""

    __slots__ = ("bounds", "count", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * len(bounds)
        """Of each bound, what is above the one before it. What is above all is in `count` alone."""
        self.count = 0
        self.total = 0.0
        """The sum of what was observed."""

    def observe(self, value: float, times: int = 1) -> None:
        place = bisect_left(self.bounds, value)
        if place < len(self.counts):
            self.counts[place] += times
        self.count += times
        self.total += value * times


class Calls:
    """Reads, or writes, of the clients: the calls in the messages of a session are counted each."""

    __slots__ = ("errors", "refused", "seconds")

    def __init__(self) -> None:
        self.seconds = Histogram(SECONDS)
        """From the arrival of a call to its answer, of those that were taken on."""
        self.errors: defaultdict[int, int] = defaultdict(int)
        """How many were answered with an error, by its gRPC code."""
        self.refused = 0
        """Of those, so many were not taken on, and are not in `seconds`."""

    @property
    def count(self) -> int:
        """All that were answered."""
        return self.seconds.count + self.refused

    @property
    def succeeded(self) -> int:
        return self.count - sum(self.errors.values())

    @property
    def node_failures(self) -> int:
        return sum(count for code, count in self.errors.items() if code in NODE_FAILURES)

    def refuse(self, code: int, count: int = 1) -> None:
        """They are answered at once, with an error."""
        self.errors[code] += count
        self.refused += count


class Rpc:
    """One method of the server."""

    __slots__ = ("handled", "seconds", "started")

    def __init__(self) -> None:
        self.started = 0
        self.handled: defaultdict[str, int] = defaultdict(int)
        """How many have ended, by the name of the gRPC code."""
        self.seconds = Histogram(SECONDS)
        """How long they took; a stream, how long it was open."""


class Peer:
    """What passes between this node and another one."""

    __slots__ = ("received_bytes", "round_trip", "sent_bytes", "sent_failures")

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.sent_failures = 0
        """Messages that were dropped, as there was no connection or too much waited."""
        self.round_trip = Histogram(SECONDS)


class Figures:
    """All that a node counts."""

    def __init__(self) -> None:
        self.started = clock()
        self.committed_before = Index(0)
        self.applied_before = Index(0)
        """How far the group had come when the node was put together."""

        self.reads = Calls()
        self.writes = Calls()
        self.rpcs: dict[tuple[str, str], Rpc] = {}
        """By service and method."""
        self.peers: defaultdict[NodeId, Peer] = defaultdict(Peer)

        self.sync = Histogram(SECONDS)
        """Of the log."""
        self.apply = Histogram(SECONDS)
        """Of what was committed, one batch a turn."""
        self.commands_per_entry = Histogram(SIZES)
        """Of the entries that this node has proposed."""
        self.entries_per_sync = Histogram(SIZES)
        self.entries_per_apply = Histogram(SIZES)

        self.leader_changes = 0
        self.proposals_failed = 0
        """Entries that this node has proposed, or was to, and that it has not seen applied."""

        self.snapshots_sent = 0
        self.snapshots_send_failures = 0
        self.snapshots_received = 0
        self.snapshots_receive_failures = 0

        self.changes_told = 0
        """Revisions that were told to watches, to each one that wants it."""
        self.watches_behind = 0
        """So often a watch had more to be told than may be noted, and fell behind."""
        self.watches_caught_up = 0
        """So often a watch was led through history, and has come to the newest revision."""

    @property
    def uptime_seconds(self) -> float:
        return clock() - self.started

    def rpc(self, service: str, method: str) -> Rpc:
        return self.rpcs.setdefault((service, method), Rpc())


def timed(work: Callable[[], None]) -> float:
    """Do the work, perhaps in another thread; returns the seconds that it took."""
    began = clock()
    work()
    return clock() - began
