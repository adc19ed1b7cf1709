"""What only RocksEngine does: lock, close beside a sync, give disk back, name its errors."""

import os
import random
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from kvorum.errors import DataDirectoryInUse, StorageError
from kvorum.limits import KIB, MIB
from kvorum_node.storage.budget import Budget, EngineBudget
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.rocks import RocksEngine, Role

LOG = Family.LOG


def open_log(path: Path) -> RocksEngine:
    return RocksEngine.open(path, Role.LOG)


def write(engine: RocksEngine, key: bytes, value: bytes) -> None:
    batch = Batch()
    batch.put(LOG, key, value)
    engine.write(batch)


def test_a_second_engine_on_the_directory_is_refused(tmp_path: Path) -> None:
    engine = open_log(tmp_path / "log")
    with pytest.raises(DataDirectoryInUse):
        open_log(tmp_path / "log")
    engine.close()
    open_log(tmp_path / "log").close()


def test_a_held_scan_does_not_keep_the_directory_locked(tmp_path: Path) -> None:
    engine = open_log(tmp_path / "log")
    write(engine, b"a", b"")
    held = engine.scan(LOG, b"", None)
    engine.close()
    open_log(tmp_path / "log").close()
    with pytest.raises(StorageError, match="closed"):
        next(held)


def test_a_missing_engine_is_not_created_unasked(tmp_path: Path) -> None:
    for role in Role:
        with pytest.raises(StorageError):
            RocksEngine.open(tmp_path / role.value, role, create=False)


def test_a_file_in_the_way_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    for role in Role:
        with pytest.raises(StorageError):
            RocksEngine.open(tmp_path / "log", role)


@pytest.mark.parametrize("role", list(Role))
def test_close_waits_for_a_sync_that_is_running(tmp_path: Path, role: Role) -> None:
    """Seen from the syncing thread: every sync ends well, or finds the engine closed."""
    for round_number in range(10):
        engine = RocksEngine.open(tmp_path / "engine", role)
        failures: list[StorageError] = []
        synced = threading.Event()

        def sync_until_closed(
            engine: RocksEngine = engine,
            failures: list[StorageError] = failures,
            synced: threading.Event = synced,
        ) -> None:
            while not failures:
                try:
                    engine.sync()
                except StorageError as error:
                    failures.append(error)
                synced.set()

        write(engine, b"%d" % round_number, os.urandom(4 * MIB))
        thread = threading.Thread(target=sync_until_closed)
        thread.start()
        assert synced.wait(30)
        engine.close()
        thread.join(30)
        assert [str(failure).endswith("is closed") for failure in failures] == [True]


@pytest.mark.parametrize("value_bytes", [4 * 1024, 256 * 1024])
def test_a_cut_log_gives_its_disk_back(tmp_path: Path, value_bytes: int) -> None:
    """In files, and in blob files; on an idle engine, without a write that would help it on.

    A blob file goes when nothing in it is kept, so the one with the newest entries stays.
    """
    engine = open_log(tmp_path / "log")
    rng = random.Random(1)
    count = 96 * MIB // value_bytes
    for first in range(0, count, 16):
        batch = Batch()
        for number in range(first, first + 16):
            batch.put(LOG, b"%08d" % number, rng.randbytes(value_bytes))
        engine.write(batch)
    engine.sync()
    assert engine.size_bytes() > 90 * MIB
    batch = Batch()
    batch.delete_range(LOG, b"%08d" % 0, b"%08d" % (count - 4))
    engine.write(batch)
    engine.sync()
    deadline = time.monotonic() + 60
    while engine.size_bytes() > 40 * MIB:
        assert time.monotonic() < deadline, f"still {engine.size_bytes()} bytes"
        time.sleep(0.05)
    assert len(list(engine.scan(LOG, b"", None))) == 4
    engine.close()


