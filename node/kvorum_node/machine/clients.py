"""Exactly once: what the store has answered to each write of each client.

Rules: a write is known by its client and its sequence; its result is kept until the
client has acknowledged it; a write of a client that is not known is refused, never run.
(Raft dissertation, section 6.3.) What a transaction failed with is a result as well.

The windows are in memory, and each entry leaves one row a client on the disk, when its
commands have run:

    CLIENT row = acknowledged u64 | (sequence u64 | length u32 | TransactionResult)*

`acknowledged` is how far the client had come, the results are those of its writes in the
entry; one of no length says only that the write was applied. A row is never changed. It
goes when all of its results are acknowledged, but for a client's newest one: that says that
the client is known, and when it was last active. So what is in memory follows from the rows
alone, whatever calls the entries were applied in, and a restart or a snapshot brings it back.

Memory is bounded. A client has limits.MAX_CLIENT_WINDOW writes at most, by their numbers, which
are checked before they are proposed. Of a result above limits.MAX_REMEMBERED_RESULT_BYTES,
and of those with which a client would have more than limits.MAX_CLIENT_RESULT_BYTES, only
that there was one is kept. If there are more clients than limits.MAX_CLIENTS, or if all
together come to more than limits.MAX_CLIENTS_BYTES, the one that has been idle longest is
forgotten: the one whose newest row is oldest. A retry and a second registration are not
activity.
"""

import struct
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine.tables import Table
from kvorum_node.raft.types import Index
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import OperationError, TransactionResult

WRITE_BYTES: Final = 128
"""What a remembered write is taken to cost in memory beside its result."""

_ACKNOWLEDGED: Final = struct.Struct(">Q")
_WRITE: Final = struct.Struct(">QI")

_CLIENT_FORGOTTEN: Final = OperationError(
    reason=OperationError.CLIENT_FORGOTTEN,
    message="the store does not know the client, or has forgotten it for others: the write was"
    " not applied now. Register, and decide about writes that were sent before",
)
_RESULT_FORGOTTEN: Final = OperationError(
    reason=OperationError.RESULT_FORGOTTEN,
    message="the write was applied before, and what it returned is not kept any more: it was"
    " acknowledged, or too large to be kept",
)


class _Window:
    """Of one client, the writes that it has not acknowledged."""

    __slots__ = ("acknowledged", "dropped", "fresh", "result_bytes", "results", "rows")

    def __init__(self) -> None:
        self.acknowledged = 0
        self.fresh: dict[int, bytes] = {}
        """By sequence, what the writes of the entry under way have returned."""
        self.results: dict[int, bytes] = {}
        """Of entries before. Empty bytes say only that there was a result."""
        self.result_bytes = 0
        self.dropped = 0
        """All results through this sequence have been dropped."""
        self.rows: list[tuple[int, Index]] = []
        """A heap of the rows on the disk: highest sequence, and index of the entry."""

    @property
    def cost_bytes(self) -> int:
        return self.result_bytes + WRITE_BYTES * len(self.results)

    def end_entry(self) -> tuple[bytes, int]:
        """The row of the entry under way, and the highest sequence of its results, or 0."""
        self._drop_acknowledged()
        acknowledged, results = self.acknowledged, self.results
        room = limits.MAX_CLIENT_RESULT_BYTES - self.result_bytes
        parts = [_ACKNOWLEDGED.pack(acknowledged)]
        fresh = [one for one in self.fresh.items() if one[0] > acknowledged]
        for sequence, result in fresh:
            kept = result if len(result) <= room else b""
            size_bytes = len(kept)
            room -= size_bytes
            results[sequence] = kept
            parts += (_WRITE.pack(sequence, size_bytes), kept)
        highest = max(fresh, default=(0, b""))[0]
        self.result_bytes = limits.MAX_CLIENT_RESULT_BYTES - room
        self.fresh.clear()
        return b"".join(parts), highest

    def _drop_acknowledged(self) -> None:
        results, acknowledged = self.results, self.acknowledged
        gone: Iterable[int] = range(self.dropped + 1, acknowledged + 1)
        if len(results) < acknowledged - self.dropped:
            gone = [sequence for sequence in results if sequence <= acknowledged]
        for sequence in gone:
            self.result_bytes -= len(results.pop(sequence, b""))
        self.dropped = acknowledged


