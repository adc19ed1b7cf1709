"""Snapshots as the core sees them: when it asks for one, and what it does with one.

What a group makes of them is told by tests/scripts/snapshots/. The state itself never
passes through the core: its host keeps it, sends it and receives it.
"""

import pytest

from kvorum_node.raft.configuration import AddLearner, Configuration
from kvorum_node.raft.log import Snapshot
from kvorum_node.raft.messages import AppendEntries, Heartbeat, Message
from kvorum_node.raft.progress import ProgressState
from kvorum_node.raft.types import Index, NodeId
from tests.support.raft_group import ELECTION_TICKS, Host, as_leader, is_follower
from tests.support.raft_messages import (
    accepted,
    append,
    heartbeat,
    heartbeat_reply,
    install_snapshot,
    position,
    rejected,
    timeout_now,
    whole,
    written,
)

N3 = NodeId(3)
FOUR = Configuration.of({NodeId(node): f"h{node}:7100" for node in (1, 2, 3, 4)})


def leader_with_a_cut_log() -> Host:
    """n1 in term 2, with the log cut at 4@2; n2 has all of it, and n3 only 1@1."""
    host = Host(log="1@1 2@1 3@1", term=1)
    host.lead()
    host.accept(4, by=[2])
    host.drain()
    host.disk.cut(4)
    return host


def leader_that_asks() -> Host:
    """The same, with n3 in the state SNAPSHOT."""
    host = leader_with_a_cut_log()
    host.ask(rejected(2, 3, "1@1", sender=3))
    assert host.snapshots_to == [3]
    return host


def state_of(host: Host, node: int = 3) -> tuple[ProgressState, int, int]:
    progress = as_leader(host.raft).progress[NodeId(node)]
    return progress.state, progress.match, progress.next


def appends_to(said: list[Message], node: int) -> list[str]:
    return [
        f"{message.previous} | {written(message.entries)}".rstrip()
        for message in said
        if isinstance(message, AppendEntries) and message.recipient == node
    ]


# The leader's side.


def test_a_follower_behind_the_log_is_asked_for_once() -> None:
    host = leader_with_a_cut_log()
    host.step(rejected(2, 3, "1@1", sender=3))
    ready = host.cycle()
    assert ready.snapshots_to == (3,)
    assert state_of(host) == (ProgressState.SNAPSHOT, 0, 1)

    host.tick(ELECTION_TICKS - 1)
    host.ask(heartbeat_reply(2, sender=3), rejected(2, 3, "1@1", sender=3))
    assert host.snapshots_to == [3]


def test_it_gets_heartbeats_meanwhile_and_no_entries() -> None:
    host = leader_that_asks()
    host.raft.propose(b"x")
    host.tick(2)
    said = host.drain()
    assert appends_to(said, 2) == ["4@2 | 5@2"]
    assert appends_to(said, 3) == []
    assert 3 in {message.recipient for message in said if isinstance(message, Heartbeat)}


def test_a_report_makes_the_snapshot_a_place_to_probe() -> None:
    """The host says that it has arrived; what the follower has, it says itself."""
    host = leader_that_asks()
    host.raft.propose(b"x")
    host.drain()
    host.raft.report_snapshot(N3, Index(4))
    assert state_of(host) == (ProgressState.PROBE, 0, 5)
    assert appends_to(host.drain(), 3) == ["4@2 | 5@2"]

    host.step(accepted(2, 5, sender=3))
    assert state_of(host) == (ProgressState.REPLICATE, 5, 6)


def test_the_followers_own_word_needs_no_report() -> None:
    host = leader_that_asks()
    host.step(accepted(2, 4, sender=3))
    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)

    host.raft.report_snapshot(N3, Index(4))
    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)


def test_an_acknowledgement_from_before_does_not_end_it() -> None:
    """n3 says that it has 1@1, which was on its way; the log begins behind that."""
    host = leader_that_asks()
    host.ask(accepted(2, 1, sender=3))
    assert state_of(host)[0] is ProgressState.SNAPSHOT
    assert host.snapshots_to == [3]