def test_state_writes_no_wal(tmp_path: Path) -> None:
    """The log has the same bytes already: a second WAL would double what every write costs."""
    engine = RocksEngine.open(tmp_path / "state", Role.STATE)
    write(engine, b"a", bytes(MIB))
    assert engine.size_bytes() < MIB // 2
    engine.close()


def test_the_write_number_goes_on_after_a_reopen(tmp_path: Path) -> None:
    """Else the mark would refuse the log, or believe a damaged one."""
    for expected in range(1, 4):
        engine = open_log(tmp_path / "log")
        write(engine, b"a", b"")
        engine.sync()
        engine.close()
        assert int.from_bytes((tmp_path / "log" / "SYNCED").read_bytes()[:8], "big") == expected


def test_close_ends_what_is_being_reclaimed(tmp_path: Path) -> None:
    engine = RocksEngine.open(tmp_path / "state", Role.STATE)
    for half in range(4):
        for number in range(half, 2000, 2):
            write(engine, b"%d" % number, random.Random(number).randbytes(10_000))
        engine.sync()
    errors: list[Exception] = []

    def reclaim() -> None:
        try:
            engine.reclaim()
        except StorageError as error:
            errors.append(error)

    thread = threading.Thread(target=reclaim)
    thread.start()
    engine.close()
    thread.join()
    assert errors == []
    engine.reclaim()  # of an engine that is closed: nothing
    reopened = RocksEngine.open(tmp_path / "state", Role.STATE)
    assert sum(1 for _ in reopened.scan(LOG, b"", None)) == 2000
    reopened.close()


@pytest.mark.skipif(
    not Path("/proc/thread-self/io").exists(),
    reason="needs the bytes that a thread has read: Linux",
)
def test_a_look_up_reads_little_however_large_a_file_is(tmp_path: Path) -> None:
    """The cache keeps no block that is larger than one of its shards, mostly of 1 MiB.

    Here it has one, which is smaller than all that tells where the keys of the file are.
    """
    budget = EngineBudget(cache_bytes=128 * KIB)
    engine = RocksEngine.open(tmp_path / "state", Role.STATE, budget=budget)
    for half in range(2):  # of which compaction makes one file
        for first in range(half, 300_000, 10_000):
            batch = Batch()
            for number in range(first, first + 10_000, 2):
                batch.put(Family.DATA, b"%08d" % number, b"")
            engine.write(batch)
        engine.sync()
    engine.reclaim()
    engine.get(Family.DATA, b"%08d" % 1)  # opens the file
    before = _read_bytes()
    for number in range(100):
        assert engine.get(Family.DATA, b"%08d?" % (number * 3000)) is None
        assert engine.get(Family.DATA, b"%08d" % (number * 3000)) is not None
    assert _read_bytes() - before < 4 * MIB
    engine.close()


def _read_bytes() -> int:
    """By this thread, from files, cached or not."""
    fields = dict(
        line.split(": ") for line in Path("/proc/thread-self/io").read_text().splitlines()
    )
    return int(fields["rchar"])


def test_an_engine_takes_the_memory_that_it_is_given(tmp_path: Path) -> None:
    budget = EngineBudget(write_buffer_bytes=6 * MIB, cache_bytes=11 * MIB)
    engine = RocksEngine.open(tmp_path / "state", Role.STATE, budget=budget)
    database = engine._database
    assert database.property_int_value("rocksdb.block-cache-capacity") == 11 * MIB
    [options, *_] = sorted((tmp_path / "state").glob("OPTIONS-*"), reverse=True)
    assert f"  write_buffer_size={6 * MIB}\n" in options.read_text()
    engine.close()


def test_a_data_directory_gives_each_engine_its_own(tmp_path: Path) -> None:
    budget = Budget.of(4096 * MIB)
    with closing(Storage.open(tmp_path / "n1", None, budget=budget)) as storage:
        capacities = [
            engine._database.property_int_value("rocksdb.block-cache-capacity")
            for engine in (storage.log, storage.state)
            if isinstance(engine, RocksEngine)
        ]
    assert capacities == [budget.log.cache_bytes, budget.state.cache_bytes]
