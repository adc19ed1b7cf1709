"""What a transaction that has succeeded does to the tables.

Beside the records themselves, three things follow from a change, and nobody else writes
them:

    history   an event for each key, and what the key held before (KEYS), so that the store
              can be read as it was. The newest value of a key is in DATA alone: history
              takes it over when something replaces it
    indexes   the entries of the old record go, those of the new one come
    expiry    the same, with the time at which a record expires

Unique entries are looked at here, when all operations have run: so records may exchange
their values. A record that has expired and is still stored is removed as expired in the
revision that writes over it, or over its place in a unique index.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from kvorum_node.machine import records
from kvorum_node.machine.working import OperationFailed, Working
from kvorum_node.storage import layout
from kvorum_node.storage.layout import EventKind, ExpiryKind
from kvorumpb.v1.command_pb2 import IndexEntry, OperationError, Record

# To look a member up in its Enum costs as much as an event.
_PUT: Final = EventKind.PUT
_DELETE: Final = EventKind.DELETE
_EXPIRE: Final = EventKind.EXPIRE
_PUT_AFTER_EXPIRE: Final = EventKind.PUT_AFTER_EXPIRE


class Event(NamedTuple):  # made for every write: a frozen dataclass takes thrice as long
    """A key has changed. The records are as they are stored: see records.py for what they lack."""

    kind: EventKind
    key: bytes
    record: bytes | None
    """What was put; None if it is gone."""
    previous: bytes | None
    """What the key held before this event; None if nothing."""


class UniqueViolation(OperationFailed):
    """The write of `position` wants a place in a unique index that another record has."""

    def __init__(self, entry: IndexEntry, owner: bytes, position: int) -> None:
        super().__init__(
            OperationError.UNIQUE_VIOLATION,
            f"the value {_shown(entry.value)} of the unique index {entry.index!r} belongs to"
            f" {_shown(owner)}",
        )
        self.error.entry.CopyFrom(entry)
        self.error.owner = owner
        self.error.operation = position


def commit(working: Working) -> list[Event]:
    """Carry out what was written; returns the events, none of which means: at no revision.

    Raises UniqueViolation, and then nothing has changed.
    """
    if working.positions:
        _expire_owners(working)
    events: list[Event] = []
    keys, revision = working.tables.keys, working.revision
    for key, record in working.written.items():
        data, before = working.stored(key)
        if before is None and record is None:
            continue  # put and deleted
        kept = None if record is None else records.keep(record, key, working.tables.values)
        if key not in working.touched:
            has_expired = before is not None and working.has_expired(before)
            _happen(working, events, key, data or None, kept, has_expired=has_expired)
            keys.put(layout.version_key(key, revision), data)
        _store(working, key, before, record, kept)
    for key, state in working.limits.items():
        _store_limit(working, key, state)
    return events


def _happen(
    working: Working,
    events: list[Event],
    key: bytes,
    before: bytes | None,
    after: bytes | None,
    *,
    has_expired: bool,
) -> None:
    """Add what has happened to the key: at most an expiry and one change."""
    kind = _PUT if after is not None else _DELETE
    if has_expired:
        _add(working, events, Event(_EXPIRE, key, None, before))
        if after is None:
            return
        kind, before = _PUT_AFTER_EXPIRE, None
    _add(working, events, Event(kind, key, after, before))


def _add(working: Working, events: list[Event], event: Event) -> None:
    working.tables.history.put(
        layout.history_key(working.revision, len(events)),
        layout.encode_event(event.kind, working.log_time_ms, event.key),
    )
    events.append(event)


def _store(
    working: Working, key: bytes, before: Record | None, after: Record | None, kept: bytes | None
) -> None:
    """Put the record, which is stored as `kept`, and all that follows from it but history."""
    if kept is None:
        working.tables.data.delete(key)
    else:
        working.tables.data.put(key, kept)
    expired_at = 0 if before is None else before.expire_time_ms
    expires_at = 0 if after is None else after.expire_time_ms
    if expired_at != expires_at:
        _schedule(working, ExpiryKind.RECORD, key, expired_at, expires_at)
    if before is not None and before.index_entries:
        _unindex(working, key, before.index_entries)
    if after is not None and key in working.positions:
        _index(working, key, after.index_entries)


def _store_limit(working: Working, key: bytes, state: bytes | None) -> None:
    table = working.tables.limits
    before = table.get(key)
    if state is None and before is None:
        return  # taken from and reset
    expired_at = 0 if before is None else layout.decode_limit(before)[0]
    expires_at = 0 if state is None else layout.decode_limit(state)[0]
    if state is None:
        table.delete(key)
    else:
        table.put(key, state)
    if expired_at != expires_at:
        _schedule(working, ExpiryKind.LIMIT, key, expired_at, expires_at)


def _schedule(working: Working, kind: ExpiryKind, key: bytes, before: int, after: int) -> None:
    if before:
        working.tables.expiry.delete(layout.expiry_key(before, kind, key))
    if after:
        working.tables.expiry.put(layout.expiry_key(after, kind, key), b"")


# Indexes


def _expire_owners(working: Working) -> None:
    """See that each unique entry is free, and let go who has one and has expired."""
    taken: dict[bytes, bytes] = {}
    for key in tuple(working.written):
        record = working.written[key]
        if record is None:
            continue
        for entry in record.index_entries:
            if not entry.unique:
                continue
            place = layout.unique_key(entry.index, entry.value)
            owner = taken.setdefault(place, key)
            if owner == key:
                owner = _owner(working, place, entry) or key
            if owner != key:
                raise UniqueViolation(entry, owner, working.positions.get(key, 0))


def _owner(working: Working, place: bytes, entry: IndexEntry) -> bytes | None:
    """Whose the place is after this transaction, of those that it does not write."""
    owner = working.tables.index.get(place)
    if owner is None or owner in working.written:
        return None  # who is written has asked, or will ask, for what it wants
    _, record = working.stored(owner)
    if record is not None and working.has_expired(record):
        working.remove(owner)
        return None
    return owner


def _unindex(working: Working, key: bytes, entries: Iterable[IndexEntry]) -> None:
    index = working.tables.index
    for entry in entries:
        index.delete(layout.index_key(entry.index, entry.value, key))
        if entry.unique:
            place = layout.unique_key(entry.index, entry.value)
            if index.get(place) == key:  # not given to another record by this transaction
                index.delete(place)


def _index(working: Working, key: bytes, entries: Iterable[IndexEntry]) -> None:
    index = working.tables.index
    for entry in entries:
        index.put(layout.index_key(entry.index, entry.value, key), b"")
        if entry.unique:
            index.put(layout.unique_key(entry.index, entry.value), key)


def _shown(data: bytes) -> str:
    return repr(data[:48].decode(errors="backslashreplace"))
