"""The records as one transaction sees and changes them, before it is committed.

Rules: a record that has expired by log time is absent, whether or not it is stored.
A read sees what the transaction has written before, then the tables. Nothing here
changes the tables: commit.py does, if the transaction succeeds.
"""

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from kvorum import limits
from kvorum_node.machine import records
from kvorum_node.machine.tables import Tables
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import IndexEntry, OperationError, Record

_RECORD_BYTES: Final = 64
_ENTRY_BYTES: Final = 16
"""What a record and an index entry need in a message, beside what is in them."""


class OperationFailed(Exception):
    """Undoes the transaction under way; `error` lacks the position of the operation."""

    def __init__(
        self, reason: OperationError.Reason.ValueType, message: str, *, value: int = 0
    ) -> None:
        super().__init__(message)
        self.error = OperationError(reason=reason, message=message, value=value)


Stored: TypeAlias = tuple[bytes, Record | None]
"""What a key holds before the transaction, expired or not: as it is in the tables, and the record
that this is; empty bytes and None if there is nothing. (No class, as every write makes one.)"""

_NOTHING: Final[Stored] = (b"", None)


class Working:
    """The records for one transaction at a time, each beginning with `begin`."""

    __slots__ = (
        "_loaded",
        "_looked_at",
        "_result_bytes",
        "limits",
        "log_time_ms",
        "position",
        "positions",
        "replaced_bytes",
        "revision",
        "tables",
        "touched",
        "written",
    )

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.begin(0, 0)

    def begin(self, revision: int, log_time_ms: int) -> None:
        """Forget the last transaction. This one is to write at `revision`, if it writes."""
        self.revision = revision
        self.log_time_ms = log_time_ms
        self.written: dict[bytes, Record | None] = {}
        """By key, what it will hold; None if it is removed."""
        self.touched: set[bytes] = set()
        """Of those written, the keys of which only the expiry has changed."""
        self.limits: dict[bytes, bytes | None] = {}
        """By key, what the rate limit will hold, as layout.encode_limit has it; None: nothing."""
        self.position = 0
        """Of the operation under way."""
        self.positions: dict[bytes, int] = {}
        """By key, the operation that has last written index entries, or first touched them."""
        self.replaced_bytes = 0
        """Of what is stored under the keys that are written."""
        self._looked_at = 0
        self._loaded: dict[bytes, Stored] = {}
        self._result_bytes = 0

    def stored(self, key: bytes) -> Stored:
        """What the tables hold."""
        loaded = self._loaded.get(key)
        if loaded is None:
            data = self.tables.data.get(key)
            if data is None:
                loaded = _NOTHING
            else:
                record = Record()
                records.load(record, key, data)
                loaded = (data, record)
            self._loaded[key] = loaded
        return loaded

    def has_expired(self, record: Record) -> bool:
        return 0 < record.expire_time_ms <= self.log_time_ms

    def look(self, count: int = 1) -> bool:
        """Count records that are looked at in a range; False if they are more than may be."""
        self._looked_at += count
        return self._looked_at <= limits.MAX_TRANSACTION_RECORDS

    def read(self, key: bytes) -> Record | None:
        if key in self.written:
            return self.written[key]
        _, record = self.stored(key)
        return None if record is None or self.has_expired(record) else record

    def write(
        self,
        key: bytes,
        value: bytes,
        *,
        current: Record | None,
        expire_time_ms: int = 0,
        metadata: bytes = b"",
        index_entries: Iterable[IndexEntry] = (),
    ) -> None:
        """Let the key hold this; `current` is what `read` gives for it."""
        record = Record()  # and then one by one: as arguments they cost half as much again
        record.value = value
        record.revision = self.revision
        record.created_revision = self.revision if current is None else current.created_revision
        record.version = 1 if current is None else current.version + 1
        record.expire_time_ms = expire_time_ms
        record.update_time_ms = self.log_time_ms
        record.metadata = metadata
        if index_entries:
            record.index_entries.extend(index_entries)
            self.positions[key] = self.position
        self._change(key, record)

    def remove(self, key: bytes) -> None:
        self._change(key, None)

    def remove_of_range(self, key: bytes, record: Record) -> bool:
        """Remove one of many; False, and nothing is removed, if that is more than may be."""
        replaced = 0 if key in self.written else len(self.stored(key)[0])
        if self.replaced_bytes + replaced > limits.MAX_REPLACED_BYTES:
            return False
        if not self.look(1 + len(record.index_entries)):
            return False
        self._change(key, None)
        return True

    def touch(self, key: bytes, current: Record, expire_time_ms: int) -> None:
        """Let a record expire at another time; `current` is what `read` gives for the key."""
        if current.expire_time_ms == expire_time_ms:
            return
        record = Record()
        record.CopyFrom(current)
        record.expire_time_ms = expire_time_ms
        only_touched = key in self.touched or key not in self.written
        self._change(key, record)
        if record.index_entries:
            self.positions.setdefault(key, self.position)
        if only_touched:
            self.touched.add(key)

    def expire_after(self, ttl_ms: int) -> int:
        """The expire time of what lives so long from now; 0 is for ever.

        Raises OperationFailed if there is no such time.
        """
        if not ttl_ms:
            return 0
        expire_time_ms = self.log_time_ms + ttl_ms
        if expire_time_ms > limits.MAX_INTEGER:
            raise OperationFailed(
                OperationError.INTEGER_OVERFLOW,
                f"a time to live of {ttl_ms} ms from {self.log_time_ms} on ends beyond the range"
                " of int64: the clock of the cluster is wrong",
            )
        return expire_time_ms

    def scan(
        self, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Records from start (included) to end (excluded; None is beyond the last)."""
        written = sorted(
            (key for key in self.written if start <= key and (end is None or key < end)),
            reverse=not reverse,  # the next one is the last
        )
        for key, data in self.tables.data.scan(start, end, reverse=reverse):
            while written and (written[-1] > key if reverse else written[-1] < key):
                yield from self._present(written.pop())
            if written and written[-1] == key:
                yield from self._present(written.pop())
                continue
            record = Record()
            records.load(record, key, data)
            if not self.has_expired(record):
                yield key, record
        while written:
            yield from self._present(written.pop())

    def found(self, key: bytes, record: Record, *, keys_only: bool = False) -> Record:
        """The record as a result has it, with its key; counted to what a transaction returns."""
        result = records.without_value(record) if keys_only else Record()
        if not keys_only:
            result.CopyFrom(record)
            records.complete(result, key, self.tables.values)
        result.key = key
        self._result_bytes += len(key) + len(result.value) + len(result.metadata) + _RECORD_BYTES
        for entry in result.index_entries:
            self._result_bytes += len(entry.index) + len(entry.value) + _ENTRY_BYTES
        if self._result_bytes > limits.MAX_RESULT_BYTES:
            raise OperationFailed(
                OperationError.RESULT_TOO_LARGE,
                f"the transaction reads {self._result_bytes} bytes; at most"
                f" {limits.MAX_RESULT_BYTES} are returned: read large values with get and list",
            )
        return result

    def value(self, key: bytes, record: Record) -> bytes:
        """The value of a record that `read` or `scan` gave for the key."""
        return records.complete(record, key, self.tables.values).value

    def limit(self, key: bytes) -> bytes:
        """The state of a rate limit; empty if it has none, or none any more."""
        held = self.limits[key] if key in self.limits else self.tables.limits.get(key)
        if held is None:
            return b""
        expire_time_ms, state = layout.decode_limit(held)
        return b"" if expire_time_ms <= self.log_time_ms else state

    def keep_limit(self, key: bytes, state: bytes, expire_time_ms: int) -> None:
        """Let the rate limit have this state until then; an empty one is none."""
        self.limits[key] = layout.encode_limit(expire_time_ms, state) if state else None

    def _present(self, key: bytes) -> Iterator[tuple[bytes, Record]]:
        record = self.written[key]
        if record is not None:
            yield key, record

    def _change(self, key: bytes, record: Record | None) -> None:
        if key not in self.written:
            data, _ = self.stored(key)
            self.replaced_bytes += len(data)
            if self.replaced_bytes > limits.MAX_REPLACED_BYTES:
                raise OperationFailed(
                    OperationError.RANGE_TOO_LARGE,
                    f"the transaction replaces or removes {self.replaced_bytes} bytes; at most"
                    f" {limits.MAX_REPLACED_BYTES} may be: split it",
                )
        self.written[key] = record
        self.touched.discard(key)
