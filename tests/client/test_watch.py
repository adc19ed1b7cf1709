"""Watches through the public interface: on each kind of store, and over scripted nodes."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC
from itertools import islice
from typing import Any

import pytest

import kvorum
from kvorum import (
    KV,
    Change,
    Closed,
    Compacted,
    DecodeError,
    FutureRevision,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    NoNodeReachable,
    ShuttingDown,
    SyncKV,
    Watch,
    limits,
)
from kvorum.backends import watching
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch
from kvorumpb.v1.watch_pb2 import Change as WireChange
from tests.client.conftest import Compact, backend_of, revision_of
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.fake_server import succeed
from tests.support.fake_watches import (
    WatchingNode,
    as_asked,
    begun,
    changes,
    progress,
)

Nodes = tuple[WatchingNode, WatchingNode]


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await awaitable


async def take(watch: Watch[Any], count: int) -> list[Change[Any]]:
    return [await soon(anext(watch)) for _ in range(count)]


def told(some: list[Change[Any]]) -> list[tuple[int, str, str, Any]]:
    return [(one.revision, one.kind, one.key, one.entry and one.entry.value) for one in some]


# On each kind of store.


@pytest.fixture
def kv(store: KV) -> KV:
    return store


async def test_changes_as_they_happen(kv: KV) -> None:
    at = await kv.put("user:1", "before")
    async with kv.watch("user:", previous=True) as watch:
        assert watch.revision == at
        await kv.put("user:1", {"name": "alice"})
        await kv.put("other", 1)
        await kv.delete("user:1")
        first, second = await take(watch, 2)
    assert first.entry is not None
    assert first.previous is not None
    entry = kvorum.Entry("user:1", {"name": "alice"}, at + 1, at, 2, first.entry.updated_at)
    before = kvorum.Entry("user:1", "before", at, at, 1, first.previous.updated_at)
    assert first == Change("put", "user:1", first.entry, first.previous, at + 1, first.at)
    assert (first.entry, first.previous) == (entry, before)
    assert (second.kind, second.entry, second.previous, second.revision) == (
        "delete",
        None,
        entry,
        at + 3,
    )
    assert first.at == first.entry.updated_at <= second.at
    assert second.at.tzinfo is UTC
    assert watch.revision == at + 3


async def test_the_changes_of_a_transaction_come_together(kv: KV) -> None:
    async with kv.watch() as watch:
        first = (await kv.atomic().put("a", 1).put("b", 2).commit()).revision
        await kv.put("c", 3)
        revisions = watch.revisions()
        one, two = await soon(anext(revisions)), await soon(anext(revisions))
    assert [change.key for change in one] == ["a", "b"]
    assert (one.revision, two.revision, len(two)) == (first, first + 1, 1)
    assert one.at == one.changes[0].at


async def test_the_revision_moves_when_all_of_it_was_taken(kv: KV) -> None:
    before = await revision_of(kv)
    async with kv.watch() as watch:
        await kv.atomic().put("a", 1).put("b", 2).commit()
        await take(watch, 1)
        assert watch.revision == before
        # The rest of it, for who changes the way of asking.
        assert [one.key for one in await soon(anext(watch.revisions()))] == ["b"]
        assert watch.revision == before + 1


async def test_since(kv: KV) -> None:
    first, *_ = [await kv.put("a", number) for number in range(5)]
    async with kv.watch(since=first + 1) as watch:
        assert await watch.begin() == first + 1
        assert told(await take(watch, 3)) == [
            (first + 2, "put", "a", 2),
            (first + 3, "put", "a", 3),
            (first + 4, "put", "a", 4),
        ]


async def test_what_was_compacted_cannot_be_watched_from(kv: KV, compact: Compact) -> None:
    first = await kv.put("a", 1)
    await kv.put("a", 2)
    last = await kv.put("a", 3)
    await compact(last)
    refused: Compacted | None = None
    async with asyncio.timeout(DEADLINE_SECONDS):
        while refused is None:  # a node that has not heard of it yet can still tell of all
            try:
                async with kv.watch(since=first):
                    await asyncio.sleep(0.001)
            except Compacted as error:
                refused = error
    assert refused.oldest_revision == last
    async with kv.watch(since=last) as watch:
        await kv.put("a", 4)
        assert told(await take(watch, 1)) == [(last + 1, "put", "a", 4)]


async def test_the_end_of_a_time_to_live_is_told(kv: KV) -> None:
    async with kv.watch(previous=True) as watch:
        await kv.put("a", 1, ttl=0.05)
        put, expired = await take(watch, 2)
    assert (put.kind, expired.kind, expired.key) == ("put", "expire", "a")
    assert expired.previous == put.entry
    assert await kv.get("a") is None


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, ["a", "b:1", "b:2", "c"]),
        ({"prefix": "b:"}, ["b:1", "b:2"]),
        ({"key": "c"}, ["c"]),
        ({"key": b"c"}, ["c"]),
        ({"start": "b:2"}, ["b:2", "c"]),
        ({"end": "b:2"}, ["a", "b:1"]),
        ({"start": "b", "end": "c"}, ["b:1", "b:2"]),
        ({"deletes": False, "expiries": False}, ["a", "b:1", "b:2", "c"]),
    ],
)
async def test_what_to_watch(kv: KV, options: dict[str, Any], keys: list[str]) -> None:
    before = await revision_of(kv)
    await asyncio.gather(*(kv.put(key, 1) for key in ("a", "b:1", "b:2", "c")))
    async with kv.watch(since=before, **options) as watch:
        assert sorted(one.key for one in await take(watch, len(keys))) == keys


async def test_puts_may_be_left_out(kv: KV) -> None:
    async with kv.watch(puts=False) as watch:
        put = await kv.put("a", 1)
        await kv.delete("a")
        assert told(await take(watch, 1)) == [(put + 1, "delete", "a", None)]


async def test_without_values(kv: KV) -> None:
    async with kv.watch(keys_only=True, previous=True) as watch:
        at = await kv.put("a", b"\xff", type="bytes")
        await kv.delete("a")
        put, deleted = await take(watch, 2)
    assert put.entry is not None
    assert put.entry == kvorum.Entry("a", None, at, at, 1, put.entry.updated_at)
    assert deleted.previous == put.entry


async def test_types(kv: KV) -> None:
    at = await kv.put("a", "ü", type="text")
    async with kv.watch(since=at - 1, type="bytes") as watch:
        [change] = await take(watch, 1)
    assert change.entry is not None
    assert change.entry.value == "ü".encode()


async def test_a_value_of_another_type_is_told_by_its_key_and_passed(kv: KV) -> None:
    at = await kv.put("a", b"\xff", type="bytes")
    await kv.put("b", 1)
    async with kv.watch(since=at - 1) as watch:
        with pytest.raises(DecodeError, match="'a'"):
            await take(watch, 1)
        assert watch.revision == at
        assert [one.key for one in await take(watch, 1)] == ["b"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": "a", "key": "b"}, InvalidArgument),
        ({"prefix": "a", "start": "b"}, InvalidArgument),
        ({"key": "a", "end": "b"}, InvalidArgument),
        ({"key": ""}, InvalidArgument),
        ({"key": "k" * (limits.MAX_KEY_BYTES + 1)}, LimitExceeded),
        ({"prefix": "k" * (limits.MAX_KEY_BYTES + 1)}, LimitExceeded),
        ({"start": "b", "end": "b"}, InvalidArgument),
        ({"since": -1}, InvalidArgument),
        ({"since": "1"}, InvalidArgument),
        ({"since": 1 << 63}, InvalidArgument),
        ({"type": "xml"}, InvalidArgument),
        ({"puts": False, "deletes": False, "expiries": False}, InvalidArgument),
    ],
)
async def test_wrong_watches(kv: KV, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await kv.watch(**options).begin()


async def test_a_revision_that_is_not_there(kv: KV) -> None:
    with pytest.raises(FutureRevision):
        await kv.watch(since=await revision_of(kv) + 1).begin()


async def test_a_large_value(kv: KV) -> None:
    value = bytes(limits.MAX_VALUE_BYTES)
    async with kv.watch(type="bytes", previous=True) as watch:
        await kv.put("a", value, type="bytes")
        await kv.put("a", value, type="bytes")
        async with asyncio.timeout(60):  # 75 MiB, of which a cluster keeps three copies
            _, second = await anext(watch), await anext(watch)
    assert second.entry is not None
    assert second.previous is not None
    assert (len(second.entry.value), len(second.previous.value)) == (len(value), len(value))


async def test_who_was_cancelled_goes_on(kv: KV) -> None:
    watch = kv.watch()
    await watch.begin()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch.revisions()), 0.01)
    at = await kv.put("a", 1)
    assert told(await take(watch, 1)) == [(at, "put", "a", 1)]


async def test_closing(kv: KV) -> None:
    watch, other = kv.watch(), kv.watch()
    await watch.begin()
    await other.begin()
    waiting = [asyncio.ensure_future(anext(one)) for one in (watch, other)]
    await asyncio.sleep(0)
    await watch.close()
    await watch.close()
    with pytest.raises(Closed, match="the watch was closed"):
        await soon(waiting[0])
    await kv.close()
    with pytest.raises(Closed, match="the store was closed"):
        await soon(waiting[1])
    with pytest.raises(Closed):
        await soon(anext(other))
    with pytest.raises(Closed):
        kv.watch()


# For threads.


def test_threads_watch(blocking: SyncKV) -> None:
    kv = blocking
    with kv.watch("a", previous=True) as watch:
        at = kv.put("a", 1)
        kv.put("b", 1)
        kv.delete("a")
        assert told([next(watch), next(watch)]) == [
            (at, "put", "a", 1),
            (at + 2, "delete", "a", None),
        ]
        assert watch.revision == at + 2
        again = kv.watch(since=at)
        assert again.begin() == at
        assert [one.revision for one in islice(again.revisions(), 2)] == [at + 1, at + 2]
        again.close()
        with pytest.raises(Closed):
            next(iter(again))


def test_a_thread_that_waits_learns_of_the_end() -> None:
    kv = kvorum.open_sync("memory:")
    watch = kv.watch()
    watch.begin()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            next(watch)
        except Closed as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    kv.close()
    thread.join(DEADLINE_SECONDS)
    assert len(caught) == 1


# Over scripted nodes.


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    """n1 leads term 1 and answers reads with revision 10."""
    async with WatchingNode("n1") as n1, WatchingNode("n2") as n2:
        for node in (n1, n2):
            node.follow(n1, term=1)
            node.script = at_revision_10
        yield n1, n2


def at_revision_10(call: Call) -> Reply:
    reply = succeed(call)
    assert isinstance(reply, Reply)
    reply.get.revision = 10
    return reply


@pytest.fixture
async def cluster(nodes: Nodes) -> AsyncIterator[KV]:
    before = asyncio.all_tasks()
    n1, n2 = nodes
    store = await kvorum.open(f"kvorum://{n1.address},{n2.address}", timeout=DEADLINE_SECONDS)
    yield store
    await store.close()
    left = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("kvorum")}
    assert left == set()


async def serving(nodes: Nodes) -> tuple[WatchingNode, WatchingNode]:
    """The one that serves the watch, and the other one."""
    await eventually(lambda: any(node.open_watches for node in nodes))
    n1, n2 = nodes
    return (n1, n2) if n1.open_watches else (n2, n1)


async def test_a_watch_begins_at_the_revision_of_the_leader(nodes: Nodes, cluster: KV) -> None:
    async with cluster.watch("a") as watch:
        here, there = await serving(nodes)
        assert watch.revision == 10
        assert [begin.after_revision for begin in here.begins] == [10]
        assert here.begins[0].prefix == b"a"
        assert there.begins == []


@pytest.mark.parametrize("end", ["broken", "shutting down", "killed"])
async def test_it_goes_on_at_another_node_after_the_last_whole_revision(
    nodes: Nodes, cluster: KV, end: str
) -> None:
    async with cluster.watch(since=5) as watch:
        here, there = await serving(nodes)
        here.tell(changes(6, b"a"))
        here.tell(changes(8, b"a", partial=True), changes(8, b"b", partial=True))
        assert told(await take(watch, 1)) == [(6, "put", "a", 1)]
        if end == "broken":
            here.break_watches()
        elif end == "shutting down":
            here.tell(ShuttingDown("n1 is shutting down"))
        else:
            await here.stop()
        await eventually(lambda: there.begins)
        assert [begin.after_revision for begin in there.begins] == [6]
        there.tell(changes(8, b"a", partial=True), changes(8, b"b"), changes(9, b"c"))
        assert [one.key for one in await soon(anext(watch.revisions()))] == ["a", "b"]
        assert told(await take(watch, 1)) == [(9, "put", "c", 1)]


async def test_progress_is_told_to_who_asks_for_it(nodes: Nodes, cluster: KV) -> None:
    async with cluster.watch(since=5) as watch:
        here, _ = await serving(nodes)
        here.tell(progress(6), progress(7), changes(8, b"a"))
        heard = watch.revisions(progress=True)
        told = [await soon(anext(heard)) for _ in range(3)]
        assert [(one.revision, len(one)) for one in told] == [(6, 0), (7, 0), (8, 1)]
        here.tell(progress(9), changes(10, b"a"))
        assert (await soon(anext(watch.revisions()))).revision == 10


async def test_it_goes_on_from_where_progress_has_come(nodes: Nodes, cluster: KV) -> None:
    async with cluster.watch(since=5) as watch:
        here, there = await serving(nodes)
        waiting = asyncio.ensure_future(anext(watch))
        here.tell(progress(7))
        await eventually(lambda: watch.revision == 7)
        here.break_watches()
        await eventually(lambda: there.begins)
        assert [begin.after_revision for begin in there.begins] == [7]
        there.tell(changes(8, b"a"))
        assert (await soon(waiting)).revision == 8


async def test_a_silent_node_is_left(
    nodes: Nodes, cluster: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEFAULT_PROGRESS_INTERVAL_MS", 20)
    async with cluster.watch(since=5) as watch:
        here, there = await serving(nodes)
        here.tell(changes(6, b"a"))
        await take(watch, 1)
        waiting = asyncio.ensure_future(anext(watch))
        await eventually(lambda: there.begins)
        assert there.begins[0].after_revision == 6
        await eventually(lambda: not here.open_watches)
        while not waiting.done():  # it may have been silent for too long, too
            there.tell(changes(7, b"a"))
            here.tell(changes(7, b"a"))
            await asyncio.sleep(0.005)
        assert (await soon(waiting)).revision == 7


async def test_a_caller_that_takes_nothing_is_no_silence(
    nodes: Nodes, cluster: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is more than one message read for it."""
    async with cluster.watch(since=5) as watch:
        here, there = await serving(nodes)
        feed: Any = watch._feed
        feed._patience_seconds = 0.05
        for number in range(6, 100):
            here.tell(changes(number, b"a", value=b"1" * 100))
        await eventually(lambda: feed._heard)
        await asyncio.sleep(0.2)  # four times its patience: nothing may happen
        assert (len(feed._heard), here.open_watches, there.begins) == (1, 1, [])
        feed._patience_seconds = 60.0
        assert [one.revision for one in await take(watch, 94)] == [*range(6, 100)]


