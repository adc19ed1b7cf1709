"""Snapshots: read while the state moves on, staged out of sight, installed in one step."""

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import limits
from kvorum.errors import StorageError
from kvorum.limits import MIB
from kvorum_node.machine import Machine, SnapshotDamaged, snapshot
from kvorum_node.raft.types import GroupId, Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role
from kvorumpb.v1.kv_pb2 import ListRequest
from tests.machine.conftest import Disk
from tests.support.commands import delete, entry, put, random_entries, run, run_one, transaction
from tests.support.snapshots import hash_of, snapshot_of, stage, write_all

GROUP = GroupId(1)
HEAD = struct.Struct(">cII")
COUNT = struct.Struct(">Q")


def grown(engine: Engine, seed: int = 1, entries: int = 200) -> Machine:
    """A machine with some history, log time included."""
    machine = Machine(engine, GROUP)
    machine.apply(random_entries(random.Random(seed), entries))
    assert machine.revision > 50
    return machine


def contents(engine: Engine, space: layout.Space) -> list[tuple[Family, bytes, bytes]]:
    return [
        (family, layout.without_prefix(key), value)
        for family in layout.STATE_FAMILIES
        for key, value in engine.scan(family, *space.range)
    ]


def record_of(tag: bytes, key: bytes, value: bytes) -> bytes:
    return HEAD.pack(tag, len(key), len(value)) + key + value


def end_of(count: int) -> bytes:
    return record_of(b"\0", b"", COUNT.pack(count))


@pytest.fixture
def source() -> Machine:
    return grown(MemoryEngine())


@pytest.fixture
def small_source() -> Machine:
    """Something of everything, for tests that stage it once for each of its bytes."""
    return grown(MemoryEngine(), entries=40)


# Reading.


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 4096, limits.MAX_SNAPSHOT_CHUNK_BYTES])
def test_the_stream_is_the_same_in_chunks_of_any_size(machine: Machine, chunk_bytes: int) -> None:
    run_one(machine, put(b"large", bytes(3000)), put(b"empty", b""))
    assert snapshot_of(machine, chunk_bytes) == snapshot_of(machine)


def test_the_format_is_what_its_page_says(machine: Machine) -> None:
    """Another version may read this: it is not free to be improved."""
    machine.apply([entry(1, transaction(put(b"k", b"v")), log_time_ms=70)])
    record = machine.get(b"k")
    assert record is not None
    record.key = b""
    assert snapshot_of(machine) == (
        b"\x01"
        + record_of(b"D", b"k", record.SerializeToString())
        + record_of(b"H", COUNT.pack(1) + bytes(4), b"\x01" + COUNT.pack(70) + b"k")
        + record_of(b"K", b"k\0\1" + COUNT.pack(1), b"")
        + record_of(b"M", b"applied", COUNT.pack(1))
        + record_of(b"M", b"log_time_ms", COUNT.pack(70))
        + record_of(b"M", b"revision", COUNT.pack(1))
        + end_of(6)
    )


def test_a_reader_sees_the_state_as_it_was(machine: Machine, engine: Engine) -> None:
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(500)))
    before, applied = hash_of(machine), machine.applied
    reader = machine.read_snapshot()
    stream = reader.chunk(1000)
    run_one(machine, put(b"k0000", b"new"), delete(b"k0499"), put(b"k0300", b"new"))
    stream += reader.chunk(1000)
    stage(machine, snapshot_of(grown(MemoryEngine())), Index(200))
    machine.install(Index(200))
    while chunk := reader.chunk(1000):
        stream += chunk
    assert reader.applied == applied
    receiver = Machine(MemoryEngine(), GROUP)
    stage(receiver, stream, applied)
    receiver.install(applied)
    assert hash_of(receiver) == before
    assert receiver.applied == applied


def test_few_records_begin_in_a_chunk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small records cost by their number: a chunk of them must not take long."""
    monkeypatch.setattr(snapshot, "MAX_CHUNK_RECORDS", 10)
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(95)))
    reader = machine.read_snapshot()
    chunks = 0
    while reader.chunk():
        chunks += 1
    assert chunks == 25  # five pieces of each: a record, its event, and that it was absent before


def test_a_closed_reader_gives_nothing_more(machine: Machine) -> None:
    run_one(machine, put(b"k"))
    reader = machine.read_snapshot()
    reader.close()
    reader.close()
    with pytest.raises(AssertionError, match="closed"):
        reader.chunk()


def test_an_engine_that_closes_ends_the_reader_with_an_error(
    machine: Machine, engine: Engine
) -> None:
    """To end quietly would look like the end of the state."""
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(10)))
    reader = machine.read_snapshot()
    reader.chunk(10)
    engine.close()
    with pytest.raises(StorageError, match="closed"):
        [*iter(lambda: reader.chunk(10), b"")]


class _CountingEngine(MemoryEngine):
    """Counts the records that scans give out, and measures what is written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scanned = 0
        self.batches: list[int] = []

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for pair in super().scan(family, start, end, reverse=reverse):
            self.scanned += 1
            yield pair

    def write(self, batch: Batch) -> None:
        self.batches.append(sum(len(key) + len(value) for _, key, value in batch.puts))
        super().write(batch)


