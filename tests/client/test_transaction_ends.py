"""Transactions that read, think and write: when they give up, and wrong use of them."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
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
from kvorum.codecs import JSON
from kvorum.optimistic import MAX_PAUSE_SECONDS, Loop, _pause_seconds
from kvorum.transaction import Attempts
from kvorumpb.v1.kv_pb2 import Call, Reply
from tests.support.eventually import eventually
from tests.support.transactions import Counted, value_of


@pytest.fixture
async def kv() -> AsyncIterator[KV]:
    async with kvorum.open("memory:") as kv:
        yield kv


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
            await Attempts(loop, JSON).run(body)
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
    assert await Attempts(loop, JSON).run(counted) == 2
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
