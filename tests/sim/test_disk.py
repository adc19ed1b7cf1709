"""The simulated disk keeps the contract of the engine, and no more."""

from collections.abc import Callable
from random import Random

import pytest

from kvorum.errors import StorageError
from kvorum_node.storage.engine import Batch, Family
from tests.sim.disk import Disk


def batch(*puts: tuple[bytes, bytes]) -> Batch:
    made = Batch()
    for key, value in puts:
        made.put(Family.DATA, key, value)
    return made


def test_a_crash_keeps_what_was_synced_and_the_first_of_the_other_batches() -> None:
    kept: set[int] = set()
    for seed in range(50):
        disk = Disk()
        engine = disk.open()
        engine.write(batch((b"synced", b"")))
        engine.sync()
        for number in range(1, 4):
            engine.write(batch((b"a%d" % number, b""), (b"b%d" % number, b"")))
        disk.crash(Random(seed))

        names = [key for key, _ in disk.open().scan(Family.DATA, b"", None)]
        count = (len(names) - 1) // 2
        expected = [b"%c%d" % (tag, number) for tag in b"ab" for number in range(1, count + 1)]
        assert names == sorted([b"synced", *expected])
        kept.add(count)
    assert kept == {0, 1, 2, 3}


def test_a_sync_covers_what_was_written_before_it_was_called() -> None:
    disk = Disk()
    engine = disk.open()
    engine.write(batch((b"before", b"")))
    mark = disk.begin_sync()
    engine.write(batch((b"after", b"")))
    engine.finish_sync(mark)

    assert disk.synced.keys() == {b"Dbefore"}
    assert disk.unsynced_batches == 1


def test_a_batch_deletes_before_it_puts() -> None:
    engine = Disk().open()
    engine.write(batch((b"a", b"1"), (b"b", b"1"), (b"c", b"1")))
    changes = batch((b"a", b"2"))
    changes.delete_range(Family.DATA, b"a", b"b")
    changes.delete(Family.DATA, b"c")
    engine.write(changes)

    assert list(engine.scan(Family.DATA, b"", None)) == [(b"a", b"2"), (b"b", b"1")]


def test_a_scan_sees_the_state_at_its_call_and_its_own_family() -> None:
    engine = Disk().open()
    engine.write(batch((b"a", b"1"), (b"b", b"1")))
    other = Batch()
    other.put(Family.META, b"m", b"1")
    engine.write(other)
    scan = engine.scan(Family.DATA, b"", None, reverse=True)
    engine.write(batch((b"c", b"1")))

    assert list(scan) == [(b"b", b"1"), (b"a", b"1")]


@pytest.mark.parametrize("end", [Disk.crash, None], ids=["crash", "close"])
def test_nothing_works_once_the_process_is_gone(
    end: Callable[[Disk, Random], int] | None,
) -> None:
    disk = Disk()
    engine = disk.open()
    if end is None:
        engine.close()
    else:
        end(disk, Random(1))

    with pytest.raises(StorageError):
        engine.get(Family.DATA, b"a")
    with pytest.raises(StorageError):
        engine.write(batch((b"a", b"1")))
    with pytest.raises(StorageError):
        engine.sync()


def test_a_disk_is_open_once() -> None:
    disk = Disk()
    disk.open()

    with pytest.raises(AssertionError, match="open in another process"):
        disk.open()


def test_a_disk_that_fails_says_so_and_forgets_it_with_the_process() -> None:
    disk = Disk()
    engine = disk.open()
    engine.write(batch((b"a", b"1")))
    disk.fail_sync = True
    with pytest.raises(StorageError, match="could not be synced"):
        engine.sync()
    assert disk.failed == "sync"
    assert disk.synced == {}

    disk.crash(Random(1))
    engine = disk.open()
    engine.write(batch((b"a", b"1")))
    engine.sync()
    assert disk.synced == {b"Da": b"1"}


def test_a_write_that_fails_changes_nothing() -> None:
    disk = Disk()
    engine = disk.open()
    disk.fail_write = True

    with pytest.raises(StorageError, match="no space left"):
        engine.write(batch((b"a", b"1")))
    assert disk.failed == "write"
    assert engine.get(Family.DATA, b"a") is None
