"""Forgetting history, which the interface of a store has no word for."""

import asyncio

from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.backends.embedded import EmbeddedBackend
from kvorum.target import Cluster, parse_target
from kvorumpb.v1.command_pb2 import CommandBatch


async def compact(kv: KV, revision: int) -> None:
    """What is older than the revision cannot be read any more, on whatever kind of store."""
    backend = kv._backend
    if isinstance(backend, EmbeddedBackend):
        batch = CommandBatch()
        batch.commands.add().compaction.revision = revision
        deadline = asyncio.get_running_loop().time() + 60
        await backend._node._node.group.submit(batch.SerializeToString(), 1, deadline=deadline)
        return
    target = parse_target(kv._target)
    assert isinstance(target, Cluster)
    async with ClusterAdmin(target.addresses) as admin:
        await admin.compact(revision)
