"""The driver: the law of Ready as carried out, group commit, failing disks, the log's bound."""

import asyncio
import time
from pathlib import Path

import pytest

from kvorum.errors import OutcomeUnknown, ShuttingDown, StorageError
from kvorum_node.machine import FORMAT
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    RequestVote,
    RequestVoteReply,
)
from kvorum_node.raft.types import GroupId, NodeId, Settings
from kvorum_node.storage.data_directory import Storage
from kvorumpb.v1.command_pb2 import CommandBatch
from tests.support.commands import add, put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import (
    accepted,
    append,
    entries,
    heartbeat,
    request_vote,
)
from tests.support.scripted_disk import ScriptedDisk

FULL = StorageError("cannot write: No space left on device")
BROKEN = StorageError("cannot sync: Input/output error")


def entries_written(disk: ScriptedDisk) -> int:
    """How many writes have brought entries."""
    return sum(any(key[4:5] == b"e" for _, key, _ in batch.puts) for batch in disk.batches)


async def lead_into_a_sync(n1: DrivenNode, disk: ScriptedDisk) -> None:
    """Have it lead, and begin a sync that goes on until `release`."""
    await n1.lead()
    disk.hold()
    n1.submit(put(b"k"))
    begun = disk.syncs_begun
    await eventually(lambda: disk.syncs_begun > begun)


# The law.


async def test_a_vote_leaves_only_when_it_is_on_the_disk() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.hold()
        n1.hear(request_vote(1))
        await eventually(lambda: disk.syncs_begun == 1)
        await n1.settle()
        assert len(disk.batches) == 1
        assert not n1.has_said(RequestVoteReply)
        disk.release()
        assert (await n1.said(RequestVoteReply)).granted


async def test_an_acknowledgement_leaves_only_when_the_entries_are_on_the_disk() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.hold()
        n1.hear(append(1, log="1@1 2@1"))
        await eventually(lambda: disk.syncs_begun == 1)
        await n1.settle()
        assert n1.group.log.last_index() == 2  # written
        assert not n1.has_said(AppendEntriesReply)
        disk.release()
        assert (await n1.said(AppendEntriesReply)).index == 2


async def test_followers_hear_of_the_leader_while_its_disk_is_at_work_but_not_for_ever() -> None:
    disk = ScriptedDisk()
    settings = Settings(election_ticks=20, heartbeat_ticks=2)
    async with DrivenNode(log=disk, tick_seconds=0.01, settings=settings) as n1:
        await lead_into_a_sync(n1, disk)
        n1.sent.clear()
        ticks, start = n1.ticks, n1.now
        await eventually(lambda: len(n1.sent) >= 6)  # to two followers
        assert all(isinstance(one, Heartbeat) for one in n1.sent)
        # A leader whose disk hangs is to be replaced.
        await eventually(lambda: n1.now > start + 3 * 20 * 0.01)
        assert len(n1.sent) <= 2 * 20 // 2
        assert n1.ticks == ticks
        disk.release()


async def test_a_follower_applies_nothing_before_it_is_on_its_disk() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.hold()
        n1.hear(append(1, log="1@1", commit=1))
        await eventually(lambda: disk.syncs_begun == 1)
        await n1.settle()
        assert n1.group.machine.applied == 0
        disk.release()
        await eventually(lambda: n1.group.machine.applied == 1)


async def test_a_leaders_appends_leave_while_its_own_disk_is_at_work() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        await n1.lead()
        done = disk.syncs_done
        disk.hold()
        write = n1.submit(put(b"k", b"early"))
        appended = await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        assert b"early" in appended.entries[0].data
        assert disk.syncs_done == done
        # Both others have it, which is a majority: still nothing is answered meanwhile.
        n1.hear(accepted(1, 2), accepted(1, 2, sender=3))
        await n1.settle()
        assert not write.done()
        disk.release()
        assert (await write)[0].revision == 1


async def test_a_single_voter_answers_only_when_the_write_is_on_the_disk() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(voters=1, log=disk) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        disk.hold()
        begun = disk.syncs_begun
        write = n1.submit(put(b"k"))
        await eventually(lambda: disk.syncs_begun == begun + 1)
        await n1.settle()
        assert not write.done()
        assert n1.group.machine.get(b"k") is None
        disk.release()
        assert (await write)[0].revision == 1


async def test_what_waits_during_one_sync_shares_the_next_write_and_the_next_sync() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(voters=1, log=disk) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        disk.hold()
        first = n1.submit(add(b"n"))
        await eventually(lambda: disk.syncs_begun == disk.syncs_done + 1)
        waiting = [n1.submit(add(b"n")) for _ in range(100)]
        await n1.settle()
        syncs, last = disk.syncs_begun, n1.group.log.last_index()
        writes = entries_written(disk)
        disk.release()
        await first
        results = [await one for one in waiting]
        assert [one[0].results[0].add.value for one in results] == list(range(2, 102))
        assert n1.group.log.last_index() == last + 1
        assert disk.syncs_begun == syncs + 1
        assert entries_written(disk) == writes + 1


