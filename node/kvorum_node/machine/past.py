"""A range of keys as the store was at an earlier revision.

How: a key is in DATA, in KEYS (storage/layout.py), or in both; the two are walked side by
side. A later change in KEYS says what the key held before it; a key without one is as it
is in DATA.

Rule: what a key costs does not depend on how often it was written. A key has a row in
KEYS for each change, and one row is wanted, so rows are passed over by a seek, after a
few steps that are cheaper than one. What does cost is a key that is not there at the
revision, but was before or has come since: it is looked at.
"""

from collections.abc import Iterator
from typing import Final

from kvorum_node.machine.tables import Table, Tables
from kvorum_node.storage import layout

STEPS: Final = 4
"""Rows of a key that are passed over one by one before a seek."""

_NOTHING: Final = b""
_LAST: Final = 2**64 - 1


def scan(
    tables: Tables, start: bytes, end: bytes | None, revision: int, *, reverse: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """The keys from start (included) to end (excluded; None is beyond the last).

    With each, what it held at the revision, which must be readable: as it is in DATA, and
    empty for a key that was absent then. Nothing may be written while it runs.
    """
    changes = _backward if reverse else _forward
    changed = changes(tables.keys, start, end, revision)
    stored = tables.data.scan(start, end, reverse=reverse)
    change, held = next(changed, None), next(stored, None)
    while True:
        if held is not None and (change is None or _is_before(held, change, reverse=reverse)):
            yield held
            held = next(stored, None)
        elif change is not None:
            key, then = change
            now = _NOTHING
            if held is not None and held[0] == key:
                now, held = held[1], next(stored, None)
            yield key, now if then is None else then
            change = next(changed, None)
        else:
            return


def _is_before(
    held: tuple[bytes, bytes], change: tuple[bytes, bytes | None], *, reverse: bool
) -> bool:
    return held[0] > change[0] if reverse else held[0] < change[0]


def _forward(
    keys: Table, start: bytes, end: bytes | None, revision: int
) -> Iterator[tuple[bytes, bytes | None]]:
    """Each key in KEYS, and what it held before its first change after the revision.

    None if it has not changed since.
    """
    upper = None if end is None else layout.terminated(end)
    rows = _Rows(keys, layout.terminated(start), upper)
    row = rows.row
    while row is not None:
        key, _ = layout.split_version_key(row[0])
        changed = rows.seek(layout.version_key(key, revision + 1))
        beyond = layout.version_key(key, _LAST)
        yield key, changed[1] if changed is not None and changed[0] < beyond else None
        row = rows.seek(beyond)


def _backward(
    keys: Table, start: bytes, end: bytes | None, revision: int
) -> Iterator[tuple[bytes, bytes | None]]:
    """As _forward, from the last key to the first."""
    upper = None if end is None else layout.terminated(end)
    rows = _RowsBackward(keys, layout.terminated(start), upper)
    while rows.row is not None:
        key, _ = layout.split_version_key(rows.row[0])
        changed = rows.pass_over(layout.version_key(key, revision + 1))
        yield key, None if changed is None else changed[1]
        rows.pass_over(layout.version_key(key, 0))


class _Rows:
    """A scan that can be moved on."""

    def __init__(self, table: Table, start: bytes, end: bytes | None) -> None:
        self._table = table
        self._end = end
        self.row: tuple[bytes, bytes] | None
        self._open(start)

    def seek(self, start: bytes) -> tuple[bytes, bytes] | None:
        """Move on to the first row from start on, and return it."""
        for _ in range(STEPS):
            if self.row is None or self.row[0] >= start:
                return self.row
            self.row = next(self._rows, None)
        if self.row is not None and self.row[0] < start:
            self._open(start)
        return self.row

    def _open(self, start: bytes) -> None:
        self._rows = self._table.scan(start, self._end)
        self.row = next(self._rows, None)


class _RowsBackward:
    """A scan in reverse that can be moved on."""

    def __init__(self, table: Table, start: bytes, end: bytes | None) -> None:
        self._table = table
        self._start = start
        self.row: tuple[bytes, bytes] | None
        self._open(end)

    def pass_over(self, start: bytes) -> tuple[bytes, bytes] | None:
        """Move on to the first row below start, and return the last one that was not."""
        passed = None
        for _ in range(STEPS):
            if self.row is None or self.row[0] < start:
                return passed
            passed = self.row
            self.row = next(self._rows, None)
        if self.row is not None and self.row[0] >= start:
            passed = next(self._table.scan(start), None)
            self._open(start)
        return passed

    def _open(self, end: bytes | None) -> None:
        self._rows = self._table.scan(self._start, end, reverse=True)
        self.row = next(self._rows, None)
