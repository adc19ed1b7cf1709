"""What type checkers see of the public interface. mypy is the test: `make check` runs it.

Nothing here is called; pytest only finds that the names exist.
"""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import msgspec
from pydantic import BaseModel

import kvorum
from kvorum import (
    KV,
    Atomic,
    AtomicResult,
    Attempts,
    Change,
    Changes,
    Codec,
    Entry,
    IndexEntry,
    Page,
    RateLimit,
    RateLimitResult,
    Sum,
    SyncAtomic,
    SyncKV,
    SyncTransaction,
    SyncWatch,
    Transaction,
    Watch,
)
from kvorum.patterns import Cache, CacheStatistics, Collection, Difference, Index, Reindexed, Unique


class User(BaseModel):
    name: str


class Point(msgspec.Struct):
    x: float


NAMES = Codec[list[str]]("names", lambda names: ",".join(names).encode(), lambda _: [])


async def opening_gives_a_store() -> None:
    assert_type(await kvorum.open("memory:"), KV)
    async with kvorum.open("memory:") as kv:
        assert_type(kv, KV)
    with kvorum.open_sync("memory:") as sync_kv:
        assert_type(sync_kv, SyncKV)


async def the_type_of_a_value_follows_from_the_argument(kv: KV) -> None:
    assert_type(await kv.get("a"), Entry[Any] | None)
    assert_type(await kv.get("a", type="json"), Entry[Any] | None)
    assert_type(await kv.get("a", type="text"), Entry[str] | None)
    assert_type(await kv.get("a", type="bytes", timeout=1), Entry[bytes] | None)
    assert_type(await kv.get("a", revision=3, type="text"), Entry[str] | None)
    assert_type(await kv.list("a"), Page[Any])
    assert_type(await kv.list("a", keys_only=True), Page[None])
    assert_type(await kv.list("a", keys_only=bool(kv)), Page[Any])
    assert_type(await kv.list(index="email", value=b"a@b", count=True), Page[Any])
    assert_type((await kv.list("a", count=True)).count, int | None)
    assert_type(await kv.list("a", type="text"), Page[str])
    assert_type(await kv.list(start="a", type="bytes"), Page[bytes])
    assert_type(kv.scan("a"), AsyncIterator[Entry[Any]])
    assert_type(kv.scan("a", type="text"), AsyncIterator[Entry[str]])
    assert_type(kv.scan("a", keys_only=True, reverse=True), AsyncIterator[Entry[None]])
    async for entry in kv.scan(type="bytes"):
        assert_type(entry, Entry[bytes])
        assert_type(entry.value, bytes)


async def models_and_codecs_are_what_is_read(kv: KV) -> None:
    assert_type(await kv.get("a", type="msgpack"), Entry[Any] | None)
    assert_type(await kv.get("a", type=User), Entry[User] | None)
    assert_type(await kv.get("a", type=Point, consistency="stale"), Entry[Point] | None)
    assert_type(await kv.get("a", type=NAMES), Entry[list[str]] | None)
    assert_type(await kv.get_and_delete("a", type=User, timeout=1), Entry[User] | None)
    assert_type(await kv.list("a", type=User, limit=5), Page[User])
    assert_type(await kv.list("a", type=User, keys_only=True), Page[None])
    assert_type(kv.scan("a", type=Point), AsyncIterator[Entry[Point]])
    assert_type(kv.watch("a", type=User, previous=True), Watch[User])
    async for attempt in kv.transaction():
        async with attempt as txn:
            assert_type(await txn.get("a", type=User), Entry[User] | None)
            assert_type(await txn.list("a", type=Point, limit=5), Page[Point])
            txn.put("a", User(name="alice"))
    assert_type(await kv.put("a", Point(1), type=Point), int)
    assert_type(await kvorum.open("memory:", type=User), KV)


