"""Linearizable reads without a log entry (dissertation, section 6.4).

A read may be answered from the leader's state once two things are known: the
leader was still the leader after the read arrived, and its state has reached the
commit index of that moment. Reads that arrive together share one *round*: a
numbered heartbeat to all, confirmed when a majority has answered it. An answer to
a round answers every earlier one.

Rule: a leader may not start a round before an entry of its own term is committed:
until then its commit index may lie behind what its predecessor acknowledged.
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


class ReadIndex:
    __slots__ = ("_rounds", "_waiting", "newest")

    def __init__(self) -> None:
        self.newest = 0
        self._waiting: list[int] = []
        self._rounds: deque[_Round] = deque()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, request: int) -> None:
        self._waiting.append(request)

    def start_round(self, committed: Index) -> None:
        """Put all waiting reads into a new round, whose number is `newest` from here on."""
        self.newest += 1
        self._rounds.append(_Round(self.newest, ReadState(tuple(self._waiting), committed)))
        self._waiting.clear()

    def confirmed(self, number: int) -> list[ReadState]:
        """Take the reads of all rounds through this number."""
        reads = []
        while self._rounds and self._rounds[0].number <= number:
            reads.append(self._rounds.popleft().reads)
        return reads
