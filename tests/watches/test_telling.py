"""What a watch is told, how it begins and ends, and when it says that nothing happens."""

import asyncio
from typing import Any

import pytest

from kvorum.errors import InvalidArgument, Overloaded
from kvorum_node.machine import Machine
from kvorum_node.watches import WatchHub
from kvorumpb.v1.command_pb2 import (
    Command,
    KeyRange,
    Operation,
    PutOperation,
    Sweep,
    TouchOperation,
)
from tests.support.commands import delete, put, transaction
from tests.support.eventually import eventually
from tests.support.watch_client import Client, shown
from tests.support.watched_machine import Vouching, command, hub_of, put_for, write

# Telling.


async def test_a_watch_is_told_of_each_revision_with_all_its_changes(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    await client.begin(previous=True)
    write(machine, put(b"a", b"1"), put(b"b", b"1"))
    write(machine, put(b"a", b"2"))
    write(machine, delete(b"a"), put(b"b", b"2"))
    heard = await client.read_until(3)
    assert heard.begun == 0
    assert [one.revision for one in heard.revisions] == [1, 2, 3]
    assert [shown(one) for one in heard.revisions] == [
        [("PUT", b"a", b"1", None), ("PUT", b"b", b"1", None)],
        [("PUT", b"a", b"2", b"1")],
        [("DELETE", b"a", None, b"2"), ("PUT", b"b", b"2", b"1")],
    ]
    [first, *_] = heard.revisions[0].changes
    assert (first.record.key, first.record.revision, first.record.version) == (b"a", 1, 1)


async def test_records_come_whole_from_history(machine: Machine, hub: WatchHub) -> None:
    """What was told as it happened is told again, the same, to who begins in the past."""
    live = Client(hub)
    await live.begin(previous=True)
    write(machine, put_for(b"a", b"1", 50), log_time_ms=100)
    write(machine, put(b"a", b"2"), put(b"b"), log_time_ms=110)
    write(machine, delete(b"b"), put_for(b"c", b"3", 10), log_time_ms=120)
    write(machine, put(b"c", b"4"), log_time_ms=500)
    expected = (await live.read_until(4)).revisions
    late = Client(hub)
    await late.begin(previous=True, after_revision=0)
    hub._cache.clear()
    assert (await late.read_until(4)).revisions == expected
    assert [one.log_time_ms for one in expected] == [100, 110, 120, 500]
    # The put over a record that has expired is two changes: the one that expired has no heir.
    assert shown(expected[-1]) == [("EXPIRE", b"c", None, b"3"), ("PUT", b"c", b"4", None)]


async def test_what_a_sweep_removes_has_expired(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(previous=True)
    write(machine, put_for(b"a", b"1", 50), put_for(b"b", b"2", 60), log_time_ms=100)
    command(machine, Command(sweep=Sweep(limit=10)), log_time_ms=155)
    command(machine, Command(sweep=Sweep(limit=10)), log_time_ms=170)
    heard = await client.read_until(3)
    assert [shown(one) for one in heard.revisions[1:]] == [
        [("EXPIRE", b"a", None, b"1")],
        [("EXPIRE", b"b", None, b"2")],
    ]


async def test_a_touch_is_no_change(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(after_revision=0)
    write(machine, put(b"a", b"1"))
    write(machine, Operation(touch=TouchOperation(key=b"a", ttl_ms=1000)))
    write(machine, put(b"b", b"2"))
    hub._cache.clear()
    heard = await client.read_until(2)
    assert [shown(one) for one in heard.revisions] == [
        [("PUT", b"a", b"1", None)],
        [("PUT", b"b", b"2", None)],
    ]


@pytest.mark.parametrize(("source", "expires_at"), [("as it happens", 0), ("from history", 1000)])
async def test_what_history_tells_of_a_put_has_the_expiry_of_a_later_touch(
    machine: Machine, hub: WatchHub, source: str, expires_at: int
) -> None:
    """As watch.proto says: a touch leaves nothing by which the old one could be told."""
    client = Client(hub)
    await client.begin(after_revision=0)
    write(machine, put(b"a", b"1"))
    write(machine, Operation(touch=TouchOperation(key=b"a", ttl_ms=1000)), log_time_ms=0)
    write(machine, put(b"a", b"2"))
    if source == "from history":
        hub._cache.clear()
    heard = await client.read_until(2)
    told = [one.record.expire_time_ms for each in heard.revisions for one in each.changes]
    assert told == [expires_at, 0]


@pytest.mark.parametrize("source", ["as it happens", "from history"])
@pytest.mark.parametrize(
    ("filters", "revisions"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"no_puts": True}, [3, 5]),
        ({"no_deletes": True}, [1, 2, 4, 5]),
        ({"no_expiries": True}, [1, 2, 3, 4]),
        ({"no_puts": True, "no_expiries": True}, [3]),
        ({"key": b"a"}, [1, 3]),
        ({"key": b"nothing"}, []),
        ({"prefix": b"u:"}, [2, 4, 5]),
        ({"prefix": b""}, [1, 2, 3, 4, 5]),
        ({"range": KeyRange(start=b"a", end=b"u:")}, [1, 3]),
        ({"range": KeyRange(start=b"u:1")}, [2, 4, 5]),
        ({"range": KeyRange(start=b"u:2")}, [4]),
        ({"range": KeyRange(end=b"u:2")}, [1, 2, 3, 5]),
    ],
)
async def test_selection_and_filters(
    machine: Machine, hub: WatchHub, filters: dict[str, Any], revisions: list[int], source: str
) -> None:
    """A revision of which nothing is wanted is not told."""
    client = Client(hub)
    if source == "as it happens":
        await client.begin(progress_interval_ms=100, **filters)
    write(machine, put(b"a"))
    write(machine, put_for(b"u:1", b"", 50), log_time_ms=100)
    write(machine, delete(b"a"))
    write(machine, put(b"u:2"))
    command(machine, Command(sweep=Sweep(limit=10)), log_time_ms=200)
    if source == "from history":
        await client.begin(progress_interval_ms=100, after_revision=0, **filters)
    heard = client.heard[1]
    while not heard.progress or heard.progress[-1] < 5:
        await client.read()
    assert [one.revision for one in heard.revisions] == revisions


async def test_only_what_is_wanted_of_a_revision(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(prefix=b"a", no_deletes=True)
    write(machine, put(b"a1"), put(b"a2"), put(b"b"))
    write(machine, delete(b"a1"), put(b"a3"), put(b"b"))
    heard = await client.read_until(2)
    assert [[one.key for one in each.changes] for each in heard.revisions] == [
        [b"a1", b"a2"],
        [b"a3"],
    ]


@pytest.mark.parametrize("is_cached", [True, False])
async def test_without_values(machine: Machine, hub: WatchHub, is_cached: bool) -> None:
    client = Client(hub)
    await client.begin(keys_only=True, previous=True)
    write(machine, Operation(put=PutOperation(key=b"a", value=b"1", metadata=b"m")))
    write(machine, put(b"a", b"2"))
    if not is_cached:
        hub._cache.clear()
    [_, second] = (await client.read_until(2)).revisions
    [change] = second.changes
    assert (change.record.value, change.record.version, change.record.key) == (b"", 2, b"a")
    assert (change.previous.value, change.previous.metadata) == (b"", b"")
    assert change.previous.revision == 1


async def test_without_previous_records(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin()
    write(machine, put(b"a"))
    write(machine, delete(b"a"))
    assert shown((await client.read_until(2)).revisions[1]) == [("DELETE", b"a", None, None)]


# Beginning and ending.


async def test_a_watch_begins_at_the_revision_it_names(machine: Machine, hub: WatchHub) -> None:
    write(machine, put(b"a"))
    client = Client(hub)
    await client.begin()
    write(machine, put(b"b"))
    heard = await client.read_until(2)
    assert heard.begun == 1
    assert [one.revision for one in heard.revisions] == [2]


async def test_many_watches_on_one_stream(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    for number in range(100):
        await client.begin(number, key=b"%d" % number)
    for number in range(100):
        write(machine, put(b"%d" % number))
    for number in range(100):
        heard = await client.read_until(number + 1, number)
        assert [one.revision for one in heard.revisions] == [number + 1]


async def test_a_watch_that_was_ended_is_told_nothing_more(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(1)
    await client.begin(2)
    write(machine, put(b"a"))
    await client.end(1)
    write(machine, put(b"b"))
    heard = await client.read_until(2, 2)
    assert client.heard[1].ended == "OK"
    assert client.heard[1].revisions == []
    assert len(heard.revisions) == 2
    assert hub.count == 1
    await client.end(1)  # it may have crossed the end of the watch: nothing happens


async def test_an_id_in_use_ends_the_stream_and_not_the_watch_that_has_it(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    await client.begin(7)
    with pytest.raises(InvalidArgument, match="7 is on this stream already"):
        await client.begin(7)
    await client.end(7)
    await client.begin(7)
    assert hub.count == 1


async def test_a_future_revision_is_waited_for(machine: Machine, hub: WatchHub) -> None:
    """The client may have heard of it from the leader, and this node be a little behind."""
    client = Client(hub)
    await client.begin(after_revision=2)
    for key in (b"a", b"b", b"c"):
        write(machine, put(key))
    heard = await client.read_until(3)
    assert heard.begun == 2
    assert [one.revision for one in heard.revisions] == [3]


async def test_several_revisions_of_one_entry_may_pass_the_one_that_is_waited_for(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    await client.begin(after_revision=2)
    command(machine, *(Command(transaction=transaction(put(b"%d" % n))) for n in range(5)))
    heard = await client.read_until(5)
    assert [one.revision for one in heard.revisions] == [3, 4, 5]


async def test_a_revision_that_does_not_come_is_an_error(machine: Machine) -> None:
    client = Client(hub_of(machine, patience_seconds=0.01))
    await client.begin(after_revision=1)
    await client.read()
    assert client.heard[1].ended == "FUTURE_REVISION"


async def test_there_is_a_limit_to_watches(machine: Machine) -> None:
    hub = hub_of(machine, max_watches=2)
    client, other = Client(hub), Client(hub)
    await client.begin(1)
    await other.begin(1)
    await client.begin(2)
    await client.read()
    assert client.heard[2].ended == Overloaded.reason
    other.stream.close()
    await client.begin(3)
    assert hub.count == 2


async def test_all_watches_end_when_the_node_stops(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(1)
    await client.begin(2, after_revision=9)
    write(machine, put(b"a"))
    hub.close("n1 is shutting down")
    await client.read()
    assert await client.read() is None
    assert {one.ended for one in client.heard.values()} == {"SHUTTING_DOWN"}
    assert hub.count == 0


# Progress.


async def test_progress_tells_that_nothing_has_happened(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin(key=b"a", progress_interval_ms=100)
    write(machine, put(b"b"))
    heard = client.heard[1]
    while not heard.progress:
        await client.read()
    assert heard.progress == [1]


async def test_progress_says_nothing_of_what_is_still_to_be_told(
    machine: Machine, hub: WatchHub
) -> None:
    """The interval is over while the changes fill several messages."""
    client = Client(hub)
    await client.begin(progress_interval_ms=100)
    for _ in range(10):
        write(machine, put(b"a", bytes(100_000)))
    client.stream._on_interval(100)
    heard = await client.read_until(10)
    assert [one.revision for one in heard.revisions] == [*range(1, 11)]


async def test_who_hears_no_leader_says_nothing_of_its_own_accord(
    machine: Machine, hub: WatchHub, node: Vouching
) -> None:
    client = Client(hub)
    await client.begin(progress_interval_ms=100)
    await client.read()
    node.hears_leader = False
    asked = 0

    def vouches() -> bool:
        nonlocal asked
        asked += 1
        return node.hears_leader

    hub.vouches = vouches  # type: ignore[misc]  # the test counts how often it is asked
    reading = asyncio.create_task(client.read())
    await eventually(lambda: asked >= 3)
    assert not reading.done()
    node.hears_leader = True
    await reading
    assert client.heard[1].progress == [0]


async def test_streams_that_speak_much_speak_together(
    hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone hardly waits, and of many each waits longer, until the same moment."""
    streams = [hub.open_stream() for _ in range(40)]
    now = 1000.0101
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now)
        assert now < hub.silent_until(streams[0]) < now + 0.004
        until = {hub.silent_until(stream) for stream in streams}
        last = max(until)
        assert now + 0.02 < last <= now + 0.05
        assert len(until) < 6
        now = last - 0.0005  # a timer may fire too early
        [again] = {hub.silent_until(stream) for stream in streams}
        assert again == pytest.approx(last + 0.048)
        now += 1.0
        assert hub.silent_until(streams[0]) < now + 0.004
