"""Lists and scans through the public interface: what they select, and what entries say."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kvorum
from kvorum import (
    KV,
    Compacted,
    Entry,
    FutureRevision,
    IndexEntry,
    InvalidArgument,
    InvalidCursor,
    SyncKV,
    limits,
)
from kvorum.backends import Feed
from kvorum.entry import instant
from kvorum_node.machine import Listing
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch
from tests.client.conftest import Compact
from tests.support.eventually import eventually


async def _users(kv: KV) -> None:
    for name, city in (("ann", "Bonn"), ("bob", "Aachen"), ("cid", "Bonn"), ("dan", "Ulm")):
        entries = [
            IndexEntry("user.email", f"{name}@x", unique=True),
            IndexEntry("user.city", city),
        ]
        await kv.put(f"user:{name}", name, index_entries=entries)


def _keys(entries: Any) -> list[str]:
    return [entry.key for entry in entries]


async def test_both_directions(store: KV) -> None:
    await asyncio.gather(*(store.put(f"p:{at}", at) for at in range(10)), store.put("q", 1))
    page = await store.list("p:", limit=4, reverse=True)
    assert [entry.value for entry in page] == [9, 8, 7, 6]
    page = await store.list("p:", limit=6, reverse=True, cursor=page.cursor)
    assert [entry.value for entry in page] == [5, 4, 3, 2, 1, 0]
    assert page.complete
    scanned = [entry.value async for entry in store.scan("p:", page_size=3, reverse=True)]
    assert scanned == list(range(9, -1, -1))
    cursor = (await store.list("p:", limit=1)).cursor
    with pytest.raises(InvalidCursor, match=r"^the cursor .*another direction"):
        await store.list("p:", limit=1, cursor=cursor, reverse=True)
    for altered in ("made up", f"{cursor}x", f"{cursor}"[:-4]):
        with pytest.raises(InvalidCursor, match=r"^the cursor "):
            await store.list("p:", limit=1, cursor=altered)


async def test_keys_only(store: KV) -> None:
    revision = await store.put("a", b"no json", type="bytes")
    page = await store.list(keys_only=True)
    assert [(entry.key, entry.value, entry.revision) for entry in page] == [("a", None, revision)]
    assert [entry.value async for entry in store.scan(keys_only=True)] == [None]


async def test_a_count_is_of_all_pages_and_on_request(store: KV) -> None:
    await asyncio.gather(*(store.put(f"p:{at}", at) for at in range(10)), store.put("q", 1))
    first = await store.list("p:", limit=4, count=True)
    assert (len(first), first.count) == (4, 10)
    second = await store.list("p:", limit=4, cursor=first.cursor, count=True)
    assert (len(second), second.count) == (4, 10)
    assert (await store.list("p:")).count is None
    assert (await store.list("nothing", count=True)).count == 0


async def test_a_past_revision(store: KV) -> None:
    first = await store.put("a", 1)
    second = await store.put("a", 2)
    await store.put("b", 3)
    deleted = (await store.list()).revision + 1
    await store.delete("a")
    entry = await store.get("a", revision=first)
    assert entry is not None
    assert (entry.value, entry.revision) == (1, first)
    page = await store.list(revision=second)
    assert ([(entry.key, entry.value) for entry in page], page.revision) == ([("a", 2)], second)
    assert _keys([entry async for entry in store.scan(revision=deleted - 1)]) == ["a", "b"]
    assert _keys([entry async for entry in store.scan(revision=deleted)]) == ["b"]
    assert await store.get("a") is None
    with pytest.raises(FutureRevision):
        await store.get("a", revision=deleted + 1)
    with pytest.raises(FutureRevision):
        await store.list(revision=deleted + 1)
    no_revisions: list[Any] = [0, -1, 2**63, "1"]
    for revision in no_revisions:
        with pytest.raises(InvalidArgument, match="an int from 1"):
            await store.get("a", revision=revision)
        with pytest.raises(InvalidArgument, match="an int from 1"):
            await store.list(revision=revision)


async def test_all_pages_of_a_snapshot_are_of_one_revision(store: KV) -> None:
    await asyncio.gather(*(store.put(f"{at}", at) for at in range(6)))
    page = await store.list(limit=2, snapshot=True)
    read = list(page)
    scan = store.scan(page_size=2, snapshot=True)
    scanned = [await anext(scan)]
    await store.delete("3")
    await store.put("4", "new")
    await store.put("9", "new")
    while not page.complete:
        page = await store.list(limit=2, snapshot=True, cursor=page.cursor)
        read += page.entries
    assert [entry.value for entry in read] == list(range(6))
    scanned += [entry async for entry in scan]
    assert [entry.value for entry in scanned] == list(range(6))


async def test_a_snapshot_that_was_compacted(store: KV, compact: Compact) -> None:
    await asyncio.gather(*(store.put(f"{at}", at) for at in range(6)))
    page = await store.list(limit=2, snapshot=True)
    newest = await store.put("0", "new")
    await compact(newest)
    with pytest.raises(Compacted) as raised:
        await store.list(limit=2, snapshot=True, cursor=page.cursor)
    assert raised.value.oldest_revision == newest
    with pytest.raises(Compacted):
        await store.get("0", revision=newest - 1)
    entry = await store.get("0", revision=newest)
    assert entry is not None
    assert entry.value == "new"


async def test_by_index(store: KV) -> None:
    await _users(store)
    page = await store.list(index="user.email", value="bob@x")
    [entry] = page
    assert (entry.key, entry.value, entry.index_value) == ("user:bob", "bob", "bob@x")
    assert entry.index_entries == (
        IndexEntry("user.email", "bob@x", True),
        IndexEntry("user.city", "Aachen", False),
    )
    assert _keys(await store.list(index="user.city", value=b"Bonn")) == ["user:ann", "user:cid"]
    page = await store.list(index="user.city", limit=3, count=True)
    assert [(entry.index_value, entry.key) for entry in page] == [
        ("Aachen", "user:bob"),
        ("Bonn", "user:ann"),
        ("Bonn", "user:cid"),
    ]
    assert page.count == 4
    page = await store.list(index="user.city", limit=3, cursor=page.cursor)
    assert (_keys(page), page.complete) == (["user:dan"], True)
    backwards = store.scan(index="user.city", page_size=1, reverse=True)
    assert [entry.index_value async for entry in backwards] == ["Ulm", "Bonn", "Bonn", "Aachen"]
    assert _keys(await store.list("a", index="user.email")) == ["user:ann"]
    assert _keys(await store.list(index="user.email", start="b", end="d")) == [
        "user:bob",
        "user:cid",
    ]
    assert _keys(await store.list(index="user.city", start="C", keys_only=True)) == ["user:dan"]
    assert len(await store.list(index="nothing")) == 0


async def test_wrong_lists_by_index(store: KV) -> None:
    with pytest.raises(InvalidArgument, match="name the index"):
        await store.list(value="a")
    selections: list[Any] = [{"prefix": "a"}, {"start": "a"}, {"end": "a"}]
    for more in selections:
        with pytest.raises(InvalidArgument, match="has a value, or a prefix, or"):
            await store.list(index="i", value="a", **more)
    names: list[Any] = ["", b"i", 1]
    for name in names:
        with pytest.raises(InvalidArgument, match="the name of an index is a str"):
            await store.list(index=name)
    with pytest.raises(InvalidArgument, match="the newest state only"):
        await store.list(index="i", revision=1)
    with pytest.raises(InvalidArgument, match="the newest state only"):
        await store.list(index="i", snapshot=True)
    with pytest.raises(InvalidArgument, match="shorten it"):
        await store.list(index="i" * (limits.MAX_INDEX_NAME_BYTES + 1))


async def test_the_times_of_an_entry(store: KV) -> None:
    await store.put("a", 1, ttl=3600, metadata=b"m")
    await store.put("b", 2)
    a, b = (await store.list()).entries
    assert a.expires_at is not None
    assert a.expires_at - a.updated_at == timedelta(hours=1)
    assert a.updated_at.tzinfo is UTC
    assert abs(a.updated_at - datetime.now(UTC)) < timedelta(hours=1)
    assert (a.metadata, b.metadata, b.expires_at) == (b"m", b"", None)
    [keys_only] = (await store.list("a", keys_only=True)).entries
    assert (keys_only.metadata, keys_only.expires_at) == (b"", a.expires_at)


def test_an_instant_is_exact_and_never_too_large() -> None:
    assert instant(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert instant(1_700_000_000_001) == datetime(2023, 11, 14, 22, 13, 20, 1000, tzinfo=UTC)
    assert instant(2**63 - 1) == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("place", ["memory:", "data"])
async def test_a_count_does_not_hold_up_other_calls(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvorum_node.machine.listing.SLICE_RECORDS", 1)
    step = Listing.step

    def slow_step(listing: Listing) -> bool:
        time.sleep(0.0005)  # what a slice of many records costs: the whole is a second of work
        return step(listing)

    monkeypatch.setattr(Listing, "step", slow_step)
    async with kvorum.open(place if place == "memory:" else tmp_path / place) as kv:
        await asyncio.gather(*(kv.put(f"{at:04}", at) for at in range(2000)))
        counting = asyncio.create_task(kv.list(limit=1, count=True))
        for at in range(3):
            await kv.put("new", at)
        assert not counting.done()
        assert (await counting).count in (2000, 2001)


async def test_closing_ends_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum_node.machine.listing.SLICE_RECORDS", 1)
    before = asyncio.all_tasks()
    kv = await kvorum.open("memory:")
    await asyncio.gather(*(kv.put(f"{at:04}", at) for at in range(2000)))
    counting = asyncio.create_task(kv.list(limit=1, count=True))
    await kv.put("new", 1)
    assert not counting.done()
    await kv.close()
    with pytest.raises(kvorum.Closed):
        await counting
    assert asyncio.all_tasks() == before


class _Pages:
    """Counts the pages that a store is asked for."""

    def __init__(self, kv: KV) -> None:
        self._backend = kv._backend
        self.asked = 0
        kv._backend = self

    def have_been(self, count: int) -> bool:
        return self.asked == count

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        self.asked += call.WhichOneof("request") == "list"
        return await self._backend.call(call, timeout_seconds=timeout_seconds)

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> Feed:
        return self._backend.watch(begin, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        await self._backend.close()


async def test_a_scan_reads_one_page_ahead_and_no_more() -> None:
    async with kvorum.open("memory:") as kv:
        await asyncio.gather(*(kv.put(f"{at}", at) for at in range(9)))
        before = asyncio.all_tasks()
        pages = _Pages(kv)
        scan = kv.scan(page_size=2)
        assert pages.asked == 0
        for taken, asked in ((0, 2), (1, 2), (2, 3), (3, 3)):
            entry = await anext(scan)
            assert entry.value == taken
            await eventually(partial(pages.have_been, asked))
            await kv.get("0")  # what was asked for too much would have been by now
            assert pages.asked == asked
        await scan.aclose()  # type: ignore[attr-defined]  # it is a generator
        await eventually(lambda: asyncio.all_tasks() == before)
        assert pages.asked == 3


async def test_a_page_that_fails_is_told_who_comes_to_it() -> None:
    before = asyncio.all_tasks()
    kv = await kvorum.open("memory:")
    await asyncio.gather(*(kv.put(f"{at}", at) for at in range(9)))
    scan, given_up = kv.scan(page_size=2), kv.scan(page_size=2)
    assert (await anext(scan)).value == 0
    assert (await anext(given_up)).value == 0
    await kv.close()
    taken: list[int] = []
    with pytest.raises(kvorum.Closed):
        await _take_all(scan, taken)
    assert taken in ([1], [1, 2, 3])  # of the pages that were there
    del given_up
    await eventually(lambda: asyncio.all_tasks() == before)


async def _take_all(scan: AsyncIterator[Entry[Any]], taken: list[Any]) -> None:
    async for entry in scan:
        taken.append(entry.value)  # noqa: PERF401 - what was taken counts, also if it ends badly


def test_threads_scan_in_the_same_way(blocking: SyncKV) -> None:
    kv = blocking
    before = kv.list(limit=1).revision
    for at in range(9):
        kv.put(f"{at}", at)

    def scanned(entries: Iterator[Entry[Any]]) -> list[Any]:
        return [entry.value for entry in entries]

    assert scanned(kv.scan(page_size=2)) == list(range(9))
    assert scanned(kv.scan(page_size=2, reverse=True)) == list(range(8, -1, -1))
    assert scanned(kv.scan(page_size=2, keys_only=True)) == [None] * 9
    assert scanned(kv.scan(revision=before + 4)) == [0, 1, 2, 3]
    scan = kv.scan(page_size=2, snapshot=True)
    assert next(scan).value == 0
    kv.delete("5")
    assert scanned(scan) == list(range(1, 9))
    abandoned = kv.scan(page_size=2)
    assert next(abandoned).value == 0
    assert kv.list(count=True).count == 8
    entry = kv.get("5", revision=before + 9)
    assert entry is not None
    assert entry.value == 5
    _give_up(kv)


def _give_up(kv: SyncKV) -> None:
    for entry in kv.scan(page_size=1):
        if entry.key == "1":
            return
