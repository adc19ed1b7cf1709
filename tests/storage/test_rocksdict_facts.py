"""Traps of rocksdict that storage/rocks.py is built around.

A test that fails here after an upgrade says that a trap is gone, or has moved:
then rocks.py can become simpler, or must change.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from rocksdict import Options, Rdict, ReadOptions, WriteBatch


@pytest.fixture
def database(tmp_path: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    database = Rdict(str(tmp_path / "db"), options)
    for key in (b"a", b"b", b"c"):
        database[key] = b"old"
    return database


def test_a_snapshots_iterator_does_not_read_from_the_snapshot(database: Rdict) -> None:
    snapshot = database.snapshot()
    database[b"a"] = b"new"
    iterator = snapshot.iter()
    iterator.seek(b"a")
    assert iterator.value() == b"new"
    assert snapshot[b"a"] == b"old"


def test_a_plain_iterator_pins_its_view_when_it_is_made(database: Rdict) -> None:
    iterator = database.iter()
    database[b"a"] = b"new"
    iterator.seek(b"a")
    assert iterator.value() == b"old"


def test_the_lower_bound_of_an_iterator_is_taken_for_the_upper(database: Rdict) -> None:
    bound = b"b"
    options = ReadOptions()
    options.set_iterate_lower_bound(bound)
    iterator = database.iter(options)
    iterator.seek_to_first()
    assert iterator.key() == b"a"
    iterator.next()
    assert not iterator.valid()


def test_a_live_iterator_keeps_the_lock_after_close(database: Rdict) -> None:
    path, options = database.path(), Options(raw_mode=True)
    iterator = database.iter()
    database.close()
    with pytest.raises(Exception, match="lock hold by current process"):
        Rdict(path, options)
    del iterator
    Rdict(path, options).close()


def test_close_while_another_thread_is_in_a_call_is_an_error(database: Rdict) -> None:
    batch = WriteBatch(raw_mode=True)
    for number in range(32):
        batch.put(b"%d" % number, os.urandom(1024 * 1024))
    database.write(batch)
    flushing = threading.Thread(target=database.flush)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the thread keeps the GIL until it is inside the call
    try:
        flushing.start()
        with pytest.raises(RuntimeError, match="Already borrowed"):
            database.close()
    finally:
        sys.setswitchinterval(interval)
        flushing.join()


FLUSHES_ONE_FAMILY_AND_DIES = """
    import os, sys
    from rocksdict import Options, Rdict, WriteBatch, WriteOptions

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_atomic_flush(True)
    database = Rdict(sys.argv[1], options, column_families={"data": options, "meta": options})
    without_wal = WriteOptions()
    without_wal.disable_wal = True
    batch = WriteBatch(raw_mode=True)
    batch.put(b"key", b"value", database.get_column_family_handle("data"))
    batch.put(b"key", b"value", database.get_column_family_handle("meta"))
    database.write(batch, without_wal)
    flushed = sys.argv[2]
    (database if flushed == "default" else database.get_column_family(flushed)).flush()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("flushed", ["default", "data", "meta"])
def test_no_call_flushes_all_column_families_as_one(tmp_path: Path, flushed: str) -> None:
    """Half of an atomic batch is lost: why an engine has one column family."""
    path = str(tmp_path / "db")
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FLUSHES_ONE_FAMILY_AND_DIES), path, flushed],
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    options = Options(raw_mode=True)
    options.create_missing_column_families(True)
    database = Rdict(path, options, column_families={"data": options, "meta": options})
    families = {name: database.get_column_family(name) for name in ("data", "meta")}
    survived = {name for name, family in families.items() if family.get(b"key") is not None}
    for family in families.values():
        family.close()
    database.close()
    assert survived == {flushed} - {"default"}
