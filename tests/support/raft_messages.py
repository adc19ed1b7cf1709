"""Logs, positions and messages as a test writes them.

Positions are written `index@term`, and a log as its entries in that notation:
"1@1 2@1 3@2". Unless told otherwise, messages come from n2 and go to n1: most tests
put one member, n1, in front of the others' messages.
"""

from collections.abc import Iterable, Sequence

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.log import RaftLog
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    Index,
    NodeId,
    Position,
    Term,
)


def position(text: str) -> Position:
    """`3@2`: the position at index 3 of term 2."""
    index, term = text.split("@")
    return Position(Index(int(index)), Term(int(term)))


def entries(text: str, *, data: bytes = b"") -> tuple[Entry, ...]:
    """`1@1 2@1 3@2`: entries at these positions."""
    kind = EntryKind.COMMANDS if data else EntryKind.NOOP
    return tuple(
        Entry(where.index, where.term, kind, data) for where in map(position, text.split())
    )


def of_terms(*terms: int) -> tuple[Entry, ...]:
    """The log whose entries are of these terms, from index 1 on: the boxes of the figures."""
    return tuple(Entry(Index(at), Term(term)) for at, term in enumerate(terms, start=1))


def written(log: Iterable[Entry]) -> str:
    """Entries as `1@1 2@1 3@2`."""
    return " ".join(map(str, log))


def whole(log: RaftLog) -> str:
    """All of a member's log, stored or not."""
    return written(log.entries(log.first_index, 1 << 30))


# Messages, from n2 to n1 unless told otherwise.


def request_vote(
    term: int,
    last: str = "0@0",
    *,
    sender: int = 2,
    to: int = 1,
    pre: bool = False,
    transfer: bool = False,
) -> RequestVote:
    return RequestVote(
        sender=NodeId(sender),
        recipient=NodeId(to),
        term=Term(term),
        last=position(last),
        pre=pre,
        transfer=transfer,
    )


def vote(
    term: int, *, granted: bool = True, pre: bool = False, sender: int = 2, to: int = 1
) -> RequestVoteReply:
    return RequestVoteReply(
        sender=NodeId(sender), recipient=NodeId(to), term=Term(term), granted=granted, pre=pre
    )


def append(
    term: int,
    previous: str = "0@0",
    log: str | Sequence[Entry] = (),
    *,
    commit: int = 0,
    sender: int = 2,
    to: int = 1,
) -> AppendEntries:
    return AppendEntries(
        sender=NodeId(sender),
        recipient=NodeId(to),
        term=Term(term),
        previous=position(previous),
        entries=entries(log) if isinstance(log, str) else tuple(log),
        commit=Index(commit),
    )


def accepted(term: int, index: int, *, sender: int = 2, to: int = 1) -> AppendEntriesReply:
    return AppendEntriesReply(
        sender=NodeId(sender), recipient=NodeId(to), term=Term(term), index=Index(index)
    )


def rejected(
    term: int, index: int, hint: str, *, sender: int = 2, to: int = 1
) -> AppendEntriesReply:
    return AppendEntriesReply(
        sender=NodeId(sender),
        recipient=NodeId(to),
        term=Term(term),
        index=Index(index),
        hint=position(hint),
    )


def heartbeat(
    term: int, *, commit: int = 0, read_round: int = 0, sender: int = 2, to: int = 1
) -> Heartbeat:
    return Heartbeat(
        sender=NodeId(sender),
        recipient=NodeId(to),
        term=Term(term),
        commit=Index(commit),
        read_round=read_round,
    )


def heartbeat_reply(
    term: int, *, read_round: int = 0, sender: int = 2, to: int = 1
) -> HeartbeatReply:
    return HeartbeatReply(
        sender=NodeId(sender), recipient=NodeId(to), term=Term(term), read_round=read_round
    )


def timeout_now(term: int, *, sender: int = 2, to: int = 1) -> TimeoutNow:
    return TimeoutNow(sender=NodeId(sender), recipient=NodeId(to), term=Term(term))


def install_snapshot(
    term: int,
    last: str,
    configuration: Configuration | None = None,
    *,
    sender: int = 2,
    to: int = 1,
) -> InstallSnapshot:
    """As the recipient's own host says it; n1, n2 and n3 are the voters unless told."""
    voters = Configuration.of({NodeId(node): "" for node in (1, 2, 3)})
    return InstallSnapshot(
        sender=NodeId(sender),
        recipient=NodeId(to),
        term=Term(term),
        last=position(last),
        configuration=configuration or voters,
    )
