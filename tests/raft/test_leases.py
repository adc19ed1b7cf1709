"""Reads by lease: what a leader may count on, and for how long (dissertation, section 6.4.1)."""

import pytest

from kvorum_node.raft.configuration import Remove
from kvorum_node.raft.messages import Heartbeat, RequestVoteReply, TimeoutNow
from kvorum_node.raft.types import NodeId, Settings
from tests.support.raft_group import ELECTION_TICKS, Group, Host, is_follower
from tests.support.raft_messages import (
    heartbeat,
    heartbeat_reply,
    request_vote,
)

LEASE_TICKS = Settings(election_ticks=ELECTION_TICKS).lease_ticks


def leader_with_lease(voters: int = 3) -> Host:
    """By a round that was sent and confirmed in the tick of now."""
    host = Host(voters=voters)
    host.lead_established()
    host.raft.read_index(1, lease=True)
    host.drain()
    for other in host.others:
        host.step(heartbeat_reply(host.raft.term, read_round=1, sender=other))
    host.drain()
    host.reads.clear()
    return host


def answers(host: Host, request: int = 9) -> bool:
    """Whether a read is answered without a round."""
    host.raft.read_index(request, lease=True)
    host.drain()
    found = any(request in state.requests for state in host.reads)
    host.reads.clear()
    return found


def test_the_lease_leaves_room_for_clocks_and_for_the_followers_first_tick() -> None:
    for ticks in range(6, 200):
        lease = Settings(election_ticks=ticks, heartbeat_ticks=1).lease_ticks
        assert 0 < lease <= (ticks - 1) * 0.9


def test_a_confirmed_round_gives_a_lease_for_its_time() -> None:
    host = leader_with_lease()
    for _ in range(LEASE_TICKS - 1):
        host.tick()
        assert answers(host)
    host.tick()
    assert not answers(host)


def test_a_lease_counts_from_the_moment_in_which_the_round_was_sent() -> None:
    """Followers may have heard it at once: what its answers took is not theirs to give."""
    host = Host()
    host.lead_established()
    host.raft.read_index(1, lease=True)
    host.drain()
    host.tick(LEASE_TICKS - 1)
    host.step(heartbeat_reply(1, read_round=1))
    host.drain()
    assert answers(host)
    host.tick()
    assert not answers(host)


def test_a_read_by_lease_is_answered_at_the_commit_index_of_now() -> None:
    host = leader_with_lease()
    host.raft.propose(b"x")
    host.drain()
    host.accept(2)
    host.drain()
    host.raft.read_index(9, lease=True)
    host.drain()
    assert [(state.requests, state.index) for state in host.reads] == [((9,), 2)]


def test_other_reads_ask_as_ever() -> None:
    host = leader_with_lease()
    host.raft.read_index(9)
    asked = [one.read_round for one in host.drain() if isinstance(one, Heartbeat)]
    assert asked == [2, 2]
    assert host.reads == []


def test_a_lease_needs_a_majority_of_the_members() -> None:
    host = Host(voters=5)
    host.lead_established()
    host.raft.read_index(1, lease=True)
    host.drain()
    host.step(heartbeat_reply(1, read_round=1, sender=2))
    assert not answers(host)


def test_time_in_which_the_process_stood_still_counts() -> None:
    """Its ticks are lost; the others' were not."""
    host = leader_with_lease()
    host.raft.keep_time(host.raft.clock + LEASE_TICKS)
    assert not answers(host)


def test_the_hosts_clock_decides_if_there_is_one() -> None:
    host = Host()
    host.raft.keep_time(1_000)
    host.raft.keep_time(999)
    host.tick(5)
    assert host.raft.clock == 1_000


def test_a_new_leader_has_no_lease_before_its_first_commit() -> None:
    host = leader_with_lease()
    host.follow(leader=2, term=2)
    host.lead()
    assert not answers(host)


