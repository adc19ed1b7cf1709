"""Log time and reads, on a node whose clock stands still until the test moves it."""

import pytest

from kvorum.errors import NotLeader
from kvorum_node.raft.messages import AppendEntries, Heartbeat
from kvorum_node.waiters import Write
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    Operation,
    PutOperation,
    Sweep,
    TouchOperation,
    Transaction,
)
from tests.support.commands import put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import append, entries, heartbeat, heartbeat_reply

MINUTE = 60_000


def put_for(key: bytes, ttl_ms: int) -> Operation:
    return Operation(put=PutOperation(key=key, value=b"value", ttl_ms=ttl_ms))


def batch(log_time_ms: int, *operations: Operation) -> bytes:
    commands = [Command(transaction=Transaction(operations=[one])) for one in operations]
    return CommandBatch(format=2, log_time_ms=log_time_ms, commands=commands).SerializeToString()


async def test_nothing_is_written_for_reads_where_nothing_expires() -> None:
    async with DrivenNode(voters=1) as n1:
        await n1.submit(put(b"k"))
        last = n1.group.log.last_index()
        n1.clock_ms += MINUTE
        await n1.read()
        await n1.submit(put_for(b"t", 5 * MINUTE))
        n1.clock_ms += MINUTE
        await n1.read()
        assert n1.group.log.last_index() == last + 1


async def test_a_read_after_an_expiry_is_answered_with_the_log_time_that_says_so() -> None:
    async with DrivenNode(voters=1) as n1:
        await n1.submit(put_for(b"t", 100))
        machine = n1.group.machine
        n1.clock_ms += 99
        await n1.read()
        assert machine.get(b"t") is not None
        n1.clock_ms += 1
        await n1.read()
        assert machine.get(b"t") is None
        assert machine.log_time_ms == n1.clock_ms
        last = n1.group.log.last_index()
        await n1.read()
        assert n1.group.log.last_index() == last, "once is enough"


async def test_a_read_waits_until_the_time_is_committed() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.submit(put_for(b"t", 100))
        await n1.settle()
        await n1.accept()
        n1.clock_ms += 100
        n1.sent.clear()
        read = n1.read()
        n1.hear(heartbeat_reply(1, read_round=(await n1.said(Heartbeat)).read_round))
        sent = await n1.said(AppendEntries, lambda one: bool(one.entries))
        assert CommandBatch.FromString(sent.entries[0].data).log_time_ms == n1.clock_ms
        await n1.settle()
        assert not read.done()
        await n1.accept()
        await read
        assert n1.group.machine.get(b"t") is None


async def test_a_write_that_waits_brings_the_time_along() -> None:
    async with DrivenNode(voters=1) as n1:
        await n1.submit(put_for(b"t", 100))
        machine, last = n1.group.machine, n1.group.log.last_index()
        has_expiring = machine.has_expiring
        writes: list[Write] = []

        def and_a_write_arrives(now_ms: int) -> bool:
            due = has_expiring(now_ms)
            if due:
                writes.append(n1.submit(put(b"k")))
            return due

        machine.has_expiring = and_a_write_arrives  # type: ignore[method-assign]  # a spy
        n1.clock_ms += 100
        await n1.read()
        [write] = writes
        await write
        assert n1.group.log.last_index() == last + 1
        assert machine.get(b"t") is None


async def test_an_old_leader_that_expires_what_was_renewed_at_the_new_one() -> None:
    """Cut off, n1 sees a lease run out by its clock: it tells nobody, and takes it back."""
    async with DrivenNode() as n1:
        await n1.lead()
        n1.submit(put_for(b"lease", 100))
        await n1.settle()
        await n1.accept()
        n1.clock_ms += 100
        sweep = CommandBatch(commands=[Command(sweep=Sweep(limit=10))]).SerializeToString()
        swept = n1.group.submit(sweep, 1, deadline=n1.now + 3600)
        read = n1.read()
        await n1.settle()
        assert n1.raft.log.last_index == 3
        assert not read.done()
        assert n1.group.machine.get(b"lease") is not None
        # n2 leads, and n3 has accepted the renewal there, at 1050.
        renewal = batch(1_050, Operation(touch=TouchOperation(key=b"lease", ttl_ms=100)))
        n1.hear(append(2, "2@1", entries("3@2", data=renewal), commit=3))
        await eventually(lambda: n1.group.machine.applied == 3)
        for one in (read, swept):
            with pytest.raises(NotLeader):
                await one
        record = n1.group.machine.get(b"lease")
        assert record is not None
        assert record.expire_time_ms == 1_150


async def test_a_read_fails_when_leadership_is_lost_while_it_waits_for_the_time() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.submit(put_for(b"t", 100))
        await n1.settle()
        await n1.accept()
        n1.clock_ms += 100
        n1.sent.clear()
        read = n1.read()
        n1.hear(heartbeat_reply(1, read_round=(await n1.said(Heartbeat)).read_round))
        await n1.said(AppendEntries, lambda one: bool(one.entries))
        n1.hear(heartbeat(2))
        with pytest.raises(NotLeader):
            await read


@pytest.mark.parametrize("skew_ms", [-10 * MINUTE, 10 * MINUTE])
async def test_whoever_takes_over_goes_on_with_the_time_of_the_old_leader(skew_ms: int) -> None:
    async with DrivenNode() as n1:
        n1.clock_ms = 20 * MINUTE + skew_ms
        log_time_ms = 20 * MINUTE
        log = entries("1@1", data=batch(log_time_ms, put_for(b"t", 5_000)))
        n1.hear(append(1, log=log, commit=1))
        await eventually(lambda: n1.group.machine.applied == 1)
        n1.clock_ms += 3_000
        await n1.lead()
        n1.submit(put(b"k"))
        await n1.settle()
        await n1.accept()
        assert abs(n1.group.machine.log_time_ms - (log_time_ms + 3_000)) <= 2
        assert n1.group.machine.get(b"t") is not None


async def test_what_another_node_says_of_the_time_counts_only_if_it_leads() -> None:
    async with DrivenNode() as n1:
        n1.hear(heartbeat(1))
        await eventually(lambda: n1.raft.leader == 2)
        n1.group.follow_clock(n1.raft.leader, 7 * MINUTE)  # type: ignore[arg-type]  # it is known
        assert n1.group.now_ms() == 7 * MINUTE
        n1.group.follow_clock(n1.raft.node, 8 * MINUTE)
        assert n1.group.now_ms() == 7 * MINUTE
