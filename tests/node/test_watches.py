"""The hub of watches on a real machine: every change once, in order, whole, whoever reads how."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvorum import limits
from kvorum.errors import InvalidArgument, Overloaded
from kvorum_node.machine import FORMAT, Machine
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, Term
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role
from kvorum_node.watches import WatchHub
from kvorum_node.watches.watch import State
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    Compaction,
    KeyRange,
    Operation,
    PutOperation,
    Sweep,
    TouchOperation,
    TransactionResult,
)
from kvorumpb.v1.watch_pb2 import Change
from tests.support.commands import delete, put, run_one, transaction
from tests.support.eventually import eventually
from tests.support.snapshots import snapshot_of, stage
from tests.support.watch_client import Client, shown

GROUP = GroupId(1)


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine: Engine = (
        MemoryEngine()
        if request.param == "memory"
        else RocksEngine.open(tmp_path / "state", Role.STATE)
    )
    yield engine
    engine.close()


@pytest.fixture
def machine(engine: Engine) -> Machine:
    return Machine(engine, GROUP)


class Vouching:
    """Whether the node hears a leader, and what has failed it."""

    def __init__(self) -> None:
        self.hears_leader = True
        self.failures: list[Exception] = []


@pytest.fixture
def node() -> Vouching:
    return Vouching()


def hub_of(machine: Machine, node: Vouching | None = None, **options: float) -> WatchHub:
    node = node or Vouching()
    return WatchHub(
        machine,
        vouches=lambda: node.hears_leader,
        fail=node.failures.append,
        **options,  # type: ignore[arg-type]  # a test gives what the hub takes
    )


@pytest.fixture
async def hub(machine: Machine, node: Vouching) -> WatchHub:
    return hub_of(machine, node)


def command(machine: Machine, *commands: Command, log_time_ms: int = 0) -> list[TransactionResult]:
    batch = CommandBatch(format=FORMAT, log_time_ms=log_time_ms, commands=commands)
    entry = Entry(
        Index(machine.applied + 1), Term(1), EntryKind.COMMANDS, batch.SerializeToString()
    )
    [results] = machine.apply([entry])
    return results


def write(machine: Machine, *operations: Operation, log_time_ms: int = 0) -> int:
    """One transaction; its revision."""
    one = Command(transaction=transaction(*operations))
    return command(machine, one, log_time_ms=log_time_ms)[0].revision


def put_for(key: bytes, value: bytes, ttl_ms: int) -> Operation:
    return Operation(put=PutOperation(key=key, value=value, ttl_ms=ttl_ms))


def compact(machine: Machine, revision: int, limit: int = 1_000_000) -> None:
    command(machine, Command(compaction=Compaction(revision=revision, limit=limit)))


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
    machine: Machine, hub: WatchHub, filters: dict[str, object], revisions: list[int], source: str
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


async def test_who_hears_no_leader_says_nothing_of_its_own_accord(
    machine: Machine, hub: WatchHub, node: Vouching
) -> None:
    node.hears_leader = False
    client = Client(hub)
    await client.begin(progress_interval_ms=100)
    await client.read()
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


async def test_a_slow_watch_that_history_overtakes_ends(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin()
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
    machine: Machine, hub: WatchHub
) -> None:
    """The watch hears of what is known of it, in order, and then that the rest is gone."""
    client = Client(hub)
    await client.begin()
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


# Slow, many, large.


async def test_a_watch_that_does_not_read_costs_its_numbers(
    machine: Machine, hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_the_cache_is_bounded(machine: Machine, hub: WatchHub) -> None:
    client = Client(hub)
    await client.begin()
    for _ in range(40):
        write(machine, put(b"a", bytes(limits.MIB)))
    assert hub._cache.size_bytes <= limits.MAX_WATCH_CACHE_BYTES
    assert 5 < len(hub._cache) < 20
    write(machine, put(b"a", bytes(20 * limits.MIB)))  # larger than all of it
    assert 5 < len(hub._cache) < 20
    heard = await client.read_until(41)
    assert [len(one.changes[0].record.value) for one in heard.revisions] == [
        *[limits.MIB] * 40,
        20 * limits.MIB,
    ]
    client.stream.close()
    assert hub._cache.size_bytes == 0


async def test_thousands_of_watches_cost_a_write_nothing_that_do_not_want_it(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    for number in range(3_000):
        await client.begin(number, prefix=b"user:%05d:" % number)
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


async def test_a_change_that_is_too_large_for_a_message_comes_in_two(
    machine: Machine, hub: WatchHub
) -> None:
    client = Client(hub)
    client.keep_responses = True
    await client.begin(previous=True)
    for value in (b"1", b"2"):
        write(machine, put(b"a"), put(b"b", value * limits.MAX_VALUE_BYTES), put(b"c"))
    heard = await client.read_until(2)
    assert [one.key for one in heard.revisions[1].changes] == [b"a", b"b", b"c"]
    large = heard.revisions[1].changes[1]
    assert large.record.value == b"2" * limits.MAX_VALUE_BYTES
    assert large.previous.value == b"1" * limits.MAX_VALUE_BYTES
    assert max(one.ByteSize() for one in client.responses) < limits.MAX_MESSAGE_BYTES


async def test_only_so_many_large_messages_are_on_their_way(
    machine: Machine, hub: WatchHub
) -> None:
    clients = [Client(hub) for _ in range(limits.MAX_LARGE_UPDATES + 1)]
    for client in clients:
        await client.begin()
        await client.read()
    write(machine, put(b"a", bytes(2 * limits.MIB)))
    for client in clients[:-1]:
        await client.read()
    assert all(client.stream.is_large for client in clients[:-1])
    last = asyncio.create_task(clients[-1].read())
    write(machine, put(b"b"))
    await eventually(lambda: hub.large._waiters)
    assert not last.done()
    clients[0].stream.close()
    await last
    assert [one.revision for one in clients[-1].heard[1].revisions] == [1]


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


# Against a model.

Event = tuple[int, str, bytes, bytes | None, bytes | None]


def random_operations(source: random.Random) -> list[Operation]:
    keys = source.sample(MODEL_KEYS, source.randint(1, 4))
    made: list[Callable[[bytes], Operation]] = [
        lambda key: put(key, b"%d" % source.randrange(1000)),
        lambda key: put_for(key, b"%d" % source.randrange(1000), source.randint(1, 60)),
        lambda key: delete(key),
    ]
    return [source.choice(made)(key) for key in keys]


MODEL_KEYS = [a + b for a in (b"a", b"b", b"b:", b"\xff") for b in (b"", b"0", b"1")]
SELECTIONS: list[dict[str, object]] = [
    {},
    {"key": b"b"},
    {"prefix": b"b"},
    {"prefix": b"b:"},
    {"range": KeyRange(start=b"a0", end=b"b1")},
    {"range": KeyRange(start=b"b0")},
]


class Model:
    """What has happened, found out by looking at the records before and after each command."""

    def __init__(self, machine: Machine) -> None:
        self.events: list[Event] = []
        self._machine = machine
        self._records: dict[bytes, tuple[int, bytes, int]] = {}

    def look(self, before: int) -> None:
        """Compare what the machine holds with what it held at the revision before."""
        machine = self._machine
        revision = machine.revision
        if revision == before:
            return
        for key in sorted(MODEL_KEYS):
            data = machine._tables().data.get(key)
            record = machine.get(key)
            had = self._records.get(key)
            if had is not None and (record is None or record.revision != had[0]):
                expired = 0 < had[2] <= machine.log_time_ms
                if data is None or record is not None:
                    if expired:
                        self.events.append((revision, "EXPIRE", key, None, had[1]))
                    elif record is None:
                        self.events.append((revision, "DELETE", key, None, had[1]))
                    del self._records[key]
            if record is not None and record.revision == revision:
                previous = None if had is None or 0 < had[2] <= machine.log_time_ms else had[1]
                self.events.append((revision, "PUT", key, record.value, previous))
                self._records[key] = (revision, record.value, record.expire_time_ms)


def wanted(event: Event, fields: dict[str, object]) -> bool:
    _, kind, key, _, _ = event
    if fields.get({"PUT": "no_puts", "DELETE": "no_deletes", "EXPIRE": "no_expiries"}[kind]):
        return False
    match fields:
        case {"key": bytes(wanted_key)}:
            return key == wanted_key
        case {"prefix": bytes(prefix)}:
            return key.startswith(prefix)
        case {"range": KeyRange(start=start, end=end)}:
            return start <= key and (not end or key < end)
    return True


@pytest.mark.parametrize("seed", range(12))
async def test_random_transactions_and_watchers_of_all_kinds(
    machine: Machine,
    hub: WatchHub,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever begins when, wants what and reads how fast: its events, all of them, in order."""
    source = random.Random(seed)
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", source.choice((1, 2, 8, 128)))
    monkeypatch.setattr(limits, "MAX_WATCH_SCAN_EVENTS", source.choice((1, 3, 1000)))
    monkeypatch.setattr(limits, "MAX_WATCH_MESSAGE_BYTES", source.choice((20, 100, 100_000)))
    hub._cache._max_bytes = source.choice((0, 2_000, 1 << 20))
    model, clock = Model(machine), 1
    clients: list[tuple[Client, dict[str, object], int]] = []
    for _ in range(300):
        clock += source.choice((0, 1, 5))
        before = machine.revision
        if source.random() < 0.1:
            sweep = Command(sweep=Sweep(limit=source.randint(1, 5)))
            command(machine, sweep, log_time_ms=clock)
        else:
            write(machine, *random_operations(source), log_time_ms=clock)
        model.look(before)
        if source.random() < 0.08:
            fields = source.choice(SELECTIONS) | {"previous": True}
            flag = source.choice(("no_puts", "no_deletes", "no_expiries", "keys_only"))
            if flag != "keys_only":
                fields[flag] = True
            after = source.choice((machine.revision, source.randint(0, machine.revision)))
            client = Client(hub)
            await client.begin(after_revision=after, progress_interval_ms=100, **fields)
            clients.append((client, fields, after))
        for client, _, _ in clients:
            if source.random() < 0.1 and client.stream._ready:
                await client.read()
    for client, fields, after in clients:
        await client.read_all(machine)
        told = [
            (one.revision, *change) for one in client.heard[1].revisions for change in shown(one)
        ]
        expected = [one for one in model.events if one[0] > after and wanted(one, fields)]
        assert told == expected, fields
    assert clients


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
