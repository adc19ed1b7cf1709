"""What a store returns: entries, and pages of them.

Times are those of the store (log time), aware and in UTC. No clock is read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

T = TypeVar("T")

_EPOCH = datetime.fromtimestamp(0, UTC)


def instant(milliseconds: int) -> datetime:
    """The time so long after the Unix epoch, exactly."""
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:  # the clock of a leader is far off: no reason to refuse the value
        return datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A place of a record in a secondary index, as `put` takes it and an `Entry` has it.

    The store keeps it with the record: what replaces or removes the record, expiry
    included, removes it in the same transaction.
    """

    index: str
    """The name of the index. An index begins with its first entry."""

    value: str | bytes
    """Under what the record is found, in the order of its bytes. That of an `Entry` is text,
    as `Entry.key` is."""

    unique: bool = False
    """No two records have the same value in the index: who comes second gets
    `UniqueViolation`. All entries of one index should agree on this."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A key, its value, and where the value stands in the history of the store."""

    key: str
    """UTF-8; bytes that are not UTF-8 are surrogates, as `os.fsdecode` has them."""

    value: T
    """None if only keys were asked for."""

    revision: int
    """The revision of the last write to the key."""

    created_revision: int
    """The revision at which the key was created, since it was last absent."""

    version: int
    """The number of writes since the key was created; 1 after the first."""

    updated_at: datetime
    """When the key was last written."""

    expires_at: datetime | None = None
    """From when on the entry is absent; None is never."""

    metadata: bytes = b""
    """What was written beside the value. Empty if only keys were asked for."""

    index_entries: tuple[IndexEntry, ...] = ()
    """Where it is found beside its key."""

    index_value: str | None = None
    """In a list by index, that value of it by which it was found here; None elsewhere."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some entries of a list, in its order."""

    entries: tuple[Entry[T], ...]

    cursor: str | None
    """Give it to the next `list` to go on from here; None if this is the last page."""

    complete: bool
    """True if no page follows; a last page that is exactly full says so."""

    revision: int
    """The revision at which the store was read."""

    count: int | None = None
    """How many entries all pages have together, if it was asked for."""

    at: datetime | None = None
    """What log time was when it was read: what is left of an `Entry.expires_at` is counted from
    here. None in an atomic call and in a transaction."""

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
