"""The conditions of a transaction.

Rules: they see the state before any operation; a record that has expired is absent; and
none of them looks at more than a bounded number of records or events.
"""

from collections.abc import Iterator
from typing import assert_never

from kvorum import limits
from kvorum_node.machine import records
from kvorum_node.machine.commands import UnknownInstruction
from kvorum_node.machine.working import OperationFailed, Working
from kvorum_node.storage import layout
from kvorum_node.storage.layout import ExpiryKind
from kvorumpb.v1.command_pb2 import Check, KeyRange, OperationError, Record


def holds(check: Check, working: Working, oldest_revision: int) -> bool:
    """Whether the condition holds.

    Raises OperationFailed if its range is too large, and UnknownInstruction if there is none.
    """
    condition = check.WhichOneof("condition")
    if condition is None:
        raise UnknownInstruction("a check without a condition")
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
        f" look at, or the transaction more than {limits.MAX_TRANSACTION_RECORDS:,}, or than"
        f" {limits.MAX_REPLACED_BYTES:,} bytes to remove: take a smaller range, or a limit",
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
            return record is not None and check.value == _looked_at(working, key, record)
        case "unchanged_since" | None:
            raise AssertionError("a check of no such condition gets here")
        case unexpected:
            assert_never(unexpected)


def _looked_at(working: Working, key: bytes, record: Record) -> bytes:
    value = working.value(key, record)
    if not working.look(len(value) // limits.RANGE_LOOK_BYTES):
        raise too_many_records()
    return value


def _bounded(working: Working, selected: KeyRange) -> Iterator[tuple[bytes, Record]]:
    for count, found in enumerate(working.scan(*bounds(selected))):
        if count == limits.MAX_RANGE_RECORDS or not working.look():
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
    changed = working.tables.history.scan(
        layout.history_key(since + 1), layout.history_key(working.revision)
    )
    for count, (_, value) in enumerate(changed):
        if count == limits.MAX_UNCHANGED_EVENTS or not working.look():
            return False
        if _is_within(layout.decode_event(value)[2], start, end):
            return False
    if check.HasField("range"):
        return not _has_expired(working, start, end)
    _, record = working.stored(check.key)
    return record is None or not working.has_expired(record)


def _has_expired(working: Working, start: bytes, end: bytes | None) -> bool:
    """Whether a record of the range has expired, or that would take too long to say.

    Mostly little has expired that is still stored; when there is much, the records of the
    range may be fewer.
    """
    rows = working.tables.expiry.rows(end_ms=working.log_time_ms + 1)
    for count, row in enumerate(rows):
        if count == limits.MAX_UNCHANGED_EVENTS:
            break
        if not working.look():
            return True
        _, kind, key = layout.split_expiry_key(row)
        if kind is ExpiryKind.RECORD and _is_within(key, start, end):
            return True
    else:
        return False
    for count, (key, data) in enumerate(working.tables.data.scan(start, end)):
        record = records.read(key, data)
        if count == limits.MAX_RANGE_RECORDS or not working.look():
            return True
        if working.has_expired(record):
            return True
    return False


def _is_within(key: bytes, start: bytes, end: bytes | None) -> bool:
    return start <= key and (end is None or key < end)
