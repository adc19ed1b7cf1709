"""Replication beyond section 5.3: few round trips, over a network that does its worst."""

from itertools import permutations

import pytest

from kvorum_node.raft.messages import AppendEntries, AppendEntriesReply, Heartbeat, Message
from kvorum_node.raft.progress import ProgressState
from kvorum_node.raft.types import Entry, Index, NodeId, Settings
from tests.support.raft_group import ELECTION_TICKS, HEARTBEAT_TICKS, Group, Host, as_leader
from tests.support.raft_messages import (
    accepted,
    append,
    entries,
    heartbeat,
    heartbeat_reply,
    of_terms,
    rejected,
    vote,
    whole,
    written,
)


def appends_to(node: int, said: list[Message]) -> list[str]:
    """The appends for a member: what they follow, and what they carry."""
    return [
        f"{message.previous} | {written(message.entries)}".rstrip()
        for message in said
        if isinstance(message, AppendEntries) and message.recipient == node
    ]


def state_of(host: Host, node: int = 2) -> tuple[ProgressState, int, int]:
    progress = as_leader(host.raft).progress[NodeId(node)]
    return progress.state, progress.match, progress.next


# Conflict hints: how many round trips it takes to find where the logs meet.


def rejections(leader: tuple[Entry, ...], follower: tuple[Entry, ...]) -> int:
    """How many appends n2 rejects until its log equals n1's."""
    term = max(entry.term for entry in (*leader, *follower))
    group = Group.of(3, logs={1: leader, 2: follower}, term=term)
    group[3].up = False
    count = 0

    def counted(message: Message) -> bool:
        nonlocal count
        count += isinstance(message, AppendEntriesReply) and message.rejected
        return False

    group.lost = counted
    group[1].stand()
    group[1].step(vote(term + 1, sender=3))
    group.run()
    assert group[2].disk.log == group[1].disk.log
    return count


@pytest.mark.parametrize(
    ("leader", "follower", "expected"),
    [
        pytest.param((1,) * 9, (1,) * 9, 0, id="equal"),
        pytest.param((1,) * 1000, (1,), 1, id="far behind"),
        pytest.param((1,) * 1000, (), 1, id="empty"),
        pytest.param((1, 5), (1,) + (2,) * 1000, 1, id="long tail of an older term"),
        pytest.param(
            (1,) * 500 + (4,), (1,) * 400 + (3,) * 500, 2, id="long tail, shorter common part"
        ),
        pytest.param((1,) * 10 + (4,) * 500, (1,) * 10 + (3,) * 600, 1, id="long tails on both"),
        pytest.param((1,) + (2,) * 800, (1,) * 900, 1, id="the leader's long tail is newer"),
        pytest.param(
            (1, 2, 2, 5, 5, 8, 8, 9), (1, 3, 3, 4, 4, 6, 7, 7), 3, id="a few terms on both sides"
        ),
    ],
)
def test_logs_meet_in_few_round_trips(
    leader: tuple[int, ...], follower: tuple[int, ...], expected: int
) -> None:
    assert rejections(of_terms(*leader), of_terms(*follower)) == expected


@pytest.mark.parametrize("length", [1, 20, 200])
def test_round_trips_follow_the_number_of_terms_and_not_of_entries(length: int) -> None:
    """Five terms on each side, interleaved: every round trip skips at least one of them."""
    leader = of_terms(1, *(term for term in (3, 5, 7, 9, 11) for _ in range(length)))
    follower = of_terms(1, *(term for term in (2, 4, 6, 8, 10) for _ in range(length)))

    assert rejections(leader, follower) <= 6


# Appends that are lost, repeated, reordered, late.


def test_a_lost_append_is_noticed_by_the_next_heartbeat() -> None:
    group = Group.of(3)
    group.elect(1)
    group.lost = lambda message: isinstance(message, AppendEntries) and message.recipient == 2
    group.propose(1)
    group.propose(1)
    assert group[2].raft.log.last_index == 1
    group.heal()

    group.tick(HEARTBEAT_TICKS)

    assert group[2].raft.log.last_index == 3
    assert state_of(group[1]) == (ProgressState.REPLICATE, 3, 4)


def test_a_lost_acceptance_is_made_up_for_by_the_next_heartbeat() -> None:
    group = Group.of(3)
    group.elect(1)
    group[3].up = False
    group.lost = lambda message: isinstance(message, AppendEntriesReply)
    where = group.propose(1)
    assert group[1].raft.log.committed < where.index
    group.heal()

    group.tick(HEARTBEAT_TICKS)

    assert group[1].raft.log.committed == where.index


