"""Room for what is written: how much a node has, and what is refused when it is short.

A full disk stops a node. So it looks how much it uses and how much is left, and raises an
alarm before that: over the quota, or under the free space that is to be left. The leader
refuses writes as long as it or a member that it hears has one (`Dispatcher`). What may make
room goes on: transactions that only remove and read, sweeps, compaction; and so does the
registration of a client, which must come before its deletes, and which is bounded.

An alarm ends by itself, some way below its bound, so that it does not come and go with
every write. What was removed is held by the history until that is compacted, and by the
disk until the engine has rewritten its files: `Watchman` has it do so.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from shutil import disk_usage
from typing import Final

from kvorum.errors import QuotaExceeded, StorageError
from kvorum.limits import MIB
from kvorum_node.storage.data_directory import Storage
from kvorumpb.v1.cluster_pb2 import Alarm
from kvorumpb.v1.command_pb2 import Operation
from kvorumpb.v1.kv_pb2 import Call

MIN_FREE_BYTES: Final = 256 * MIB
"""What is to be left in the file system, unless the operator says otherwise."""
PERIOD_SECONDS: Final = 1.0
"""How often the space is measured: within that, writes may go beyond a bound."""
RECLAIM_SECONDS: Final = 10.0
"""How often files are rewritten at most, if that may end an alarm."""
RECLAIM_PAUSES: Final = 4.0
"""Nor more than a fifth of the time."""

_FREEING_OPERATIONS: Final = frozenset({"get", "list", "delete", "delete_range"})


@dataclass(frozen=True, slots=True)
class Space:
    """What a look at the disk has found, in bytes."""

    store_bytes: int = 0
    """Log and state."""

    free_bytes: int | None = None
    """Left in the file system; None if the store is in memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    quota_bytes: int = 0
    """What log and state may grow to; 0 is no limit."""

    min_free_bytes: int = 0
    """What is to be left in the file system."""

    def alarms(self, node: str, space: Space, before: Iterable[Alarm] = ()) -> list[Alarm]:
        """What is wrong, where this was wrong before: what is barely better is not well yet."""
        had = {alarm.kind for alarm in before}
        alarms: list[Alarm] = []
        quota, store = self.quota_bytes, space.store_bytes
        if quota and store >= (quota * 9 // 10 if Alarm.QUOTA in had else quota):
            text = f"the store of {node} takes {store:,} bytes, and its quota is {quota:,}"
            alarms.append(Alarm(kind=Alarm.QUOTA, node=node, message=text))
        least, free = self.min_free_bytes, space.free_bytes
        if free is not None and free < (least * 5 // 4 if Alarm.LOW_SPACE in had else least):
            text = f"the disk of {node} has {free:,} bytes left, and {least:,} are to be kept free"
            alarms.append(Alarm(kind=Alarm.LOW_SPACE, node=node, message=text))
        return alarms


class Watchman:
    """Looks after the space of one node. `run` ends when it is cancelled."""

    def __init__(
        self, node: str, storage: Storage, bounds: Bounds, *, changed: Callable[[], None]
    ) -> None:
        """Begin without a look. `changed` is called when alarms have begun or ended."""
        self.bounds = bounds
        self.space = Space()
        self.alarms: Sequence[Alarm] = ()
        self._node = node
        self._storage = storage
        self._changed = changed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvorum-space")
        self._next_reclaim = 0.0

    async def run(self) -> None:
        """Look, again and again. Raises StorageError: the disk has failed."""
        loop = asyncio.get_running_loop()
        while True:
            self._heed(await loop.run_in_executor(self._thread, self._measure))
            if self.alarms and loop.time() >= self._next_reclaim and self._may_reclaim():
                began = loop.time()
                await loop.run_in_executor(self._thread, self._storage.state.reclaim)
                took = loop.time() - began
                self._next_reclaim = loop.time() + max(RECLAIM_SECONDS, RECLAIM_PAUSES * took)
            await asyncio.sleep(PERIOD_SECONDS)

    def close(self) -> None:
        """Let the thread end, after what it does. Requires that `run` has ended."""
        self._thread.shutdown()

    def _measure(self) -> Space:
        storage = self._storage
        try:
            store = storage.log.size_bytes() + storage.state.size_bytes()
            return Space(store, None if storage.path is None else disk_usage(storage.path).free)
        except OSError as error:
            raise StorageError(f"cannot measure {storage.path}: {error.strerror}") from error

    def _heed(self, space: Space) -> None:
        before = {alarm.kind for alarm in self.alarms}
        self.space = space
        self.alarms = self.bounds.alarms(self._node, space, self.alarms)
        if before != {alarm.kind for alarm in self.alarms}:
            self._changed()

    def _may_reclaim(self) -> bool:
        """Files are written anew before the old ones go: that must not fill the disk."""
        free = self.space.free_bytes
        return free is None or free >= self.space.store_bytes + self.bounds.min_free_bytes


def takes_space(call: Call) -> bool:
    """Whether the call is a write that may make the store larger for good."""
    match call.WhichOneof("request"):
        case "put":
            return True
        case "txn":
            transaction = call.txn.transaction
            branches = (transaction.operations, transaction.otherwise)
            return not all(_frees(one) for branch in branches for one in branch)
        case _:
            return False


def quota_exceeded(alarm: Alarm) -> QuotaExceeded:
    """The error of a write that is refused because of the alarm."""
    return QuotaExceeded(
        f"{alarm.message}. Writes are refused; reads, deletes and `kvorum compact` go on, and"
        " writes do by themselves once there is room",
        node=alarm.node,
        limit="quota_bytes" if alarm.kind == Alarm.QUOTA else "min_free_bytes",
    )


def _frees(operation: Operation) -> bool:
    return operation.WhichOneof("operation") in _FREEING_OPERATIONS
