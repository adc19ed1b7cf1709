"""The engine on RocksDB. The only module that imports rocksdict.

A node opens two, and each keeps the engine's rule in its own way:

    role   write                      sync                            a crash loses
    -----  -------------------------  ------------------------------  -----------------------------
    LOG    WAL, not synced            fsync of the WAL                writes since the last sync
    STATE  no WAL, memory only        flush: memory to files, fsync   writes since the last flush,
                                                                      which the log brings back

One column family holds all families of an engine, told apart by a tag at the
front of the key: rocksdict flushes one column family at a time, whatever its
atomic flush is set to, and a crash between two of them would leave records
without the applied index that belongs to them. One column family is flushed as
one, in the order it was written in (tests/storage/test_rocksdict_facts.py).

What a damaged WAL does at the next open. RocksDB recovers the writes up to the
first one that it cannot read (point_in_time); then the SyncMark tells whether
everything that was synced is among them, and the open is refused if not:

    the tail is cut off, or was never finished        dropped, if it was not synced
    rubbish or zeros where the last writes were       dropped, if they were not synced
    a bit flipped in a synced write, anywhere         refused
    a bit flipped in the length of a synced write     refused
    the WAL is cut within what was synced, or gone    refused

(After a loss of power the mark may be some syncs old: sync_mark.py.)

Of the other modes of RocksDB, tolerate_corrupted_tail_records refuses the
second case, which a loss of power may well leave behind, and believes the
fourth: all writes from there on are gone without a word. absolute_consistency
refuses the first. What was recovered is on the disk when `open` returns.

After a write or a sync has failed, every later one fails as well: once an fsync
has failed, the next one may succeed and mean nothing.

rocksdict holds the GIL in every call here but sync and close. A batch is atomic,
so it is written as one, whatever its size; keep batches below 1 MiB where there
is a choice. One 25 MiB value holds everything up for 30 ms (STATE) or 80 ms (LOG).
"""

import os
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakSet

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from kvorum.errors import DataDirectoryInUse, StorageError
from kvorum.limits import KIB, MIB
from kvorum_node.storage.budget import (
    MAX_WRITE_BUFFERS,
    USUAL_WRITE_BUFFER_BYTES,
    EngineBudget,
)
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.sync_mark import SyncMark

MAX_WAL_BYTES: Final = 128 * MIB
MIN_BLOB_BYTES: Final = 64 * KIB
"""Larger values are kept in files of their own, which compactions do not copy again and again."""
MAX_OPEN_FILES: Final = 256

_WRITE_NUMBER_KEY: Final = b"\x00write number"
"""Beside the tags of the families. Every write to a log carries its number, for the SyncMark."""


class Role(Enum):
    """What an engine is for, and so how it keeps the rule about crashes."""

    LOG = "log"
    STATE = "state"


