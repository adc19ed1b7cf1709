"""Watches that do not read, very many of them, and very large changes."""

import pytest

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.watches import WatchHub
from kvorum_node.watches.cache import Cache
from kvorum_node.watches.watch import State
from kvorumpb.v1.command_pb2 import Operation, PutOperation
from tests.support.commands import put
from tests.support.eventually import eventually
from tests.support.watch_client import Client
from tests.support.watched_machine import write

# Slow, many, large.


async def test_a_watch_that_does_not_read_costs_its_numbers(
    machine: Machine, hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", 128)
    client, reading = Client(hub), Client(hub)
    await client.begin()
    await reading.begin()
    count = 5 * limits.MAX_WATCH_PENDING_REVISIONS
    for number in range(count):
        write(machine, put(b"a", bytes(1000)))
        await reading.read_until(number + 1)
    [slow] = client.stream._watches.values()
    assert len(slow.pending) == limits.MAX_WATCH_PENDING_REVISIONS
    assert slow.state is State.FULL
    assert len(hub._catching_up) == 0
    heard = await client.read_until(count)
    assert [one.revision for one in heard.revisions] == [*range(1, count + 1)]
    await eventually(lambda: slow.state is State.LIVE)


async def test_many_watches_that_do_not_read_share_the_numbers(
    machine: Machine, hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PENDING_REVISIONS", 300)
    monkeypatch.setattr(limits, "MIN_WATCH_PENDING_REVISIONS", 10)
    clients = [Client(hub) for _ in range(10)]
    for client in clients:
        await client.begin()
    for _ in range(200):
        write(machine, put(b"a"))
    noted = [len(one.pending) for one in hub._watches]
    assert hub._budget.noted == sum(noted)
    assert 300 <= sum(noted) <= 300 + 10 * 10
    assert min(noted) >= 10
    for client in clients[1:]:
        heard = await client.read_until(200)
        assert [one.revision for one in heard.revisions] == [*range(1, 201)]
    clients[0].stream.close()
    assert hub._budget.noted == 0


async def test_the_cache_is_bounded(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin()
    for _ in range(60):
        write(machine, *(put(b"%d" % number, bytes(4_000)) for number in range(100)))
    assert hub._cache.size_bytes <= limits.MAX_WATCH_CACHE_BYTES
    assert 10 < len(hub._cache) < 30
    heard = await client.read_until(60)
    assert [len(one.changes) for one in heard.revisions] == [100] * 60
    client.stream.close()
    assert hub._cache.size_bytes == 0


async def test_of_a_large_value_the_cache_has_only_the_place(
    machine: Machine, hub: WatchHub
) -> None:
    hub._cache = Cache(2_000)
    client = Client(hub)
    await client.begin(previous=True)
    write(machine, put(b"a", bytes(20 * limits.MIB)))
    write(machine, put(b"a", b"small"))
    assert len(hub._cache) == 2
    write(machine, *(put(b"%d" % number) for number in range(10)))  # larger than all of it
    assert hub._cache.get(3) is None
    assert len(hub._cache) == 2  # and it drives nothing else out
    heard = await client.read_until(3)
    [large], [small], _ = (one.changes for one in heard.revisions)
    assert len(large.record.value) == len(small.previous.value) == 20 * limits.MIB


async def test_what_waits_shares_a_message(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    client.keep_responses = True
    await client.begin(1)
    await client.begin(2, key=b"b")
    await client.read()
    count = limits.MAX_WATCH_UPDATES
    for _ in range(count - 1):
        write(machine, put(b"a"))
    write(machine, put(b"b"))
    await client.read_until(count)
    assert [len(one.updates) for one in client.responses] == [2, count, 1]
    assert [one.watch_id for one in client.responses[1].updates][:3] == [1, 2, 1]  # by turns


async def test_thousands_of_watches_cost_a_write_nothing_that_do_not_want_it(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    for number in range(3_000):
        await client.begin(number, prefix=b"user:%05d:" % number)
        if number % 200 == 0:
            await client.read()
    write(machine, put(b"user:00017:name"))
    noted = [one.id for one in client.stream._watches.values() if one.pending]
    assert noted == [17]
    assert [len(group) for group in hub._live.groups(b"user:00017:name")] == [1]  # type: ignore[arg-type]  # a dict


@pytest.mark.parametrize("is_cached", [True, False])
async def test_a_large_revision_is_several_updates(
    machine: Machine, hub: WatchHub, is_cached: bool
) -> None:
    client = Client(hub)
    client.keep_responses = True
    await client.begin(previous=True)
    for value in (b"1", b"2"):
        write(machine, *(put(b"%03d" % n, value * 100_000) for n in range(40)))
    if not is_cached:
        hub._cache.clear()
    heard = await client.read_until(2)
    assert [len(one.changes) for one in heard.revisions] == [40, 40]
    assert {one.previous.value[:1] for one in heard.revisions[1].changes} == {b"1"}
    assert len(client.responses) > 20
    assert max(one.ByteSize() for one in client.responses) < 2 * limits.MAX_WATCH_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("before", "after"), [(70, 70), (70, 1), (1, 70), (40, 40), (20, 20), (41, 0)]
)
@pytest.mark.parametrize("is_cached", [True, False])
async def test_a_large_change_comes_in_parts(
    *,
    machine: Machine,
    hub: WatchHub,
    before: int,
    after: int,
    is_cached: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that whoever reads slowly costs a part, and not 50 MiB. Sizes are in KiB."""
    before, after = before * limits.KIB, after * limits.KIB
    monkeypatch.setattr(limits, "MAX_WATCH_PART_BYTES", 40 * limits.KIB)
    monkeypatch.setattr(limits, "MAX_WATCH_MESSAGE_BYTES", 4 * limits.KIB)
    client = Client(hub)
    client.keep_responses = True
    await client.begin(previous=True)
    for value in (b"1" * before, b"2" * after):
        large = PutOperation(key=b"b", value=value, metadata=b"m")
        write(machine, put(b"a"), Operation(put=large), put(b"c"))
    if not is_cached:
        hub._cache.clear()
    heard = await client.read_until(2)
    assert [one.key for one in heard.revisions[1].changes] == [b"a", b"b", b"c"]
    large_change = heard.revisions[1].changes[1]
    assert large_change.record.value == b"2" * after
    assert large_change.previous.value == b"1" * before
    assert (large_change.record.metadata, large_change.previous.metadata) == (b"m", b"m")
    assert (large_change.record.version, large_change.previous.version) == (2, 1)
    largest = max(one.ByteSize() for one in client.responses)
    assert largest < limits.MAX_WATCH_PART_BYTES + limits.MAX_WATCH_MESSAGE_BYTES + limits.KIB


async def test_a_small_revision_in_a_large_one_is_found(machine: Machine, hub: WatchHub) -> None:
    """A walk through very many events with nothing wanted among them ends somewhere."""
    client = Client(hub)
    await client.begin(key=b"k0999")
    write(machine, *(put(b"k%04d" % n) for n in range(1000)))
    first = write(machine, *(put(b"k%04d" % n) for n in range(1000, 2000)), put(b"k0999"))
    write(
        machine,
        *(put(b"j%04d" % n) for n in range(1020)),
        put(b"k0999"),
        *(put(b"l%04d" % n) for n in range(1020)),
    )
    hub._cache.clear()
    heard = await client.read_until(3)
    assert [len(one.changes) for one in heard.revisions] == [1, 1, 1]
    assert first == 2
