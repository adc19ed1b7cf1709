"""A revision as updates of one watch: all of it, or the next part of what is too large.

Bounded for each call in bytes, but for a single change, and in the events looked at.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from kvorum import limits
from kvorum.errors import Compacted
from kvorum_node.machine import Machine, Transition, records
from kvorum_node.storage.layout import EventKind
from kvorum_node.watches.cache import Cache
from kvorum_node.watches.selection import CHANGE_KINDS
from kvorum_node.watches.watch import Watch
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.watch_pb2 import Changes, WatchResponse

_LOOK_BYTES: Final = 100
"""To look at an event costs about as much as to tell so many bytes."""


class _Happened(NamedTuple):
    """An event that may be of interest, and what it is to be told with."""

    ordinal: int
    log_time_ms: int
    kind: EventKind
    key: bytes
    record: Record | None
    previous: Record | None
    wanted: bool


def tell(watch: Watch, machine: Machine, cache: Cache, response: WatchResponse) -> int:
    """Go on with the first revision noted at the watch: add what fits to the response.

    Returns about how many bytes that was; what was looked at in vain counts as well.
    Raises Compacted, and StorageError if history cannot be read.
    """
    revision = watch.pending[0]
    transition = cache.get(revision)
    if transition is not None:
        happened = _as_cached(transition, watch)
    elif revision <= machine.oldest_revision:
        raise compacted(revision - 1, machine.oldest_revision)
    else:
        happened = _as_in_history(machine, revision, watch)
    changes: Changes | None = None
    size, in_vain, log_time_ms = 0, 0, 0
    for one in happened:
        log_time_ms = one.log_time_ms
        watch.ordinal = one.ordinal
        if not one.wanted:
            in_vain += 1
            if in_vain < limits.MAX_WATCH_SCAN_EVENTS:
                continue
            watch.ordinal += 1
            break
        more = _bytes_of(one)
        if changes is None:
            changes = _begin_changes(response, watch)
        elif size + more > limits.MAX_WATCH_MESSAGE_BYTES:
            break
        size += _add(changes, one, watch, more)
        if watch.offset:
            break
    else:
        if changes is None:  # the last of it was told with more to come
            changes = _begin_changes(response, watch)
        watch.finish()
        changes.log_time_ms = log_time_ms
        return size
    if changes is not None:
        changes.log_time_ms, changes.partial = log_time_ms, True
    return size + in_vain * _LOOK_BYTES


def _begin_changes(response: WatchResponse, watch: Watch) -> Changes:
    update = response.updates.add(watch_id=watch.id)
    update.changes.revision = watch.pending[0]
    return update.changes


def compacted(revision: int, oldest: int) -> Compacted:
    """The watch cannot go on after the revision."""
    return Compacted(
        f"changes after revision {revision} are not kept any more; the oldest revision is"
        f" {oldest}: read what there is, and watch from there",
        revision=revision,
        oldest_revision=oldest,
    )


def _as_cached(transition: Transition, watch: Watch) -> Iterator[_Happened]:
    events = transition.events
    for ordinal in range(watch.ordinal, len(events)):
        event = events[ordinal]
        yield _Happened(
            ordinal,
            transition.log_time_ms,
            event.kind,
            event.key,
            event.record,
            event.previous if watch.previous else None,
            watch.wants(event.kind, event.key),
        )


def _as_in_history(machine: Machine, revision: int, watch: Watch) -> Iterator[_Happened]:
    """Values are fetched one by one, when their turn has come."""
    history = machine.read_history()
    for event in history.events(revision, watch.ordinal):
        if event.revision != revision:
            return
        record = previous = None
        wanted = watch.wants(event.kind, event.key)
        if wanted:
            if event.kind in (EventKind.PUT, EventKind.PUT_AFTER_EXPIRE):
                record = history.put_at(event.key, revision)
            if watch.previous and event.kind is not EventKind.PUT_AFTER_EXPIRE:
                previous = history.before(event.key, revision)
        yield _Happened(
            event.ordinal, event.log_time_ms, event.kind, event.key, record, previous, wanted
        )


def _bytes_of(one: _Happened) -> int:
    size = len(one.key)
    for record in (one.record, one.previous):
        if record is not None:
            size += len(one.key) + record.ByteSize()
    return size


def _add(changes: Changes, one: _Happened, watch: Watch, size: int) -> int:
    """Add the change, which has so many bytes, or the part of it that is due; returns its bytes."""
    change = changes.changes.add(kind=CHANGE_KINDS[one.kind], key=one.key)
    cut = not watch.keys_only and size > limits.MAX_WATCH_PART_BYTES
    start, position = watch.offset, 0
    end = start + limits.MAX_WATCH_PART_BYTES
    change.continued = start > 0
    for record, told in ((one.record, change.record), (one.previous, change.previous)):
        if record is None:
            continue
        if not cut:
            told.CopyFrom(records.without_value(record) if watch.keys_only else record)
            told.key = one.key
            continue
        if not start:
            told.CopyFrom(records.without_value(record))
            told.key, told.metadata = one.key, record.metadata
        value = record.value
        if part := value[max(start - position, 0) : max(end - position, 0)]:
            told.value = part
        position += len(value)
    watch.offset = end if position > end else 0
    return min(size, limits.MAX_WATCH_PART_BYTES)
