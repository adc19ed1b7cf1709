"""The leader: appends, replicates, commits, and makes sure that it still leads.

Nothing is sent when an input arrives: `send_what_is_due` sends when the host takes
the next Ready, so that all that arrived meanwhile travels together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvorum_node.raft import membership
from kvorum_node.raft.configuration import Change, Configuration
from kvorum_node.raft.log import Compacted
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
)
from kvorum_node.raft.progress import Inflight, Progress
from kvorum_node.raft.quorum import is_quorum, reached
from kvorum_node.raft.read_index import ReadIndex, ReadState
from kvorum_node.raft.types import (
    ChangeRefused,
    Entry,
    EntryKind,
    Index,
    NodeId,
    Position,
    TooManyUncommitted,
)

if TYPE_CHECKING:
    from kvorum_node.raft.core import Raft


@dataclass(slots=True)
class Transfer:
    """Leadership is being handed over."""

    target: NodeId
    elapsed: int = 0
    sent: bool = False


@dataclass(slots=True)
class Leader:
    progress: dict[NodeId, Progress]
    """One for each other member, in the order of their ids."""

    elapsed: int = 0
    """Ticks since the last quorum check."""

    since_heartbeat: int = 0
    reads: ReadIndex = field(default_factory=ReadIndex)
    transfer: Transfer | None = None

    log_end: Index | None = None
    log_end_before: Index | None = None
    """Where the log ended at the last quorum check, and at the one before: an election time-out
    ago at least, and two at most. None if this leader did not lead then."""

    established: bool = False
    """An entry of this leader's own term is committed."""

    uncommitted: deque[tuple[Index, int]] = field(default_factory=deque)
    uncommitted_bytes: int = 0
    """The entries that this leader has taken and not committed: indexes and sizes."""


def lead(raft: Raft) -> None:
    """Take office: nothing is known of the others' logs, and an entry of the term is due."""
    raft.role = role = Leader({})
    _follow_configuration(raft, role)
    _append(raft, role, b"", EntryKind.NOOP)
    _send_heartbeats(raft, role)


def tick(raft: Raft, role: Leader) -> None:
    role.elapsed += 1
    role.since_heartbeat += 1
    if role.transfer is not None:
        role.transfer.elapsed += 1
        if role.transfer.elapsed >= raft.settings.election_ticks:
            role.transfer = None
    if role.elapsed >= raft.settings.election_ticks:
        role.elapsed = 0
        if not _hears_quorum(raft, role):
            raft.become_follower(raft.term, None)
            return
        role.log_end_before, role.log_end = role.log_end, raft.log.last_index
    _promote_learners(raft, role)
    if role.since_heartbeat >= raft.settings.heartbeat_ticks:
        _send_heartbeats(raft, role)


def propose(raft: Raft, role: Leader, data: bytes, kind: EntryKind) -> Position:
    size = len(data)
    total = role.uncommitted_bytes + size
    # One entry is always taken, however large: a limit below an entry would stop everything.
    if role.uncommitted_bytes and total > raft.settings.max_uncommitted_bytes:
        raise TooManyUncommitted
    return _append(raft, role, data, kind)


def read(raft: Raft, role: Leader, request: int, *, lease: bool) -> None:
    if lease and role.reads.has_lease(raft.clock, raft.settings.lease_ticks):
        raft.reads.append(ReadState((request,), raft.log.committed))
    else:
        role.reads.add(request)


def change_members(raft: Raft, role: Leader, changes: Sequence[Change], *, force: bool) -> Position:
    return _configure(raft, role, membership.plan(raft, role, changes, force=force))


def transfer(raft: Raft, role: Leader, target: NodeId) -> None:
    if target == raft.node or target not in raft.configuration.voters:
        raise ValueError(f"n{target} is not another voter")
    role.transfer = Transfer(target)


def on_append_entries_reply(raft: Raft, role: Leader, message: AppendEntriesReply) -> None:
    progress = role.progress.get(message.sender)
    if progress is None:
        return
    progress.hear()
    if message.hint is not None:
        meeting = raft.log.probable_match(message.hint.index, message.hint.term)
        progress.rejected(message.index, meeting.index)
    elif progress.accepted(message.index, raft.log.first_index):
        advance_commit(raft, role)


def on_heartbeat_reply(raft: Raft, role: Leader, message: HeartbeatReply) -> None:
    progress = role.progress.get(message.sender)
    if progress is None:
        return
    progress.hear()
    progress.alive(raft.log.last_index)
    progress.read_round = max(progress.read_round, message.read_round)
    progress.clock = max(progress.clock, message.clock)
    _confirm_reads(raft, role)


def advance_commit(raft: Raft, role: Leader) -> None:
    """Commit what a majority has on its disks, by an entry of the own term (5.3, 5.4.2).

    This member counts like the others: with what it has fsynced. An entry of an
    older term is committed only by one of this term behind it: figure 8 shows how
    counting its copies would go wrong.
    """
    matched = {member: progress.match for member, progress in role.progress.items()}
    matched[raft.node] = raft.log.stable_index
    index = Index(reached(raft.configuration, matched))
    if index <= raft.log.committed or raft.log.term(index) != raft.term:
        return
    raft.log.commit_to(index)
    role.established = True
    while role.uncommitted and role.uncommitted[0][0] <= index:
        role.uncommitted_bytes -= role.uncommitted.popleft()[1]
    completed = membership.complete(raft)
    if completed is not None:
        _configure(raft, role, completed)
    elif membership.is_out(raft):
        _step_aside(raft, role)


