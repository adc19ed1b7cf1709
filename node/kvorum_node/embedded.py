"""A node of its own inside the process of its only client: `memory:` and a directory.

It is a group of one voter, with the same log and the same state machine as a
cluster, and without a network. In memory it keeps its promises as long as the
process lives; on a directory, an acknowledged write is on the disk, and a write is refused
before the disk is full. (How much of it the store may take is the program's own affair: it has
no quota.)
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from kvorum.errors import DataDirectoryMismatch
from kvorum_node.node import Node, Timing, listing
from kvorum_node.raft.types import NodeId
from kvorum_node.space import MIN_FREE_BYTES, Bounds
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.watches import WatchStream
from kvorumpb.v1.cluster_pb2 import SaveSnapshotResponse
from kvorumpb.v1.kv_pb2 import Call, Reply

_LOG_MAX_BYTES = 16 << 20
"""There is no follower to keep a longer log for."""

_APPLYING_SECONDS = 60.0
"""How long what a crash has left in the log may take to be applied."""


class EmbeddedNode:
    """Opened by `open`, closed by `close`; both on the same event loop."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @classmethod
    async def open(cls, directory: Path | None) -> "EmbeddedNode":
        """Open the store in the directory, or a new one in memory if it is None.

        Raises:
            DataDirectoryInUse, DataDirectoryMismatch, StorageError
        """
        if directory is None:
            storage = Storage.memory(Identity(cluster_id="memory", node_id=NodeId(1)))
        else:
            storage = Storage.open(directory, None)
        try:
            alone = {storage.identity.node_id: ""}
            node = Node(
                storage,
                alone,
                timing=Timing(),
                log_max_bytes=_LOG_MAX_BYTES,
                bounds=Bounds(min_free_bytes=MIN_FREE_BYTES),
            )
            _refuse_members(node, alone)
        except BaseException:
            storage.close()
            raise
        node.start()
        await node.wait_leader()
        return cls(node)

    async def execute(self, calls: Sequence[Call]) -> list[Reply]:
        """Serve calls; errors of a call are in its reply."""
        return await self._node.dispatcher.execute(calls)

    def open_watches(self) -> WatchStream:
        """A place for watches. Raises ShuttingDown once the node is closed."""
        return self._node.watches.open_stream()

    async def save_snapshot(self) -> AsyncGenerator[SaveSnapshotResponse, None]:
        """Everything that was acknowledged, to be kept; also what a crash left in the log alone.

        Raises as Backups.save; DeadlineExceeded if the log takes too long to apply.
        """
        await self._node.group.read(
            deadline=asyncio.get_running_loop().time() + _APPLYING_SECONDS, lease=False
        )
        async with aclosing(self._node.backups.save()) as parts:
            async for part in parts:
                yield part

    async def close(self) -> None:
        """Finish what is under way, flush, and release the directory."""
        await self._node.stop()


def _refuse_members(node: Node, alone: Mapping[NodeId, str]) -> None:
    """A node that has peers must not go on without them."""
    if node.group.addresses != alone:
        raise DataDirectoryMismatch(
            f"the data directory belongs to {node} of a cluster with the members"
            f" {listing(node.group.addresses)}: it cannot be opened as a store of its own"
        )
