"""Raft, section 5.2: leader election.

kvorum holds a pre-vote before each election (dissertation, section 9.6): where the
paper says that a member begins an election, it first asks whether it would win, and
enters the next term only with a majority's consent.
"""

from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest

from kvorum_node.raft.messages import Heartbeat, RequestVote
from kvorum_node.raft.types import Settings
from tests.support.raft_group import (
    ELECTION_TICKS,
    HEARTBEAT_TICKS,
    Host,
    is_candidate,
    is_follower,
    is_leader,
)
from tests.support.raft_messages import append, heartbeat, heartbeat_reply, request_vote, vote

TWENTY_TICKS = Settings(election_ticks=20, heartbeat_ticks=2)


def test_5_2_a_member_starts_as_a_follower() -> None:
    """Servers begin as followers, also when they come back with a term and a vote."""
    for host in (Host(), Host(log="1@1", term=3, vote=1, commit=1)):
        assert is_follower(host.raft)
        assert host.drain() == []


def test_5_2_a_follower_stays_one_while_it_hears_a_leader() -> None:
    """A server remains a follower as long as a leader or candidate speaks to it."""
    host = Host()
    for _ in range(20):
        host.tick(ELECTION_TICKS)
        host.ask(heartbeat(1))
        assert is_follower(host.raft, leader=2)


def test_5_2_a_leader_sends_heartbeats_to_all_members() -> None:
    """Leaders send heartbeats to all followers, all the time, to keep their office."""
    host = Host()
    host.lead()

    for _ in range(3):
        host.tick(HEARTBEAT_TICKS - 1)
        assert host.drain() == []
        host.tick()
        assert host.drain() == [heartbeat(1, sender=1, to=2), heartbeat(1, sender=1, to=3)]


def test_5_2_a_leader_sends_heartbeats_at_once_when_it_is_elected() -> None:
    """The winner tells everybody so, to prevent new elections."""
    said = Host(voters=5).lead()

    assert [message.recipient for message in said if isinstance(message, Heartbeat)] == [2, 3, 4, 5]


def test_5_2_a_follower_that_hears_no_leader_starts_an_election() -> None:
    """It increments its term, votes for itself and asks all others in parallel."""
    host = Host(log="1@1", term=1)
    host.follow(leader=2, term=1)

    host.tick(host.raft.election_timeout - 1)
    assert is_follower(host.raft, leader=2)
    host.tick()
    assert host.drain() == [
        request_vote(2, "1@1", pre=True, sender=1, to=2),
        request_vote(2, "1@1", pre=True, sender=1, to=3),
    ]
    assert host.raft.term == 1

    assert host.ask(vote(2, pre=True)) == [
        request_vote(2, "1@1", sender=1, to=2),
        request_vote(2, "1@1", sender=1, to=3),
    ]
    assert is_candidate(host.raft)
    assert (host.disk.hard_state.term, host.disk.hard_state.vote) == (2, 1)


def test_5_2_a_candidate_that_neither_wins_nor_loses_starts_a_new_election() -> None:
    """A split vote ends by a time-out: the candidate tries again in the next term."""
    host = Host()
    host.stand()
    assert host.raft.term == 1

    host.tick(host.raft.election_timeout)
    assert is_candidate(host.raft, pre=True)
    assert {message.term for message in host.drain()} == {2}
    said = host.ask(vote(2, pre=True, sender=3))

    assert is_candidate(host.raft)
    assert host.raft.term == 2
    assert said == [request_vote(2, sender=1, to=2), request_vote(2, sender=1, to=3)]


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (1, {}, "leader"),
        (2, {2: True}, "leader"),
        (3, {2: True}, "leader"),
        (3, {2: True, 3: True}, "leader"),
        (3, {2: False, 3: True}, "leader"),
        (5, {2: True, 3: True}, "leader"),
        (5, {2: True, 3: False, 4: False, 5: True}, "leader"),
        (2, {2: False}, "follower"),
        (3, {2: False, 3: False}, "follower"),
        (5, {2: False, 3: False, 4: False}, "follower"),
        (5, {2: True, 3: False, 4: False, 5: False}, "follower"),
        (3, {}, "candidate"),
        (3, {2: False}, "candidate"),
        (4, {2: True, 3: False}, "candidate"),
        (5, {2: True}, "candidate"),
        (5, {2: True, 3: False, 4: False}, "candidate"),
        (5, {2: False, 3: False}, "candidate"),
    ],
)
@pytest.mark.parametrize("pre", [True, False])
def test_5_2_a_majority_of_votes_decides_an_election(
    size: int, votes: Mapping[int, bool], role: str, pre: bool
) -> None:
    """A candidate wins with a majority, and stops being one when that is out of reach."""
    host = Host(voters=size)
    if pre or size == 1:
        host.tick(host.raft.election_timeout)
    else:
        host.stand()

    for sender, granted in votes.items():
        # A grant names the term that it is for; the refusal of a pre-vote, the real one.
        host.step(vote(1 if granted or not pre else 0, granted=granted, pre=pre, sender=sender))

    match role:
        case "leader" if pre and size > 1:  # what a pre-vote wins is the right to stand
            assert is_candidate(host.raft)
        case "leader":
            assert is_leader(host.raft)
        case "follower":
            assert is_follower(host.raft)
        case _:
            assert is_candidate(host.raft, pre=pre)


def test_5_2_a_vote_counts_once_however_often_it_arrives() -> None:
    """A majority is of members, not of messages; and a vote is not taken back."""
    host = Host(voters=5)
    host.stand()

    host.step(vote(1), vote(1), vote(1), vote(1, granted=False))

    assert is_candidate(host.raft)
    host.step(vote(1, sender=5))
    assert is_leader(host.raft)


