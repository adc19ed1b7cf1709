"""The machine: where it stands in the log, and the one way it moves.

The law of `apply`: the records, the applied index, the revision and the log time
that a run of entries leads to are written in one batch of the engine. A crash
therefore leaves a state that some index has led to, and that index; the log is
applied again from there, and leads to where it led before.
"""

import struct
from collections import deque
from collections.abc import Container, Sequence
from typing import Final, TypeAlias, assert_never

from kvorum.errors import StorageError
from kvorum_node.machine import listing, records
from kvorum_node.machine.commands import decode_batch
from kvorum_node.machine.content_hash import ContentHasher
from kvorum_node.machine.execution import Execution
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorumpb.v1.command_pb2 import Record, TransactionResult
from kvorumpb.v1.kv_pb2 import ListRequest, ListResponse

Results: TypeAlias = list[list[TransactionResult]]
"""Of each entry, one result per command. (An alias, since Machine has a method `list`.)"""

_NUMBER: Final = struct.Struct(">q")
"""How META holds the applied index, the revision and the log time."""


class Machine:
    """The records of one group. Called from one thread."""

    def __init__(self, engine: Engine, group: GroupId) -> None:
        """Stands where the engine was left. Raises StorageError if that cannot be read."""
        self._engine = engine
        self._group = group
        self._prefix = layout.group_prefix(group)
        self._applied = Index(self._load(layout.META_APPLIED))
        self._revision = self._load(layout.META_REVISION)
        self._log_time_ms = self._load(layout.META_LOG_TIME_MS)

    @property
    def applied(self) -> Index:
        """The index of the last entry applied; 0 before the first."""
        return self._applied

    @property
    def revision(self) -> int:
        """The revision of the last transaction that wrote; 0 before the first."""
        return self._revision

    @property
    def log_time_ms(self) -> int:
        """The latest time stamped on an entry, in milliseconds since the Unix epoch."""
        return self._log_time_ms

    def apply(self, entries: Sequence[Entry], *, wanted: Container[Index] | None = None) -> Results:
        """Carry out committed entries, which go on where the last call ended.

        Returns one list per entry, with one result per command of it; that of a
        NOOP is empty, and so is that of an entry that is not `wanted` (all are, if
        None): what nobody waits for must not be held in memory. How much is written
        at once is the caller's choice of entries.

        Raises UnknownCommand at an entry that this version does not understand,
        and StorageError if the engine fails: then nothing of the call has
        happened, here or in the engine, and the node must stop.
        """
        if not entries:
            return []
        execution = Execution(self._engine, self._prefix, self._revision)
        applied, log_time_ms = self._applied, self._log_time_ms
        results: Results = []
        for entry in entries:
            if entry.index != applied + 1:
                raise AssertionError(f"entry {entry} does not go on from applied index {applied}")
            applied = entry.index
            match entry.kind:
                case EntryKind.COMMANDS:
                    commands = decode_batch(entry)
                    log_time_ms = max(log_time_ms, commands.log_time_ms)
                    outcomes = (execution.run(one.transaction) for one in commands.commands)
                    if wanted is None or entry.index in wanted:
                        results.append(list(outcomes))
                    else:
                        deque(outcomes, maxlen=0)  # carried out, and forgotten one by one
                        results.append([])
                case EntryKind.NOOP:
                    results.append([])
                case unexpected:
                    assert_never(unexpected)
        batch = Batch()
        execution.save(batch)
        self._save(batch, layout.META_APPLIED, applied)
        self._save(batch, layout.META_REVISION, execution.revision)
        self._save(batch, layout.META_LOG_TIME_MS, log_time_ms)
        self._engine.write(batch)
        self._applied, self._revision, self._log_time_ms = applied, execution.revision, log_time_ms
        return results

    def get(self, key: bytes) -> Record | None:
        """The record of the key, with its key filled in; None if there is none."""
        stored = self._engine.get(Family.DATA, self._prefix + key)
        if stored is None:
            return None
        record = Record(key=key)
        records.load(record, key, stored)
        return record

    def list(self, request: ListRequest) -> ListResponse:
        """A page of records in key order; the request must have passed validate_list.

        Costs what the page costs, however many records there are before and
        after it. Raises InvalidCursor if the page token is not one of this list.
        """
        return listing.list_records(self._engine, self._group, self._revision, request)

    def content_hash(self) -> ContentHasher:
        """Begin to hash all records as they are now, whatever is applied meanwhile."""
        start, end = layout.data_range(self._group, b"", None)
        return ContentHasher(self._engine.scan(Family.DATA, start, end), self._revision)

    def _load(self, name: bytes) -> int:
        stored = self._engine.get(Family.META, layout.meta_key(self._group, name))
        if stored is None:
            return 0
        if len(stored) != _NUMBER.size:
            raise StorageError(
                f"{name.decode()} of group {self._group} has {len(stored)} bytes instead of "
                f"{_NUMBER.size}: the disk has altered it; replace this node"
            )
        (number,) = _NUMBER.unpack(stored)
        return int(number)

    def _save(self, batch: Batch, name: bytes, number: int) -> None:
        batch.put(Family.META, layout.meta_key(self._group, name), _NUMBER.pack(number))