def test_a_reader_is_at_most_one_record_ahead_of_its_chunk() -> None:
    engine = _CountingEngine()
    machine = Machine(engine, GROUP)
    run(machine, *(transaction(put(b"k%02d" % number, bytes(4_000))) for number in range(20)))
    reader = machine.read_snapshot()
    read = 0
    while chunk := reader.chunk(1000):
        read += len(chunk)
        # When all that is large has been read, the small ones follow: two a record, and META.
        assert engine.scanned <= read // 4_000 + (4 if read < 80_000 else 2 * 20 + 4)


# Staging.


@pytest.mark.parametrize("chunk_bytes", [1, 13, 5000, limits.MAX_SNAPSHOT_CHUNK_BYTES])
def test_what_is_installed_is_what_was_read(
    machine: Machine, engine: Engine, source: Machine, chunk_bytes: int
) -> None:
    """From one engine to another, whatever the chunks."""
    stage(machine, snapshot_of(source), source.applied, chunk_bytes)
    machine.install(source.applied)
    for each in (machine, Machine(engine, GROUP)):
        assert hash_of(each) == hash_of(source)
        assert (each.applied, each.revision, each.log_time_ms) == (
            source.applied,
            source.revision,
            source.log_time_ms,
        )
        assert each.list(ListRequest()) == source.list(ListRequest())
        assert each.staged is None


def test_from_every_engine_to_another(machine: Machine) -> None:
    machine.apply(random_entries(random.Random(3), 100))
    receiver = Machine(MemoryEngine(), GroupId(9))
    stage(receiver, snapshot_of(machine), machine.applied)
    receiver.install(machine.applied)
    assert hash_of(receiver) == hash_of(machine)


def test_an_installed_state_goes_on_as_its_source_does(machine: Machine, source: Machine) -> None:
    stage(machine, snapshot_of(source), source.applied)
    machine.install(source.applied)
    rest = random_entries(random.Random(7), 300)[200:]
    assert machine.apply(rest) == source.apply(rest)
    assert hash_of(machine) == hash_of(source)
    stage(machine, snapshot_of(grown(MemoryEngine(), 5, 400)), Index(400))
    machine.install(Index(400))
    assert hash_of(machine) == hash_of(grown(MemoryEngine(), 5, 400))


def test_what_is_staged_does_not_show(machine: Machine, engine: Engine, source: Machine) -> None:
    run_one(machine, put(b"mine", b"1"))
    before, page = hash_of(machine), machine.list(ListRequest())
    for finish in (False, True):
        staging = machine.stage_snapshot()
        write_all(staging, snapshot_of(source), 1000)
        if finish:
            staging.finish(source.applied)
        for each in (machine, Machine(engine, GROUP)):
            assert hash_of(each) == before
            assert each.list(ListRequest()) == page
            assert each.get(b"a") is None
            assert (each.applied, each.revision) == (1, 1)
            assert each.staged == (source.applied if finish else None)
    run_one(machine, put(b"mine", b"2"), put(b"a", b"mine"))
    staged = contents(engine, layout.Space(GROUP, 1))
    assert staged == contents(source._engine, layout.Space(GROUP, 0))


def test_groups_keep_their_own_spaces(machine: Machine, engine: Engine, source: Machine) -> None:
    neighbour = Machine(engine, GroupId(2))
    run_one(neighbour, put(b"theirs"))
    stage(neighbour, snapshot_of(grown(MemoryEngine(), 5)), Index(200))
    before = hash_of(neighbour)
    stage(machine, snapshot_of(source), source.applied)
    machine.install(source.applied)
    machine.discard_staged()
    assert hash_of(neighbour) == before
    assert (neighbour.staged, machine.staged) == (200, None)


