"""Transactions that read, think and write: what they see, and what they prevent."""

import asyncio

import pytest

from kvorum import (
    KV,
    InvalidArgument,
    Transaction,
)
from kvorum.codecs import JSON
from kvorum.optimistic import Loop
from kvorum.transaction import Attempts
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.transactions import Counted, increment, value_of


@pytest.fixture
def kv(store: KV) -> KV:
    return store


# What it is


async def test_a_loop_commits_when_its_body_has_ended(kv: KV) -> None:
    await kv.put("a", 1)
    seen = None
    async for attempt in kv.transaction():
        async with attempt as txn:
            entry = await txn.get("a")
            assert entry is not None
            txn.put("a", entry.value + 1)
            seen = txn
        assert await value_of(kv, "a") == 1
    entry = await kv.get("a")
    assert entry is not None
    assert entry.value == 2
    assert seen is not None
    assert seen.revision == entry.revision


async def test_run_returns_what_the_body_returns(kv: KV) -> None:
    assert await kv.transaction().run(increment) == 1
    assert await kv.transaction().run(increment) == 2
    attempts = kv.transaction()
    await attempts.run(increment)
    with pytest.raises(InvalidArgument, match="these attempts are over"):
        await attempts.run(increment)


async def test_it_sees_what_it_has_written(kv: KV) -> None:
    await kv.put("a", 1)

    async def body(txn: Transaction) -> None:
        txn.put("a", 2)
        assert await value_of(txn, "a") == 2
        txn.put("a", b"\xff", metadata=b"m", type="bytes")
        entry = await txn.get("a", type="bytes")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"\xff", 0)
        txn.delete("a")
        assert await txn.get("a") is None
        txn.put("a", 3)
        txn.put("b", 4)
        txn.delete("b")

    await kv.transaction().run(body)
    assert [(entry.key, entry.value) async for entry in kv.scan()] == [("a", 3)]


async def test_what_only_the_store_can_know_is_refused(kv: KV) -> None:
    await kv.put("a:1", 1)

    async def body(txn: Transaction) -> None:
        txn.add("n", 5)
        with pytest.raises(InvalidArgument, match="'n' is added to"):
            await txn.get("n")
        with pytest.raises(InvalidArgument, match="'n' is written already"):
            txn.add("n", 5)
        txn.put("a:2", 1)
        with pytest.raises(InvalidArgument, match="'a:2' is in the range"):
            await txn.list("a:")
        assert len(await txn.list("b:")) == 0

    await kv.transaction().run(body)
    assert await value_of(kv, "n") == 5


async def test_a_read_is_repeatable_and_asks_once(kv: KV) -> None:
    await kv.put("a", 1)

    async def body(txn: Transaction) -> None:
        first = await txn.get("a")
        await kv.put("a", 2)
        assert await txn.get("a") is first or await txn.get("a") == first

    await kv.transaction().run(body)


async def test_an_expired_key_is_absent(kv: KV) -> None:
    await kv.put("a", 1)
    await kv.put("a", 1, ttl=0.001)
    await eventually_absent(kv, "a")

    async def body(txn: Transaction) -> object:
        await txn.get("other")
        found = await txn.get("a")
        txn.put("a", 2)
        return found

    assert await kv.transaction().run(body) is None


