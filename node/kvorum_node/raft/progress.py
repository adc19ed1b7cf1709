"""What a leader knows about one follower's log, and what is on its way there.

    PROBE      the match is a guess: one message at a time, until one is accepted
    REPLICATE  the match is known: messages are pipelined within a window
    SNAPSHOT   the follower needs entries that the log no longer holds: nothing is sent
               until the host has reported what became of the snapshot

A rejection or an unreachable peer leads back to PROBE. There, `next` stays the guess
until a rejection lowers it: that acknowledgements are missing does not prove that
entries are, and a log that was cut meanwhile would lead to SNAPSHOT without need.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from kvorum_node.raft.types import Index


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Inflight:
    """The window of unacknowledged messages: their last indexes and sizes, oldest first."""

    max_messages: int
    max_bytes: int
    _messages: deque[tuple[Index, int]] = field(default_factory=deque)
    _bytes: int = 0

    @property
    def full(self) -> bool:
        return len(self._messages) >= self.max_messages or self._bytes >= self.max_bytes

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, last: Index, size_bytes: int) -> None:
        self._messages.append((last, size_bytes))
        self._bytes += size_bytes

    def acknowledge(self, index: Index) -> None:
        """Forget the messages that end at or before the index."""
        while self._messages and self._messages[0][0] <= index:
            self._bytes -= self._messages.popleft()[1]

    def forget_oldest(self) -> None:
        """Make room for one message, as if the oldest had been acknowledged."""
        if self._messages:
            self._bytes -= self._messages.popleft()[1]

    def clear(self) -> None:
        self._messages.clear()
        self._bytes = 0


@dataclass(slots=True)
class Progress:
    match: Index
    """The last index known to be on the follower's disk."""

    next: Index
    """The first index to send next."""

    inflight: Inflight

    state: ProgressState = ProgressState.PROBE

    heard: bool = False
    """Heard from at all, by this leader."""

    active: bool = False
    """Heard from since the last quorum check. A leader begins by taking that for granted."""

    active_before: bool = False
    """Heard from between the two last quorum checks."""

    probing: bool = False
    """In PROBE: a message is on its way, and nothing more is sent until it is answered."""

    due: bool = False
    """Send a message even if there are no entries to send: something may have been lost."""

    read_round: int = 0
    """The newest read round that the follower has answered."""

    clock: int = 0
    """The newest that the follower has said of its clock."""

    @property
    def recently_active(self) -> bool:
        """Heard from within two election time-outs, and surely if within one; or not known yet."""
        return self.active or self.active_before

    @property
    def is_alive(self) -> bool:
        """As recently_active, and not by guess."""
        return self.heard and self.recently_active

    @property
    def paused(self) -> bool:
        match self.state:
            case ProgressState.PROBE:
                return self.probing
            case ProgressState.REPLICATE:
                return self.inflight.full
            case ProgressState.SNAPSHOT:
                return True

    def sent(self, last: Index, count: int, size_bytes: int) -> None:
        """Note a message that carries `count` entries through `last`."""
        self.due = False
        if self.state is ProgressState.PROBE:
            self.probing = True
        elif count:
            self.next = Index(last + 1)
            self.inflight.add(last, size_bytes)

    def accepted(self, index: Index, first_index: Index) -> bool:
        """The logs match through the index. Returns whether that is news.

        That ends SNAPSHOT if the leader's log, which begins with `first_index`, goes on there.
        """
        self.inflight.acknowledge(index)
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, Index(index + 1))
        if self.state is ProgressState.PROBE or (
            self.state is ProgressState.SNAPSHOT and index + 1 >= first_index
        ):
            self._enter(ProgressState.REPLICATE)
        return news

    def rejected(self, index: Index, retry_after: Index) -> bool:
        """The logs do not match at the index; they may at `retry_after`.

        Returns False for a rejection that is out of date, and changes nothing: a
        reordered or repeated one must not throw away what has been matched since.
        """
        outdated = index <= self.match or (
            self.state is ProgressState.PROBE and self.next - 1 != index
        )
        if outdated or self.state is ProgressState.SNAPSHOT:
            return False
        self._enter(ProgressState.PROBE)
        self.next = Index(max(self.match + 1, min(index, retry_after + 1)))
        return True

    def unreachable(self) -> None:
        """What was sent is probably lost. A probe is not repeated before a sign of life."""
        if self.state is ProgressState.REPLICATE:
            self._enter(ProgressState.PROBE)

    def needs_snapshot(self) -> None:
        self._enter(ProgressState.SNAPSHOT)

    def snapshot_installed(self, index: Index) -> None:
        """The follower has the state through the index. Its own word for that may have been lost,
        so it is a place to probe, and no match."""
        if self.state is ProgressState.SNAPSHOT:
            self._enter(ProgressState.PROBE)
            self.next = Index(max(self.match, index) + 1)
            self.due = True

    def snapshot_failed(self, last_index: Index) -> None:
        """Begin anew after a sign of life: the follower may have got on some other way."""
        if self.state is ProgressState.SNAPSHOT:
            self._enter(ProgressState.PROBE)
            self.next = Index(last_index + 1)
            self.probing = True

    def alive(self, last_index: Index) -> None:
        """The follower answered a heartbeat: whatever has stalled may try again."""
        self.probing = False
        if self.inflight.full:
            self.inflight.forget_oldest()
        self.due = self.match < last_index

    def hear(self) -> None:
        """Any answer of the follower has arrived."""
        self.heard = self.active = True

    def start_check(self) -> None:
        """A quorum check has been made, and the next one begins."""
        self.active_before, self.active = self.active, False

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.probing = False
        self.inflight.clear()
        if state is not ProgressState.PROBE:
            self.next = Index(self.match + 1)