class Clients:
    """The clients of a group. Of no more use when a call that was to save it has failed."""

    def __init__(self) -> None:
        self._windows: dict[int, _Window] = {}
        """By client id, the one that has been idle longest first; at the same index, by id."""
        self._changed: set[int] = set()
        """Those of which the entry under way leaves a row."""
        self._cost_bytes = 0

    def __len__(self) -> int:
        return len(self._windows)

    def register(self, client_id: int) -> None:
        """Know the client from here on."""
        if client_id not in self._windows:
            self._windows[client_id] = _Window()
            self._changed.add(client_id)

    def recall(self, client_id: int, sequence: int) -> TransactionResult | OperationError | None:
        """What the write was answered, or is to be answered without running it; None: run it."""
        window = self._windows.get(client_id)
        if window is None:
            return _CLIENT_FORGOTTEN
        if sequence <= window.acknowledged:
            return _RESULT_FORGOTTEN
        result = window.results.get(sequence)
        if result is None:
            result = window.fresh.get(sequence)
            if result is None:
                return None
        return TransactionResult.FromString(result) if result else _RESULT_FORGOTTEN

    def remember(
        self, client_id: int, sequence: int, acknowledged: int, result: TransactionResult
    ) -> None:
        """The write has run, since `recall` gave None."""
        window = self._windows[client_id]
        window.acknowledged = max(window.acknowledged, acknowledged)
        self._changed.add(client_id)
        data = result.SerializeToString()
        window.fresh[sequence] = data if len(data) <= limits.MAX_REMEMBERED_RESULT_BYTES else b""

    def save(self, table: Table, index: Index) -> None:
        """Put what the commands of the entry have changed, and forget who is too much."""
        if not self._changed:
            return
        for client_id in sorted(self._changed):
            window = self._windows.pop(client_id)
            self._windows[client_id] = window  # at the end, with those that were active last
            self._cost_bytes -= window.cost_bytes
            row, highest = window.end_entry()
            self._cost_bytes += window.cost_bytes
            rows = window.rows
            while rows and rows[0][0] <= window.acknowledged:
                table.delete(layout.client_key(client_id, heappop(rows)[1]))
            table.put(layout.client_key(client_id, index), row)
            heappush(rows, (highest, index))
        self._changed.clear()
        while (
            len(self._windows) > limits.MAX_CLIENTS or self._cost_bytes > limits.MAX_CLIENTS_BYTES
        ):
            self._forget(table, next(iter(self._windows)))

    @classmethod
    def load(cls, table: Table) -> "Clients":
        """Raises StorageError if a row cannot be read."""
        windows: dict[int, _Window] = {}
        active_at: dict[int, Index] = {}
        for key, row in table.scan():
            client_id, index = _decode_key(key)
            window = windows.setdefault(client_id, _Window())
            window.acknowledged, results = _decode_row(row)  # of the newest one, at last
            window.results |= results
            window.rows.append((max(results, default=0), index))
            active_at[client_id] = index
        clients = cls()
        for client_id in sorted(windows, key=lambda one: (active_at[one], one)):
            window = clients._windows[client_id] = windows[client_id]
            heapify(window.rows)
            window.results = {
                sequence: result
                for sequence, result in window.results.items()
                if sequence > window.acknowledged
            }
            window.result_bytes = sum(map(len, window.results.values()))
            window.dropped = window.acknowledged
            clients._cost_bytes += window.cost_bytes
        return clients

    def _forget(self, table: Table, client_id: int) -> None:
        window = self._windows.pop(client_id)
        self._cost_bytes -= window.cost_bytes
        for _, index in window.rows:
            table.delete(layout.client_key(client_id, index))


def _decode_key(key: bytes) -> tuple[int, Index]:
    try:
        return layout.split_client_key(key)
    except struct.error as error:
        raise _damaged() from error


def _decode_row(row: bytes) -> tuple[int, dict[int, bytes]]:
    """How far the client had acknowledged, and the results by sequence."""
    results: dict[int, bytes] = {}
    try:
        (acknowledged,) = _ACKNOWLEDGED.unpack_from(row)
        position = _ACKNOWLEDGED.size
        while position < len(row):
            sequence, length = _WRITE.unpack_from(row, position)
            position += _WRITE.size
            results[sequence] = row[position : position + length]
            position += length
    except struct.error as error:
        raise _damaged() from error
    if position != len(row):
        raise _damaged()
    return acknowledged, results


def _damaged() -> StorageError:
    return StorageError(
        "what the store has answered a client is damaged: the disk has altered it; replace this"
        " node"
    )
