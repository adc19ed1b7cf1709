"""Large commands in a group: small writes pass them, and they wait for one another."""

import asyncio

import pytest

from kvorum import limits
from kvorum.errors import NotLeader, Overloaded
from kvorum_node.raft.messages import AppendEntries
from tests.support.commands import put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import heartbeat

LARGE = bytes(limits.MAX_BATCH_BYTES + 1)


def proposed(n1: DrivenNode) -> int:
    return len(n1.group._waiters.proposals)


async def test_few_large_entries_are_under_way_and_small_ones_pass_the_others() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        large = [n1.submit(put(b"large %d" % number, LARGE)) for number in range(4)]
        await eventually(lambda: proposed(n1) == limits.MAX_LARGE_ENTRIES)
        small = n1.submit(put(b"small"))
        await eventually(lambda: proposed(n1) == limits.MAX_LARGE_ENTRIES + 1)
        await n1.accept()
        await small
        assert [one.done() for one in large] == [True, True, False, False]
        await eventually(lambda: proposed(n1) == limits.MAX_LARGE_ENTRIES)
        await n1.accept()
        await asyncio.gather(*large)


async def test_what_waits_counts_among_what_is_uncommitted() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        value = bytes(limits.MAX_VALUE_BYTES)
        for number in range(limits.MAX_LARGE_ENTRIES):
            n1.submit(put(b"%d" % number, value))
        await eventually(lambda: proposed(n1) == limits.MAX_LARGE_ENTRIES)
        for _ in range(limits.MAX_UNCOMMITTED_BYTES // len(value)):
            n1.submit(put(b"waits", value))
            await n1.settle()
        with pytest.raises(Overloaded):
            n1.submit(put(b"one too many", value))


async def test_a_large_write_that_waits_too_long_was_not_applied() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        for number in range(limits.MAX_LARGE_ENTRIES):
            n1.submit(put(b"%d" % number, LARGE))
        late = n1.submit(put(b"late", LARGE), deadline=n1.now)
        await eventually(lambda: proposed(n1) == limits.MAX_LARGE_ENTRIES)
        await n1.tick()
        with pytest.raises(Overloaded):
            await late
        assert n1.group._waiters.queued_bytes == 0


async def test_large_writes_that_wait_are_refused_when_the_office_is_lost() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        for number in range(limits.MAX_LARGE_ENTRIES):
            n1.submit(put(b"%d" % number, LARGE))
        waiting = n1.submit(put(b"waiting", LARGE))
        await n1.said(AppendEntries, lambda one: bool(one.entries))
        n1.hear(heartbeat(2, sender=2))
        with pytest.raises(NotLeader):
            await waiting
