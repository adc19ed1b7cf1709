"""Every operation that changes something, on each kind of store (support/targets.py has the three).

The same is said of simple calls in test_records.py, of lists and the past in test_lists.py, of
watches in test_watch.py, of transactions in test_transaction.py, and of threads in test_sync.py.
"""

import asyncio
from datetime import datetime, timedelta

import pytest

from kvorum import (
    KV,
    Conflict,
    IndexEntry,
    IntegerOverflow,
    NotAnInteger,
    OutOfBounds,
    RangeTooLarge,
    RateLimit,
    Transaction,
    UniqueViolation,
    limits,
)
from kvorum.model import Algorithm
from tests.support.transactions import value_of


@pytest.fixture
def kv(store: KV) -> KV:
    return store


async def keys_of(kv: KV, prefix: str = "") -> list[str]:
    return [entry.key async for entry in kv.scan(prefix)]


# Conditions


async def test_put_with_conditions(kv: KV) -> None:
    first = await kv.put("a", 1, exists=False)
    second = await kv.put("a", 2, revision=first)
    assert second > first
    with pytest.raises(Conflict, match="'a' did not hold: it exists") as refused:
        await kv.put("a", 3, exists=False)
    assert (refused.value.check, refused.value.key, refused.value.range) == (0, "a", None)
    with pytest.raises(Conflict, match=f"it is not at revision {first}"):
        await kv.put("a", 3, revision=first)
    with pytest.raises(Conflict, match="it does not exist"):
        await kv.put("b", 3, exists=True)
    assert await value_of(kv, "a") == 2
    assert await kv.put("b", 3, revision=0) == second + 1


async def test_delete_with_a_condition(kv: KV) -> None:
    first = await kv.put("a", 1)
    second = await kv.put("a", 2)
    with pytest.raises(Conflict):
        await kv.delete("a", revision=first)
    assert await kv.delete("a", revision=second) is True
    with pytest.raises(Conflict):
        await kv.delete("a", revision=second)
    assert await kv.delete("a", revision=0) is False


async def test_get_and_delete_gives_it_to_one(kv: KV) -> None:
    await kv.put("job", {"do": "this"})
    taken = await asyncio.gather(*(kv.get_and_delete("job") for _ in range(20)))
    assert [entry.value for entry in taken if entry is not None] == [{"do": "this"}]
    await kv.put("text", "ü", type="text")
    entry = await kv.get_and_delete("text", type="text")
    assert entry is not None
    assert (entry.key, entry.value) == ("text", "ü")


# Ranges


async def test_delete_range_counts(kv: KV) -> None:
    await asyncio.gather(*(kv.put(f"a:{i}", i) for i in range(7)), kv.put("b", 1))
    assert await kv.delete_range("a:", limit=2) == 2
    assert await keys_of(kv, "a:") == [f"a:{i}" for i in range(2, 7)]
    assert await kv.delete_range(start="a:2", end="a:4") == 2
    assert await kv.delete_range("a:") == 3
    assert await kv.delete_range("a:") == 0
    assert await keys_of(kv) == ["b"]
    assert await kv.delete_range(start="") == 1


# Time to live


async def test_how_long_a_key_lives(kv: KV) -> None:
    await kv.put("a", 1, ttl=300)
    left = await kv.ttl("a")
    assert left is not None
    assert 0 < left <= 300
    assert await kv.touch("a", timedelta(hours=1)) is True
    left = await kv.ttl("a")
    assert left is not None
    assert 300 < left <= 3600
    assert await kv.persist("a") is True
    assert await kv.ttl("a") is None
    entry = await kv.get("a")
    assert entry is not None
    assert entry.version == 1  # neither was a write
    assert await kv.touch("b", 1) is False
    assert await kv.persist("b") is False
    assert await kv.ttl("b") == 0.0


