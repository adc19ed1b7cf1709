"""Known bugs of other systems, in elections: no leader is unseated or missing without need.

Each test says what the bug is, where it is known from, which guard holds it here, and
what is seen when that guard is taken away: that was done once for each.
"""

import pytest

from kvorum_node.raft import candidate
from kvorum_node.raft.configuration import Remove
from kvorum_node.raft.messages import TimeoutNow
from kvorum_node.raft.types import NodeId
from tests.support.raft_group import (
    ELECTION_TICKS,
    HEARTBEAT_TICKS,
    Group,
    is_candidate,
    is_follower,
)
from tests.support.raft_messages import heartbeat, timeout_now, whole


def test_a_member_that_was_cut_off_does_not_disrupt() -> None:
    """A member that was cut off comes back with a higher term, and unseats a leader that was well.

    Known from: Raft as in figure 2; dissertation, 9.6.
    Guard: it rehearses first (pre-vote), in a term that it does not enter (follower.tick).
    Without it: n3 comes back in a term above, and all terms rise.
    """
    group = Group.of(3)
    group.elect(1)
    term = group[1].raft.term
    group.isolate(3)
    group.tick(20 * ELECTION_TICKS)
    assert is_candidate(group[3].raft, pre=True)

    group.heal()
    group.tick(2 * ELECTION_TICKS)

    assert group.leaders == [1]
    assert group.terms == [term] * 3
    assert is_follower(group[3].raft, leader=1)


def test_a_removed_member_does_not_disrupt() -> None:
    """A removed member never hears of its removal, and unseats one leader after the other.

    It is let into real elections here, as one would be that does not rehearse.

    Known from: Raft, section 6; dissertation, 4.2.3.
    Guard: whoever hears a leader disregards requests for votes (core.Raft._disregards).
    Without it: the terms of all the others rise, and n1 leads no more.
    """
    group = Group.of(4)
    group.elect(1)
    term = group[1].raft.term
    group.isolate(4)
    group[1].raft.change_members([Remove(NodeId(4))])
    group.run()
    assert group[1].raft.configuration.voters == {1, 2, 3}
    group.heal()

    for _ in range(20):
        candidate.stand(group[4].raft, pre=False)
        group.tick()

    assert group[4].raft.term == term + 20
    assert group.leaders == [1]
    assert group.terms[:3] == [term] * 3


def test_a_longer_log_at_a_lower_term_is_not_blocked_by_the_pre_vote() -> None:
    """n1 cannot win by its short log; n2, with the longer one, is not answered for its old term.

    Known from: etcd, the case of MsgPreVote with a lower term in Step.
    Guard: a pre-candidate of an older term is told the newer one (core.Raft._answer_outdated).
    Without it: neither leads, ever.
    """
    group = Group.of(3, logs={1: "1@1", 2: "1@1 2@1 3@1"})
    group[3].up = False
    group[1].ask(heartbeat(5, sender=3))
    group[2].ask(heartbeat(1, sender=3, to=2))
    assert group.terms[:2] == [5, 1]

    for _ in range(6 * ELECTION_TICKS):
        group.tick()
        if group.leaders:
            break

    assert group.leaders == [2]
    assert group[2].raft.term > 5
    assert whole(group[1].raft.log).startswith("1@1 2@1 3@1")


def test_a_candidate_in_a_higher_term_is_not_stuck() -> None:
    """Its requests are disregarded, and the leader's messages are too old for it.

    Known from: etcd, TestFreeStuckCandidateWithCheckQuorum.
    Guard: a leader of an older term is told the newer one (core.Raft._answer_outdated).
    Without it: n3 stays a candidate in its term, and the others in theirs.
    """
    group = Group.of(3)
    group.elect(1)
    group.propose(1)
    group.isolate(3)
    group[3].ask(timeout_now(1, to=3))
    assert (is_candidate(group[3].raft), group[3].raft.term) == (True, 2)
    group.heal()

    for _ in range(6 * ELECTION_TICKS):
        group.tick()
        if len(set(group.terms)) == 1 and group.leaders:
            break

    assert len(group.leaders) == 1
    assert group.terms[0] >= 2
    assert {host.raft.leader for host in group.hosts.values()} == set(group.leaders)