async def test_groups_share_a_write_and_a_sync() -> None:
    disk = ScriptedDisk()
    node = DrivenNode(voters=1, log=disk)
    second = node.add_group(GroupId(2), [NodeId(1)])
    second.raft.campaign()
    async with node as n1:
        await eventually(lambda: n1.group.machine.applied == second.machine.applied == 1)
        writes, syncs = entries_written(disk), disk.syncs_begun
        await asyncio.gather(n1.submit(put(b"k")), n1.submit(put(b"k"), group=second))
        assert entries_written(disk) == writes + 1
        assert disk.syncs_begun == syncs + 1


async def test_a_commit_index_alone_costs_no_sync() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        n1.hear(append(1, log="1@1 2@1"))
        await n1.said(AppendEntriesReply)
        syncs = disk.syncs_begun
        n1.hear(heartbeat(1, commit=2))
        await eventually(lambda: n1.group.machine.applied == 2)
        assert disk.syncs_begun == syncs


async def test_messages_of_other_groups_are_left_alone() -> None:
    async with DrivenNode() as n1:
        n1.driver.receive(GroupId(7), heartbeat(9))
        n1.hear(append(1, log="1@1"))
        await n1.said(AppendEntriesReply)
        assert n1.raft.term == 1


# The disk fails.


@pytest.mark.parametrize("failure", [FULL, BROKEN], ids=["write", "sync"])
async def test_a_failing_log_ends_the_loop_and_settles_whoever_waits(failure: StorageError) -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        await n1.lead()
        in_doubt = n1.submit(put(b"a"))
        await n1.said(AppendEntries, lambda one: bool(one.entries) and one.entries[-1].index == 2)
        disk.hold()
        n1.submit(put(b"b"))
        await eventually(lambda: disk.syncs_begun > disk.syncs_done)
        read = n1.read()
        queued = n1.submit(put(b"c"))
        if failure is FULL:
            disk.fail_writes = failure
        else:
            disk.fail_syncs = failure
        disk.release()
        assert await n1.ended() is failure
        with pytest.raises(OutcomeUnknown, match=str(failure)):
            await in_doubt
        if failure is BROKEN:  # nothing that came later was ever written
            with pytest.raises(ShuttingDown, match="Input/output error"):
                await queued
        else:
            with pytest.raises(OutcomeUnknown):
                await queued
        with pytest.raises(ShuttingDown):
            await read
        with pytest.raises(ShuttingDown, match=str(failure)):
            n1.submit(put(b"d"))
        with pytest.raises(ShuttingDown):
            n1.read()


async def test_nothing_is_promised_after_a_failed_sync() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.fail_syncs = BROKEN
        n1.hear(request_vote(1))
        assert await n1.ended() is BROKEN
        assert not n1.has_said(RequestVoteReply)


async def test_followers_hear_nothing_more_of_a_leader_whose_disk_has_failed() -> None:
    disk = ScriptedDisk()
    settings = Settings(election_ticks=200, heartbeat_ticks=2)
    async with DrivenNode(log=disk, tick_seconds=0.01, settings=settings) as n1:
        await lead_into_a_sync(n1, disk)
        await n1.said(Heartbeat)
        disk.fail_syncs = BROKEN
        disk.release()
        n1.sent.clear()
        # A busy loop finds the failure, and the next sign of life due, at once.
        time.sleep(0.1)  # noqa: ASYNC251 - it is the busy loop
        assert await n1.ended() is BROKEN
        assert n1.sent == []


async def test_nothing_leaves_after_a_failed_write() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        await n1.lead()
        n1.sent.clear()
        disk.fail_writes = FULL
        write = n1.submit(put(b"k"))
        assert await n1.ended() is FULL
        assert n1.sent == []
        with pytest.raises(OutcomeUnknown):
            await write


async def test_a_state_that_cannot_be_written_ends_the_loop() -> None:
    state = ScriptedDisk("state")
    async with DrivenNode(voters=1, state=state) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        state.fail_writes = FULL
        write = n1.submit(put(b"k"))
        assert await n1.ended() is FULL
        with pytest.raises(OutcomeUnknown, match="No space left"):
            await write


async def test_a_log_entry_of_a_newer_version_ends_the_loop() -> None:
    async with DrivenNode() as n1:
        data = CommandBatch(format=FORMAT + 1).SerializeToString()
        n1.hear(append(1, log=entries("1@1", data=data), commit=1))
        ended = await n1.ended()
        assert isinstance(ended, StorageError)
        assert "run the version that the other nodes run" in str(ended)


# Time.


async def test_ticks_do_not_pile_up_while_the_process_is_suspended() -> None:
    async with DrivenNode(tick_seconds=0.05) as n1:
        await eventually(lambda: n1.ticks >= 2)
        before = n1.ticks
        time.sleep(1.0)  # noqa: ASYNC251 - nothing in the process goes on, as under SIGSTOP
        await n1.settle()
        assert n1.ticks - before <= 2  # of the 20 that have passed