def models_and_codecs_for_threads(kv: SyncKV) -> None:
    assert_type(kv.get("a", type=User), Entry[User] | None)
    assert_type(kv.get("a", type=NAMES, revision=3), Entry[list[str]] | None)
    assert_type(kv.get_and_delete("a", type=Point), Entry[Point] | None)
    assert_type(kv.list("a", type=User), Page[User])
    assert_type(kv.scan("a", type=Point, reverse=True), Iterator[Entry[Point]])
    assert_type(kv.watch("a", type=User), SyncWatch[User])
    for attempt in kv.transaction():
        with attempt as txn:
            assert_type(txn.get("a", type=User), Entry[User] | None)
            assert_type(txn.list("a", type=Point), Page[Point])


async def watches_have_the_type_of_their_values(kv: KV, sync_kv: SyncKV) -> None:
    async with kv.watch("a", type="text") as watch:
        assert_type(watch, Watch[str])
        async for change in watch:
            assert_type(change, Change[str])
            assert_type(change.entry, Entry[str] | None)
        async for changes in watch.revisions():
            assert_type(changes, Changes[str])
    assert_type(kv.watch(key="a"), Watch[Any])
    assert_type(sync_kv.watch(since=1, type="bytes"), SyncWatch[bytes])
    for sync_change in sync_kv.watch(type="bytes"):
        assert_type(sync_change, Change[bytes])


async def writes_return_numbers(kv: KV) -> None:
    assert_type(await kv.put("a", 1), int)
    assert_type(await kv.delete("a"), bool)
    assert_type(await kv.put("a", 1, ttl=timedelta(hours=1), exists=False), int)
    assert_type(
        await kv.put("a", 1, ttl=5, index_entries=[IndexEntry("i", b"v", unique=True)]), int
    )
    assert_type(await kv.delete_range("a"), int)
    total = await kv.add("a", min=0, ttl=0.5)
    assert_type(total, Sum)
    number: int = total
    assert_type(number + total.applied, int)


async def times_and_limits(kv: KV) -> None:
    assert_type(await kv.touch("a", 5), bool)
    assert_type(await kv.persist("a"), bool)
    assert_type(await kv.ttl("a"), float | None)
    result = await kv.rate_limit(RateLimit("a", 1, timedelta(minutes=1), "gcra"))
    assert_type(result, RateLimitResult)
    assert_type(result.retry_after, float)
    assert_type(await kv.get_and_delete("a", type="text"), Entry[str] | None)


async def transactions_are_loops_or_functions(kv: KV, sync_kv: SyncKV) -> None:
    assert_type(kv.transaction(), Attempts)
    async for attempt in kv.transaction(attempts=5):
        async with attempt as txn:
            assert_type(txn, Transaction)
            assert_type(await txn.get("a", type="bytes"), Entry[bytes] | None)
            assert_type(await txn.list("a", type="text"), Page[str])

    async def body(txn: Transaction) -> str:
        return repr(await txn.get("a"))

    assert_type(await kv.transaction().run(body), str)
    for blocking in sync_kv.transaction():
        with blocking as here:
            assert_type(here, SyncTransaction)
            assert_type(here.get("a", type="text"), Entry[str] | None)
    assert_type(sync_kv.transaction().run(lambda here: here.revision), int | None)


async def atomics_are_chained(kv: KV, sync_kv: SyncKV) -> None:
    assert_type(
        kv.atomic().check("a", revision=1).put("a", 1).get("b").delete("c").add("d"), Atomic
    )
    assert_type(await kv.atomic().put("a", 1).commit(), AtomicResult)
    assert_type(sync_kv.atomic().check("a", exists=True).put("a", 1), SyncAtomic)
    assert_type(sync_kv.atomic().put("a", 1).commit(), AtomicResult)


def threads_see_the_same(kv: SyncKV) -> None:
    assert_type(kv.get("a"), Entry[Any] | None)
    assert_type(kv.get("a", type="text"), Entry[str] | None)
    assert_type(kv.get("a", type="bytes"), Entry[bytes] | None)
    assert_type(kv.list("a", type="text"), Page[str])
    assert_type(kv.scan("a"), Iterator[Entry[Any]])
    assert_type(kv.scan("a", type="bytes"), Iterator[Entry[bytes]])
    assert_type(kv.list("a", keys_only=True), Page[None])
    assert_type(kv.scan("a", keys_only=True, snapshot=True), Iterator[Entry[None]])
    assert_type(kv.put("a", 1), int)