def test_after_a_failure_another_one_is_asked_for_at_a_sign_of_life() -> None:
    host = leader_that_asks()
    host.raft.report_snapshot(N3, None)
    assert state_of(host)[0] is ProgressState.PROBE
    assert host.drain() == []

    assert appends_to(host.ask(heartbeat_reply(2, sender=3)), 3) == ["4@2 |"]
    host.ask(rejected(2, 4, "1@1", sender=3))
    assert state_of(host)[0] is ProgressState.SNAPSHOT
    assert host.snapshots_to == [3, 3]


def test_after_a_failure_a_follower_that_got_on_needs_none() -> None:
    host = leader_that_asks()
    host.raft.report_snapshot(N3, None)
    host.ask(heartbeat_reply(2, sender=3))
    host.ask(accepted(2, 4, sender=3))
    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)
    assert host.snapshots_to == [3]


def test_a_report_of_a_snapshot_that_the_log_has_outgrown_leads_to_another_one() -> None:
    """While the state was on its way, the log was cut again."""
    host = leader_that_asks()
    host.raft.propose(b"x")
    host.drain()
    host.accept(5, by=[2])
    host.drain()
    host.disk.cut(5)

    host.raft.report_snapshot(N3, Index(4))
    host.drain()
    assert state_of(host)[0] is ProgressState.SNAPSHOT
    assert host.snapshots_to == [3, 3]


@pytest.mark.parametrize("index", [Index(4), None])
def test_a_report_about_a_stranger_or_to_a_follower_changes_nothing(index: Index | None) -> None:
    host = leader_that_asks()
    host.raft.report_snapshot(NodeId(9), index)
    assert host.drain() == []

    host.ask(heartbeat(3))
    host.raft.report_snapshot(N3, index)
    assert is_follower(host.raft, leader=2)
    assert host.drain() == []


def test_a_new_member_is_sent_a_snapshot_if_the_log_has_been_cut() -> None:
    host = leader_with_a_cut_log()
    host.raft.change_members([AddLearner(NodeId(4))])
    host.ask(rejected(2, 5, "0@0", sender=4))
    assert host.snapshots_to == [4]


# The follower's side.


def test_a_snapshot_takes_the_place_of_the_log() -> None:
    host = Host(log="1@1 2@1", term=1, commit=1, applied=1)
    host.step(install_snapshot(2, "5@2", FOUR))
    assert host.take() == ()

    ready = host.pending
    assert ready is not None
    assert ready.snapshot == Snapshot(position("5@2"), FOUR)
    assert ready.must_sync
    assert (ready.entries, ready.committed) == ((), ())
    assert host.complete() == (accepted(2, 5, sender=1, to=2),)

    assert host.disk.start == position("5@2")
    assert (host.raft.log.committed, host.raft.log.applied) == (5, 5)
    assert host.raft.configuration == host.raft.committed_configuration == FOUR


def test_a_crash_before_the_fsync_leaves_the_old_log() -> None:
    host = Host(log="1@1 2@1", term=1, commit=1)
    host.step(install_snapshot(2, "5@2", FOUR))
    host.take()
    host.crash()
    host.restart()

    assert whole(host.raft.log) == "1@1 2@1"
    assert host.raft.configuration.voters == {1, 2, 3}
    assert host.raft.term == 1


def test_a_crash_after_the_fsync_leaves_the_snapshot() -> None:
    host = Host(log="1@1 2@1", term=1, commit=1)
    host.ask(install_snapshot(2, "5@2", FOUR))
    host.crash()
    host.restart(applied=5)

    assert (host.raft.log.first_index, host.raft.log.last) == (6, position("5@2"))
    assert host.raft.configuration == FOUR


def test_entries_go_on_after_the_snapshot_in_the_same_ready() -> None:
    host = Host()
    host.step(install_snapshot(2, "5@2"), append(2, "5@2", "6@2 7@2", commit=6))
    ready = host.cycle()

    assert ready.snapshot is not None
    assert written(ready.entries) == "6@2 7@2"
    assert ready.promises == (accepted(2, 5, sender=1, to=2), accepted(2, 7, sender=1, to=2))
    assert written(ready.committed) == "6@2"
    assert written(host.disk.synced_log) == "6@2 7@2"


