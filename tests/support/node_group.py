"""Nodes with real storage and real gRPC between them, all in the process of the test.

    async with NodeGroup(3) as group:         n1, n2, n3
        leader = await group.leader()
        await leader.put(b"k", b"v")
        await group[3].stop()                 and `start`, with what is on its disk
        await group[3].link.cut()             breaks what others send it, until `heal`

Each node is reached through a link that the test can cut. Memory engines keep what
they hold over a stop.
"""

import asyncio
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from kvorum.cli.processes import free_ports
from kvorum_node.machine import ContentHash
from kvorum_node.node import Node, Timing
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import NodeId
from kvorum_node.server import SERVER_OPTIONS
from kvorum_node.services.cluster import ClusterService
from kvorum_node.services.peers import RaftService
from kvorum_node.storage.data_directory import Identity, Storage
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Operation, Transaction
from tests.support.commands import put
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.links import Link
from tests.support.snapshots import hash_of

LOG_MAX_BYTES = 1 << 20
TIMING = Timing(tick_seconds=0.05, election_timeout_seconds=1.5)


class Member:
    """One node, as often as it is started."""

    def __init__(
        self, number: int, directory: Path | None, *, log_max_bytes: int, timing: Timing
    ) -> None:
        self.id = NodeId(number)
        self._log_max_bytes = log_max_bytes
        self._timing = timing
        self._directory = directory and directory / f"n{number}"
        self._memory = Storage.memory(Identity("test", self.id))
        port, self._port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.link = Link(port, self._port)
        self._node: Node | None = None
        self._server: grpc.aio.Server | None = None

    @property
    def node(self) -> Node:
        assert self._node is not None, f"n{self.id} is stopped"
        return self._node

    @property
    def is_up(self) -> bool:
        return self._node is not None

    @property
    def leads(self) -> bool:
        return self.is_up and isinstance(self.node.group.raft.role, Leader)

    async def start(self, addresses: Mapping[NodeId, str] | None) -> None:
        """Start with these members, or with those that the disk knows."""
        if self._directory is None:  # engines that a stop does not close
            storage = replace(self._memory, _resources=ExitStack())
        else:
            storage = Storage.open(self._directory, Identity("test", self.id), fsync=False)
        self._node = node = Node(
            storage, addresses, timing=self._timing, log_max_bytes=self._log_max_bytes
        )
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(
            (RaftService(node).handler(), ClusterService(node).handler())
        )
        self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()
        node.start()

    async def stop(self) -> None:
        if self._node is not None and self._server is not None:
            node, self._node = self._node, None
            await self._server.stop(None)
            await node.stop()

    def lose_disk(self) -> None:
        """Whatever a node that is stopped has kept is gone."""
        if self._directory is None:
            self._memory.close()
            self._memory = Storage.memory(Identity("test", self.id))
        else:
            shutil.rmtree(self._directory)

    async def close(self) -> None:
        await self.stop()
        self._memory.close()

    # What a test asks of a node.

    async def put(self, key: bytes, value: bytes = b"") -> int:
        """Write on the leader; returns the revision."""
        return (await self.write([put(key, value)]))[0]

    async def write(self, operations: Iterable[Operation]) -> list[int]:
        return await self.propose(
            Command(transaction=Transaction(operations=[one])) for one in operations
        )

    async def propose(self, wanted: Iterable[Command]) -> list[int]:
        """Have the commands applied as one entry, on the leader; returns the revisions."""
        commands = CommandBatch(commands=wanted)
        results = await self.node.group.submit(
            commands.SerializeToString(),
            len(commands.commands),
            deadline=asyncio.get_running_loop().time() + DEADLINE_SECONDS,
        )
        return [one.revision for one in results]

    async def fill(self, count: int, size_bytes: int = 1000, *, first: int = 0) -> None:
        """Write so many records, twenty to an entry."""
        for start in range(first, first + count, 20):
            keys = range(start, min(start + 20, first + count))
            await self.write([put(b"%08d" % key, bytes(size_bytes)) for key in keys])

    @property
    def applied(self) -> int:
        return self.node.group.machine.applied

    @property
    def first_index(self) -> int:
        return self.node.group.log.first_index()

    @property
    def members(self) -> set[int]:
        return set(self.node.group.raft.configuration.members)

    def get(self, key: bytes) -> bytes | None:
        """What the node's own state holds."""
        record = self.node.group.machine.get(key)
        return None if record is None else record.value

    def content(self) -> ContentHash:
        return hash_of(self.node.group.machine)


class NodeGroup:
    def __init__(
        self,
        size: int,
        directory: Path | None = None,
        *,
        log_max_bytes: int = LOG_MAX_BYTES,
        timing: Timing = TIMING,
    ) -> None:
        self._size = size
        self._directory = directory
        self._log_max_bytes = log_max_bytes
        self._timing = timing
        self.members: dict[int, Member] = {}

    def __getitem__(self, number: int) -> Member:
        return self.members[number]

    async def __aenter__(self) -> Self:
        for number in range(1, self._size + 1):
            await self.make(number)
        addresses = {member.id: member.address for member in self.members.values()}
        for member in self.members.values():
            await member.start(addresses)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(member.close() for member in self.members.values()))
        for member in self.members.values():
            await member.link.__aexit__(None, None, None)

    async def make(self, number: int) -> Member:
        """A node that is not started, and of which nobody knows."""
        member = self.members[number] = Member(
            number, self._directory, log_max_bytes=self._log_max_bytes, timing=self._timing
        )
        await member.link.__aenter__()
        return member

    async def leader(self) -> Member:
        """The one that leads, and has an entry of its term committed."""

        def leading() -> list[Member]:
            return [
                one
                for one in self.members.values()
                if one.leads
                and isinstance(role := one.node.group.raft.role, Leader)
                and role.established
            ]

        await eventually(leading)
        return max(leading(), key=lambda one: one.node.group.raft.term)

    async def same(self, *numbers: int) -> None:
        """Wait until these nodes, all if none is named, have applied the same, and compare it."""
        members = [self[number] for number in numbers or sorted(self.members)]
        await eventually(lambda: len({one.applied for one in members}) == 1)
        contents = [one.content() for one in members]
        assert len({one.digest for one in contents}) == 1, contents
