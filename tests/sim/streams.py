"""Snapshots on the simulated network: a connection between two processes, chunk by chunk.

The sender's side is a snapshots.Stream; the recipient's side ends in Snapshots.receive, as
it does over gRPC. The next chunk leaves when the recipient has taken the one before. A
connection breaks when anything on it is lost, or when a process at one of its ends dies:
the ends notice that each in its own time, the sender as a failure, the recipient as a
cancelled call or as the end of what comes.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import Any

from kvorum_node import wire
from kvorum_node.members import removed_from_cluster
from kvorum_node.raft.types import Index, NodeId
from kvorum_node.snapshots import Chunk, Header, SnapshotFailed
from kvorumpb.v1.raft_pb2 import PeerHello, SnapshotMessage
from tests.sim.host import Host, Process
from tests.sim.network import Network
from tests.sim.scheduler import Scheduler


class Streams:
    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        hosts: dict[NodeId, Host],
        random: Random,
        note: Callable[..., None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.scheduler = scheduler
        self.network = network
        self.random = random
        self.note = note
        self._hosts = hosts
        self._open: list[_Connection] = []

    async def carry(
        self, sender: Process, peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]
    ) -> Index:
        """A snapshots.Stream of the sender's."""
        host = self._hosts.get(peer)
        if host is None:
            raise SnapshotFailed(f"n{peer} does not exist")
        connection = _Connection(self, sender, host)
        self._open.append(connection)
        self.counts["begun"] += 1
        self.note("stream", sender.host, host, header.last)
        try:
            connection.send(connection.accept, _through_wire(header))
            async for chunk in chunks:
                if not await connection.put(chunk):
                    break
            index = await connection.outcome()
            self.counts["completed"] += 1
            return index
        finally:
            self._open.remove(connection)
            connection.hang_up()

    @property
    def under_way(self) -> int:
        return len(self._open)

    def died(self, process: Process) -> None:
        """A process is no more: break what it was connected by."""
        for connection in tuple(self._open):
            if process in (connection.sender, connection.recipient):
                connection.broke()

    def after_a_while(self, action: Callable[[], None]) -> None:
        self.scheduler.after(self.random.randint(0, self.network.late_us), action)


class _Connection:
    def __init__(self, streams: Streams, sender: Process, host: Host) -> None:
        self.sender = sender
        self.recipient: Process | None = None
        self._streams = streams
        self._host = host
        self._there = (sender.host.node, host.node)
        self._back = (host.node, sender.host.node)
        # At the sender's end.
        self._taken: asyncio.Future[None] | None = None
        self._outcome: Index | str | None = None
        # At the recipient's end.
        self._arrived: deque[Chunk] = deque()
        self._ended = False
        self._waiting: asyncio.Future[None] | None = None
        self._receiving: asyncio.Task[Index] | None = None

    # The sender's end.

    def send(self, deliver: Callable[[Any], None], what: object) -> None:
        lost = partial(self._lost, self._streams)
        self._streams.network.send(self._there, what, deliver, lost, once=True)

    async def put(self, chunk: Chunk) -> bool:
        """Pass a chunk on; returns whether another one may follow."""
        if self._outcome is None:
            self._taken = asyncio.get_running_loop().create_future()
            self.send(self._arrive, _chunk_through_wire(chunk))
            await self._taken
        return self._outcome is None

    async def outcome(self) -> Index:
        if self._outcome is None:
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken
        if isinstance(self._outcome, int):
            return self._outcome
        raise SnapshotFailed(str(self._outcome))

    def hang_up(self) -> None:
        """The sender is done with it, one way or the other."""
        if not self._ended:
            self._streams.after_a_while(self._break_recipient)

    def _has_taken(self, _: object) -> None:
        self.sender.call(self._wake_sender)

    def _answered(self, outcome: Index | str) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self.sender.call(self._wake_sender)

    def _wake_sender(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    # The recipient's end.

    def accept(self, header: Header) -> None:
        """The header has arrived."""
        process = self.recipient = self._host.process
        if process is None:
            self.broke()
        else:
            process.call(self._receive, process, header)

    def _receive(self, process: Process, header: Header) -> None:
        if process.group.raft.committed_configuration.has_removed(header.sender):
            self._reply(str(removed_from_cluster(header.sender)))
            return
        receiving = process.driver.snapshots.receive(header, self._chunks())
        self._receiving = process.loop.create_task(receiving)
        self._receiving.add_done_callback(self._received)

    def _received(self, task: "asyncio.Task[Index]") -> None:
        if task.cancelled():
            self._reply("the recipient has given up")
            return
        error = task.exception()
        if error is None:
            self._reply(task.result())
        elif isinstance(error, SnapshotFailed):
            self._reply(str(error))
        elif self.recipient is not None:
            self.recipient.unhandled("a snapshot could not be received", error)

    def _reply(self, outcome: Index | str) -> None:
        self._ended = True
        if self.recipient is not None and not self.recipient.dead:
            lost = partial(self._lost, self._streams)
            self._streams.network.send(self._back, outcome, self._answered, lost, once=True)

    def _arrive(self, chunk: Chunk) -> None:
        self._arrived.append(chunk)  # perhaps before the header: a connection keeps the order
        if self.recipient is not None:
            self.recipient.call(self._wake_recipient)

    async def _chunks(self) -> AsyncIterator[Chunk]:
        lost = partial(self._lost, self._streams)
        while True:
            while not self._arrived:
                if self._ended:
                    return
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
            chunk = self._arrived.popleft()
            self._streams.network.send(self._back, None, self._has_taken, lost, once=True)
            yield chunk

    def _wake_recipient(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # How it breaks.

    def _lost(self, streams: Streams, _: object) -> None:
        streams.counts["broken"] += 1
        self.broke()

    def broke(self) -> None:
        """Neither end will hear of the other any more, which each notices after a while."""
        self._streams.after_a_while(lambda: self._answered("the connection broke"))
        self._streams.after_a_while(self._break_recipient)

    def _break_recipient(self) -> None:
        process = self.recipient
        if self._ended or process is None or process.dead:
            return
        self._ended = True
        if self._streams.random.random() < 0.5:
            process.call(self._wake_recipient)
        elif self._receiving is not None:
            process.call(self._receiving.cancel)


def _through_wire(header: Header) -> Header:
    hello = PeerHello(sender=header.sender, recipient=header.recipient)
    message = wire.encode_header(header, hello)
    decoded = wire.decode_header(SnapshotMessage.FromString(message.SerializeToString()).header)
    if decoded != header:
        raise AssertionError(f"{header} becomes {decoded}")
    return decoded


def _chunk_through_wire(chunk: Chunk) -> Chunk:
    message = wire.encode_chunk(chunk)
    decoded = wire.decode_chunk(SnapshotMessage.FromString(message.SerializeToString()).chunk)
    if decoded != chunk:
        raise AssertionError(f"{chunk} becomes {decoded}")
    return decoded