async def test_a_node_that_is_behind_is_left(nodes: Nodes, cluster: KV) -> None:
    """It says that the revision is not there yet; who has heard of it knows better."""
    n1, n2 = nodes
    asked: list[str] = []

    def behind(begin: BeginWatch) -> Any:
        asked.append("behind")
        if len(asked) == 1:
            return [FutureRevision("behind", revision=10, newest_revision=3)]
        return as_asked(begin)

    n1.watch_script = n2.watch_script = behind
    assert await soon(cluster.watch().begin()) == 10
    assert len(asked) == 2
    asked.clear()
    assert await soon(cluster.watch(since=9).begin()) == 9
    assert len(asked) == 2


async def test_a_future_revision_is_told_when_the_leader_says_so(nodes: Nodes, cluster: KV) -> None:
    for node in nodes:
        node.watch_script = lambda _: [FutureRevision("no", revision=11, newest_revision=10)]
    with pytest.raises(FutureRevision):
        await soon(cluster.watch(since=11).begin())


async def test_what_was_compacted_is_told(nodes: Nodes, cluster: KV) -> None:
    watch = cluster.watch(since=5)
    await watch.begin()
    here, there = await serving(nodes)
    here.tell(changes(6, b"a"), Compacted("gone", revision=6, oldest_revision=8))
    assert told(await take(watch, 1)) == [(6, "put", "a", 1)]
    with pytest.raises(Compacted):
        await soon(anext(watch))
    with pytest.raises(Compacted) as caught:
        await soon(anext(watch))
    assert caught.value.oldest_revision == 8
    assert there.begins == []
    await eventually(lambda: not here.open_watches)