async def caches_have_the_type_of_their_values(kv: KV) -> None:
    async def name() -> str:
        return "alice"

    texts = Cache(kv, "texts", ttl=300, type="text")
    assert_type(texts, Cache[str])
    assert_type(Cache(kv, "raw", ttl=timedelta(hours=1), type="bytes"), Cache[bytes])
    assert_type(Cache(kv, "pages", ttl=300), Cache[Any])
    assert_type(Cache(kv, "users", ttl=300, type=User), Cache[User])
    assert_type(Cache(kv, "names", ttl=300, type=NAMES), Cache[list[str]])
    assert_type(await texts.get("a"), str | None)
    assert_type(await texts.get("a", 1), str | int)
    assert_type(await texts.set("a", "b", tags=["t"]), bool)
    assert_type(await texts.get_or_compute("a", name, stale_while_revalidate=60), str)
    assert_type(texts.statistics, CacheStatistics)
    texts.invalidate_in(kv.atomic(), "t")
    async for attempt in kv.transaction():
        async with attempt as txn:
            texts.invalidate_in(txn, "t")

    def key_of(number: int) -> str:
        return f"user:{number}"

    @Cache(kv, "users", ttl=300).cached(key=key_of, tags=["users"])
    async def user(number: int) -> dict[str, str]:
        return {"name": str(number)}

    assert_type(await user(1), dict[str, str])
    await user("1")  # type: ignore[arg-type]  # the function's own arguments
    await texts.set("a", 1)  # type: ignore[arg-type]  # no text


async def collections_have_the_type_of_their_records(kv: KV) -> None:
    users = Collection(kv, "user", indexes={"email": Unique("email"), "n": Index(("a", "b"))})
    assert_type(users, Collection[Any])
    lines = Collection(kv, "line", type="text")
    assert_type(lines, Collection[str])
    assert_type(Collection(kv, "number", type=int), Collection[int])
    typed: Collection[dict[str, int]] = Collection(kv, "typed")
    assert_type(await typed.create("1", {"a": 1}, ttl=5), int)
    assert_type(await typed.get("1"), Entry[dict[str, int]] | None)
    assert_type(await lines.get_by("n", 5), Entry[str] | None)
    assert_type(await lines.find("n", ("a", 5)), Page[str])
    assert_type(await lines.find("n", start=datetime.now(UTC)), Page[str])
    assert_type(lines.scan(), AsyncIterator[Entry[str]])
    assert_type(await lines.update("1", str.upper), int | None)
    assert_type(await typed.update("1", {"a": 2}), int | None)
    assert_type(await lines.reindex(), Reindexed)
    async for difference in lines.verify():
        assert_type(difference, Difference)
    await typed.create("1", {"a": "b"})  # type: ignore[dict-item]  # no int
    await users.find("n", None)  # type: ignore[arg-type]  # nothing is found under None


async def mistakes_are_found(kv: KV) -> None:
    await kv.get("a", type="xml")  # type: ignore[call-overload]  # no such type
    await kv.get("a", type=5)  # type: ignore[call-overload]  # nor this
    await kv.get("a", type=User, limit=5)  # type: ignore[call-overload]  # no such option
    await kv.get(1)  # type: ignore[call-overload]  # no key
    await kv.put("a", 1, ttl="5")  # type: ignore[arg-type]  # no length of time
    await kv.put("a", 1, index_entries=["i"])  # type: ignore[list-item]  # no IndexEntry
    await kv.touch("a")  # type: ignore[call-arg]  # how long?
    RateLimit("a", 1, 1, "bucket")  # type: ignore[arg-type]  # no such algorithm
    _ = kvorum.nonsense  # type: ignore[attr-defined]  # no such name


def test_the_checked_functions_are_there() -> None:
    assert mistakes_are_found.__name__ in globals()
