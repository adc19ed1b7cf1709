"""A group: who waits for what, and how each of them is answered, exactly once."""

import asyncio
from collections.abc import Iterable

import pytest

from kvorum import limits
from kvorum.errors import (
    DeadlineExceeded,
    KvorumError,
    MembershipChangeRefused,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RemovedFromCluster,
)
from kvorum_node.machine import FORMAT
from kvorum_node.members import ChangeOfMembers
from kvorum_node.raft.configuration import Configuration, Remove
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    Message,
    RequestVote,
    TimeoutNow,
)
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, NodeId, Settings, Term
from kvorum_node.waiters import Write
from kvorumpb.v1.command_pb2 import CommandBatch
from tests.support.commands import add, put
from tests.support.driven_node import DrivenNode, may_fail
from tests.support.eventually import eventually
from tests.support.raft_messages import (
    accepted,
    append,
    entries,
    heartbeat,
    heartbeat_reply,
    timeout_now,
    vote,
)
from tests.support.scripted_disk import ScriptedDisk

ELECTION_TICKS = Settings().election_ticks


async def refusal(write: Write) -> KvorumError:
    """The error of a write that was certainly not applied."""
    with pytest.raises(KvorumError) as caught:
        await write
    assert caught.value.retryable
    assert not caught.value.maybe_applied
    return caught.value


async def propose(n1: DrivenNode, *keys: bytes) -> list[Write]:
    """Each key in an entry of its own, which n2 and n3 have not answered."""
    writes = []
    for key in keys:
        writes.append(n1.submit(put(key)))
        last = n1.raft.log.last_index + 1
        await n1.said(
            AppendEntries,
            lambda one: bool(one.entries) and one.entries[-1].index >= last,  # noqa: B023 - awaited
        )
    return writes


# Members.


async def test_a_leader_of_unknown_address_is_as_good_as_none() -> None:
    """A member of a configuration that has not got here may lead already."""
    async with DrivenNode() as n1:
        n1.hear(heartbeat(1, sender=9))
        await eventually(lambda: n1.raft.leader == 9)
        with pytest.raises(NoLeader, match="does not know yet where n9 is"):
            n1.submit(put(b"k"))


async def propose_change(n1: DrivenNode, *, deadline: float = 60) -> ChangeOfMembers:
    """Let n1 propose that n3 goes."""
    last = n1.raft.log.last_index
    change = n1.group.change_members([Remove(NodeId(3))], force=True, deadline=n1.now + deadline)
    may_fail(change)
    await n1.said(AppendEntries, lambda one: bool(one.entries) and one.entries[-1].index > last)
    await n1.settle()
    return change


async def test_a_change_of_members_is_answered_when_it_is_complete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvorum.node")
    async with DrivenNode() as n1:
        await n1.lead()
        change = await propose_change(n1)
        await n1.accept(2)
        await n1.settle()
        assert not change.done()  # committed, and joint
        await eventually(lambda: n1.raft.log.last_index == 3)
        await n1.accept(3)
        assert (await change).voters == {1, 2}
    assert "members are now voters n1, n2 && n1, n2, n3" in caplog.messages
    assert "members are now voters n1, n2" in caplog.messages


async def test_a_change_of_members_that_was_replaced_was_certainly_not_made() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        change = await propose_change(n1)
        n1.hear(append(2, "1@1", "2@2", commit=2))
        with pytest.raises(NotLeader):
            await change
        assert n1.raft.configuration.voters == {1, 2, 3}


async def test_a_change_of_members_that_takes_too_long_is_in_doubt() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        change = await propose_change(n1, deadline=-1)
        await n1.tick()
        with pytest.raises(DeadlineExceeded) as caught:
            await change
        assert caught.value.maybe_applied


async def test_a_change_of_members_is_in_doubt_when_the_node_stops() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        change = await propose_change(n1)
        n1.driver.stop()
        with pytest.raises(OutcomeUnknown):
            await change


async def test_a_removed_leader_is_answered_until_its_removal_is_committed() -> None:
    """The configuration without it holds before, and it needs acknowledgements for just that."""
    without_n2 = Configuration.of({node: f"host{node}:7100" for node in (NodeId(1), NodeId(3))})
    leave = Entry(Index(2), Term(1), EntryKind.CONFIGURATION, without_n2.encode())
    async with DrivenNode() as n1:
        n1.hear(append(1, log=[*entries("1@1"), leave], commit=1))
        await eventually(lambda: n1.group.addresses.keys() == {1, 3})
        assert n1.group.members.correspondents.keys() == {1, 2, 3}
        n1.hear(heartbeat(1, commit=2))
        await eventually(lambda: n1.group.members.correspondents.keys() == {1, 3})