async def test_other_errors_are_told(nodes: Nodes, cluster: KV) -> None:
    for node in nodes:
        node.watch_script = lambda _: [InvalidArgument("unheard of")]
    with pytest.raises(InvalidArgument, match="unheard of"):
        await soon(cluster.watch(since=5).begin())


async def test_whatever_fails_nobody_waits_for_ever(
    nodes: Nodes, cluster: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching.ClusterWatches, "choose", lambda self, tried: 1 / 0)
    with pytest.raises(KvorumError, match="the watch failed: division by zero") as caught:
        await anext(cluster.watch("a", since=1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_no_node_is_there() -> None:
    async with kvorum.open("kvorum://127.0.0.1:1", timeout=0.3) as kv:
        watch = kv.watch(since=5)
        with pytest.raises(NoNodeReachable, match=r"127.0.0.1:1"):
            await soon(watch.begin())
        with pytest.raises(NoNodeReachable):
            await soon(anext(watch))
        with pytest.raises(NoNodeReachable):
            await soon(kv.watch().begin())


async def test_it_waits_for_as_long_as_no_node_is_there(nodes: Nodes, cluster: KV) -> None:
    async with cluster.watch(since=5) as watch:
        for node in nodes:
            await node.stop()
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await nodes[1].start()
        await eventually(lambda: nodes[1].open_watches)
        nodes[1].tell(changes(6, b"a"))
        assert (await soon(waiting)).revision == 6


async def test_a_change_in_two_parts_is_one(nodes: Nodes, cluster: KV) -> None:
    async with cluster.watch(since=5, previous=True) as watch:
        here, _ = await serving(nodes)
        first, second = changes(6, b"a", partial=True, value=b'"be'), changes(6)
        first.changes.changes[0].previous.value = b'"x'
        rest = WireChange(kind=WireChange.PUT, key=b"a", continued=True)
        rest.record.value, rest.previous.value = b'gun"', b'"'
        second.changes.changes.append(rest)
        here.tell(first)
        here.tell(second)
        [change] = await take(watch, 1)
    assert change.entry is not None
    assert change.previous is not None
    assert (change.entry.value, change.previous.value) == ("begun", "x")


async def test_nothing_is_left_of_a_watch_that_was_closed(nodes: Nodes, cluster: KV) -> None:
    watch = cluster.watch(since=5)
    await watch.begin()
    here, _ = await serving(nodes)
    here.tell(changes(6, b"a"), changes(7, b"a"))
    await take(watch, 1)
    await watch.close()
    await eventually(lambda: not here.open_watches)
    assert backend_of(cluster)._watches._feeds == set()
    with pytest.raises(Closed, match="the watch was closed"):
        await soon(anext(watch))


async def test_closing_the_store_ends_the_watches(nodes: Nodes, cluster: KV) -> None:
    watch = cluster.watch(since=5)
    waiting = asyncio.ensure_future(anext(watch))
    here, _ = await serving(nodes)
    await cluster.close()
    with pytest.raises(Closed, match="the store was closed"):
        await soon(waiting)
    with pytest.raises(Closed):
        cluster.watch()
    await eventually(lambda: not here.open_watches)


@pytest.mark.parametrize("moment", ["connecting", "beginning", "waiting", "reading ahead"])
async def test_cancellation_loses_nothing_and_leaks_nothing(
    nodes: Nodes, cluster: KV, moment: str
) -> None:
    for node in nodes:
        node.watch_script = (lambda _: []) if moment == "beginning" else as_asked
    watch = cluster.watch(since=5)
    waiting = asyncio.ensure_future(anext(watch))
    if moment == "connecting":
        await asyncio.sleep(0)
    else:
        await serving(nodes)
    if moment == "reading ahead":
        here, _ = await serving(nodes)
        here.tell(changes(6, b"a"), changes(7, b"b"))
        await soon(waiting)
        waiting = asyncio.ensure_future(anext(watch))
    waiting.cancel()
    await asyncio.wait([waiting])
    here, _ = await serving(nodes)
    if moment == "beginning":
        here.tell(begun(5))
    here.tell(changes(8, b"c"))
    expected = [7, 8] if moment == "reading ahead" else [8]
    assert [one.revision for one in await take(watch, len(expected))] == expected
    await watch.close()