class RocksEngine:
    """An Engine in one directory.

    `sync` and `reclaim` may run in other threads; `close` waits for the one, and ends the other.
    """

    def __init__(
        self,
        path: Path,
        role: Role,
        database: Rdict,
        mark: SyncMark | None,
        *,
        fsync: bool,
    ) -> None:
        self._path = path
        self._role = role
        self._database = database
        self._mark = mark
        self._fsync = fsync
        self._write_options = WriteOptions()
        if role is Role.STATE:
            options: Any = self._write_options  # the stub has a method where there is an attribute
            options.disable_wal = True
        self._write_number = 0
        self._scans: WeakSet[_Scan] = WeakSet()
        self._syncing = threading.Lock()
        self._reclaiming = threading.Lock()
        self._must_reclaim = False
        self._failure: StorageError | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        role: Role,
        *,
        create: bool = True,
        fsync: bool = True,
        budget: EngineBudget = EngineBudget(),  # noqa: B008 - it is frozen
    ) -> Self:
        """Open the directory, or create it if `create` is set.

        Args:
            budget: the memory that it may take.
            fsync: False makes `sync` of a LOG do nothing. Acknowledged writes then
                survive the end of the process, but not a loss of power.

        Raises:
            DataDirectoryInUse: another engine has it open.
            StorageError: it cannot be opened, is damaged, or has lost what was synced.
        """
        try:
            mark = _open_mark(path, create=create) if role is Role.LOG else None
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        try:
            database = Rdict(str(path), _options(budget, create=create))
        except Exception as error:  # rocksdict raises nothing more precise
            if mark is not None:
                mark.close()
            raise _storage_error(f"cannot open {path}", error) from error
        engine = cls(path, role, database, mark, fsync=fsync)
        try:
            engine._refuse_lost_writes()
        except StorageError:
            engine.close()
            raise
        return engine

    def get(self, family: Family, key: bytes) -> bytes | None:
        try:
            return self._database.get(family + key)
        except Exception as error:  # rocksdict raises nothing more precise
            raise _storage_error(f"cannot read {self._path}", error) from error

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        lower = family + start
        upper = bytes([family[0] + 1]) if end is None else family + end
        try:
            scan = _Scan(self._database, lower, upper, reverse=reverse)
        except Exception as error:  # rocksdict raises nothing more precise
            raise _storage_error(f"cannot read {self._path}", error) from error
        self._scans.add(scan)
        return scan

    def write(self, batch: Batch) -> None:
        self._refuse_after_failure()
        native = WriteBatch(raw_mode=True)
        for family, start, end in batch.range_deletes:
            if start < end:
                native.delete_range(family + start, family + end)
        for family, key in batch.deletes:
            native.delete(family + key)
        for family, key, value in batch.puts:
            native.put(family + key, value)
        number = self._write_number + 1
        if self._role is Role.LOG:
            native.put(_WRITE_NUMBER_KEY, number.to_bytes(8, "big"))
        try:
            self._database.write(native, self._write_options)
        except Exception as error:  # rocksdict raises nothing more precise
            raise self._fail("write", error) from error
        self._write_number = number
        if batch.range_deletes:
            self._must_reclaim = True

    def sync(self) -> None:
        with self._syncing:
            self._refuse_after_failure()
            try:
                match self._role:
                    case Role.LOG:
                        self._sync_log()
                    case Role.STATE:
                        self._database.flush(wait=True)
            except Exception as error:  # rocksdict raises nothing more precise
                raise self._fail("sync", error) from error

    def _sync_log(self) -> None:
        if self._mark is not None and self._fsync:
            number = self._write_number
            self._database.flush_wal(sync=True)
            self._mark.advance(number)
        if self._must_reclaim:
            # What a range delete covers is freed by compaction, and that starts when the
            # delete has reached a file: begin that now, or an idle log keeps its size.
            self._must_reclaim = False
            self._database.flush(wait=False)

    def reclaim(self) -> None:
        with self._reclaiming:
            if self._closed:
                return
            try:
                self._database.compact_range(None, None)
            except Exception as error:  # rocksdict raises nothing more precise
                if not self._closed:  # else it was ended
                    raise self._fail("compact", error) from error

    def size_bytes(self) -> int:
        """The files of the directory."""
        return sum(_file_bytes(entry) for entry in os.scandir(self._path))

    def estimate_rows(self) -> int:
        """RocksDB's own estimate: deletes that no compaction has carried out make it wrong."""
        try:
            return self._database.property_int_value("rocksdb.estimate-num-keys") or 0
        except Exception as error:  # rocksdict raises nothing more precise
            raise _storage_error(f"cannot read {self._path}", error) from error

    def close(self) -> None:
        """Release the directory, and end running scans with an error. May be called twice."""
        with self._syncing:
            if self._closed:
                return
            self._closed = True
            cancelled = self._reclaiming.locked()
            if cancelled:
                self._database.cancel_all_background(wait=False)
            # An iterator that is still referenced would keep RocksDB's lock.
            for scan in self._scans:
                scan.refuse()
            try:
                with self._reclaiming:
                    self._database.close()
            except Exception as error:  # rocksdict raises nothing more precise
                # A failure is told already, and this is its echo; and RocksDB reports that work
                # in the background was cancelled. It has closed all the same.
                if self._failure is None and not cancelled:
                    raise _storage_error(f"cannot close {self._path}", error) from error
            finally:
                if self._mark is not None:
                    self._mark.close()

    def _refuse_lost_writes(self) -> None:
        if self._mark is None:
            return
        try:
            stored: bytes | None = self._database.get(_WRITE_NUMBER_KEY)
        except Exception as error:  # rocksdict raises nothing more precise
            raise _storage_error(f"cannot read {self._path}", error) from error
        self._write_number = int.from_bytes(stored, "big") if stored is not None else 0
        if self._write_number < self._mark.number:
            raise StorageError(
                f"{self._path} has lost writes: it ends at write {self._write_number}, but write"
                f" {self._mark.number} had been synced. The disk has damaged or lost a part of"
                " it; replace this node"
            )

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise StorageError(f"refused after an earlier failure: {self._failure}")

    def _fail(self, action: str, error: Exception) -> StorageError:
        self._failure = _storage_error(f"cannot {action} {self._path}", error)
        return self._failure


