"""A revision as updates of one watch: all of it, or the next part of what is too large.

Bounded for each call in bytes, but for a single change, and in the events looked at.

Whether an event is at hand or in history, its records are those that are stored. Values that lie
by themselves are fetched as they are told: so nobody holds them in memory meanwhile.
"""

from collections.abc import Iterable
from itertools import chain, islice, takewhile
from typing import Final

from kvorum import limits
from kvorum.errors import Compacted
from kvorum_node.machine import Event, Machine, PastEvent, records
from kvorum_node.storage.layout import EventKind
from kvorum_node.watches.cache import Cache
from kvorum_node.watches.selection import CHANGE_KINDS
from kvorum_node.watches.watch import Watch
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.watch_pb2 import Change, Changes, WatchResponse

_LOOK_BYTES: Final = 100
"""To look at an event costs about as much as to tell so many bytes."""
_FIND_BYTES: Final = 4_000
"""The same of finding a revision in history."""


def tell(watch: Watch, machine: Machine, cache: Cache, response: WatchResponse) -> int:
    """Go on with the first revision noted at the watch: add what fits to the response.

    Returns about how many bytes that was; what costs as much as to tell bytes counts as well.
    Raises Compacted, and StorageError if history cannot be read: then what is in the response
    of the revision is not to be told.
    """
    transition, cost = cache.get(watch.pending[0]), 0
    if transition is None:
        log_time_ms, events = _from_history(machine, watch)
        cost = _FIND_BYTES
    else:
        log_time_ms = transition.log_time_ms
        events = islice(transition.events, watch.ordinal, None)
    changes: Changes | None = None
    size = in_vain = 0
    for event in events:
        if not watch.wants(event.kind, event.key):
            in_vain += 1
            watch.ordinal += 1
            if in_vain >= limits.MAX_WATCH_SCAN_EVENTS:
                break
            continue
        if size >= limits.MAX_WATCH_MESSAGE_BYTES:
            break
        if changes is None:
            changes = _begin_changes(response, watch, log_time_ms)
        size += _add(changes, event, watch, machine)
        if watch.offset:
            break
        watch.ordinal += 1
    else:
        if changes is None:  # the last of it was told with more to come
            _begin_changes(response, watch, log_time_ms)
        watch.finish()
        return size + cost
    if changes is not None:
        changes.partial = True
    return size + cost + in_vain * _LOOK_BYTES


def compacted(revision: int, oldest: int) -> Compacted:
    """The watch cannot go on after the revision."""
    return Compacted(
        f"changes after revision {revision} are not kept any more; the oldest revision is"
        f" {oldest}: read what there is, and watch from there",
        revision=revision,
        oldest_revision=oldest,
    )


def _begin_changes(response: WatchResponse, watch: Watch, log_time_ms: int) -> Changes:
    changes = response.updates.add(watch_id=watch.id).changes
    changes.revision = watch.pending[0]
    changes.log_time_ms = log_time_ms
    return changes


def _from_history(machine: Machine, watch: Watch) -> tuple[int, Iterable[Event]]:
    """The log time of the revision, and the rest of its events, fetched one by one."""
    revision = watch.pending[0]
    _require_kept(revision, machine)
    history = machine.read_history()

    def event(past: PastEvent) -> Event:
        record = previous = None
        if watch.wants(past.kind, past.key):
            if past.kind in (EventKind.PUT, EventKind.PUT_AFTER_EXPIRE):
                record = history.put_at(past.key, revision)
            if watch.previous and past.kind is not EventKind.PUT_AFTER_EXPIRE:
                previous = history.before(past.key, revision)
        return Event(past.kind, past.key, record, previous)

    rest = takewhile(
        lambda past: past.revision == revision, history.events(revision, watch.ordinal)
    )
    first = next(rest, None)
    if first is None:
        return 0, ()
    return first.log_time_ms, map(event, chain((first,), rest))


def _require_kept(revision: int, machine: Machine) -> None:
    if revision <= machine.oldest_revision:
        raise compacted(revision - 1, machine.oldest_revision)


def _add(changes: Changes, event: Event, watch: Watch, machine: Machine) -> int:
    """Add the change, or the part of it that is due; returns about how many bytes that was."""
    change = changes.changes.add(kind=CHANGE_KINDS[event.kind], key=event.key)
    size, is_apart = len(event.key), False
    if event.record is not None:
        size += len(event.record)
        is_apart = _fill(change.record, event.record, event.key, watch)
    if event.previous is not None and watch.previous:
        size += len(event.previous)
        is_apart |= _fill(change.previous, event.previous, event.key, watch)
    if is_apart:
        size += _add_values(change, watch, machine)
    return size


def _fill(told: Record, stored: bytes, key: bytes, watch: Watch) -> bool:
    """Fill in the record; returns whether its value is still to be added, as it lies by itself."""
    records.load(told, key, stored)
    told.key = key
    if watch.keys_only:
        for field in ("value", "metadata", "value_apart"):
            told.ClearField(field)
    return told.value_apart


def _add_values(change: Change, watch: Watch, machine: Machine) -> int:
    """Add the values that lie by themselves, or the part of them that is due.

    With the first part comes all else; returns how many bytes of values that was.
    """
    _require_kept(watch.pending[0], machine)
    history = machine.read_history()
    start, position = watch.offset, 0
    end = start + limits.MAX_WATCH_PART_BYTES
    for field in ("record", "previous"):
        if not change.HasField(field):
            continue
        told: Record = getattr(change, field)
        value = history.value_of(told, change.key) if told.value_apart else b""
        if start:
            told.Clear()
        told.ClearField("value_apart")
        if part := value[max(start - position, 0) : max(end - position, 0)]:
            told.value = part
        position += len(value)
    change.continued = start > 0
    watch.offset = end if position > end else 0
    return min(position, end) - start