async def eventually_absent(kv: KV, key: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await kv.get(key) is not None:
            await kv.add("clock")  # a write takes log time along


# What it prevents


async def test_no_update_is_lost(kv: KV) -> None:
    body = Counted(increment)
    found = await asyncio.gather(
        *(kv.transaction(attempts=500, timeout=60).run(body) for _ in range(40))
    )
    assert sorted(found, key=str) == sorted(range(1, 41), key=str)
    assert await value_of(kv, "n") == 40
    assert body.runs > 40  # or else nobody was in anybody's way


async def test_no_write_skew(kv: KV) -> None:
    """Two doctors are on call; each may leave if the other stays."""
    await kv.put("alice", True)
    await kv.put("bob", True)
    meeting = asyncio.Barrier(2)
    first = {"alice": True, "bob": True}

    async def leave(who: str, other: str) -> None:
        async def body(txn: Transaction) -> None:
            on_call = await value_of(txn, other)
            if first.pop(who, False):
                await meeting.wait()  # both have read before one writes
            if on_call:
                txn.put(who, False)

        await kv.transaction().run(body)

    await asyncio.gather(leave("alice", "bob"), leave("bob", "alice"))
    assert sorted([await value_of(kv, "alice"), await value_of(kv, "bob")], key=str) == [
        False,
        True,
    ]


async def test_no_phantom(kv: KV) -> None:
    """Whoever finds no booking makes one: of two at once, one finds the other's."""
    meeting = asyncio.Barrier(2)
    first = {"a": True, "b": True}

    async def book(who: str) -> None:
        async def body(txn: Transaction) -> None:
            booked = await txn.list("booking:")
            if first.pop(who, False):
                await meeting.wait()
            if not len(booked):
                txn.put(f"booking:{who}", 1)

        await kv.transaction().run(body)

    await asyncio.gather(book("a"), book("b"))
    assert len(await kv.list("booking:")) == 1


async def test_nothing_comes_into_an_empty_store_unnoticed(kv: KV) -> None:
    """Revision 0 is a revision like others."""

    async def body(txn: Transaction) -> None:
        assert await txn.get("a") is None
        if counted.runs == 1:
            await kv.put("b", 1)
        found = await txn.get("b")
        assert (found is None) == (counted.runs == 1)
        txn.put("a", 1)

    counted = Counted(body)
    await kv.transaction().run(counted)
    assert counted.runs == 2


async def test_a_key_that_was_absent_and_has_come_is_a_conflict(kv: KV) -> None:
    await kv.put("x", 1)

    async def body(txn: Transaction) -> None:
        found = await txn.get("a")
        if counted.runs == 1:
            await kv.put("a", "mine")
        if found is None:
            txn.put("a", "yours")

    counted = Counted(body)
    await kv.transaction().run(counted)
    assert (counted.runs, await value_of(kv, "a")) == (2, "mine")


async def test_all_reads_are_of_one_revision(kv: KV) -> None:
    await kv.atomic().put("a", 1).put("b", 1).commit()

    async def body(txn: Transaction) -> None:
        a = await value_of(txn, "a")
        if counted.runs == 1:
            await kv.atomic().put("a", 2).put("b", 2).put("c", 2).commit()
        assert await value_of(txn, "b") == a
        assert [entry.value for entry in await txn.list()] == [a] * (2 if a == 1 else 3)
        txn.put("d", a)

    counted = Counted(body)
    await kv.transaction().run(counted)
    assert (counted.runs, await value_of(kv, "d")) == (2, 2)


async def test_reads_at_once_are_of_one_revision_too(kv: KV) -> None:
    names = [f"k{number}" for number in range(20)]
    stop = asyncio.Event()
    begun = asyncio.Event()

    async def write() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            built = kv.atomic()
            for name in names:
                built.put(name, value)
            await built.commit()
            begun.set()

    async def body(txn: Transaction) -> set[object]:
        return set(await asyncio.gather(*(value_of(txn, name) for name in names)))

    writer = asyncio.create_task(write())
    await begun.wait()
    for _ in range(20):
        assert len(await kv.transaction().run(body)) == 1
    stop.set()
    await writer


async def test_reading_alone_needs_no_second_attempt(kv: KV) -> None:
    await kv.atomic().put("a", 1).put("b", 1).commit()

    async def body(txn: Transaction) -> tuple[object, object]:
        a = await value_of(txn, "a")
        await kv.atomic().put("a", 2).put("b", 2).commit()
        return a, await value_of(txn, "b")

    counted = Counted(body)
    assert await kv.transaction().run(counted) == (1, 1)
    assert counted.runs == 1


@pytest.mark.parametrize(("written", "runs"), [("a:0", 2), ("a:15", 2), ("a:3", 1), ("b", 1)])
async def test_a_page_holds_what_it_has_shown(kv: KV, written: str, runs: int) -> None:
    for number in (1, 2, 3, 4):
        await kv.put(f"a:{number}", number)

    async def body(txn: Transaction) -> None:
        await txn.list("a:", limit=2)
        if counted.runs == 1:
            await kv.put(written, "new")
        txn.put("z", 1)

    counted = Counted(body)
    await kv.transaction().run(counted)
    assert counted.runs == runs


async def test_pages_are_of_one_revision(kv: KV) -> None:
    for number in (1, 2, 3, 4):
        await kv.put(f"a:{number}", number)

    async def body(txn: Transaction) -> list[object]:
        page = await txn.list("a:", limit=2)
        await kv.put("a:4", "new")
        rest = await txn.list("a:", limit=2, cursor=page.cursor)
        return [entry.value for entry in (*page, *rest)]

    assert await kv.transaction().run(body) == [1, 2, 3, 4]


async def test_blind_additions_are_in_nobodys_way(kv: KV) -> None:
    async def body(txn: Transaction) -> None:
        txn.add("n")
        await kv.add("n")

    counted = Counted(body)
    await asyncio.gather(*(kv.transaction().run(counted) for _ in range(10)))
    assert (counted.runs, await value_of(kv, "n")) == (10, 20)


async def test_of_reads_at_once_the_first_says_the_revision() -> None:
    asked: list[int] = []

    async def carry(call: Call, _seconds: float) -> Reply:
        asked.append(call.get.revision)
        reply = Reply()
        # Every write of others is between two reads.
        reply.get.revision = call.get.revision or 6 + len(asked)
        await asyncio.sleep(0)
        return reply

    async def body(txn: Transaction) -> None:
        await asyncio.gather(*(txn.get(f"k{number}") for number in range(4)))

    await Attempts(Loop(carry, attempts=1, timeout_seconds=10), JSON).run(body)
    assert asked == [0, 7, 7, 7]