def test_a_lost_probe_is_repeated_at_a_sign_of_life_and_not_before() -> None:
    host = Host(log="1@1", term=1)
    assert appends_to(2, host.lead()) == ["1@1 | 2@2"]

    host.raft.propose(b"x")
    assert appends_to(2, host.drain()) == []
    assert appends_to(2, host.ask(heartbeat_reply(2))) == ["1@1 | 2@2 3@2"]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_appends_may_arrive_in_any_order_and_twice(order: tuple[int, ...]) -> None:
    """The acceptances are true at every moment, and the leader repairs what is left open."""
    group = Group.of(3)
    group.elect(1)
    group[3].up = False
    appends: list[Message] = []
    for _ in range(3):
        group[1].raft.propose(b"x")
        appends += [message for message in group[1].drain() if message.recipient == 2]
    assert len(appends) == 3

    for at in (*order, *reversed(order)):
        for reply in group[2].ask(appends[at]):
            if isinstance(reply, AppendEntriesReply) and not reply.rejected:
                assert group[2].disk.synced_log[: reply.index] == group[1].disk.log[: reply.index]
            group[1].step(reply)
    group.run()

    assert whole(group[2].raft.log) == "1@1 2@1 3@1 4@1"
    assert group[1].raft.log.committed == 4


def test_a_late_append_from_before_the_commit_index_is_answered_with_it() -> None:
    host = Host()
    host.ask(append(1, "0@0", "1@1 2@1 3@1", commit=3))

    assert host.ask(append(1, "1@1", "2@1", commit=1)) == [accepted(1, 3, sender=1, to=2)]
    assert host.raft.log.committed == 3
    assert whole(host.raft.log) == "1@1 2@1 3@1"


def test_a_late_rejection_takes_back_nothing() -> None:
    host = Host(log="1@1 2@1 3@1", term=1)
    host.lead()
    host.ask(rejected(2, 3, "1@1"))
    host.accept(by=[2])
    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)

    assert appends_to(2, host.ask(rejected(2, 3, "1@1"))) == []
    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)


def test_a_late_acceptance_takes_back_nothing() -> None:
    host = Host()
    host.lead_established()
    for _ in range(3):
        host.raft.propose(b"x")
        host.drain()
    host.accept(4, by=[2])
    assert host.raft.log.committed == 4

    host.ask(accepted(1, 2), accepted(1, 3))

    assert state_of(host) == (ProgressState.REPLICATE, 4, 5)
    assert host.raft.log.committed == 4


def test_an_answer_from_a_stranger_counts_for_nothing() -> None:
    host = Host()
    host.lead()

    host.ask(
        accepted(1, 1, sender=8), heartbeat_reply(1, sender=8), rejected(1, 0, "0@0", sender=9)
    )

    assert host.raft.log.committed == 0
    assert set(as_leader(host.raft).progress) == {2, 3}


def test_entries_of_an_earlier_leader_give_way_before_they_are_committed() -> None:
    """n1 led term 1 and kept what nobody else has; n2 leads term 2; one log remains."""
    group = Group.of(3)
    group.elect(1)
    group.isolate(1)
    for _ in range(3):
        group.propose(1, b"lost")
    group[2].tick(ELECTION_TICKS)
    group[3].tick(ELECTION_TICKS)
    group.stand(2)
    group.propose(2, b"kept")
    group.heal()

    group.tick(2 * HEARTBEAT_TICKS)

    assert {whole(host.raft.log) for host in group.hosts.values()} == {"1@1 2@2 3@2"}
    assert {tuple(e.data for e in host.applied) for host in group.hosts.values()} == {
        (b"", b"", b"kept")
    }


# How far a follower may commit.


def test_a_heartbeat_commits_no_further_than_the_follower_has_acknowledged() -> None:
    host = Host()
    host.lead_established()
    host.raft.propose(b"x")
    host.drain()
    host.accept(2, by=[3])
    assert host.raft.log.committed == 2

    host.tick(HEARTBEAT_TICKS)

    commits = {
        message.recipient: message.commit
        for message in host.drain()
        if isinstance(message, Heartbeat)
    }
    assert commits == {2: 1, 3: 2}


def test_a_heartbeat_carries_the_commit_to_an_idle_group() -> None:
    group = Group.of(3)
    group.elect(1)
    where = group.propose(1)
    assert group[2].raft.log.committed < where.index

    group.tick(HEARTBEAT_TICKS)

    assert {host.raft.log.committed for host in group.hosts.values()} == {where.index}
    assert len({tuple(host.applied) for host in group.hosts.values()}) == 1


def test_a_late_heartbeat_does_not_lower_the_commit_index() -> None:
    host = Host(log="1@1 2@1 3@1", term=1)
    host.ask(heartbeat(1, commit=3))

    host.ask(heartbeat(1, commit=1))

    assert host.raft.log.committed == 3


# The pipeline.


def test_proposals_that_wait_for_the_same_ready_travel_in_one_message() -> None:
    host = Host()
    host.lead_established()
    for _ in range(5):
        host.raft.propose(b"x")

    assert appends_to(2, host.drain()) == ["1@1 | 2@1 3@1 4@1 5@1 6@1"]


def test_messages_follow_one_another_without_waiting_for_answers() -> None:
    host = Host()
    host.lead_established()
    said = []
    for _ in range(3):
        host.raft.propose(b"x")
        said += appends_to(2, host.drain())

    assert said == ["1@1 | 2@1", "2@1 | 3@1", "3@1 | 4@1"]


