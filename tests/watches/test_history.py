"""Watches that begin in the past, or that history overtakes; snapshots, which skip revisions."""

import pytest

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.layout import MIN_APART_BYTES
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.watches import WatchHub
from kvorumpb.v1.watch_pb2 import Change
from tests.support.commands import put, run_one
from tests.support.snapshots import snapshot_of, stage
from tests.support.watch_client import Client, shown
from tests.support.watched_machine import GROUP, Vouching, compact, write

# History.


async def test_a_watch_that_begins_before_the_oldest_revision_ends(
    machine: Machine, hub: WatchHub
) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        write(machine, put(key))
    compact(machine, 3)
    client = Client(hub)
    await client.begin(1, after_revision=2)
    await client.begin(2, after_revision=3)
    heard = await client.read_until(4, 2)
    assert [one.revision for one in heard.revisions] == [4]
    assert client.heard[1].ended == "COMPACTED"
    assert client.heard[1].begun is None


async def test_a_slow_watch_that_history_overtakes_ends(
    machine: Machine, hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(hub)
    await client.begin()
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", 128)
    count = limits.MAX_WATCH_PENDING_REVISIONS + 10
    for _ in range(count):
        write(machine, put(b"a"))
    hub._cache.clear()
    compact(machine, 5)
    while client.heard[1].ended is None:
        await client.read()
    assert client.heard[1].ended == "COMPACTED"
    assert client.heard[1].revisions == []


async def test_who_was_told_before_the_compaction_goes_on(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin()
    for _ in range(5):
        write(machine, put(b"a"))
    await client.read_until(5)
    compact(machine, 5)
    write(machine, put(b"a"))
    assert len((await client.read_until(6)).revisions) == 6


async def test_what_is_cached_is_told_after_a_compaction_and_what_is_not_ends_it(
    machine: Machine, hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch hears of what is known of it, in order, and then that the rest is gone."""
    client = Client(hub)
    await client.begin()
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", 128)
    count = limits.MAX_WATCH_PENDING_REVISIONS + 10
    for _ in range(count):
        write(machine, put(b"a"))
    compact(machine, count)
    while client.heard[1].ended is None:
        await client.read()
    assert [one.revision for one in client.heard[1].revisions] == [
        *range(1, limits.MAX_WATCH_PENDING_REVISIONS + 1)
    ]
    assert client.heard[1].ended == "COMPACTED"


async def test_a_large_value_that_is_compacted_ends_the_watch_whole(
    machine: Machine, hub: WatchHub
) -> None:
    """It lies by itself, and goes with its history: nothing of its revision is told."""
    client = Client(hub)
    await client.begin()
    write(machine, put(b"a"))
    large = write(machine, put(b"b"), put(b"a", bytes(MIN_APART_BYTES)))
    write(machine, put(b"a"))
    compact(machine, 3)
    assert hub._cache.get(large) is not None
    while client.heard[1].ended is None:
        await client.read()
    assert [one.revision for one in client.heard[1].revisions] == [1]
    assert client.heard[1].partial == []
    assert client.heard[1].ended == "COMPACTED"


async def test_a_snapshot_skips_nothing(engine: Engine, hub: WatchHub, machine: Machine) -> None:
    """The revisions that it brings are in its history."""
    source = Machine(MemoryEngine(), GROUP)
    client = Client(hub)
    await client.begin(1, previous=True)
    await client.begin(2, after_revision=7)
    for number in range(3):
        write(source, put(b"a", b"%d" % number))
        write(machine, put(b"a", b"%d" % number))
    for number in range(3, 10):
        write(source, put(b"a", b"%d" % number))
    stage(machine, snapshot_of(source), source.applied)
    machine.install(source.applied)
    write(machine, put(b"a", b"10"))
    heard = await client.read_until(11)
    assert [shown(one) for one in heard.revisions] == [
        [("PUT", b"a", b"%d" % number, b"%d" % (number - 1) if number else None)]
        for number in range(11)
    ]
    early = await client.read_until(11, 2)
    assert [one.revision for one in early.revisions] == [8, 9, 10, 11]


async def test_a_snapshot_that_has_forgotten_ends_the_watches(
    engine: Engine, hub: WatchHub, machine: Machine
) -> None:
    source = Machine(MemoryEngine(), GROUP)
    for number in range(10):
        write(source, put(b"a", b"%d" % number))
    compact(source, 8)
    client = Client(hub)
    await client.begin(1)
    await client.begin(2, after_revision=7)
    await client.begin(3, after_revision=8)
    write(machine, put(b"a", b"0"))
    stage(machine, snapshot_of(source), source.applied)
    machine.install(source.applied)
    while client.heard[1].ended is None or client.heard[2].ended is None:
        await client.read()
    assert [one.revision for one in client.heard[1].revisions] == [1]
    assert client.heard[1].ended == client.heard[2].ended == "COMPACTED"
    assert [one.revision for one in (await client.read_until(10, 3)).revisions] == [9, 10]


async def test_the_failure_of_the_disk_fails_the_node(
    machine: Machine, hub: WatchHub, node: Vouching, engine: Engine
) -> None:
    client = Client(hub)
    await client.begin(1)
    write(machine, put(b"a"))
    hub._cache.clear()
    engine.close()
    while client.heard[1].ended is None:
        await client.read()
    assert client.heard[1].ended == "STORAGE"
    assert [type(one).__name__ for one in node.failures] == ["StorageError"]


def test_every_kind_of_event_has_a_kind_of_change(machine: Machine) -> None:
    assert run_one(machine, put(b"a")).succeeded
    assert {Change.PUT, Change.DELETE, Change.EXPIRE} == set(Change.Kind.values()) - {0}
