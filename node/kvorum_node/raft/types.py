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


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members of a group."""

    voters: frozenset[NodeId]


def node_name(node: NodeId) -> str:
    """`n1` for 1: nodes are written with an n, everywhere."""
    return f"n{node}"