def test_a_full_window_fills_up_again_as_answers_come() -> None:
    host = Host(settings=Settings(election_ticks=10, heartbeat_ticks=2, max_inflight_messages=2))
    host.lead_established()
    said = []
    for _ in range(4):
        host.raft.propose(b"x")
        said += appends_to(2, host.drain())
    assert said == ["1@1 | 2@1", "2@1 | 3@1"]

    assert appends_to(2, host.ask(accepted(1, 2))) == ["3@1 | 4@1 5@1"]


def test_a_window_whose_answers_were_lost_moves_on_by_heartbeats() -> None:
    settings = Settings(election_ticks=10, heartbeat_ticks=2, max_inflight_messages=1)
    group = Group.of(3, settings=settings)
    group.elect(1)
    group.lost = lambda message: isinstance(message, AppendEntriesReply)
    for _ in range(4):
        group.propose(1)
    group.heal()

    group.tick(4 * HEARTBEAT_TICKS)

    assert {host.raft.log.committed for host in group.hosts.values()} == {5}


def test_an_unreachable_follower_costs_no_messages_but_heartbeats() -> None:
    """The transport reports every message that it loses; each report must not cause the next."""
    host = Host()
    host.lead_established()
    said = []
    for _ in range(20):
        host.raft.propose(b"x")
        said += appends_to(2, host.drain())
        host.raft.report_unreachable(NodeId(2))
    said += appends_to(2, host.drain())

    assert said == ["1@1 | 2@1", "2@1 | 3@1"]
    host.accept(by=[3])
    assert host.raft.log.committed == 21
    (probe,) = appends_to(2, host.ask(heartbeat_reply(1)))
    assert probe.startswith("2@1 | 3@1 4@1")
    (repair,) = appends_to(2, host.ask(rejected(1, 2, "1@1")))
    assert repair.startswith("1@1 | 2@1 3@1 4@1")


def test_a_report_about_a_stranger_or_to_a_follower_changes_nothing() -> None:
    host = Host()
    host.raft.report_unreachable(NodeId(2))
    host.lead_established()
    host.raft.report_unreachable(NodeId(9))
    assert not host.raft.has_ready()


# A log of which the beginning was cut.


def test_a_follower_behind_the_cut_gets_heartbeats_and_no_entries() -> None:
    """Its snapshot is the only way; the others go on meanwhile."""
    log = entries("6@1 7@1", data=b"x")
    group = Group.of(3)
    for node in (1, 3):
        group.hosts[NodeId(node)] = Host(node, log=log, start="5@1", term=1, commit=7, applied=7)
    group.elect(1)

    assert state_of(group[1]) == (ProgressState.SNAPSHOT, 0, 1)
    where = group.propose(1)
    group.tick(4 * ELECTION_TICKS)
    assert group.leaders == [1]
    assert group[1].raft.log.committed == group[3].raft.log.committed == where.index
    assert group[2].raft.log.last_index == 0
    assert group[2].raft.leader == 1


def test_a_late_rejection_does_not_keep_a_follower_in_need_of_a_snapshot() -> None:
    """n2 lacked 2@1 once, has it by now, and only its acceptance was lost; then the log is cut."""
    host = Host(log="1@1 2@1", term=1)
    host.lead()
    host.accept(by=[3])
    host.drain()
    host.disk.cut(2)

    host.ask(rejected(2, 2, "1@1"))
    assert state_of(host) == (ProgressState.SNAPSHOT, 0, 1)

    host.raft.report_snapshot(NodeId(2), Index(2))  # it had no need of it, says its host
    assert appends_to(2, host.drain()) == ["2@1 | 3@2"]
    host.ask(accepted(2, 3))
    assert state_of(host) == (ProgressState.REPLICATE, 3, 4)


def test_a_follower_at_the_cut_needs_no_snapshot() -> None:
    """The entry before the first one is gone, its term is known: that is enough for the check."""
    group = Group.of(3, logs={2: "1@1 2@1"}, term=1)
    for node in (1, 3):
        group.hosts[NodeId(node)] = Host(
            node, log="3@1 4@1", start="2@1", term=1, commit=4, applied=4
        )
    group.elect(1)

    assert state_of(group[1]) == (ProgressState.REPLICATE, 5, 6)
    assert whole(group[2].raft.log) == "1@1 2@1 3@1 4@1 5@2"


@pytest.mark.parametrize("has_all", [True, False])
def test_a_log_cut_beyond_the_acknowledged_leads_to_a_snapshot_only_if_entries_are_missing(
    has_all: bool,
) -> None:
    """Perhaps only acknowledgements were lost: the follower is asked before it is given up."""
    host = Host()
    host.lead_established()
    for _ in range(4):
        host.raft.propose(b"x")
    host.drain()
    host.accept(by=[3])
    host.drain()
    host.disk.cut(4)

    host.raft.report_unreachable(NodeId(2))

    assert appends_to(2, host.ask(heartbeat_reply(1))) == ["5@1 |"]
    if has_all:
        host.ask(accepted(1, 5))
        assert state_of(host) == (ProgressState.REPLICATE, 5, 6)
    else:
        assert appends_to(2, host.ask(rejected(1, 5, "2@1"))) == []
        assert state_of(host) == (ProgressState.SNAPSHOT, 1, 2)
        assert not host.raft.has_ready()