@pytest.mark.parametrize("number_of_installs", [1, 2, 3])
def test_the_space_that_is_left_is_empty(
    machine: Machine, engine: Engine, number_of_installs: int
) -> None:
    run_one(machine, put(b"mine", b"1"))
    for number in range(1, number_of_installs + 1):
        source = grown(MemoryEngine(), seed=number, entries=200 * number)
        stage(machine, snapshot_of(source), source.applied)
        machine.install(source.applied)
        now = layout.Space(GROUP, number % 2)
        assert contents(engine, now) == contents(source._engine, layout.Space(GROUP, 0))
        assert contents(engine, now.other) == []


def test_every_family_comes_along(monkeypatch: pytest.MonkeyPatch, source: Machine) -> None:
    """Also one that this version has no use for: LOG stands in for it, on an engine of its own."""
    monkeypatch.setattr(layout, "STATE_FAMILIES", (Family.DATA, Family.LOG, Family.META))
    batch = Batch()
    for number in range(3):
        key = layout.Space(GROUP, 0).prefix + b"%d" % number
        batch.put(Family.LOG, key, b"value" if number else b"")
    source._engine.write(batch)
    engine = MemoryEngine()
    receiver = Machine(engine, GROUP)
    stage(receiver, snapshot_of(source), source.applied)
    receiver.install(source.applied)
    received = contents(engine, layout.Space(GROUP, 1))
    assert received == contents(source._engine, layout.Space(GROUP, 0))
    assert [value for family, _, value in received if family is Family.LOG] == [
        b"",
        b"value",
        b"value",
    ]
    stage(receiver, snapshot_of(grown(MemoryEngine(), 5, 300)), Index(300))
    receiver.install(Index(300))
    assert list(engine.scan(Family.LOG, b"", None)) == []


def test_the_largest_value_is_split_over_chunks(machine: Machine) -> None:
    engine = MemoryEngine()
    source = Machine(engine, GROUP)
    value = random.Random(1).randbytes(limits.MAX_VALUE_BYTES)
    run_one(source, put(b"large", value), put(b"small", b"1"))
    stage(machine, snapshot_of(source), source.applied)
    machine.install(source.applied)
    record = machine.get(b"large")
    assert record is not None
    assert record.value == value


def test_little_is_written_at_once() -> None:
    source = Machine(MemoryEngine(), GROUP)
    for number in range(6):
        run_one(source, put(b"k%d" % number, bytes(700_000)))
    run_one(source, put(b"large", bytes(3 * MIB)))
    stream = snapshot_of(source)
    for chunk_bytes in (limits.MAX_SNAPSHOT_CHUNK_BYTES, len(stream)):
        engine = _CountingEngine()
        stage(Machine(engine, GROUP), stream, source.applied, chunk_bytes)
        assert sorted(engine.batches)[-1] < 3 * MIB + 2 * MIB
        assert sorted(engine.batches)[-2] < 2 * MIB