def report_snapshot(raft: Raft, role: Leader, member: NodeId, index: Index | None) -> None:
    progress = role.progress.get(member)
    if progress is None:
        return
    if index is None:
        progress.snapshot_failed(raft.log.last_index)
    else:
        progress.snapshot_installed(index)


def has_work(raft: Raft, role: Leader) -> bool:
    """Whether `send_what_is_due` would send anything."""
    last = raft.log.last_index
    return (
        (role.established and role.reads.has_waiting)
        or any(_may_send(progress, last) for progress in role.progress.values())
        or _may_hand_over(role, last)
    )


def send_what_is_due(raft: Raft, role: Leader) -> None:
    if role.established and role.reads.has_waiting:
        role.reads.start_round(raft.log.committed, raft.clock)
        _send_heartbeats(raft, role)
        _confirm_reads(raft, role)  # alone, this member is the majority
    for member, progress in role.progress.items():
        _send_appends(raft, member, progress)
    if role.transfer is not None and _may_hand_over(role, raft.log.last_index):
        role.transfer.sent = True
        role.reads.end_leases()
        raft.send(TimeoutNow(sender=raft.node, recipient=role.transfer.target, term=raft.term))


def _may_send(progress: Progress, last: Index) -> bool:
    return not progress.paused and (progress.due or progress.next <= last)


def _may_hand_over(role: Leader, last: Index) -> bool:
    """Whether the target has the whole log: a candidate with less of it would lose."""
    return (
        role.transfer is not None
        and not role.transfer.sent
        and (target := role.progress.get(role.transfer.target)) is not None
        and target.match == last
    )


def _send_appends(raft: Raft, member: NodeId, progress: Progress) -> None:
    log = raft.log
    while _may_send(progress, log.last_index):
        before = Index(progress.next - 1)
        try:
            previous = Position(before, log.term(before))
            entries = log.entries(progress.next, raft.settings.max_append_bytes)
        except Compacted:
            progress.needs_snapshot()
            raft.snapshots_to.append(member)
            return
        raft.send(
            AppendEntries(
                sender=raft.node,
                recipient=member,
                term=raft.term,
                previous=previous,
                entries=tuple(entries),
                commit=log.committed,
            )
        )
        progress.sent(
            entries[-1].index if entries else before,
            len(entries),
            sum(len(entry.data) for entry in entries),
        )


def heartbeats(raft: Raft, role: Leader) -> list[Heartbeat]:
    return [
        Heartbeat(
            sender=raft.node,
            recipient=member,
            term=raft.term,
            # Only what the follower certainly has: beyond its match it may hold other entries.
            commit=min(progress.match, raft.log.committed),
            read_round=role.reads.newest,
            committed=raft.log.committed,
            echo=progress.clock,
        )
        for member, progress in role.progress.items()
    ]


def _send_heartbeats(raft: Raft, role: Leader) -> None:
    role.since_heartbeat = 0
    for heartbeat in heartbeats(raft, role):
        raft.send(heartbeat)


def _confirm_reads(raft: Raft, role: Leader) -> None:
    rounds = {member: progress.read_round for member, progress in role.progress.items()}
    rounds[raft.node] = role.reads.newest
    raft.reads.extend(role.reads.confirmed(reached(raft.configuration, rounds)))


def _hears_quorum(raft: Raft, role: Leader) -> bool:
    """Whether a quorum was heard since the last check; starts the next one (section 6.2)."""
    heard = {member for member, progress in role.progress.items() if progress.active}
    for progress in role.progress.values():
        progress.start_check()
    return is_quorum(raft.configuration, heard | {raft.node})


def _append(raft: Raft, role: Leader, data: bytes, kind: EntryKind) -> Position:
    entry = Entry(Index(raft.log.last_index + 1), raft.term, kind, data)
    raft.log.append([entry])
    role.uncommitted.append((entry.index, len(data)))
    role.uncommitted_bytes += len(data)
    return Position(entry.index, entry.term)


def _configure(raft: Raft, role: Leader, configuration: Configuration) -> Position:
    """Append the configuration, which holds from now on."""
    position = _append(raft, role, configuration.encode(), EntryKind.CONFIGURATION)
    _follow_configuration(raft, role)
    _confirm_reads(raft, role)  # who has not answered yet may be needed no more
    role.reads.end_lease()
    return position


def _follow_configuration(raft: Raft, role: Leader) -> None:
    """Have a progress for each other member: what is known of the old ones stays."""
    settings, known = raft.settings, role.progress
    role.progress = {
        member: known.get(member)
        or Progress(
            match=Index(0),
            next=Index(raft.log.last_index + 1),
            inflight=Inflight(settings.max_inflight_messages, settings.max_inflight_bytes),
            active=True,
        )
        for member in sorted(raft.configuration.members - {raft.node})
    }


def _promote_learners(raft: Raft, role: Leader) -> None:
    changes = membership.promotions(raft, role) if raft.configuration.joining else []
    if changes and role.transfer is None:
        try:
            change_members(raft, role, changes, force=False)
        except ChangeRefused:
            return  # not now: it is asked for again with every tick


def _step_aside(raft: Raft, role: Leader) -> None:
    """End the office of a leader that is no voter any more, and let the best one follow at once."""
    voters = [
        (progress.recently_active, progress.match, member)
        for member, progress in role.progress.items()
        if member in raft.configuration.voters
    ]
    successor = max(voters)[2]
    raft.send(TimeoutNow(sender=raft.node, recipient=successor, term=raft.term))
    raft.become_follower(raft.term, None)
