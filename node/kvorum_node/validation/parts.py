"""Checks of what every request is made of: namespaces, keys, values, ranges, index entries.

The only place for them, so that the same key is refused with the same words wherever it is.
"""

from collections.abc import Sequence
from typing import Final

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded, NamespaceNotFound
from kvorumpb.v1.command_pb2 import IndexEntry, KeyRange

DEFAULT_NAMESPACE: Final = "default"

SHOWN_CHARACTERS: Final = 48
"""How much of a key or a name an error repeats."""


def validate_namespace(name: str) -> None:
    """Raises NamespaceNotFound unless `name` is empty or "default"."""
    if name not in ("", DEFAULT_NAMESPACE):
        shown = name[:SHOWN_CHARACTERS]
        raise NamespaceNotFound(
            f"there is no namespace {shown!r}: this version serves "
            f"{DEFAULT_NAMESPACE!r} alone; leave the namespace empty",
            namespace=shown,
        )


def validate_key(key: bytes) -> None:
    """Raises InvalidArgument if the key is empty, LimitExceeded if it is too long."""
    if not key:
        raise InvalidArgument("a key is empty: it must have at least one byte")
    if len(key) > limits.MAX_KEY_BYTES:
        raise too_long("the key", key)


def validate_value(value: bytes, *, key: bytes) -> None:
    """Raises LimitExceeded, naming `key`, if the value is too large."""
    if len(value) > limits.MAX_VALUE_BYTES:
        raise LimitExceeded(
            f"the value of {shown(key)} has {len(value):,} bytes, more than the "
            f"{limits.MAX_VALUE_BYTES:,} of a record: split it over several keys",
            limit="MAX_VALUE_BYTES",
            maximum=limits.MAX_VALUE_BYTES,
            actual=len(value),
        )


def validate_range(selected: KeyRange) -> None:
    """Raises InvalidArgument if it ends before it begins, LimitExceeded if a bound is too long."""
    start, end = selected.start, selected.end
    validate_bound("the start of the range", start)
    validate_bound("the end of the range", end)
    if end and end < start:
        raise InvalidArgument(
            f"the range ends at {shown(end)}, before its start {shown(start)}: "
            "swap them, or leave the end empty to go to the last key"
        )


def validate_bound(what: str, key: bytes) -> None:
    if len(key) > limits.MAX_KEY_BYTES:
        raise too_long(what, key)


def validate_index_entries(entries: Sequence[IndexEntry], *, key: bytes) -> None:
    if len(entries) > limits.MAX_INDEX_ENTRIES:
        raise LimitExceeded(
            f"the record {shown(key)} has {len(entries):,} index entries, more than "
            f"{limits.MAX_INDEX_ENTRIES}: leave some out",
            limit="MAX_INDEX_ENTRIES",
            maximum=limits.MAX_INDEX_ENTRIES,
            actual=len(entries),
        )
    seen: set[tuple[str, bytes]] = set()
    for entry in entries:
        validate_index_name(entry.index)
        validate_index_value(entry.value)
        if (entry.index, entry.value) in seen:
            raise InvalidArgument(
                f"the record {shown(key)} has the same entry of the index {entry.index!r} twice"
            )
        seen.add((entry.index, entry.value))


def validate_index_name(name: str) -> None:
    """Raises InvalidArgument if it is empty, LimitExceeded if it is too long."""
    if not name:
        raise InvalidArgument("the name of an index is empty: it must have at least one character")
    if (size := len(name.encode())) > limits.MAX_INDEX_NAME_BYTES:
        raise LimitExceeded(
            f"the name of the index {name[:SHOWN_CHARACTERS]!r}… has {size:,} bytes, more than "
            f"{limits.MAX_INDEX_NAME_BYTES}: shorten it",
            limit="MAX_INDEX_NAME_BYTES",
            maximum=limits.MAX_INDEX_NAME_BYTES,
            actual=size,
        )


def validate_index_value(value: bytes) -> None:
    """Raises LimitExceeded if it is too long. It may be empty."""
    if len(value) > limits.MAX_INDEX_VALUE_BYTES:
        raise LimitExceeded(
            f"the index value {shown(value)} has {len(value):,} bytes, more than "
            f"{limits.MAX_INDEX_VALUE_BYTES:,}: use a hash of it",
            limit="MAX_INDEX_VALUE_BYTES",
            maximum=limits.MAX_INDEX_VALUE_BYTES,
            actual=len(value),
        )


def too_long(what: str, key: bytes) -> LimitExceeded:
    return LimitExceeded(
        f"{what} {shown(key)} has {len(key):,} bytes, more than the "
        f"{limits.MAX_KEY_BYTES:,} of a key: shorten it, or use a hash of it",
        limit="MAX_KEY_BYTES",
        maximum=limits.MAX_KEY_BYTES,
        actual=len(key),
    )


def shown(key: bytes) -> str:
    """The key as the client writes it, in quotes, cut to what fits a message."""
    text = key.decode(errors="surrogateescape")
    shown = repr(text[:SHOWN_CHARACTERS])
    return shown if len(text) <= SHOWN_CHARACTERS else shown + "…"