async def test_a_put_can_leave_the_expiry_as_it_is(kv: KV) -> None:
    await kv.put("a", 1, ttl=300, keep_ttl=True)  # there is none to keep: it is created
    expiry = await expiry_of(kv, "a")
    assert expiry is not None
    await kv.put("a", 2, keep_ttl=True)
    await kv.put("a", 3, ttl=5, keep_ttl=True, exists=True)
    await kv.atomic().put("a", 4, keep_ttl=True).commit()
    async for attempt in kv.transaction():
        async with attempt as txn:
            txn.put("a", 5, keep_ttl=True)
    assert await expiry_of(kv, "a") == expiry
    await kv.touch("a", 600)
    renewed = await expiry_of(kv, "a")
    assert renewed is not None
    assert renewed > expiry
    await kv.put("a", 6, keep_ttl=True)
    assert await expiry_of(kv, "a") == renewed
    await kv.persist("a")
    await kv.put("a", 7, ttl=5, keep_ttl=True)
    assert await expiry_of(kv, "a") is None


async def expiry_of(kv: KV, key: str) -> datetime | None:
    entry = await kv.get(key)
    assert entry is not None
    return entry.expires_at


async def test_a_put_replaces_the_time_to_live(kv: KV) -> None:
    await kv.put("a", 1, ttl=300)
    await kv.put("a", 2)
    assert await kv.ttl("a") is None


# Integers


async def test_add_with_bounds(kv: KV) -> None:
    total = await kv.add("stock", 10, max=10)
    assert (total, total.applied) == (10, 10)
    with pytest.raises(OutOfBounds, match="adding 11 to 0 would give 11, more than the max 10"):
        await kv.add("new", 11, max=10)
    with pytest.raises(OutOfBounds, match="would give -1, less than the min 0") as refused:
        await kv.add("stock", -11, min=0)
    assert refused.value.value == 10
    total = await kv.add("stock", -11, min=0, saturate=True)
    assert (total, total.applied) == (0, -10)
    await kv.put("stock", limits.MAX_INTEGER)
    with pytest.raises(IntegerOverflow):
        await kv.add("stock")
    assert (await kv.add("stock", 5, saturate=True)).applied == 0
    await kv.put("stock", "none")
    with pytest.raises(NotAnInteger):
        await kv.add("stock")


async def test_add_sets_a_time_to_live_when_it_creates(kv: KV) -> None:
    await kv.add("n", ttl=300)
    await kv.persist("n")
    await kv.add("n", ttl=300)
    assert await kv.ttl("n") is None


async def test_sums_are_exact(kv: KV) -> None:
    sums = await asyncio.gather(*(kv.add("n", max=30, saturate=True) for _ in range(50)))
    assert sorted(sums) == [*range(1, 31), *[30] * 20]
    assert sum(one.applied for one in sums) == 30


# Indexes


async def test_a_unique_entry_belongs_to_one_record(kv: KV) -> None:
    entries = [IndexEntry("email", "a@b.c", unique=True), IndexEntry("city", "Rome")]
    await kv.put("user:1", 1, index_entries=entries)
    with pytest.raises(UniqueViolation) as refused:
        await kv.put("user:2", 2, index_entries=entries)
    assert (refused.value.index, refused.value.value, refused.value.owner) == (
        "email",
        "a@b.c",
        "user:1",
    )
    await kv.delete("user:1")
    await kv.put("user:2", 2, index_entries=entries)


async def test_an_index_follows_its_records(kv: KV) -> None:
    async def found(value: str) -> list[str]:
        return [entry.key for entry in await kv.list(index="city", value=value)]

    await kv.put("user:1", 1, index_entries=[IndexEntry("city", "Rome")])
    await kv.put("user:2", 2, index_entries=[IndexEntry("city", b"Rome")])
    assert await found("Rome") == ["user:1", "user:2"]
    await kv.put("user:1", 1, index_entries=[IndexEntry("city", "Oslo")])
    await kv.put("user:2", 2)
    assert (await found("Rome"), await found("Oslo")) == ([], ["user:1"])
    entry = await kv.get("user:1")
    assert entry is not None
    assert entry.index_entries == (IndexEntry("city", "Oslo"),)
    await kv.put("user:3", 3, index_entries=entry.index_entries)
    assert await kv.delete_range("user:") == 3
    assert await found("Oslo") == []


