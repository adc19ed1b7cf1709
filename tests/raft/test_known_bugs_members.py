"""Known bugs of other systems, in changes of members and in reads: who counts, and for what.

Each test says what the bug is, where it is known from, which guard holds it here, and
what is seen when that guard is taken away: that was done once for each.
"""

import pytest

from kvorum_node.raft.configuration import AddLearner, Remove
from kvorum_node.raft.messages import Heartbeat, RequestVote
from kvorum_node.raft.types import ChangeRefused, NodeId, NotLeading
from tests.support.raft_group import ELECTION_TICKS, Group, Host, is_follower, is_leader
from tests.support.raft_messages import accepted, heartbeat_reply


def test_no_member_changes_before_an_entry_of_the_leaders_own_term_is_committed() -> None:
    """Two leaders in turn each change the members without knowing of the other's change.

    The first one's change survives on a minority; the second one does not know of it, and
    both then commit, by majorities without a common member. tests/scripts/membership/
    two_leaders_change.txt tells the whole of it.

    Known from: Ongaro, "bug in single-server membership changes", raft-dev, 2015.
    Guard: membership.plan refuses until an entry of the own term is committed.
    Without it: the change is taken.
    """
    host = Host(log="1@1 2@1", term=1, commit=2)
    host.lead()
    with pytest.raises(ChangeRefused, match="own term"):
        host.raft.change_members([Remove(NodeId(3))])
    assert host.raft.log.last_index == 3

    host.accept()
    host.drain()
    assert host.raft.change_members([Remove(NodeId(3))]).index == 4


def test_a_learner_counts_for_no_majority() -> None:
    """A learner's acknowledgement commits an entry, or its answer confirms a read.

    Known from: etcd, TestLearnerCannotVote and its like.
    Guard: quorum.py looks at voters alone.
    Without it: 3@1 is committed, and the read is answered, by n1 and its learners.
    """
    host = leader_with_learners()

    host.raft.propose(b"x")
    host.raft.read_index(7)
    for learner in (4, 5):
        host.ask(accepted(1, 3, sender=learner))
        host.ask(heartbeat_reply(1, read_round=1, sender=learner))
    assert host.raft.log.committed == 2
    assert host.reads == []

    host.ask(accepted(1, 3, sender=3), heartbeat_reply(1, read_round=1, sender=3))
    assert host.raft.log.committed == 3
    assert [read.requests for read in host.reads] == [(7,)]


def test_a_learner_is_no_sign_that_a_majority_is_there() -> None:
    """A leader goes on leading because its learners answer, while no voter does.

    Known from: the same class as above.
    Guard: the quorum check looks at voters alone (leader._hears_quorum).
    Without it: n1 leads for ever.
    """
    host = leader_with_learners()

    for _ in range(2 * ELECTION_TICKS):
        host.tick()
        host.ask(heartbeat_reply(1, sender=4), heartbeat_reply(1, sender=5))

    assert is_follower(host.raft)


def test_a_learner_neither_stands_nor_is_asked_for_its_vote() -> None:
    """A learner whose leader is lost becomes a candidate, or a candidate counts on it.

    Known from: the same class as above.
    Guard: candidate.stand asks voters, and is for voters.
    Without it: n4 asks for votes, and n2 asks it.
    """
    learner = Host(4, ())
    leader = leader_with_learners()
    for message in leader.ask(heartbeat_reply(1, sender=4)):
        if message.recipient == 4:
            leader.step(*learner.ask(message))
    for message in leader.drain():
        if message.recipient == 4:
            learner.ask(message)
    assert learner.raft.configuration.learners == {4, 5}

    learner.tick(10 * ELECTION_TICKS)
    assert learner.drain() == []

    leader.tick(10 * ELECTION_TICKS)
    asked = {one.recipient for one in leader.drain() if isinstance(one, RequestVote)}
    assert asked == {2, 3}


def leader_with_learners() -> Host:
    """n1, which leads n2 and n3, and has the learners n4 and n5 by 2@1."""
    host = Host()
    host.lead_established()
    host.raft.change_members([AddLearner(NodeId(4)), AddLearner(NodeId(5))])
    host.accept(2, by=[2, 3])
    host.drain()
    assert host.raft.committed_configuration.learners == {4, 5}
    return host


def test_a_paused_leader_does_not_answer_from_the_past() -> None:
    """A leader that was suspended reads its own state, while another one has written since.

    Known from: Kingsbury, "Jepsen: etcd and Consul" (2014).
    Guard: a majority must confirm the leader after the read has come (raft/read_index.py).
    Without it: n1 answers.
    """
    group = Group.of(3)
    group.elect(1)
    group.propose(1)
    group.isolate(1)
    group.tick(3 * ELECTION_TICKS, 2, 3)
    assert len(group.leaders) == 2
    successor = max(group.leaders)
    group.propose(successor)
    assert group[successor].raft.log.committed > group[1].raft.log.committed

    assert is_leader(group[1].raft)
    group[1].raft.read_index(1)
    group.run()
    assert group[1].reads == []

    group.heal()
    group[1].raft.read_index(2)
    group.tick(ELECTION_TICKS)
    assert group[1].reads == []
    assert is_follower(group[1].raft, leader=successor)
    with pytest.raises(NotLeading):
        group[1].raft.read_index(3)


def test_no_read_before_an_entry_of_the_leaders_own_term_is_committed() -> None:
    """A new leader reads at its own commit index, behind what its predecessor acknowledged.

    2@1 may have been answered to a client, and this leader cannot know it.

    Known from: dissertation, 6.4, step 1; etcd, TestReadOnlyForNewLeader.
    Guard: no round begins before that (Leader.established in leader.send_what_is_due).
    Without it: the read is answered at index 1.
    """
    host = Host(log="1@1 2@1", term=1, commit=1)
    host.lead()
    host.raft.read_index(1)
    assert rounds_asked(host) == []

    host.step(heartbeat_reply(2, read_round=0, sender=2), heartbeat_reply(2, sender=3))
    host.drain()
    assert host.reads == []

    host.accept()
    assert rounds_asked(host) == [1]
    host.ask(heartbeat_reply(2, read_round=1))
    assert [(read.requests, read.index) for read in host.reads] == [((1,), 3)]


def rounds_asked(host: Host) -> list[int]:
    """The read rounds in the heartbeats to n2 that leave now."""
    return [
        message.read_round
        for message in host.drain()
        if isinstance(message, Heartbeat) and message.recipient == 2
    ]