async def test_the_configuration_as_of_an_entry_is_that_of_the_last_change_before_it() -> None:
    """What a snapshot says of the members must fit the state, not the end of the log."""
    without_n2 = Configuration.of({node: f"host{node}:7100" for node in (NodeId(1), NodeId(3))})
    leave = Entry(Index(2), Term(1), EntryKind.CONFIGURATION, without_n2.encode())
    async with DrivenNode() as n1:
        n1.hear(append(1, log=[*entries("1@1"), leave, Entry(Index(3), Term(1))], commit=1))
        await n1.said(AppendEntriesReply)
        members = [n1.group.members.configuration_at(Index(at)).members for at in range(4)]
        assert members == [{1, 2, 3}, {1, 2, 3}, {1, 3}, {1, 3}]


async def test_a_change_of_members_is_refused_as_the_core_says() -> None:
    async with DrivenNode() as n1:
        with pytest.raises(NoLeader):
            n1.group.change_members([Remove(NodeId(3))], force=False, deadline=n1.now + 60)
        await n1.lead()
        await propose_change(n1)
        with pytest.raises(MembershipChangeRefused, match="under way") as caught:
            n1.group.change_members([Remove(NodeId(2))], force=False, deadline=n1.now + 60)
        assert not caught.value.endangers_quorum


async def test_pending_writes_of_a_removed_leader_are_settled() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        change = n1.group.change_members([Remove(NodeId(1))], force=True, deadline=n1.now + 60)
        committed = n1.submit(put(b"a"))
        await eventually(lambda: n1.raft.log.last_index == 3)
        n1.hear(accepted(1, 3), accepted(1, 3, sender=3))
        await eventually(lambda: n1.raft.log.last_index == 4)
        late = n1.submit(put(b"b"))
        await eventually(lambda: n1.raft.log.last_index == 5)
        n1.hear(accepted(1, 4), accepted(1, 4, sender=3))  # the change, and not the last write
        assert isinstance(await n1.ended(), RemovedFromCluster)
        assert (await change).voters == {2, 3}
        assert (await committed)[0].revision == 1
        with pytest.raises(OutcomeUnknown, match="removed from the cluster"):
            await late
        assert n1.has_said(TimeoutNow)


# Writes.


async def test_results_go_to_the_submissions_that_they_belong_to() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(voters=1, log=disk) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        disk.hold()
        blocker = n1.submit(add(b"n"))
        await eventually(lambda: disk.syncs_begun > disk.syncs_done)
        sizes = (1, 3, 2, 5)
        writes = [n1.submit(*(add(b"n") for _ in range(size))) for size in sizes]
        disk.release()
        await blocker
        values = [[one.results[0].add.value for one in await write] for write in writes]
        assert n1.group.log.last_index() == 3, "all of them were to share one entry"
        assert values == [[2], [3, 4, 5], [6, 7], [8, 9, 10, 11, 12]]


async def test_an_entry_carries_the_leaders_time_and_the_format() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.clock_ms = 123_456
        n1.submit(put(b"k"))
        sent = await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        [entry] = sent.entries
        batch = CommandBatch.FromString(entry.data)
        assert entry.kind is EntryKind.COMMANDS
        assert (batch.format, batch.log_time_ms, len(batch.commands)) == (FORMAT, 123_456, 1)


