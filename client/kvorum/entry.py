"""What a store returns: entries, and pages of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A key, its value, and where the value stands in the history of the store."""

    key: str
    """UTF-8; bytes that are not UTF-8 are surrogates, as `os.fsdecode` has them."""

    value: T

    revision: int
    """The revision of the last write to the key."""

    created_revision: int
    """The revision at which the key was created, since it was last absent."""

    version: int
    """The number of writes since the key was created; 1 after the first."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some entries of a list, in the order of their keys' bytes."""

    entries: tuple[Entry[T], ...]

    cursor: str | None
    """Give it to the next `list` to go on from here; None if this is the last page."""

    complete: bool
    """True if no page follows; a last page that is exactly full says so."""

    revision: int
    """The store's revision at the read."""

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
