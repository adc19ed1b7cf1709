"""Snapshots for people to keep: the whole state of this node, as it has applied it.

    header     what the state is of: cluster, position in the log, revision, log time
    chunks     the stream of machine/snapshot.py, read from a view that was pinned before
    trailer    a checksum of the chunks, and the content hash of their rows

Rules:
- Any node gives its own state, with or without a leader. Who wants all that was
  acknowledged asks the leader how far that is, and a node that has come so far
  (kvorum/backups.py).
- A chunk is read when the one before was taken, and the loop is free in between: at least half
  of the time belongs to everybody else. So a snapshot costs one chunk of memory. What it costs
  the disk is what changes meanwhile, which the engine has to keep: so there are
  limits.MAX_SNAPSHOTS_BEING_SAVED at a time, and who takes nothing is given up by the caller.
- A node that is to stop gives none, and ends those that are under way.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from hashlib import blake2b
from typing import Final

import kvorum
from kvorum import limits
from kvorum.errors import KvorumError, NoLeader, Overloaded
from kvorum.snapshot_file import CHECKSUM_BYTES
from kvorum_node.group import Group
from kvorum_node.machine import RowHasher
from kvorum_node.raft.log import Compacted
from kvorum_node.raft.types import node_name
from kvorum_node.storage.data_directory import Storage
from kvorumpb.v1.cluster_pb2 import BackupHeader, BackupTrailer, SaveSnapshotResponse

STALLED_SECONDS: Final = 60.0
"""A caller that takes no part for so long is given up."""


class Backups:
    """Those of one node."""

    def __init__(self, group: Group, storage: Storage, *, wall_ms: Callable[[], int]) -> None:
        """Begin with none. `wall_ms` is the time of the day."""
        self._group = group
        self._storage = storage
        self._wall_ms = wall_ms
        self._under_way = 0
        self._closed: KvorumError | None = None

    def close(self, why: KvorumError) -> None:
        """Give no more of any snapshot: those under way end with the error, and so do new ones."""
        self._closed = self._closed or why

    async def save(self) -> AsyncGenerator[SaveSnapshotResponse, None]:
        """The state as it is now: a header, chunks, a trailer.

        Raises:
            Overloaded: too many are under way, or the node takes over its leader's state.
            NoLeader: the node has applied nothing yet.
            ShuttingDown, StateCorrupt: the node is to stop.
            StorageError: the state cannot be read.
        """
        self._refuse_if_closed()
        if self._under_way >= limits.MAX_SNAPSHOTS_BEING_SAVED:
            raise Overloaded(
                f"this node gives {self._under_way} snapshots already, as many as it may: try again"
                " later, or take one from another node",
                limit="MAX_SNAPSHOTS_BEING_SAVED",
                maximum=limits.MAX_SNAPSHOTS_BEING_SAVED,
            )
        self._under_way += 1
        try:
            estimated_bytes = await asyncio.to_thread(self._storage.state.size_bytes)
            self._refuse_if_closed()
            hasher = RowHasher()
            with closing(self._group.machine.read_snapshot(hasher)) as reader:
                yield SaveSnapshotResponse(header=self._header(estimated_bytes))
                loop = asyncio.get_running_loop()
                content, content_bytes = blake2b(digest_size=CHECKSUM_BYTES), 0
                while True:
                    self._refuse_if_closed()
                    started = loop.time()
                    chunk = reader.chunk()
                    content.update(chunk)
                    content_bytes += len(chunk)
                    await asyncio.sleep(loop.time() - started)
                    if not chunk:
                        break
                    yield SaveSnapshotResponse(chunk=chunk)
            yield SaveSnapshotResponse(
                trailer=BackupTrailer(
                    checksum=content.digest(),
                    content_bytes=content_bytes,
                    content_hash=hasher.digest(),
                    record_count=hasher.record_count,
                )
            )
        finally:
            self._under_way -= 1

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _header(self, estimated_bytes: int) -> BackupHeader:
        """Of the state as it is at this moment."""
        group, machine = self._group, self._group.machine
        name = node_name(group.raft.node)
        if not machine.applied:
            raise NoLeader(f"{name} has heard nothing of its cluster yet: it has no state to save")
        try:
            term = group.raft.log.term(machine.applied)
        except Compacted:  # the log begins after a snapshot already, and the state is to follow
            raise Overloaded(f"{name} takes over the state of its leader: try again") from None
        return BackupHeader(
            cluster_id=self._storage.identity.cluster_id,
            node=name,
            version=kvorum.__version__,
            index=machine.applied,
            term=term,
            revision=machine.revision,
            log_time_ms=machine.log_time_ms,
            taken_at_ms=self._wall_ms(),
            estimated_bytes=estimated_bytes,
        )