class _Scan:
    """A scan; the RocksDB iterator pins what it sees when it is made, not at its first step."""

    __slots__ = ("__weakref__", "_iterator", "_lower", "_options", "_reverse")

    def __init__(self, database: Rdict, lower: bytes, upper: bytes, *, reverse: bool) -> None:
        # Two defects of rocksdict 0.3.29. The iterator points into the options' bound without
        # keeping it alive: so the scan does. And set_iterate_lower_bound sets the upper bound:
        # so the lower one is kept by the first seek, or by looking at each key.
        self._options = ReadOptions()
        self._options.set_iterate_upper_bound(upper)
        iterator = database.iter(self._options)
        if reverse:
            iterator.seek_to_last()
        else:
            iterator.seek(lower)
        self._iterator: RdictIter | None = iterator
        self._lower = lower
        self._reverse = reverse

    def __iter__(self) -> "_Scan":
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        iterator = self._iterator
        if iterator is None:
            raise StorageError("the engine was closed while a scan was running")
        try:
            if iterator.valid():
                key = iterator.key()
                if not self._reverse:
                    value = iterator.value()
                    iterator.next()
                    return key[1:], value
                if key >= self._lower:
                    value = iterator.value()
                    iterator.prev()
                    return key[1:], value
            iterator.status()  # an iterator that has failed looks like one at its end
        except Exception as error:  # rocksdict raises nothing more precise
            raise _storage_error("a scan failed", error) from error
        raise StopIteration

    def refuse(self) -> None:
        """End with an error: to end quietly would look like the end of the range."""
        self._iterator = None


def _open_mark(path: Path, *, create: bool) -> SyncMark:
    if create:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "CURRENT").exists():
            SyncMark.create_if_missing(path)
    return SyncMark.open(path)


def _storage_error(what: str, error: Exception) -> StorageError:
    """The only place that knows what rocksdict raises: bare exceptions with RocksDB's text."""
    if isinstance(error, DbClosedError):
        return StorageError(f"{what}: the engine is closed")
    if "lock hold by current process" in str(error) or "While lock file" in str(error):
        return DataDirectoryInUse(f"{what}: it is open already ({error})")
    return StorageError(f"{what}: {error}")


def _file_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a compaction has removed it since it was listed
        return 0


def _options(budget: EngineBudget, *, create: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_max_total_wal_size(MAX_WAL_BYTES)
    options.set_write_buffer_size(budget.write_buffer_bytes)
    options.set_max_write_buffer_number(MAX_WRITE_BUFFERS)
    # A write that RocksDB delays holds the GIL meanwhile: let only a full memory delay it.
    options.set_level_zero_slowdown_writes_trigger(64)
    options.set_level_zero_stop_writes_trigger(128)
    options.set_target_file_size_base(USUAL_WRITE_BUFFER_BYTES)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_background_jobs(2)
    options.set_max_open_files(MAX_OPEN_FILES)
    options.set_compression_type(DBCompressionType.lz4())

    options.set_enable_blob_files(True)
    options.set_min_blob_size(MIN_BLOB_BYTES)
    options.set_blob_compression_type(DBCompressionType.lz4())
    options.set_enable_blob_gc(True)
    options.set_blob_gc_age_cutoff(0.5)
    options.set_blob_gc_force_threshold(0.5)

    table = BlockBasedOptions()
    table.set_block_cache(Cache(budget.cache_bytes))
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    # A cache of 64 MiB is 64 of 1 MiB, and keeps no block that is larger than one of those: the
    # index or the filter of a whole file would be read anew for each look-up, for 300 µs.
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    options.set_block_based_table_factory(table)

    # RocksDB's own diary: two small files, no statistics.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options
