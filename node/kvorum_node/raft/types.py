"""The nouns of the Raft core.

Rules: numbers that mean different things have different types, and everything
here is immutable. A position in the log is written `index@term`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

NodeId = NewType("NodeId", int)
GroupId = NewType("GroupId", int)
Term = NewType("Term", int)
Index = NewType("Index", int)


class EntryKind(IntEnum):
    """What an entry's data is. The numbers are on disk and on the wire (raft.proto)."""

    NOOP = 0
    COMMANDS = 1
    CONFIGURATION = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One slot of the replicated log."""

    index: Index
    term: Term
    kind: EntryKind = EntryKind.NOOP
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.index}@{self.term}"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a log ends, or an entry stands."""

    index: Index
    term: Term

    def __str__(self) -> str:
        return f"{self.index}@{self.term}"


@dataclass(frozen=True, slots=True)
class HardState:
    """What a node must not forget (Raft, figure 2): written as one, fsynced before any promise.

    `commit` is kept to start faster; losing it loses nothing.
    """

    term: Term = Term(0)
    vote: NodeId | None = None
    commit: Index = Index(0)


def node_name(node: NodeId) -> str:
    """`n1` for 1: nodes are written with an n, everywhere."""
    return f"n{node}"


class ProposalRefused(Exception):
    """The core did not take the proposal or the read: it is not in the log, and never will be."""


class NotLeading(ProposalRefused):
    """Only a leader takes proposals and reads, and not while it hands leadership over."""


class TooManyUncommitted(ProposalRefused):
    """The followers do not keep up; taking more would only fill the memory."""


class ChangeRefused(ProposalRefused):
    """The members cannot be changed so, or not now; the text says why.

    With `endangers_quorum`, the change could be forced.
    """

    def __init__(self, why: str, *, endangers_quorum: bool = False) -> None:
        super().__init__(why)
        self.endangers_quorum = endangers_quorum


@dataclass(frozen=True, slots=True)
class Settings:
    """How one member behaves. Durations are in ticks; the host decides how long a tick is."""

    election_ticks: int = 20
    """Without a word from a leader for this long, a member may stand for election."""

    heartbeat_ticks: int = 2

    max_append_bytes: int = 1 << 20
    """Entries in one message: this much data, or one larger entry."""

    max_inflight_messages: int = 64
    max_inflight_bytes: int = 64 << 20
    """The window per follower: what may be on its way unacknowledged."""

    max_uncommitted_bytes: int = 128 << 20
    max_apply_bytes: int = 4 << 20
    """Committed entries in one Ready, so that applying a long backlog leaves room for the rest."""

    @property
    def lease_ticks(self) -> int:
        """How long a leader may count on those who have confirmed it: read_index.py says why."""
        return (self.election_ticks - 1) * 9 // 10

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks * 3 <= self.election_ticks:
            raise ValueError(
                f"election_ticks ({self.election_ticks}) must be at least 3 heartbeat_ticks"
                f" ({self.heartbeat_ticks}): one lost heartbeat must not cost an election"
            )