async def test_of_many_sign_ups_one_wins(kv: KV) -> None:
    async def sign_up(number: int) -> bool:
        try:
            await kv.put(
                f"user:{number}", number, index_entries=[IndexEntry("email", "a@b", unique=True)]
            )
        except UniqueViolation:
            return False
        return True

    assert sum(await asyncio.gather(*(sign_up(number) for number in range(30)))) == 1
    assert len(await keys_of(kv, "user:")) == 1


# Rate limits


@pytest.mark.parametrize("algorithm", ["sliding_log", "sliding_counter", "gcra"])
async def test_as_many_pass_as_may(kv: KV, algorithm: Algorithm) -> None:
    rule = RateLimit(f"user-{algorithm}", 20, window=timedelta(days=1), algorithm=algorithm)
    reset = RateLimit(rule.key, 20, rule.window, algorithm, cost=0, reset=True)
    assert (await kv.rate_limit(reset)).remaining == 20
    decided = await asyncio.gather(*(kv.rate_limit(rule) for _ in range(40)))
    assert sum(map(bool, decided)) == 20
    refused = next(one for one in decided if not one)
    assert 0 < refused.retry_after <= 86_400
    assert 0 < refused.reset_after <= 2 * 86_400  # the counter looks at two windows
    assert refused.remaining == 0


async def test_all_limits_or_none(kv: KV) -> None:
    user = RateLimit("user", 5, 3600, reset=True)
    address = RateLimit("address", 1, 3600, reset=True)
    assert await kv.rate_limit(user, address)
    user, address = RateLimit("user", 5, 3600), RateLimit("address", 1, 3600)
    refused = await kv.rate_limit(user, address)
    assert [state.allowed for state in refused] == [True, False]
    standing = await kv.rate_limit(RateLimit("user", 5, 3600, cost=0))
    assert standing.remaining == 4


# Checks and operations together


async def test_every_operation_gives_its_result(kv: KV) -> None:
    await kv.put("gone", "g")
    await asyncio.gather(*(kv.put(f"r:{i}", i) for i in range(3)))
    result = await (
        kv.atomic()
        .put("a", 1, ttl=60, metadata=b"m", index_entries=[IndexEntry("i", "v")])
        .get("a")
        .list("r:", limit=2)
        .list("r:", limit=2, reverse=True)
        .get_and_delete("gone")
        .get_and_delete("never")
        .delete_range("r:", limit=2)
        .add("n", 7, max=5, saturate=True)
        .touch("r:2", 60)
        .persist("nobody")
        .delete("r:9")
        .rate_limit(RateLimit("every operation", 1, 1, reset=True))
        .commit()
    )
    put, got, page, backwards, taken, nothing, deleted, total, touched, persisted, gone, allowed = (
        result.results
    )
    assert put == result.revision == got.revision
    assert ([entry.key for entry in page], page.complete) == (["r:0", "r:1"], False)
    assert [entry.key for entry in backwards] == ["r:2", "r:1"]
    assert (taken.value, nothing, deleted) == ("g", None, 2)
    assert (total, total.applied) == (5, 5)
    assert (touched, persisted, gone, bool(allowed)) == (True, False, False, True)
    assert (result.succeeded, result.failed_check) == (True, None)
    assert await kv.ttl("r:2") is not None


async def test_a_commit_says_when_it_was(kv: KV) -> None:
    result = await kv.atomic().put("a", 1, ttl=300).commit()
    entry = await kv.get("a")
    assert entry is not None
    assert entry.updated_at == result.at
    assert entry.expires_at == result.at + timedelta(seconds=300)


async def test_each_condition(kv: KV) -> None:
    revision = await kv.put("a", {"x": None})
    later = await kv.put("b", 1)
    await (
        kv.atomic()
        .check("a", revision=revision)
        .check("a", exists=True)
        .check("a", version=1)
        .check("a", value={"x": None})
        .check("a", unchanged_since=revision)
        .check("c", exists=False)
        .check("c", revision=0)
        .check("c", version=0)
        .check_range("", exists=True)
        .check_range("c", exists=False)
        .check_range("a", value={"x": None})
        .check_range(start="b", version=1)
        .check_range("a", revision=revision)
        .check_range(unchanged_since=later)
        .put("c", 1)
        .commit()
    )