def test_what_was_being_written_when_it_came_counts_for_nothing() -> None:
    """1@1 and 2@1 reach the disk, and go with the log that the snapshot replaces."""
    host = Host()
    host.step(append(1, "0@0", "1@1 2@1"))
    host.take()
    host.step(install_snapshot(2, "5@2"))
    host.complete()
    assert host.raft.log.stable_index == 5
    assert whole(host.raft.log) == ""

    host.cycle()
    assert (host.disk.start, host.disk.synced_log) == (position("5@2"), ())


def test_an_entry_that_was_written_before_the_snapshot_is_written_again_behind_it() -> None:
    """It came, was replaced, and came again with another leader: what installs the snapshot
    removes the first copy, and the fsync of that one must not stand for the second."""
    host = Host(log="1@1 2@1 3@1", term=1)
    host.step(append(1, "3@1", "4@1 5@1"))
    host.take()
    host.step(
        append(2, "3@1", "4@2", sender=3),
        install_snapshot(3, "4@1"),
        append(3, "4@1", "5@1"),
    )
    host.complete()
    host.drain()

    assert host.disk.start == position("4@1")
    assert written(host.disk.synced_log) == "5@1"


def test_a_newer_snapshot_may_come_while_one_is_being_installed() -> None:
    host = Host()
    host.step(install_snapshot(2, "5@2"))
    host.take()
    host.step(install_snapshot(2, "8@2", FOUR))
    host.complete()
    host.drain()

    assert [snapshot.last for snapshot in host.installed] == [position("5@2"), position("8@2")]
    assert host.disk.start == position("8@2")
    assert host.raft.configuration == FOUR


def test_a_snapshot_of_what_the_log_has_only_tells_that_it_is_committed() -> None:
    """Nothing is installed: what follows may have been promised, and must stay."""
    host = Host(log="1@1 2@1 3@1", term=1)
    said = host.ask(install_snapshot(1, "2@1"))

    assert said == [accepted(1, 2, sender=1, to=2)]
    assert host.installed == []
    assert written(host.applied) == "1@1 2@1"
    assert whole(host.raft.log) == "1@1 2@1 3@1"


def test_a_snapshot_replaces_a_log_that_differs_at_its_end() -> None:
    host = Host(log="1@1 2@1 3@1 4@1", term=1)
    host.ask(install_snapshot(3, "3@2"))

    assert [snapshot.last for snapshot in host.installed] == [position("3@2")]
    assert whole(host.raft.log) == ""
    assert host.raft.log.last == position("3@2")


def test_a_snapshot_of_an_older_term_is_not_taken() -> None:
    host = Host(term=3)
    said = host.ask(install_snapshot(2, "5@2"))
    assert said == [heartbeat_reply(3, sender=1, to=2)]
    assert host.installed == []


def test_a_candidate_takes_one_from_the_leader_of_its_term() -> None:
    host = Host()
    host.ask(timeout_now(0))
    said = host.ask(install_snapshot(1, "5@1"))
    assert is_follower(host.raft, leader=2)
    assert said == [accepted(1, 5, sender=1, to=2)]


def test_a_snapshot_is_a_sign_of_life_of_the_leader() -> None:
    host = Host()
    host.follow(2, 1)
    host.tick(ELECTION_TICKS)
    host.ask(install_snapshot(1, "5@1"))
    host.tick(ELECTION_TICKS)
    assert is_follower(host.raft, leader=2)


def test_a_member_votes_by_the_end_of_its_snapshot() -> None:
    host = Host()
    host.ask(install_snapshot(2, "5@2"))
    assert host.raft.log.is_up_to_date(position("5@2"))
    assert not host.raft.log.is_up_to_date(position("4@2"))
    assert not host.raft.log.is_up_to_date(position("9@1"))
