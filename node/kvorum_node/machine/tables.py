"""The families of a state as tables: what the engine holds, and over it what is to be written.

Rules: keys are relative to the space (storage/layout.py); a read and a scan see what was
put and deleted before; the engine sees nothing until all tables are saved into one batch.
"""

from collections.abc import Iterator
from typing import Final

from kvorum_node.machine.horizon import Horizon
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import Space


class Table:
    """One family of one space."""

    __slots__ = ("_changed", "_engine", "_family", "_prefix", "_space_end")

    def __init__(self, engine: Engine, family: Family, prefix: bytes, space_end: bytes) -> None:
        """`prefix` is where the space begins, and `space_end` where it ends."""
        self._engine = engine
        self._family = family
        self._prefix, self._space_end = prefix, space_end
        self._changed: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        if key in self._changed:
            return self._changed[key]
        return self._engine.get(self._family, self._prefix + key)

    def put(self, key: bytes, value: bytes) -> None:
        self._changed[key] = value

    def delete(self, key: bytes) -> None:
        self._changed[key] = None

    def scan(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from start (included) to end (excluded; None is beyond the last).

        What is put or deleted meanwhile is not seen.
        """
        skip = len(self._prefix)
        stored = (
            (key[skip:], value)
            for key, value in self._engine.scan(
                self._family,
                self._prefix + start,
                self._space_end if end is None else self._prefix + end,
                reverse=reverse,
            )
        )
        changed = {
            key: value
            for key, value in self._changed.items()
            if start <= key and (end is None or key < end)
        }
        return _merged(stored, changed, reverse=reverse) if changed else stored

    def save(self, batch: Batch) -> None:
        if not self._changed:
            return
        family, prefix, changed = self._family, self._prefix, self._changed.items()
        batch.deletes += [(family, prefix + key) for key, value in changed if value is None]
        batch.puts += [(family, prefix + key, value) for key, value in changed if value is not None]


class ExpiryTable(Table):
    """EXPIRY, scanned from where its rows begin: before that are the tombstones of old ones."""

    __slots__ = ("horizon",)

    def __init__(self, engine: Engine, prefix: bytes, space_end: bytes, horizon: Horizon) -> None:
        super().__init__(engine, Family.EXPIRY, prefix, space_end)
        self.horizon: Final = horizon

    def put(self, key: bytes, value: bytes) -> None:
        super().put(key, value)
        expire_time_ms, kind, _ = layout.split_expiry_key(key)
        self.horizon.note(key, expire_time_ms, kind)

    def rows(self, start_ms: int = 0, end_ms: int | None = None) -> Iterator[bytes]:
        """The keys of what expires from start_ms on, before end_ms."""
        start = max(layout.expiry_bound(start_ms), self.horizon.first_row)
        end = None if end_ms is None else layout.expiry_bound(end_ms)
        return (key for key, _ in self.scan(start, end))


class Tables:
    """All families that a state is in, but META."""

    __slots__ = ("clients", "data", "expiry", "history", "index", "keys", "limits", "values")

    def __init__(self, engine: Engine, space: Space, horizon: Horizon | None = None) -> None:
        """`horizon` is where the rows of EXPIRY begin, if that is known."""
        start, end = space.range
        self.clients: Final = Table(engine, Family.CLIENT, start, end)
        self.data: Final = Table(engine, Family.DATA, start, end)
        self.expiry: Final = ExpiryTable(engine, start, end, horizon or Horizon())
        self.history: Final = Table(engine, Family.HISTORY, start, end)
        self.index: Final = Table(engine, Family.INDEX, start, end)
        self.keys: Final = Table(engine, Family.KEYS, start, end)
        self.limits: Final = Table(engine, Family.LIMIT, start, end)
        self.values: Final = Table(engine, Family.VALUE, start, end)

    def save(self, batch: Batch) -> None:
        for table in (
            self.clients,
            self.data,
            self.expiry,
            self.history,
            self.index,
            self.keys,
            self.limits,
            self.values,
        ):
            table.save(batch)


def prefix_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    """Start and end of the keys with the prefix, as `Table.scan` takes them."""
    return prefix, layout.prefix_end(prefix)


def _merged(
    stored: Iterator[tuple[bytes, bytes]], changed: dict[bytes, bytes | None], *, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Both in order; of a key that is in both, what was changed."""
    keys = sorted(changed, reverse=not reverse)  # the next one is the last
    for key, value in stored:
        while keys and (keys[-1] > key if reverse else keys[-1] < key):
            yield from _present(keys.pop(), changed)
        if keys and keys[-1] == key:
            yield from _present(keys.pop(), changed)
        else:
            yield key, value
    while keys:
        yield from _present(keys.pop(), changed)


def _present(key: bytes, changed: dict[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    value = changed[key]
    if value is not None:
        yield key, value
