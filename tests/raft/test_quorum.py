"""Majorities, against counting by hand in every small group."""

from itertools import combinations, product

import pytest

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.quorum import VoteResult, majority, reached, vote_result
from kvorum_node.raft.types import NodeId


def members(count: int) -> list[NodeId]:
    return [NodeId(node) for node in range(1, count + 1)]


@pytest.mark.parametrize("count", range(1, 8))
def test_any_two_majorities_share_a_member(count: int) -> None:
    """That is all that safety rests on; and one member fewer would not do."""
    voters = set(members(count))
    size = majority(voters)

    def disjoint(size: int) -> bool:
        return any(
            not set(one) & set(other)
            for one, other in product(combinations(voters, size), repeat=2)
        )

    assert not disjoint(size)
    assert disjoint(size - 1)


@pytest.mark.parametrize("count", range(1, 6))
def test_reached_is_the_largest_number_that_a_majority_has(count: int) -> None:
    voters = members(count)
    for values in product((None, 0, 1, 2, 7), repeat=count):
        known = {
            voter: value for voter, value in zip(voters, values, strict=True) if value is not None
        }
        by_hand = max(
            number
            for number in (0, 1, 2, 7)
            if sum(known.get(voter, 0) >= number for voter in voters) > count / 2
        )
        assert reached(Configuration(frozenset(voters)), known) == by_hand, known


@pytest.mark.parametrize("count", range(1, 7))
def test_an_election_is_decided_when_no_vote_to_come_can_change_it(count: int) -> None:
    voters = members(count)
    for votes in product((None, True, False), repeat=count):
        cast = {voter: vote for voter, vote in zip(voters, votes, strict=True) if vote is not None}
        endings = {
            sum(ending) > count / 2
            for ending in product(
                *((True, False) if vote is None else (vote,) for vote in votes),
            )
        }
        expected = {
            (True,): VoteResult.WON,
            (False,): VoteResult.LOST,
            (False, True): VoteResult.PENDING,
        }[tuple(sorted(endings))]
        assert vote_result(Configuration(frozenset(voters)), cast) is expected, cast


def test_only_voters_count() -> None:
    voters = Configuration(frozenset(members(3)), learners=frozenset({NodeId(8)}))
    stranger, other = NodeId(8), NodeId(9)

    assert reached(voters, {NodeId(1): 5, stranger: 5, other: 5}) == 0
    assert vote_result(voters, {NodeId(1): True, stranger: True}) is VoteResult.PENDING
    assert vote_result(voters, {stranger: False, other: False}) is VoteResult.PENDING
