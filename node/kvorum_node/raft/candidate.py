"""Elections: the candidate, its rehearsal, and how any member answers it (section 5.2, 5.4.1).

A member first asks whether it would win (`pre`, dissertation section 9.6), in a term
that it does not enter: so one that was cut off comes back without a higher term,
and unseats nobody. Only the real election changes term and vote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvorum_node.raft import leader
from kvorum_node.raft.messages import (
    AppendEntries,
    Heartbeat,
    InstallSnapshot,
    RequestVote,
    RequestVoteReply,
)
from kvorum_node.raft.quorum import VoteResult, vote_result
from kvorum_node.raft.types import NodeId, Term

if TYPE_CHECKING:
    from kvorum_node.raft.core import Raft
    from kvorum_node.raft.follower import Follower
    from kvorum_node.raft.leader import Leader


@dataclass(slots=True)
class Candidate:
    pre: bool
    elapsed: int = 0
    votes: dict[NodeId, bool] = field(default_factory=dict)


def stand(raft: Raft, *, pre: bool, transfer: bool = False) -> None:
    """Ask all voters for their vote; who is no voter only forgets the leader it has lost.

    A voter whose removal is not committed stands as well, and does not count itself: it
    may be the only one whose log has what the others need (dissertation, section 4.2.2).
    """
    voters = raft.configuration.all_voters
    if raft.node not in voters | raft.committed_configuration.all_voters:
        raft.become_follower(raft.term, None)
        return
    raft.role = role = Candidate(pre)
    raft.bound_elapsed = raft.settings.election_ticks
    raft.reset_election_timeout()
    term = Term(raft.term + 1)
    if not pre:
        raft.term, raft.vote = term, raft.node
    role.votes[raft.node] = True
    if _decide(raft, role):
        return
    last = raft.log.last
    for voter in sorted(voters - {raft.node}):
        raft.promise(
            RequestVote(
                sender=raft.node,
                recipient=voter,
                term=term,
                last=last,
                pre=pre,
                transfer=transfer,
            )
        )


def tick(raft: Raft, role: Candidate) -> None:
    role.elapsed += 1
    if role.elapsed >= raft.election_timeout:
        stand(raft, pre=True)


def on_request_vote_reply(raft: Raft, role: Candidate, message: RequestVoteReply) -> None:
    asked = raft.term + 1 if role.pre else raft.term
    if message.pre is not role.pre or (message.granted and message.term != asked):
        return  # of an earlier stage, or consent to a term that has begun meanwhile
    role.votes.setdefault(message.sender, message.granted)
    _decide(raft, role)


def on_leader_appeared(
    raft: Raft, role: Candidate, message: AppendEntries | Heartbeat | InstallSnapshot
) -> None:
    """Another member has won this term."""
    del role
    raft.become_follower(message.term, message.sender)
    raft.step(message)


def answer_request(raft: Raft, role: Follower | Candidate | Leader, message: RequestVote) -> None:
    """Vote at most once a term, and only for a log that has all that may be committed.

    Also as a learner: the candidate asks whom *it* knows as a voter, and may be right
    where this log does not reach to the promotion yet.
    """
    free = raft.vote in (None, message.sender) and raft.leader in (None, message.sender)
    granted = (free or (message.pre and message.term > raft.term)) and raft.log.is_up_to_date(
        message.last
    )
    raft.promise(
        RequestVoteReply(
            sender=raft.node,
            recipient=message.sender,
            # A grant answers in the candidate's term; a refusal tells it the real one.
            term=message.term if granted else raft.term,
            granted=granted,
            pre=message.pre,
        )
    )
    if granted and not message.pre:
        raft.vote = message.sender
        role.elapsed = 0


def _decide(raft: Raft, role: Candidate) -> bool:
    """Act on the votes so far; returns whether the election is over."""
    match vote_result(raft.configuration, role.votes):
        case VoteResult.WON if role.pre:
            stand(raft, pre=False)
        case VoteResult.WON:
            leader.lead(raft)
        case VoteResult.LOST:
            raft.become_follower(raft.term, None)
        case VoteResult.PENDING:
            return False
    return True
