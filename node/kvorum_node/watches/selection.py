"""Which keys a watch wants, and the index that finds the watches of a key.

A key costs one look-up for the exact watches, one for each length that some prefix has,
and one comparison for each distinct range: never one for each watch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final, Generic, TypeAlias, TypeVar, assert_never

from kvorum_node.storage.layout import EventKind
from kvorumpb.v1.watch_pb2 import BeginWatch, Change

T = TypeVar("T")

_CHANGE_KINDS: Final[dict[EventKind, Change.Kind.ValueType]] = {
    EventKind.PUT: Change.PUT,
    EventKind.PUT_AFTER_EXPIRE: Change.PUT,
    EventKind.DELETE: Change.DELETE,
    EventKind.EXPIRE: Change.EXPIRE,
}

_KINDS: Final = range(max(EventKind) + 1)
# By the number of the event: to hash an enumeration costs as much as the rest of noting it.
CHANGE_KINDS: Final = tuple(
    _CHANGE_KINDS[EventKind(kind)] if kind else Change.KIND_UNSPECIFIED for kind in _KINDS
)
"""By the kind of an event, that of the change which is told."""


@dataclass(frozen=True, slots=True)
class Exact:
    key: bytes

    def covers(self, key: bytes) -> bool:
        return key == self.key


@dataclass(frozen=True, slots=True)
class Prefix:
    prefix: bytes

    def covers(self, key: bytes) -> bool:
        return key.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class Range:
    start: bytes
    end: bytes | None
    """Excluded; None is beyond the last key."""

    def covers(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)


Selection: TypeAlias = Exact | Prefix | Range


def selection_of(begin: BeginWatch) -> Selection:
    """Which keys the request wants: everything, if it does not say."""
    match begin.WhichOneof("selection"):
        case "key":
            return Exact(begin.key)
        case "prefix":
            return Prefix(begin.prefix)
        case "range":
            return Range(begin.range.start, begin.range.end or None)
        case None:
            return Prefix(b"")
        case unexpected:
            assert_never(unexpected)


def kinds_of(begin: BeginWatch) -> tuple[bool, ...]:
    """By the kind of an event, whether the request wants to hear of it."""
    return _kinds(
        puts=not begin.no_puts, deletes=not begin.no_deletes, expiries=not begin.no_expiries
    )


@cache  # one for all watches that want the same
def _kinds(*, puts: bool, deletes: bool, expiries: bool) -> tuple[bool, ...]:
    wanted = {Change.PUT: puts, Change.DELETE: deletes, Change.EXPIRE: expiries}
    return tuple(wanted.get(kind, False) for kind in CHANGE_KINDS)


class Index(Generic[T]):
    """Things by the keys that they want. Those with the same selection are a group."""

    def __init__(self) -> None:
        self._exact: dict[bytes, dict[T, None]] = {}
        self._prefixes: dict[int, dict[bytes, dict[T, None]]] = {}
        """By length, from the shortest, then by prefix."""
        self._ranges: dict[tuple[bytes, bytes | None], dict[T, None]] = {}

    def add(self, selection: Selection, one: T) -> None:
        match selection:
            case Exact(key):
                self._exact.setdefault(key, {})[one] = None
            case Prefix(prefix):
                by_prefix = self._prefixes.get(len(prefix))
                if by_prefix is None:
                    by_prefix = self._prefixes[len(prefix)] = {}
                    self._prefixes = dict(sorted(self._prefixes.items()))
                by_prefix.setdefault(prefix, {})[one] = None
            case Range(start, end):
                self._ranges.setdefault((start, end), {})[one] = None

    def discard(self, selection: Selection, one: T) -> None:
        match selection:
            case Exact(key):
                _discard(self._exact, key, one)
            case Prefix(prefix):
                by_prefix = self._prefixes.get(len(prefix))
                if by_prefix is None:
                    return
                _discard(by_prefix, prefix, one)
                if not by_prefix:
                    del self._prefixes[len(prefix)]
            case Range(start, end):
                _discard(self._ranges, (start, end), one)

    def groups(self, key: bytes) -> list[Iterable[T]]:
        """Those that want the key; each one in one group."""
        found: list[Iterable[T]] = []
        group = self._exact.get(key)
        if group is not None:
            found.append(group)
        for length, by_prefix in self._prefixes.items():
            if length > len(key):
                break
            group = by_prefix.get(key[:length])
            if group is not None:
                found.append(group)
        for (start, end), group in self._ranges.items():
            if start <= key and (end is None or key < end):
                found.append(group)
        return found

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes or self._ranges)


KeyT = TypeVar("KeyT")


def _discard(groups: dict[KeyT, dict[T, None]], key: KeyT, one: T) -> None:
    group = groups.get(key)
    if group is not None:
        group.pop(one, None)
        if not group:
            del groups[key]
