"""Transactions that read, think and write: what they prevent, and when they give up."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvorum
from kvorum import (
    KV,
    Compacted,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    OutOfBounds,
    SyncTransaction,
    Transaction,
    limits,
)
from kvorum.optimistic import MAX_PAUSE_SECONDS, Loop, _pause_seconds
from kvorum.transaction import Attempts
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.support.eventually import eventually


@pytest.fixture
async def kv() -> AsyncIterator[KV]:
    async with kvorum.open("memory:") as kv:
        yield kv


async def value_of(kv: KV | Transaction, key: str) -> object:
    entry = await kv.get(key)
    return None if entry is None else entry.value


async def increment(txn: Transaction) -> int:
    entry = await txn.get("n")
    value: int = 1 if entry is None else entry.value + 1
    txn.put("n", value)
    return value


class Counted:
    """A body, and how often it has run."""

    def __init__(self, body: Callable[[Transaction], Awaitable[object]]) -> None:
        self.runs = 0
        self._body = body

    async def __call__(self, txn: Transaction) -> object:
        self.runs += 1
        return await self._body(txn)


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
    async with asyncio.timeout(10):
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


# How it ends


async def test_an_error_of_the_body_ends_it(kv: KV) -> None:
    async def body(txn: Transaction) -> None:
        await txn.get("a")
        txn.put("a", 1)
        await kv.put("a", "other")
        raise LookupError("no")

    counted = Counted(body)
    with pytest.raises(LookupError):
        await kv.transaction().run(counted)
    assert (counted.runs, await value_of(kv, "a")) == (1, "other")


async def test_an_operation_that_fails_is_not_tried_again(kv: KV) -> None:
    async def body(txn: Transaction) -> None:
        txn.put("a", 1)
        txn.add("n", 2, max=1)

    counted = Counted(body)
    with pytest.raises(OutOfBounds):
        await kv.transaction().run(counted)
    assert (counted.runs, await value_of(kv, "a")) == (1, None)


async def hopeless(kv: KV, txn: Transaction) -> None:
    await txn.get("a")
    await kv.put("a", "other")
    txn.put("a", "mine")


async def test_attempts_are_bounded(kv: KV) -> None:
    counted = Counted(lambda txn: hopeless(kv, txn))
    with pytest.raises(Conflict, match=r"\(attempt 3 of 3\)") as given_up:
        await kv.transaction(attempts=3).run(counted)
    assert (counted.runs, given_up.value.key) == (3, "a")
    assert await value_of(kv, "a") == "other"


async def test_the_time_is_bounded(kv: KV) -> None:
    attempts = kv.transaction(attempts=1_000_000, timeout=0.3)
    with pytest.raises((Conflict, DeadlineExceeded)) as given_up:
        await attempts.run(lambda txn: hopeless(kv, txn))
    if isinstance(given_up.value, Conflict):
        assert "attempt" in str(given_up.value)
    assert await value_of(kv, "a") == "other"


async def test_a_body_that_outlasts_the_time_writes_nothing(kv: KV) -> None:
    loop = asyncio.get_running_loop()

    async def body(txn: Transaction) -> None:
        txn.put("a", 1)
        end = loop.time() + 0.02
        await eventually(lambda: loop.time() > end)

    with pytest.raises(DeadlineExceeded, match="nothing was written") as late:
        await kv.transaction(timeout=0.01).run(body)
    assert late.value.maybe_applied is False
    assert await value_of(kv, "a") is None


def test_pauses_grow_and_are_bounded() -> None:
    for attempt in (1, 2, 10, 100, 10_000):
        assert 0 <= max(_pause_seconds(attempt) for _ in range(100)) <= MAX_PAUSE_SECONDS


async def test_a_cancelled_body_writes_nothing(kv: KV) -> None:
    reached = asyncio.Event()

    async def body(txn: Transaction) -> None:
        txn.put("a", 1)
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(kv.transaction().run(body))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await value_of(kv, "a") is None


async def test_a_transaction_that_is_cancelled_between_attempts_ends(kv: KV) -> None:
    counted = Counted(lambda txn: hopeless(kv, txn))
    task = asyncio.create_task(kv.transaction(attempts=1_000_000, timeout=60).run(counted))
    await eventually(lambda: counted.runs > 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await value_of(kv, "a") == "other"


async def test_who_leaves_by_return_is_told_that_nothing_was_written(kv: KV) -> None:
    async def lose() -> int:
        async for attempt in kv.transaction():
            async with attempt as txn:
                txn.put("a", 1)
                return 1
        return 0

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        await lose()
        gc.collect()
    assert ["left by return or break" in str(one.message) for one in told] == [True]
    assert told[0].category is RuntimeWarning
    assert await value_of(kv, "a") is None


async def test_who_leaves_without_a_write_or_by_an_error_is_told_nothing(kv: KV) -> None:
    async def look() -> object:
        async for attempt in kv.transaction():
            async with attempt as txn:
                return await txn.get("a")
        return 0

    async def fail() -> None:
        async for attempt in kv.transaction():
            async with attempt as txn:
                txn.put("a", 1)
                raise LookupError

    assert await look() is None
    with pytest.raises(LookupError):
        await fail()
    gc.collect()  # a warning would be an error here


async def test_an_error_that_is_caught_within_the_loop_ends_it_too(kv: KV) -> None:
    async def fail(attempt: Transaction) -> None:
        async with attempt as txn:
            txn.put("a", 1)
            raise LookupError

    runs = 0
    async for attempt in kv.transaction():
        runs += 1
        with pytest.raises(LookupError):
            await fail(attempt)
    assert (runs, await value_of(kv, "a")) == (1, None)


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

    await Attempts(Loop(carry, attempts=1, timeout_seconds=10), "json").run(body)
    assert asked == [0, 7, 7, 7]


async def test_no_attempt_begins_that_has_no_time_left() -> None:
    """The last word is what was in the way, and not that time is out."""

    async def carry(call: Call, _seconds: float) -> Reply:
        reply = Reply()
        if call.HasField("get"):
            reply.get.revision = 1
        else:
            reply.txn.result.failed_check = 0
        return reply

    async def body(txn: Transaction) -> None:
        await txn.get("a")
        txn.put("a", 1)

    async def outcome() -> type[Exception]:
        loop = Loop(carry, attempts=1_000_000, timeout_seconds=0.05)
        with pytest.raises((Conflict, DeadlineExceeded)) as ended:
            await Attempts(loop, "json").run(body)
        return ended.type

    # A pause may still last longer than it was to, so one of them is enough.
    assert Conflict in [await outcome() for _ in range(10)]


async def test_a_revision_that_is_not_kept_any_more_is_a_conflict() -> None:
    """The history was compacted while the body ran: it begins again at a newer revision."""
    asked: list[Call] = []

    async def carry(call: Call, _seconds: float) -> Reply:
        asked.append(call)
        reply = Reply()
        match call.WhichOneof("request"):
            case "get" if call.get.revision == 7:
                raise Compacted("gone", revision=7, oldest_revision=9)
            case "get":
                reply.get.revision = 7 if len(asked) == 1 else 9
            case _:
                reply.txn.result.succeeded = True
                reply.txn.result.revision = 10
        return reply

    async def body(txn: Transaction) -> int:
        await txn.get("a")
        await txn.get("b")
        txn.put("c", 1)
        return counted.runs

    counted = Counted(body)
    loop = Loop(carry, attempts=5, timeout_seconds=10)
    assert await Attempts(loop, "json").run(counted) == 2
    assert [call.get.revision for call in asked if call.HasField("get")] == [0, 7, 0, 9]


# Wrong use


async def test_wrong_use_is_named(kv: KV) -> None:
    async def not_entered() -> None:
        async for _ in kv.transaction():
            pass

    with pytest.raises(InvalidArgument, match="each attempt of a transaction is entered"):
        await not_entered()
    left: Transaction | None = None
    async for attempt in kv.transaction():
        with pytest.raises(InvalidArgument, match="within its `with`"):
            attempt.put("a", 1)
        async with attempt as txn:
            left = txn
        with pytest.raises(InvalidArgument, match="entered before"):
            async with attempt:
                pass
    assert left is not None
    with pytest.raises(InvalidArgument, match="not afterwards"):
        await left.get("a")
    for attempts in (0, -1, 1.5, True, "3"):
        with pytest.raises(InvalidArgument, match="attempts is an int from 1"):
            kv.transaction(attempts=attempts)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InvalidArgument, match="timeout"):
        kv.transaction(timeout=0)


async def test_too_much_for_one_transaction(kv: KV) -> None:
    async def body(txn: Transaction) -> None:
        for number in range(limits.MAX_TRANSACTION_OPERATIONS):
            txn.put(f"k{number}", 0)
        await txn.get("a")

    with pytest.raises(LimitExceeded, match="MAX_TRANSACTION_OPERATIONS"):
        await kv.transaction().run(body)
    assert len(await kv.list()) == 0


# Threads


def test_threads_lose_no_update() -> None:
    with kvorum.open_sync("memory:") as kv, ThreadPoolExecutor(8) as pool:

        def body(txn: SyncTransaction) -> int:
            entry = txn.get("n")
            value: int = 1 if entry is None else entry.value + 1
            txn.put("n", value)
            return value

        def work(_: int) -> int:
            return kv.transaction(attempts=500, timeout=60).run(body)

        assert sorted(pool.map(work, range(40))) == list(range(1, 41))


def test_the_loop_of_threads() -> None:
    with kvorum.open_sync("memory:") as kv:
        kv.put("p:1", 1)
        runs = 0
        seen = None
        for attempt in kv.transaction():
            with attempt as txn:
                runs += 1
                page = txn.list("p:")
                if runs == 1:
                    kv.put("p:2", 2)
                txn.put("sum", sum(entry.value for entry in page))
                txn.delete("p:1")
                txn.add("n", 2)
                seen = txn
        entry = kv.get("sum")
        assert entry is not None
        assert seen is not None
        assert (runs, entry.value, seen.revision) == (2, 3, entry.revision)


def test_an_error_in_a_thread_ends_it() -> None:
    def fail(txn: SyncTransaction) -> None:
        txn.put("a", 1)
        raise LookupError

    with kvorum.open_sync("memory:") as kv:
        with pytest.raises(LookupError):
            kv.transaction().run(fail)
        assert kv.get("a") is None
