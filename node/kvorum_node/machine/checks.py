"""The conditions of a transaction.

Rules: they see the state before any operation; a record that has expired is absent; and
none of them looks at more than a bounded number of records or events.
"""

from collections.abc import Iterator
from itertools import chain
from typing import assert_never

from kvorum import limits
from kvorum_node.machine.working import OperationFailed, Working
from kvorum_node.storage import layout
from kvorum_node.storage.layout import ExpiryKind
from kvorumpb.v1.command_pb2 import Check, KeyRange, OperationError, Record


def holds(check: Check, working: Working, oldest_revision: int) -> bool:
    """Whether the condition holds. Raises OperationFailed if its range is too large."""
    condition = check.WhichOneof("condition")
    if condition == "unchanged_since":
        return _is_unchanged(check, working, oldest_revision)
    if not check.HasField("range"):
        return _holds_for(check, working, check.key, working.read(check.key))
    if condition == "exists":
        found = next(working.scan(*bounds(check.range)), None) is not None
        return found == check.exists
    return all(
        _holds_for(check, working, key, record) for key, record in _bounded(working, check.range)
    )


def bounds(selected: KeyRange) -> tuple[bytes, bytes | None]:
    """Start and end of the range, as scans take them."""
    return selected.start, selected.end or None


def too_many_records() -> OperationFailed:
    return OperationFailed(
        OperationError.RANGE_TOO_LARGE,
        f"the range has more than the {limits.MAX_RANGE_RECORDS:,} records that one operation may"
        " look at: take a smaller range, or a limit",
    )


def _holds_for(check: Check, working: Working, key: bytes, record: Record | None) -> bool:
    match check.WhichOneof("condition"):
        case "revision":
            return check.revision == (0 if record is None else record.revision)
        case "exists":
            return check.exists == (record is not None)
        case "version":
            return check.version == (0 if record is None else record.version)
        case "value":
            return record is not None and check.value == working.value(key, record)
        case "unchanged_since" | None:
            raise AssertionError("a check of no such condition gets here")
        case unexpected:
            assert_never(unexpected)


def _bounded(working: Working, selected: KeyRange) -> Iterator[tuple[bytes, Record]]:
    for count, found in enumerate(working.scan(*bounds(selected))):
        if count == limits.MAX_RANGE_RECORDS:
            raise too_many_records()
        yield found


def _is_unchanged(check: Check, working: Working, oldest_revision: int) -> bool:
    """Look through the events after the revision, or say no if that would be too many.

    What has expired and is still stored has no event yet, but has changed.
    """
    since = check.unchanged_since
    if since < oldest_revision:
        return False
    start, end = bounds(check.range) if check.HasField("range") else (check.key, check.key + b"\0")
    changed = (
        layout.decode_event(value)[2]
        for _, value in working.tables.history.scan(
            layout.history_key(since + 1), layout.history_key(working.revision)
        )
    )
    expired = (
        key
        for _, kind, key in map(
            layout.split_expiry_key, working.tables.expiry.rows(end_ms=working.log_time_ms + 1)
        )
        if kind is ExpiryKind.RECORD
    )
    for count, key in enumerate(chain(changed, expired)):
        if count == limits.MAX_UNCHANGED_EVENTS:
            return False
        if start <= key and (end is None or key < end):
            return False
    return True