def test_the_caller_is_told_when_to_sync(machine: Machine, source: Machine) -> None:
    stream = snapshot_of(source)
    staging = machine.stage_snapshot()
    staging.write(stream[: len(stream) // 2])
    half = staging.unsynced_bytes
    assert 0 < half < len(stream) // 2
    staging.synced()
    assert staging.unsynced_bytes == 0
    staging.write(stream[len(stream) // 2 :])
    assert 0 < staging.unsynced_bytes < len(stream) - half
    assert snapshot.MAX_UNSYNCED_BYTES == 32 * MIB


def test_a_staging_takes_the_place_of_the_one_before(
    machine: Machine, engine: Engine, source: Machine
) -> None:
    stream = snapshot_of(source)
    first = machine.stage_snapshot()
    first.write(stream[: len(stream) // 2])
    second = machine.stage_snapshot()
    assert contents(engine, layout.Space(GROUP, 1)) == []
    with pytest.raises(AssertionError, match="given up for another"):
        first.write(stream[len(stream) // 2 :])
    with pytest.raises(AssertionError, match="given up for another"):
        first.finish(Index(1))
    write_all(second, stream, 1000)
    second.finish(source.applied)
    with pytest.raises(AssertionError, match="finished"):
        second.write(b"")
    third = machine.stage_snapshot()
    assert machine.staged is None
    assert contents(engine, layout.Space(GROUP, 1)) == []
    write_all(third, stream, 1000)
    third.finish(source.applied)
    machine.install(source.applied)
    assert hash_of(machine) == hash_of(source)


def test_what_is_staged_can_be_thrown_away(
    machine: Machine, engine: Engine, source: Machine
) -> None:
    run_one(machine, put(b"mine"))
    before = hash_of(machine)
    stage(machine, snapshot_of(source), source.applied)
    machine.discard_staged()
    assert machine.staged is None
    assert contents(engine, layout.Space(GROUP, 1)) == []
    assert hash_of(machine) == before


def test_nothing_is_thrown_away_by_a_write_without_need() -> None:
    engine = _CountingEngine()
    machine = Machine(engine, GROUP)
    machine.discard_staged()
    machine.stage_snapshot()
    assert engine.batches == []


# What is no snapshot.


def refused(machine: Machine, stream: bytes, match: str) -> None:
    """Refused whatever its chunks are; and what the machine holds is as it was."""
    before = hash_of(machine)
    for chunk_bytes in (3, 64, MIB):
        with pytest.raises(SnapshotDamaged, match=match):
            stage(machine, stream, Index(1), chunk_bytes)
        assert machine.staged is None
        assert hash_of(machine) == before
        with pytest.raises(StorageError, match="cannot be installed"):
            machine.install(Index(1))


META = (
    record_of(b"M", b"applied", COUNT.pack(1))
    + record_of(b"M", b"log_time_ms", COUNT.pack(0))
    + record_of(b"M", b"revision", COUNT.pack(0))
)


def test_the_smallest_snapshot_is_one(machine: Machine) -> None:
    """So that each of the refused ones below is refused for what it says."""
    stage(machine, b"\x01" + META + end_of(3), Index(1))
    machine.install(Index(1))
    assert (machine.applied, machine.revision) == (1, 0)


@pytest.mark.parametrize(
    ("stream", "match"),
    [
        pytest.param(b"\x02" + META + end_of(3), "format 2, and this version knows 1", id="format"),
        pytest.param(b"", "breaks off after 0 records", id="nothing"),
        pytest.param(b"\x01", "breaks off after 0 records", id="no record"),
        pytest.param(b"\x01" + META, "breaks off after 3 records", id="no end"),
        pytest.param(b"\x01" + META + end_of(4), "ends after 3 records, and", id="too few"),
        pytest.param(b"\x01" + META + end_of(2), "ends after 3 records, and", id="too many"),
        pytest.param(
            b"\x01" + META + record_of(b"\0", b"k", COUNT.pack(3)), "says otherwise", id="end key"
        ),
        pytest.param(b"\x01" + META + end_of(3) + b"x", "goes on after its end", id="trailing"),
        pytest.param(
            b"\x01" + META + end_of(3) + META + end_of(3), "goes on after its end", id="twice"
        ),
        pytest.param(b"\x01" + META + META + end_of(6), "3 does not follow", id="repeated"),
        pytest.param(
            b"\x01" + META + record_of(b"D", b"k", b"") + end_of(4), "3 does not", id="disorder"
        ),
        pytest.param(
            b"\x01" + META + record_of(b"Z", b"k", b"") + end_of(4),
            "family b'Z', which this version does not know",
            id="family",
        ),
        pytest.param(
            b"\x01" + META + record_of(b"L", b"k", b"") + end_of(4),
            "family b'L'",
            id="family of the log",
        ),
        pytest.param(
            b"\x01" + HEAD.pack(b"D", 4, limits.MAX_MESSAGE_BYTES) + b"key1",
            "claims 41943044 bytes",
            id="too large",
        ),
        pytest.param(b"\x01" + end_of(0), "of the state at 0, not at 1", id="no index"),
        pytest.param(
            b"\x01" + record_of(b"M", b"applied", COUNT.pack(2)) + end_of(1),
            "of the state at 2, not at 1",
            id="another index",
        ),
        pytest.param(
            b"\x01" + record_of(b"M", b"applied", b"1") + end_of(1),
            "applied of group 1 has 1 bytes",
            id="an index that is none",
        ),
    ],
)
def test_what_is_no_snapshot_is_refused(machine: Machine, stream: bytes, match: str) -> None:
    refused(machine, stream, match)


def test_wherever_it_breaks_off_it_is_refused(small_source: Machine) -> None:
    stream = snapshot_of(small_source)
    receiver = Machine(MemoryEngine(), GROUP)
    for length in range(len(stream)):
        with pytest.raises(SnapshotDamaged, match="breaks off"):
            stage(receiver, stream[:length], small_source.applied)
        assert receiver.staged is None


def test_altered_bytes_are_refused_or_change_only_what_a_record_holds(
    small_source: Machine,
) -> None:
    """The structure is checked here, and every bit of the rest by the transport's checksums."""
    stream = snapshot_of(small_source)
    whole = contents(small_source._engine, layout.Space(GROUP, 0))
    engine = MemoryEngine()
    receiver = Machine(engine, GROUP)
    rng = random.Random(1)
    refusals = 0
    for _ in range(1000):
        position = rng.randrange(len(stream))
        altered = bytearray(stream)
        altered[position] ^= 1 << rng.randrange(8)
        try:
            stage(receiver, bytes(altered), small_source.applied)
        except SnapshotDamaged:
            refusals += 1
            assert receiver.staged is None
        else:
            assert len(contents(engine, layout.Space(GROUP, 1))) == len(whole)
    assert refusals > 200


# Installing.


def test_nothing_else_than_what_is_staged_is_installed(
    machine: Machine, engine: Engine, source: Machine
) -> None:
    run_one(machine, put(b"mine"))
    before = hash_of(machine)
    with pytest.raises(StorageError, match=r"at 200 cannot be installed.* that at None"):
        machine.install(source.applied)
    staging = machine.stage_snapshot()
    write_all(staging, snapshot_of(source), 1000)
    with pytest.raises(StorageError, match=r"at 200 cannot be installed.* that at None"):
        machine.install(source.applied)
    staging.finish(source.applied)
    with pytest.raises(StorageError, match=r"at 300 cannot be installed.* that at 200"):
        machine.install(Index(300))
    for each in (machine, Machine(engine, GROUP)):
        assert hash_of(each) == before


def test_a_state_does_not_go_back(source: Machine) -> None:
    receiver = grown(MemoryEngine(), seed=2, entries=201)
    stage(receiver, snapshot_of(source), source.applied)
    with pytest.raises(AssertionError, match="state at 200 for that at 201"):
        receiver.install(source.applied)


class _FailingEngine(MemoryEngine):
    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def write(self, batch: Batch) -> None:
        if self.broken:
            raise StorageError("no space left on the device")
        super().write(batch)


def test_a_failed_install_changes_nothing(source: Machine) -> None:
    engine = _FailingEngine()
    machine = Machine(engine, GROUP)
    run_one(machine, put(b"mine"))
    before = hash_of(machine)
    stage(machine, snapshot_of(source), source.applied)
    engine.broken = True
    with pytest.raises(StorageError, match="no space left"):
        machine.install(source.applied)
    assert (hash_of(machine), machine.applied) == (before, 1)


def test_a_space_that_the_disk_has_altered_is_refused(engine: Engine) -> None:
    batch = Batch()
    batch.put(Family.META, layout.space_key(GROUP), b"\x07")
    engine.write(batch)
    with pytest.raises(StorageError, match="group 1 is said to be in the space 07"):
        Machine(engine, GROUP)


def test_an_install_survives_a_restart(disk: Disk) -> None:
    source = grown(MemoryEngine())
    machine = Machine(disk.engine, GROUP)
    run_one(machine, put(b"mine"))
    stage(machine, snapshot_of(source), source.applied)
    disk.restart()
    machine = Machine(disk.engine, GROUP)
    assert (machine.applied, machine.staged) == (1, source.applied)
    machine.install(source.applied)
    disk.restart()
    machine = Machine(disk.engine, GROUP)
    assert hash_of(machine) == hash_of(source)


@pytest.mark.parametrize("value_bytes", [4 * 1024, 256 * 1024])
def test_the_old_state_gives_its_disk_back(tmp_path: Path, value_bytes: int) -> None:
    """In files, and in blob files; with no more help than the flushes of an ordinary node."""
    engine = RocksEngine.open(tmp_path / "state", Role.STATE)
    machine = Machine(engine, GROUP)
    rng = random.Random(1)
    count = 48 * MIB // value_bytes
    for first in range(0, count, 16):
        run(
            machine,
            *(
                transaction(put(b"k%06d" % number, rng.randbytes(value_bytes)))
                for number in range(first, min(count, first + 16))
            ),
        )
    engine.sync()
    small = Machine(MemoryEngine(), GROUP)
    small.apply([entry(number, transaction(put(b"k"))) for number in range(1, 5000)])
    assert engine.size_bytes() > 45 * MIB
    stage(machine, snapshot_of(small), small.applied)
    engine.sync()
    machine.install(small.applied)
    engine.sync()
    deadline = time.monotonic() + 60
    while engine.size_bytes() > 5 * MIB:
        assert time.monotonic() < deadline, f"still {engine.size_bytes()} bytes"
        time.sleep(0.01)
        run_one(machine, put(b"k"))
        engine.sync()
    assert hash_of(machine).record_count == 1
    engine.close()
