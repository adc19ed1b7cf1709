"""Majorities: the only arithmetic that safety rests on.

Rule: everything that needs "most of the voters" asks here, be it votes, matched
indexes or answered read rounds.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum

from kvorum_node.raft.types import NodeId


class VoteResult(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: AbstractSet[NodeId]) -> int:
    """How many of the voters are a majority."""
    return len(voters) // 2 + 1


def reached(voters: AbstractSet[NodeId], values: Mapping[NodeId, int]) -> int:
    """The largest number that a majority of the voters has reached; a missing one has reached 0."""
    ranked = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ranked[majority(voters) - 1]


def vote_result(voters: AbstractSet[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """The state of an election, given the votes so far."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= majority(voters):
        return VoteResult.WON
    if len(voters) - refused < majority(voters):
        return VoteResult.LOST
    return VoteResult.PENDING