async def test_the_check_that_fails_is_named(kv: KV) -> None:
    revision = await kv.put("a", 1)
    for number, built in enumerate(
        [
            kv.atomic().check("a", revision=revision + 1),
            kv.atomic().check("a", exists=False),
            kv.atomic().check("a", version=2),
            kv.atomic().check("a", value="1"),
            kv.atomic().check("a", unchanged_since=revision - 1),
        ]
    ):
        with pytest.raises(Conflict) as refused:
            await built.put("b", number).commit()
        assert (refused.value.check, refused.value.key, refused.value.range) == (0, "a", None)
    with pytest.raises(Conflict, match="the range from 'a' to 'b' did not hold") as refused:
        await kv.atomic().check("a", exists=True).check_range("a", exists=False).commit()
    assert (refused.value.check, refused.value.key) == (1, "a")
    assert refused.value.range == ("a", "b")
    assert await value_of(kv, "b") is None


async def test_otherwise(kv: KV) -> None:
    await kv.put("a", 1)
    built = kv.atomic().check("z", exists=False).check("a", exists=False).put("a", 2)
    result = await built.otherwise().get("a").add("refused").commit()
    assert (result.succeeded, result.failed_check) == (False, 1)
    assert (result.results[0].value, result.results[1]) == (1, 1)
    built = kv.atomic().check("b", exists=False).put("b", 2)
    result = await built.otherwise().get("b").get("b").commit()
    assert (result.succeeded, result.results) == (True, (result.revision,))
    result = await kv.atomic().check("b", exists=False).put("b", 3).otherwise().commit()
    assert (result.succeeded, result.results) == (False, ())
    assert await value_of(kv, "b") == 2


async def test_a_failed_operation_undoes_the_others(kv: KV) -> None:
    with pytest.raises(OutOfBounds) as failed:
        await kv.atomic().put("a", 1).add("n", 2, max=1).commit()
    assert failed.value.metadata["operation"] == "1"
    assert await value_of(kv, "a") is None


# Transactions


async def test_no_update_is_lost(kv: KV) -> None:
    async def increment(txn: Transaction) -> int:
        entry = await txn.get("n")
        value: int = 1 if entry is None else entry.value + 1
        txn.put("n", value)
        return value

    found = await asyncio.gather(*(kv.transaction(timeout=60).run(increment) for _ in range(12)))
    assert sorted(found) == list(range(1, 13))
    assert await value_of(kv, "n") == 12


async def test_a_transaction_that_reads_what_it_lists(kv: KV) -> None:
    async def book(txn: Transaction) -> bool:
        """Take the next of three places."""
        taken = await txn.list("place:")
        if len(taken) == 3:
            return False
        txn.put(f"place:{len(taken)}", "taken")
        return True

    got = await asyncio.gather(*(kv.transaction(timeout=60).run(book) for _ in range(8)))
    assert sum(got) == 3
    assert await keys_of(kv) == ["place:0", "place:1", "place:2"]


# Last, as it takes its time


async def test_a_range_that_is_too_large_for_one_operation(kv: KV) -> None:
    count = limits.MAX_RANGE_RECORDS + 1
    for start in range(0, count, 1000):
        built = kv.atomic()
        for number in range(start, min(start + 1000, count)):
            built.put(f"many:{number:05}", number)
        await built.commit()
    with pytest.raises(RangeTooLarge):
        await kv.delete_range("many:")
    assert await kv.delete_range("many:", limit=limits.MAX_RANGE_RECORDS) == count - 1
    assert await kv.delete_range("many:", limit=limits.MAX_RANGE_RECORDS) == 1


async def test_the_time_that_is_left_runs_while_nothing_is_written(kv: KV) -> None:
    await kv.put("a", 1, ttl=60)
    first, page = await kv.ttl("a"), await kv.list("a")
    assert first is not None
    assert page.at is not None
    while True:  # nobody writes, and nothing expires
        left, later = await kv.ttl("a"), await kv.list("a")
        assert left is not None
        assert left <= first
        assert later.at is not None
        if left < first and later.at > page.at:
            break