@pytest.mark.parametrize(
    ("voted", "candidate", "granted"),
    [(None, 2, True), (None, 3, True), (2, 2, True), (3, 3, True), (2, 3, False), (3, 2, False)],
)
def test_5_2_a_member_votes_for_at_most_one_candidate_a_term(
    voted: int | None, candidate: int, granted: bool
) -> None:
    """First come, first served; and the same candidate, asking again, is told the same."""
    host = Host(term=1, vote=voted)

    said = host.ask(request_vote(1, sender=candidate))

    assert said == [vote(1, granted=granted, sender=1, to=candidate)]
    assert host.disk.hard_state.vote == (candidate if granted else voted)


def test_5_2_the_second_candidate_of_a_term_is_refused() -> None:
    """The vote is remembered from the moment it is given, before it is on the disk."""
    host = Host()

    said = host.ask(request_vote(1, sender=3), request_vote(1, sender=2))

    assert said == [vote(1, sender=1, to=3), vote(1, granted=False, sender=1, to=2)]


@pytest.mark.parametrize("term", [1, 2, 5])
@pytest.mark.parametrize("kind", [append, heartbeat])
@pytest.mark.parametrize("pre", [True, False])
def test_5_2_a_candidate_recognises_a_leader_of_its_term_or_a_later_one(
    term: int, kind: type, pre: bool
) -> None:
    """Somebody else has won: the candidate returns to being a follower, and does as it is told."""
    host = Host(term=1 if pre else 0)
    if pre:
        host.tick(host.raft.election_timeout)
    else:
        host.stand()
    host.drain()
    assert host.raft.term == 1

    said = host.ask(kind(term))

    assert is_follower(host.raft, leader=2)
    assert host.raft.term == term
    assert [message.term for message in said] == [term]  # the message itself was answered


def test_5_2_a_candidate_ignores_a_leader_of_an_older_term() -> None:
    """A leader whose term is smaller than the candidate's is none any more: it is told so."""
    host = Host(term=4)
    host.stand()

    said = host.ask(append(4, "0@0", "1@4"))

    assert is_candidate(host.raft)
    assert host.raft.log.last_index == 0
    assert said == [heartbeat_reply(5, sender=1, to=2)]


def drawn_timeouts(role: str, draws: int) -> Counter[int]:
    """After how many ticks a member asks for votes, and how often."""
    host = Host(settings=TWENTY_TICKS, randint=Random(7).randint)
    counted: Counter[int] = Counter()
    for _ in range(draws):
        if role == "follower":
            host.follow(leader=2, term=host.raft.term + 1)
        else:
            host.follow(leader=2, term=host.raft.term + 1)
            host.stand()
        ticks = 0
        while not any(isinstance(message, RequestVote) for message in host.drain()):
            host.tick()
            ticks += 1
        counted[ticks] += 1
    return counted


def test_5_2_a_followers_time_out_is_drawn_from_11_to_15_tenths_of_the_election_time_out() -> None:
    """Time-outs are random, so that split votes are rare.

    More than one election time-out: the leases of all who heard the leader when this
    member did have ended by then. At most one and a half: a lost leader is replaced
    within two.
    """
    counted = drawn_timeouts("follower", 600)

    assert sorted(counted) == list(range(22, 31))
    assert min(counted.values()) > 600 / 9 / 2  # all of them about equally often


def test_5_2_a_candidates_time_out_is_drawn_from_2_to_5_tenths_of_the_election_time_out() -> None:
    """A candidate restarts its time-out at the start of an election, at random too.

    It waits less than a follower does: there is no leader whom haste could harm.
    """
    counted = drawn_timeouts("candidate", 600)

    assert sorted(counted) == list(range(4, 11))
    assert min(counted.values()) > 600 / 7 / 2


@pytest.mark.parametrize("election_ticks", [3, 4, 9, 10, 11, 50])
def test_5_2_the_range_of_time_outs_holds_for_small_and_odd_settings(election_ticks: int) -> None:
    """Rounding leaves at least one value, above the election time-out, and at most 1.5 of it."""
    settings = Settings(election_ticks=election_ticks, heartbeat_ticks=1)
    asked: list[tuple[int, int]] = []

    def record(low: int, high: int) -> int:
        asked.append((low, high))
        return high

    Host(settings=settings, randint=record).stand()

    (low, high), *_, (candidate_low, candidate_high) = asked
    assert election_ticks < low <= high <= election_ticks * 3 / 2
    assert 1 <= candidate_low <= candidate_high <= max(2, election_ticks / 2)


@pytest.mark.parametrize(
    ("role", "values"), [("follower", range(22, 31)), ("candidate", range(4, 11))]
)
@pytest.mark.parametrize("members", [3, 5])
def test_5_2_mostly_one_member_alone_times_out_first(
    role: str, values: range, members: int
) -> None:
    """The spread is such that in most cases one server alone times out, and wins undisturbed.

    How often follows from the range: the first of m draws from k values is alone with
    the chance of m/k x the sum of (j/k)^(m-1) over j < k.
    """
    expected = (
        members / len(values) * sum((j / len(values)) ** (members - 1) for j in range(len(values)))
    )
    hosts = [
        Host(node, members, settings=TWENTY_TICKS, randint=Random(node).randint)
        for node in range(1, members + 1)
    ]
    rounds, alone = 500, 0
    for _ in range(rounds):
        for host in hosts:
            other = host.others[0]
            host.follow(leader=other, term=host.raft.term + 1)
            if role == "candidate":
                host.stand()
        standing = 0
        while not standing:
            for host in hosts:
                host.tick()
            standing = sum(bool(host.drain()) for host in hosts)
        alone += standing == 1

    assert expected > 2 / 3
    assert alone / rounds == pytest.approx(expected, abs=0.06)
