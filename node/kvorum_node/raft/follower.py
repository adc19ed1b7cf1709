"""The follower: believes the leader of its term, and keeps what it is told (section 5.2, 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvorum_node.raft import candidate
from kvorum_node.raft.log import Snapshot
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    TimeoutNow,
)
from kvorum_node.raft.types import Index, NodeId

if TYPE_CHECKING:
    from kvorum_node.raft.core import Raft


@dataclass(slots=True)
class Follower:
    leader: NodeId | None = None

    elapsed: int = 0
    """Ticks since the leader was last heard, or a vote was given."""


def tick(raft: Raft, role: Follower) -> None:
    role.elapsed += 1
    if role.elapsed >= raft.election_timeout:
        candidate.stand(raft, pre=True)


def on_append_entries(raft: Raft, role: Follower, message: AppendEntries) -> None:
    _heard(raft, role, message.sender)
    log = raft.log
    if message.previous.index < log.committed:
        # An old message: all that it could say before the commit index is known already.
        _accept(raft, message.sender, log.committed)
    elif log.matches(message.previous):
        last = log.append_missing(message.previous.index, message.entries)
        # Beyond `last` the log may hold entries of which this leader knows nothing.
        log.commit_to(min(message.commit, last))
        _accept(raft, message.sender, last)
    else:
        raft.promise(
            AppendEntriesReply(
                sender=raft.node,
                recipient=message.sender,
                term=raft.term,
                index=message.previous.index,
                hint=log.probable_match(message.previous.index, message.previous.term),
            )
        )


def on_heartbeat(raft: Raft, role: Follower, message: Heartbeat) -> None:
    _heard(raft, role, message.sender)
    raft.log.commit_to(message.commit)
    raft.freshness.learn(message.committed, message.echo)
    raft.promise(
        HeartbeatReply(
            sender=raft.node,
            recipient=message.sender,
            term=raft.term,
            read_round=message.read_round,
            clock=raft.clock,
        )
    )


def on_install_snapshot(raft: Raft, role: Follower, message: InstallSnapshot) -> None:
    """Take the snapshot for the log through its last entry, if there is news in it."""
    _heard(raft, role, message.sender)
    log = raft.log
    if message.last.index <= log.committed:
        _accept(raft, message.sender, log.committed)  # older than what is here: never go back
        return
    if log.matches(message.last):
        log.commit_to(message.last.index)  # the entries are here, and the snapshot vouches for them
    else:
        log.restore(Snapshot(message.last, message.configuration))
    _accept(raft, message.sender, message.last.index)


def on_timeout_now(raft: Raft, role: Follower, message: TimeoutNow) -> None:
    del role, message
    candidate.stand(raft, pre=False, transfer=True)


def _heard(raft: Raft, role: Follower, leader: NodeId) -> None:
    role.leader = leader
    role.elapsed = raft.bound_elapsed = 0


def _accept(raft: Raft, leader: NodeId, index: Index) -> None:
    raft.promise(
        AppendEntriesReply(sender=raft.node, recipient=leader, term=raft.term, index=index)
    )
