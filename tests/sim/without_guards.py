"""What takes the place of the guards of the data model in mutants.py: functions of the node, as
they would be without them."""

from typing import Any

from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine
from kvorum_node.machine import commit as commit_module
from kvorum_node.machine.clients import Clients
from kvorum_node.machine.commit import commit
from kvorum_node.machine.execution import Execution
from kvorum_node.machine.tables import Tables
from kvorum_node.raft.types import Index
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.storage import layout
from kvorum_node.storage.layout import ExpiryKind
from kvorum_node.watches.cache import Cache
from kvorum_node.watches.hub import WatchHub
from kvorum_node.watches.telling import tell
from kvorum_node.watches.watch import Watch
from kvorumpb.v1.command_pb2 import Compaction, OperationError, Sweep, TransactionResult
from kvorumpb.v1.kv_pb2 import GetRequest, GetResponse
from kvorumpb.v1.watch_pb2 import WatchBegun, WatchResponse, WatchUpdate

# Exactly once.


def recall_nothing(
    clients: Clients, client_id: int, sequence: int
) -> TransactionResult | OperationError | None:
    known = client_id in clients._windows
    return None if known else _recall(clients, client_id, sequence)


def run_what_was_acknowledged(
    clients: Clients, client_id: int, sequence: int
) -> TransactionResult | OperationError | None:
    window = clients._windows.get(client_id)
    if window is not None and sequence <= window.acknowledged:
        return None
    return _recall(clients, client_id, sequence)


_recall = Clients.recall


def install_without_clients(machine: Machine, applied: Index) -> None:
    before = machine._clients
    _install(machine, applied)
    machine._clients = before


_install = Machine.install


# Log time.


def sweep_what_the_proposer_has_seen(execution: Execution, sweep: Sweep) -> TransactionResult:
    """It would not have proposed a sweep if nothing had expired by its clock."""
    working = execution._working
    working.begin(execution.revision + 1, execution.log_time_ms)
    expiry = execution._tables.expiry
    rows = [layout.split_expiry_key(row) for row in expiry.rows()]
    due = [row for row in rows if row[0] <= execution.log_time_ms] or rows[:1]
    for _, kind, key in due[: sweep.limit]:
        if kind is ExpiryKind.RECORD:
            working.remove(key)
        else:
            working.limits[key] = None
    expiry.horizon.first_row = b""
    execution.events = commit(working)
    execution.revision += bool(execution.events)
    return execution._nothing_written()


def keep_the_first_expiry(
    working: Any, kind: ExpiryKind, key: bytes, before: int, after: int
) -> None:
    _schedule(working, kind, key, 0 if after else before, after)


_schedule = commit_module._schedule


def lead_by_the_wall_clock(clock: LogClock, *, leads: bool) -> int:
    if leads and not getattr(clock, "leads", False):
        clock._set(clock._wall_ms())
    vars(clock)["leads"] = leads
    return _now_ms(clock, leads=leads)


_now_ms = LogClock.now_ms


def never(machine: Machine, now_ms: int) -> bool:
    del machine, now_ms
    return False


def hide_by_the_own_clock(
    dispatcher: Dispatcher, request: GetRequest, response: GetResponse
) -> None:
    _get(dispatcher, request, response)
    if not request.revision and 0 < response.record.expire_time_ms <= dispatcher._group.now_ms():
        response.ClearField("record")


_get = Dispatcher._get


# History and watches.


def compact_one_more(execution: Execution, compaction: Compaction) -> TransactionResult:
    result = _compact(execution, compaction)
    tables: Tables = execution._tables
    first = layout.history_key(execution.oldest_revision + 1)
    last = layout.history_key(execution.oldest_revision + 2)
    for stored, event in list(tables.history.scan(first, last)):
        _, _, key = layout.decode_event(event)
        tables.history.delete(stored)
        tables.keys.delete(layout.version_key(key, execution.oldest_revision + 1))
    return result


_compact = Execution._compact


def skip_nothing(watches: WatchHub, before: int) -> None:
    del watches, before


def tell_in_pieces(watch: Watch, machine: Machine, cache: Cache, response: WatchResponse) -> int:
    size = _tell(watch, machine, cache, response)
    for update in response.updates:
        if update.HasField("changes"):
            update.changes.partial = False
    return size


_tell = tell


def catch_up_from_the_newest(watches: WatchHub, watch: Watch) -> None:
    """As if nothing could have happened since the watch was on another node."""
    begun = WatchBegun(revision=watch.scanned)
    watch.owner.notify(WatchUpdate(watch_id=watch.id, begun=begun))
    watches._settle(watch)


def note_but_the_last(watch: Watch, revision: int) -> bool:
    """A watch that has no room for a number drops it."""
    if watch.is_full:
        return True
    return _note(watch, revision)


_note = Watch.note
