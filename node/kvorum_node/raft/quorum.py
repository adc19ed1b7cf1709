"""Majorities: the only arithmetic that safety rests on.

Rule: everything that needs "most of the voters" asks here, be it votes, matched
indexes or answered read rounds. While members change (joint consensus), it takes a
majority of the voters and one of the outgoing voters; whoever is neither is not
looked at. A majority of nobody agrees to everything.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Final

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import NodeId

EVERYTHING: Final = 2**64 - 1
"""What nobody has to agree to is reached through here: no index or round is above."""


class VoteResult(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: AbstractSet[NodeId]) -> int:
    """How many of the voters are a majority."""
    return len(voters) // 2 + 1


def reached(configuration: Configuration, values: Mapping[NodeId, int]) -> int:
    """The largest number that a quorum has reached; a missing one has reached 0."""
    return min(_reached(configuration.voters, values), _reached(configuration.outgoing, values))


def vote_result(configuration: Configuration, votes: Mapping[NodeId, bool]) -> VoteResult:
    """The state of an election, given the votes so far."""
    results = {
        _vote_result(configuration.voters, votes),
        _vote_result(configuration.outgoing, votes),
    }
    if VoteResult.LOST in results:
        return VoteResult.LOST
    if VoteResult.PENDING in results:
        return VoteResult.PENDING
    return VoteResult.WON


def is_quorum(configuration: Configuration, nodes: AbstractSet[NodeId]) -> bool:
    """Whether these nodes together can decide."""
    return vote_result(configuration, dict.fromkeys(nodes, True)) is VoteResult.WON


def _reached(voters: AbstractSet[NodeId], values: Mapping[NodeId, int]) -> int:
    if not voters:
        return EVERYTHING
    ranked = sorted((values.get(voter, 0) for voter in voters), reverse=True)
    return ranked[majority(voters) - 1]


def _vote_result(voters: AbstractSet[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    if not voters:
        return VoteResult.WON
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= majority(voters):
        return VoteResult.WON
    if len(voters) - refused < majority(voters):
        return VoteResult.LOST
    return VoteResult.PENDING