def test_a_lease_ends_when_another_member_is_asked_to_stand() -> None:
    """Also for rounds that are confirmed later: the request may arrive at any time."""
    host = leader_with_lease()
    host.raft.transfer_leadership(NodeId(2))
    assert any(isinstance(one, TimeoutNow) for one in host.drain())
    host.tick(ELECTION_TICKS)
    assert host.leads
    assert not answers(host, 9)
    for other in host.others:
        host.step(heartbeat_reply(1, read_round=2, sender=other))
    host.drain()
    assert not answers(host, 10)


def test_a_transfer_that_was_never_asked_for_costs_no_lease() -> None:
    host = leader_with_lease()
    host.raft.propose(b"x")
    host.drain()
    host.raft.transfer_leadership(NodeId(2))  # who lacks the entry, and gets it first
    host.tick(ELECTION_TICKS)
    host.raft.read_index(2, lease=True)
    host.drain()
    host.step(heartbeat_reply(1, read_round=2, sender=3))
    host.drain()
    assert answers(host)


def test_a_lease_ends_with_the_configuration_that_it_was_given_under() -> None:
    host = leader_with_lease()
    host.raft.read_index(2)
    host.drain()
    host.raft.change_members([Remove(NodeId(3))], force=True)
    assert not answers(host, 3)
    # What was asked before the change is answered, and gives no lease.
    host.step(
        heartbeat_reply(1, read_round=2, sender=2), heartbeat_reply(1, read_round=2, sender=3)
    )
    host.drain()
    assert not answers(host, 4)
    for other in host.others:
        host.step(heartbeat_reply(1, read_round=4, sender=other))
    host.drain()
    assert answers(host, 5)


def test_an_only_voter_needs_nobody() -> None:
    host = Host(voters=1)
    host.tick(host.raft.election_timeout)
    host.drain()
    assert answers(host)


# What the others promise.


def votes_for_another(host: Host, term: int) -> bool:
    return any(
        isinstance(one, RequestVoteReply) and one.granted
        for one in host.ask(request_vote(term, "99@99", sender=3))
    )


@pytest.mark.parametrize("term", [1, 2])
def test_who_hears_the_leader_votes_for_nobody_for_an_election_timeout(term: int) -> None:
    host = Host()
    host.ask(heartbeat(1))
    host.tick(ELECTION_TICKS - 1)
    assert not votes_for_another(host, term)
    host.tick()
    assert votes_for_another(host, 2)


def test_a_promise_does_not_end_with_the_term() -> None:
    """Its term may rise by any late message: the leader counts on it all the same."""
    host = Host()
    host.ask(heartbeat(1))
    host.step(heartbeat_reply(2, sender=3))
    assert host.raft.term == 2
    assert is_follower(host.raft, None)
    assert not votes_for_another(host, 2)
    host.tick(ELECTION_TICKS)
    assert votes_for_another(host, 2)


def test_a_promise_is_kept_over_a_restart() -> None:
    host = Host()
    host.ask(heartbeat(1))
    host.crash()
    host.restart()
    assert not votes_for_another(host, 2)
    host.tick(ELECTION_TICKS)
    assert votes_for_another(host, 2)


def test_the_first_election_of_a_group_waits_for_nothing() -> None:
    host = Host()
    host.crash()
    host.restart()
    assert votes_for_another(host, 1)


def test_whoever_was_asked_to_stand_by_the_leader_gets_the_votes() -> None:
    host = Host()
    host.ask(heartbeat(1))
    replies = host.ask(request_vote(2, "99@99", sender=3, transfer=True))
    assert [one.granted for one in replies if isinstance(one, RequestVoteReply)] == [True]


@pytest.mark.parametrize(("candidate", "other"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("restarts", [False, True])
def test_no_leader_is_elected_while_another_has_a_lease(
    candidate: int, other: int, restarts: bool
) -> None:
    group = Group.of(3)
    group.elect(1)
    leader = group[1]
    leader.raft.read_index(1, lease=True)
    group.run()
    group.isolate(1)
    if restarts:
        group[other].crash()
        group[other].restart()
    while answers(leader):
        group[candidate].raft.campaign()  # as early as may be, and again and again
        group.run()
        assert group.leaders == [1]
        group.tick()