async def test_time_goes_on_without_any_traffic() -> None:
    async with DrivenNode(tick_seconds=0.005) as n1:
        await n1.said(RequestVote, lambda one: one.pre)
        assert n1.ticks >= n1.raft.settings.election_ticks


# The log keeps its bound.

LOG_MAX_BYTES = 100_000


async def fill(n1: DrivenNode, writes: int, first: int = 0) -> None:
    for number in range(first, first + writes):
        await n1.submit(put(b"%05d" % number, bytes(10_000)))


async def test_a_long_log_is_cut_in_half() -> None:
    async with DrivenNode(voters=1, log_max_bytes=LOG_MAX_BYTES, tick_seconds=0.005) as n1:
        for round_number in range(5):
            await fill(n1, 12, 12 * round_number)
            await eventually(lambda: n1.group.log.log_bytes() <= LOG_MAX_BYTES)
            assert n1.group.log.log_bytes() >= LOG_MAX_BYTES // 4
        assert n1.group.log.first_index() > 40


async def test_a_log_of_many_small_entries_is_cut_in_half() -> None:
    async with DrivenNode(voters=1, log_max_entries=20, tick_seconds=0.005) as n1:
        for number in range(100):
            await n1.submit(put(b"%d" % number))
            size = n1.group.log.last_index() + 1 - n1.group.log.first_index()
            assert size <= 2 * 20
        await eventually(lambda: n1.group.log.last_index() - n1.group.log.first_index() < 20)
        assert n1.group.log.last_index() - n1.group.log.first_index() >= 20 // 4


async def test_a_log_is_cut_seldom_and_much(caplog: pytest.LogCaptureFixture) -> None:
    """Each cut costs a flush of the state."""
    caplog.set_level("INFO", "kvorum.node")
    async with DrivenNode(voters=1, log_max_entries=20) as n1:
        for number in range(100):
            await n1.submit(put(b"%d" % number))
    assert 5 <= len([one for one in caplog.messages if "has cut the log" in one]) <= 10


async def test_the_log_is_cut_only_when_the_state_has_been_flushed() -> None:
    events: list[str] = []
    log, state = ScriptedDisk("log", events=events), ScriptedDisk("state", events=events)
    async with DrivenNode(
        voters=1, log=log, state=state, log_max_bytes=LOG_MAX_BYTES, tick_seconds=0.005
    ) as n1:
        state.hold()
        await fill(n1, 12)
        await eventually(lambda: state.syncs_begun == 1)
        await fill(n1, 12, 12)  # the traffic goes on beside the flush
        assert "log cut" not in events
        assert n1.group.log.log_bytes() > 2 * LOG_MAX_BYTES
        state.release()
        await eventually(lambda: n1.group.log.log_bytes() <= LOG_MAX_BYTES)
    assert events.index("state sync") < events.index("log cut")


async def test_what_is_not_applied_is_not_cut() -> None:
    async with DrivenNode(log_max_bytes=LOG_MAX_BYTES, tick_seconds=0.005) as n1:
        data = bytes(30_000)
        n1.hear(
            append(1, log=entries("1@1")), append(1, "1@1", entries("2@1 3@1 4@1 5@1", data=data))
        )
        await n1.said(AppendEntriesReply, lambda one: one.index == 5)
        await n1.tick(3)
        assert n1.group.log.first_index() == 1


async def test_a_flush_that_fails_ends_the_loop() -> None:
    state = ScriptedDisk("state")
    async with DrivenNode(
        voters=1, state=state, log_max_bytes=LOG_MAX_BYTES, tick_seconds=0.005
    ) as n1:
        state.fail_syncs = BROKEN
        with pytest.raises((OutcomeUnknown, ShuttingDown), match="Input/output error"):
            await fill(n1, 1_000)
        assert await n1.ended() is BROKEN
        assert n1.group.log.first_index() == 1


async def test_a_node_starts_again_from_a_cut_log(tmp_path: Path) -> None:
    for round_number in range(4):
        storage = Storage.open(tmp_path, None)
        async with DrivenNode(
            voters=1, storage=storage, log_max_bytes=LOG_MAX_BYTES, tick_seconds=0.005
        ) as n1:
            await fill(n1, 25, 25 * round_number)
            await eventually(lambda: n1.group.log.log_bytes() <= LOG_MAX_BYTES)
            await n1.read()
            for number in range(25 * (round_number + 1)):
                assert n1.group.machine.get(b"%05d" % number) is not None
        assert n1.group.log.first_index() >= 20 * (round_number + 1)
        storage.close()  # nothing was flushed but for the cuts: the rest is replayed


async def test_stopping_settles_whoever_waits() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        write, read = n1.submit(put(b"k")), n1.read()
        await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        n1.driver.stop()
        assert await n1.ended() is None
        with pytest.raises(OutcomeUnknown):
            await write
        with pytest.raises(ShuttingDown):
            await read
