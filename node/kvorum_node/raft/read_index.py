"""Linearizable reads without a log entry (dissertation, section 6.4).

A read may be answered from the leader's state once two things are known: the
leader was still the leader after the read arrived, and its state has reached the
commit index of that moment. Reads that arrive together share one *round*: a
numbered heartbeat to all, confirmed when a majority has answered it. An answer to
a round answers every earlier one.

Rule: a leader may not start a round before an entry of its own term is committed:
until then its commit index may lie behind what its predecessor acknowledged.

A confirmed round also gives a *lease* (dissertation, section 6.4.1): for a while, reads that
ask for no more may be answered without a round. It rests on a promise that every member
makes when it hears the leader: to vote for nobody for an election time-out (`Raft.bound_elapsed`).

    the leader's clock   the round is sent ─────────────────▶ the lease ends: (E - 1) * 9/10 ticks
    a follower's clock        hears it ─────────────────────────▶ may vote again: E ticks

- It counts from the tick in which the round was *sent*, which is before anybody heard it: so the
  time that the round took is within the lease, and not added to it.
- A follower's first tick may follow at once, so its promise lasts E - 1 ticks at least. The
  tenth is for clocks that do not run alike. Both are the host's clocks, in `Raft.clock`: the
  leader's must not stand still while its process does, or one that was suspended would wake up
  with a lease long over.
- Whoever is to be elected needs a vote out of each majority of the configuration, and so one of
  those who promised, or the leader's own. A member keeps its promise over a restart, by
  making it anew (`restarted`), and when its term rises, by whatever message.
- A leader that asks another member to stand (TimeoutNow) releases everybody from the promise,
  and the message may arrive at any time: it has no lease any more in its term, even if the
  transfer is given up.
- A change of configuration ends the lease when it is appended: majorities before it need not meet
  those after it. The next round, asked and confirmed under the new one, gives a new lease; what
  was asked before the change counts for its reads and gives none. While members change, a
  round needs both majorities, and a candidate that knows only the old one lacks an entry
  that a majority of it has.
"""

from collections import deque
from dataclasses import dataclass

from kvorum_node.raft.types import Index


@dataclass(frozen=True, slots=True)
class ReadState:
    """The reads of these requests may be answered once the index is applied."""

    requests: tuple[int, ...]
    index: Index


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    reads: ReadState
    clock: int


class ReadIndex:
    __slots__ = ("_confirmed_at", "_leases_from", "_rounds", "_waiting", "newest")

    def __init__(self) -> None:
        self.newest = 0
        self._confirmed_at: int | None = None
        """When the newest round was sent that was confirmed and gives a lease."""
        self._leases_from: int | None = 1
        """The first round that may give a lease; None if none will."""
        self._waiting: list[int] = []
        self._rounds: deque[_Round] = deque()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, request: int) -> None:
        self._waiting.append(request)

    def start_round(self, committed: Index, clock: int) -> None:
        """Put all waiting reads into a new round, whose number is `newest` from here on."""
        self.newest += 1
        reads = ReadState(tuple(self._waiting), committed)
        self._rounds.append(_Round(self.newest, reads, clock))
        self._waiting.clear()

    def confirmed(self, number: int) -> list[ReadState]:
        """Take the reads of all rounds through this number."""
        reads = []
        while self._rounds and self._rounds[0].number <= number:
            confirmed = self._rounds.popleft()
            reads.append(confirmed.reads)
            if self._leases_from is not None and confirmed.number >= self._leases_from:
                self._confirmed_at = confirmed.clock
        return reads

    def has_lease(self, clock: int, lease_ticks: int) -> bool:
        """Whether nobody else can have been elected, if the clock shows this."""
        return self._confirmed_at is not None and clock - self._confirmed_at < lease_ticks

    def end_lease(self) -> None:
        """What was promised is worth nothing any more: new rounds are needed."""
        self._confirmed_at = None
        if self._leases_from is not None:
            self._leases_from = self.newest + 1

    def end_leases(self) -> None:
        """Members are released from what they promise: there is no lease any more."""
        self._confirmed_at = self._leases_from = None