async def test_entries_stop_growing_at_their_bound() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(voters=1, log=disk) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        large = bytes(limits.MAX_BATCH_BYTES * 6 // 10)
        disk.hold()
        blocker = n1.submit(put(b"blocker"))
        await eventually(lambda: disk.syncs_begun > disk.syncs_done)
        writes = [n1.submit(put(b"%d" % number, large)) for number in range(5)]
        disk.release()
        await asyncio.gather(blocker, *writes)
        found = n1.raft.log.entries(n1.raft.log.first_index, 1 << 30)
        sizes = [len(entry.data) // len(large) for entry in found if len(entry.data) > 1000]
        assert sizes == [2, 2, 1]


async def test_a_follower_sends_writes_and_reads_to_the_leader() -> None:
    async with DrivenNode() as n1:
        with pytest.raises(NoLeader):
            n1.submit(put(b"k"))
        n1.hear(heartbeat(1, sender=3))
        await eventually(lambda: n1.raft.leader == 3)
        for ask in (lambda: n1.submit(put(b"k")), n1.read):
            with pytest.raises(NotLeader) as caught:
                ask()
            assert caught.value.metadata == {"leader": "n3", "address": "host3:7100"}


async def test_a_write_that_its_successor_commits_is_answered_as_if_nothing_had_happened() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        [write] = await propose(n1, b"k")
        n1.hear(append(2, "2@1", "3@2", commit=3))
        assert (await write)[0].revision == 1


async def test_writes_that_another_leader_has_replaced_are_refused_as_certainly_not_applied() -> (
    None
):
    async with DrivenNode() as n1:
        await n1.lead()
        writes = await propose(n1, b"at 2", b"at 3", b"at 4")
        n1.hear(append(2, "1@1", "2@2", commit=1))
        await eventually(lambda: n1.raft.leader == 2)
        await n1.settle()
        assert not any(write.done() for write in writes)  # nothing is committed there yet
        n1.hear(append(2, "2@2", commit=2))
        # Only 2@2 is committed; but what was to stand behind it has gone as well.
        for write in writes:
            error = await refusal(write)
            assert isinstance(error, NotLeader)
            assert error.metadata["leader"] == "n2"


async def test_a_write_is_in_doubt_an_election_timeout_after_leadership_was_lost() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        [write] = await propose(n1, b"k")
        while n1.leads:  # nobody answers: the quorum check ends it
            await n1.tick()
        await n1.tick(ELECTION_TICKS)
        assert not write.done()
        await n1.tick()
        with pytest.raises(OutcomeUnknown):
            await write


async def test_a_successor_that_says_nothing_of_a_write_leaves_it_in_doubt() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        [write] = await propose(n1, b"k")
        n1.hear(heartbeat(2))
        await eventually(lambda: n1.raft.leader == 2)
        for _ in range(ELECTION_TICKS + 1):
            assert not write.done()
            await n1.tick()
            n1.hear(heartbeat(2))
        with pytest.raises(OutcomeUnknown):
            await write


async def test_a_leader_again_answers_what_it_proposed_before_and_what_it_proposes_now() -> None:
    """Indexes are used twice, and nobody may be forgotten for it."""
    async with DrivenNode() as n1:
        await n1.lead()
        at_2, at_3, at_4 = await propose(n1, b"at 2", b"at 3", b"at 4")
        n1.hear(append(2, "1@1", "2@2", commit=1), timeout_now(2))
        await n1.said(RequestVote, lambda one: one.term == 3)
        n1.hear(vote(3))
        await eventually(lambda: n1.leads)
        [again_at_4] = await propose(n1, b"again at 4")
        with pytest.raises(OutcomeUnknown):  # n3 may have it, and might still win by it
            await at_4
        n1.hear(accepted(3, 4))
        assert (await again_at_4)[0].revision == 1
        for write in (at_2, at_3):
            await refusal(write)


async def test_a_write_that_is_too_late_is_in_doubt() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        write = n1.submit(put(b"k"), deadline=n1.now)
        await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        await n1.tick()
        with pytest.raises(DeadlineExceeded) as caught:
            await write
        assert caught.value.maybe_applied
        # It is committed yet, and the next one is answered rightly.
        later = n1.submit(put(b"k"))
        await n1.accept(3)
        assert (await later)[0].revision == 2


async def test_writes_are_refused_while_too_much_is_uncommitted() -> None:
    async with DrivenNode(settings=Settings(max_uncommitted_bytes=1000)) as n1:
        await n1.lead()
        [first] = await propose(n1, b"k" * 600)
        refused = n1.submit(put(b"l" * 600))
        assert isinstance(await refusal(refused), Overloaded)
        await n1.accept()
        await first
        [taken] = await propose(n1, b"l" * 600)
        await n1.accept()
        await taken


async def test_the_queue_is_bounded_while_the_disk_is_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_UNCOMMITTED_BYTES", 1000)
    disk = ScriptedDisk()
    async with DrivenNode(voters=1, log=disk) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        disk.hold()
        writes = [n1.submit(put(b"a"))]
        await eventually(lambda: disk.syncs_begun > disk.syncs_done)
        writes.append(n1.submit(put(b"b", bytes(2000))))  # one is taken, however large
        with pytest.raises(Overloaded) as caught:
            n1.submit(put(b"c"))
        assert caught.value.metadata["limit"] == "MAX_UNCOMMITTED_BYTES"
        disk.release()
        await asyncio.gather(*writes)
        await n1.submit(put(b"c"))


async def test_writes_are_refused_while_leadership_is_handed_over() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.raft.transfer_leadership(NodeId(3))
        assert isinstance(await refusal(n1.submit(put(b"k"))), NoLeader)


# Reads.


async def test_a_read_waits_for_a_majority_to_confirm_the_leader() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.sent.clear()
        read = n1.read()
        asked = await n1.said(Heartbeat)
        n1.hear(heartbeat_reply(1, read_round=asked.read_round - 1))  # of an earlier question
        await n1.settle()
        assert not read.done()
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await read


async def test_reads_that_wait_share_a_round() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.sent.clear()
        reads = [n1.read() for _ in range(50)]
        asked = await n1.said(Heartbeat)
        await n1.settle()
        assert len([one for one in n1.sent if isinstance(one, Heartbeat)]) == 2  # n2 and n3
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await asyncio.gather(*reads)


async def test_a_read_waits_until_the_state_has_what_was_committed_before_it() -> None:
    one_entry_a_turn = Settings(max_apply_bytes=1)
    async with DrivenNode(settings=one_entry_a_turn) as n1:
        await n1.lead()
        writes = await propose(n1, *(b"%d" % number for number in range(10)))
        applied_at: dict[str, int] = {}

        def confirm_at_once(_: GroupId, messages: Iterable[Message]) -> None:
            if any(isinstance(one, Heartbeat) and one.read_round == 1 for one in messages):
                applied_at["confirmed"] = n1.group.machine.applied
                n1.hear(heartbeat_reply(1, read_round=1))

        n1.driver._send = confirm_at_once
        n1.hear(accepted(1, n1.raft.log.last_index))
        read = n1.read()
        read.add_done_callback(lambda _: applied_at.update(answered=n1.group.machine.applied))
        await asyncio.gather(read, *writes)
        assert applied_at["confirmed"] < 5
        assert applied_at["answered"] == n1.raft.log.committed == 11


async def test_a_new_leader_reads_nothing_before_an_entry_of_its_term_is_committed() -> None:
    async with DrivenNode() as n1:
        n1.raft.campaign()
        n1.driver.wake()
        await n1.said(RequestVote)
        n1.hear(vote(1, pre=True))
        await n1.said(RequestVote, lambda one: not one.pre)
        n1.hear(vote(1))
        await eventually(lambda: n1.leads)
        read = n1.read()
        await n1.tick(3)
        n1.hear(heartbeat_reply(1, read_round=0), heartbeat_reply(1, read_round=1))
        await n1.settle()
        assert not read.done()
        n1.sent.clear()
        n1.hear(accepted(1, 1))
        asked = await n1.said(Heartbeat, lambda one: one.read_round > 0)
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await read


async def test_reads_fail_when_leadership_is_lost() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        asked, queued = n1.read(), n1.read()
        await n1.said(Heartbeat, lambda one: one.read_round == 1)
        n1.hear(heartbeat(2))
        for read in (asked, queued):
            with pytest.raises(NotLeader) as caught:
                await read
            assert caught.value.metadata == {"leader": "n2", "address": "host2:7100"}


async def test_a_read_of_an_earlier_term_is_not_answered_in_a_later_one() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        read = n1.read()
        await n1.said(Heartbeat, lambda one: one.read_round == 1)
        n1.hear(heartbeat(2), timeout_now(2))
        with pytest.raises((NotLeader, NoLeader)):
            await read


async def test_a_read_that_is_too_late_leaves_nothing_in_doubt() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        read = n1.read(deadline=n1.now)
        await n1.said(Heartbeat, lambda one: one.read_round == 1)
        await n1.tick()
        with pytest.raises(DeadlineExceeded) as caught:
            await read
        assert not caught.value.maybe_applied


# What others see.


async def test_whoever_waits_is_under_way() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        assert n1.group.under_way() == []
        write, read = n1.submit(put(b"k")), n1.read()
        assert set(n1.group.under_way()) == {write, read}
        asked = await n1.said(Heartbeat, lambda one: one.read_round == 1)
        assert set(n1.group.under_way()) == {write, read}
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await read
        assert n1.group.under_way() == [write]
        await n1.accept()
        await write
        assert n1.group.under_way() == []


async def test_a_change_of_leadership_is_told_once_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvorum.node")
    told: list[int | None] = []
    async with DrivenNode() as n1:
        n1.group.leadership_changed = lambda: told.append(n1.raft.leader)
        n1.hear(heartbeat(1, sender=3))
        await eventually(lambda: told)
        n1.hear(heartbeat(1, sender=3))
        await n1.settle()
        assert told == [3]
        await n1.lead()
        n1.hear(heartbeat(3))
        await eventually(lambda: n1.raft.leader == 2)
        await n1.settle()
    assert [record.getMessage() for record in caplog.records] == [
        "follows n3",
        "knows no leader",
        "knows no leader",
        "leads",
        "leads no more",
    ]


async def test_a_leader_that_is_heard_by_nobody_says_why_it_leads_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        await n1.tick(2 * n1.raft.settings.election_ticks)
        await eventually(lambda: not n1.leads)
        await n1.settle()
    assert [record.getMessage() for record in caplog.records] == [
        "leads no more: it has heard no majority of the voters"
    ]