@pytest.mark.parametrize(
    "broken",
    [
        [(1, 3), (2, 3)],  # n3 speaks and does not hear
        [(1, 3)],  # n3 does not hear the leader
        [(1, 3), (3, 1)],  # n2 is a bridge between n1 and n3
        [(3, 1), (3, 2)],  # n3 hears and does not speak
    ],
)
def test_an_asymmetric_partition_brings_no_endless_elections(broken: list[tuple[int, int]]) -> None:
    """A member that does not hear the leader calls for one election after the other.

    Known from: Cloudflare, "A Byzantine failure in the real world" (2020), in etcd; Howard and
    Abraham, "Raft does not Guarantee Liveness in the face of Network Faults" (2020).
    Guard: rehearsals, and leases that refuse them (core.Raft._disregards).
    Without it: terms rise, where n3 does not hear the leader and others hear n3.
    """
    group = Group.of(3)
    group.elect(1)
    term = group[1].raft.term
    for sender, recipient in broken:
        group.block(sender, recipient)

    group.tick(20 * ELECTION_TICKS)

    assert group.leaders == [1]
    assert group.terms == [term] * 3
    group.propose(1)
    assert group[1].raft.log.committed == group[1].raft.log.last_index


def test_a_leader_that_hears_nobody_makes_room_for_another() -> None:
    """Its heartbeats keep the followers quiet for ever, while nothing commits.

    Known from: the same two as above.
    Guard: a leader that hears no majority steps down (check-quorum, leader.tick).
    Without it: n1 leads for ever.
    """
    group = Group.of(3)
    group.elect(1)
    group.block(2, 1)
    group.block(3, 1)

    group.tick(6 * ELECTION_TICKS)

    assert group.leaders in ([2], [3])
    where = group.propose(group.leaders[0])
    assert group[group.leaders[0]].raft.log.committed == where.index


def test_leadership_is_not_transferred_to_a_member_that_lags() -> None:
    """The target is told to stand, loses for its log, and nobody leads for an election time-out.

    Known from: dissertation, 3.10; etcd, TestLeaderTransferToSlowFollower.
    Guard: the target is told when it has the whole log (leader._may_hand_over).
    Without it: TimeoutNow leaves at once.
    """
    group = Group.of(3)
    group.elect(1)
    group.isolate(3)
    for _ in range(5):
        group.propose(1)
    group.heal()

    group[1].raft.transfer_leadership(NodeId(3))
    assert not any(isinstance(message, TimeoutNow) for message in group[1].drain())
    group.tick(HEARTBEAT_TICKS + 1)

    assert group.leaders == [3]
    assert group[3].raft.log.committed == group[3].raft.log.last_index == 7


def test_a_leader_that_has_removed_itself_stands_again_while_it_is_needed() -> None:
    """A leader removes itself, and crashes with the only copy of the entry that completes that.

    The group is joint for n2, which needs the vote of n1, and is refused for its log; n1 is
    no voter by its own log. Unless it stands all the same, nobody leads ever again.

    Known from: dissertation, 4.2.2 and figure 4.6.
    Guard: whoever is a voter by the committed configuration stands too (candidate.stand).
    Without it: no leader.
    """
    group = Group.of(2)
    group.elect(1)
    group[1].raft.change_members([Remove(NodeId(1))])
    for message in group[1].drain():
        group[2].step(message)
    acknowledged = group[2].drain()
    group[1].step(*acknowledged)
    group[1].drain()
    assert whole(group[1].raft.log) == "1@1 2@1 3@1"
    assert group[1].raft.configuration.voters == {2}
    assert group[2].raft.configuration.is_joint
    group[1].crash()
    group[1].restart()

    for _ in range(6 * ELECTION_TICKS):
        group.tick()

    assert group.leaders == [2]
    assert not group[2].raft.configuration.is_joint
