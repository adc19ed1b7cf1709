"""Snapshots on their way: to followers that the log has left behind, and from a leader.

    leader                                               follower
    pins its state, at 812@4  ──header, chunks──▶  stages it beside its own state, syncs it,
    reports to its core       ◀──────index───────  and steps InstallSnapshot: the core decides

Rules:
- Between a request of the core (`Ready.snapshots_to`) and its report there is one
  stream to a follower, and a group receives one at a time. It is read and written a
  chunk at a time, with the loop free in between: nothing else waits for it.
- The state that is staged counts for nothing before the core has taken it. A stream
  that breaks is forgotten, at both ends, and the next one begins anew.
- How the chunks travel is the host's affair (`Stream`): transport.py over gRPC.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol
from zlib import crc32

from kvorum.errors import StorageError
from kvorum_node.figures import Figures
from kvorum_node.group import Group
from kvorum_node.machine.snapshot import (
    MAX_UNSYNCED_BYTES,
    SnapshotDamaged,
    SnapshotReader,
    Staging,
)
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.messages import InstallSnapshot, Message
from kvorum_node.raft.types import GroupId, Index, NodeId, Position, Term, node_name

STALLED_SECONDS: Final = 30.0
"""A follower that takes no chunk for so long is given up. It may be syncing meanwhile."""

RETRY_SECONDS: Final = 1.0
"""A failure is reported so much later: the core asks again at the next sign of life, which a
follower that cannot take a snapshot gives many times a second."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a snapshot is of, and who sends it."""

    group: GroupId
    sender: NodeId
    recipient: NodeId
    term: Term
    """Of the leader that sends it."""

    last: Position
    """The last entry that the state has applied."""

    configuration: Configuration
    """The one at that entry."""


@dataclass(frozen=True, slots=True)
class Chunk:
    data: bytes
    checksum: int
    """CRC32 of all data so far, this chunk included."""

    last: bool = False


class SnapshotFailed(Exception):
    """The snapshot did not get there, or was not taken; the text says why."""


Stream = Callable[[NodeId, Header, AsyncIterator[Chunk]], Awaitable[Index]]
"""Carries a snapshot to a node; returns what `Snapshots.receive` returns there.

It takes the next chunk only when the recipient has room for it, and raises
SnapshotFailed if it breaks or is refused.
"""


class Host(Protocol):
    """What the driver does for this file."""

    @property
    def groups(self) -> Mapping[GroupId, Group]: ...

    def wake(self) -> None:
        """A report is due."""

    def deliver(self, group: GroupId, message: Message) -> asyncio.Future[bool]:
        """Step the message; true once all that follows is carried out, false if it will not be."""

    async def flush_state(self) -> None:
        """Put everything that was written to the state engine on the disk."""

    def fail(self, error: Exception) -> None:
        """End the node: its disk cannot be trusted."""


@dataclass(slots=True, eq=False)
class _Sending:
    group: Group
    node: NodeId
    term: Term
    turn: asyncio.Lock
    """Held while a stream to the follower is open: also one of an earlier leadership."""

    kept_from: Index | None = None
    """The log after it will be needed by the follower, once it has the snapshot."""

    task: asyncio.Task[Index | None] = field(init=False)


@dataclass(slots=True, eq=False)
class _Receiving:
    header: Header
    task: asyncio.Task[None]


class Snapshots:
    def __init__(self, host: Host, stream: Stream, figures: Figures) -> None:
        self._host = host
        self._figures = figures
        self._stream = stream
        self._sending: dict[tuple[GroupId, NodeId], _Sending] = {}
        self._receiving: dict[GroupId, _Receiving] = {}
        self._installing: dict[GroupId, asyncio.Future[bool]] = {}

    async def close(self) -> None:
        """End everything that is under way."""
        tasks: list[asyncio.Task[Index | None] | asyncio.Task[None]] = [
            *(one.task for one in self._sending.values()),
            *(one.task for one in self._receiving.values()),
        ]
        self._receiving.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Sending.

    def send(self, group: Group, node: NodeId) -> None:
        """Begin to send the state of the group, which this node leads, to a follower."""
        before = self._sending.get((group.id, node))
        if before is not None and before.term == group.raft.term:
            return  # the follower got on some other way meanwhile; one report answers both
        turn = before.turn if before is not None else asyncio.Lock()
        sending = _Sending(group, node, group.raft.term, turn)
        sending.task = asyncio.create_task(self._send(sending))
        self._sending[group.id, node] = sending

    def report(self) -> None:
        """Tell the cores what became of the snapshots that they asked for."""
        for key, sending in tuple(self._sending.items()):
            if sending.task.done():
                del self._sending[key]
                if sending.term == sending.group.raft.term:  # or else nobody remembers the request
                    index = None if sending.task.cancelled() else sending.task.result()
                    sending.group.raft.report_snapshot(sending.node, index)

    def observe(self, group: Group) -> None:
        """End what makes no sense any more: leadership was lost, or a member was removed."""
        for sending in self._sending.values():
            wanted = (
                _leads_in(group, sending.term) and sending.node in group.raft.configuration.members
            )
            if sending.group is group and not wanted and not sending.task.cancelling():
                sending.task.cancel()

    def kept_from(self, group: Group) -> Index:
        """The log after it must not be cut, or the snapshots under way will have been in vain."""
        return min(
            (
                one.kept_from
                for one in self._sending.values()
                if one.group is group and one.kept_from is not None
            ),
            default=group.machine.applied,
        )

    async def _send(self, sending: _Sending) -> Index | None:
        """Returns what to report."""
        try:
            async with sending.turn:
                index = await self._send_state(sending)
            if index is None:
                await asyncio.sleep(RETRY_SECONDS)
        except StorageError as error:
            self._host.fail(error)
            return None
        finally:
            self._host.wake()
        return index

    async def _send_state(self, sending: _Sending) -> Index | None:
        group, name = sending.group, node_name(sending.node)
        if not _leads_in(group, sending.term):
            return None  # while it waited for its turn, another one may have become the leader
        with closing(group.machine.read_snapshot()) as reader:
            header = _header(sending, reader.applied)
            sending.kept_from = header.last.index
            group.logger.info("sends %s a snapshot at %s", name, header.last)
            try:
                await self._stream_to(sending.node, header, reader)
            except (SnapshotFailed, TimeoutError) as error:
                sending.kept_from = None
                self._figures.snapshots_send_failures += 1
                why = str(error) or f"it has taken nothing for {STALLED_SECONDS:g} s"
                group.logger.warning(
                    "could not send %s the snapshot at %s: %s", name, header.last, why
                )
                return None
        self._figures.snapshots_sent += 1
        group.logger.info("has sent %s the snapshot at %s", name, header.last)
        return header.last.index

    async def _stream_to(self, node: NodeId, header: Header, reader: SnapshotReader) -> None:
        async with (
            asyncio.timeout(STALLED_SECONDS) as patience,
            aclosing(_chunks(reader, patience)) as chunks,
        ):
            await self._stream(node, header, chunks)

    # Receiving.

    async def receive(self, header: Header, chunks: AsyncIterator[Chunk]) -> Index:
        """Take a snapshot in; returns once the core has it, or did not need it.

        Raises:
            SnapshotFailed: this node is as it was before.
        """
        group = self._host.groups.get(header.group)
        if group is None:
            raise SnapshotFailed(f"{node_name(header.recipient)} has no group {header.group}")
        await self._wait_for_turn(header)
        if header.term < group.raft.term:
            raise SnapshotFailed(
                f"{node_name(header.sender)} led in term {header.term}, and it is"
                f" term {group.raft.term} now"
            )
        if header.last.index <= group.raft.log.committed:
            return header.last.index
        task = asyncio.create_task(self._receive(group, header, chunks))
        receiving = self._receiving[header.group] = _Receiving(header, task)
        try:
            await task
        except asyncio.CancelledError:
            if receiving is self._receiving.get(header.group):
                raise  # by the caller
            raise SnapshotFailed("it gave way to a newer one, or the node has stopped") from None
        finally:
            if receiving is self._receiving.get(header.group):
                del self._receiving[header.group]
        return header.last.index

    async def _wait_for_turn(self, header: Header) -> None:
        """Return when no other snapshot of the group is under way, at once if possible."""
        while True:
            installing = self._installing.get(header.group)
            if installing is not None:  # the core may take what is staged: leave it alone
                await asyncio.wait([installing])
                continue
            current = self._receiving.get(header.group)
            if current is None:
                return
            is_newer = header.term > current.header.term
            if not is_newer and header.sender != current.header.sender:
                raise SnapshotFailed(
                    f"{node_name(header.recipient)} is receiving one from"
                    f" {node_name(current.header.sender)}"
                )
            del self._receiving[header.group]
            current.task.cancel()
            await asyncio.wait([current.task])

    async def _receive(self, group: Group, header: Header, chunks: AsyncIterator[Chunk]) -> None:
        sender = node_name(header.sender)
        group.logger.info("receives a snapshot at %s from %s", header.last, sender)
        try:
            await self._stage(group, header, chunks)
            await self._install(group, header)
        except (SnapshotDamaged, SnapshotFailed) as error:
            self._figures.snapshots_receive_failures += 1
            group.logger.warning(
                "has no use for the snapshot at %s from %s: %s", header.last, sender, error
            )
            raise SnapshotFailed(str(error)) from error
        except StorageError as error:
            self._host.fail(error)
            raise SnapshotFailed(str(error)) from error
        self._figures.snapshots_received += 1
        group.logger.info("has the snapshot at %s from %s", header.last, sender)

    async def _stage(self, group: Group, header: Header, chunks: AsyncIterator[Chunk]) -> None:
        staging = group.machine.stage_snapshot()
        try:
            await self._write_chunks(staging, chunks)
            staging.finish(header.last.index)
            await self._host.flush_state()
        except BaseException:
            group.machine.discard_staged()  # it may be large, and the next one may come late
            raise

    async def _write_chunks(self, staging: Staging, chunks: AsyncIterator[Chunk]) -> None:
        checksum = 0
        async for chunk in chunks:
            checksum = crc32(chunk.data, checksum)
            if checksum != chunk.checksum:
                raise SnapshotFailed("it was damaged on its way")
            staging.write(chunk.data)
            if chunk.last:
                return
            if staging.unsynced_bytes >= MAX_UNSYNCED_BYTES:
                await self._host.flush_state()
                staging.synced()
        raise SnapshotFailed("the stream has ended before the snapshot did")

    async def _install(self, group: Group, header: Header) -> None:
        """Have the core take what is staged. From here on there is no way back.

        What becomes of it does not depend on the stream any more, which may end meanwhile.
        """
        message = InstallSnapshot(
            sender=header.sender,
            recipient=header.recipient,
            term=header.term,
            last=header.last,
            configuration=header.configuration,
        )
        installing = self._installing[group.id] = self._host.deliver(group.id, message)
        installing.add_done_callback(partial(self._end_install, group))
        if not await asyncio.shield(installing):
            raise SnapshotFailed("the node has stopped")
        if group.raft.log.committed < header.last.index:
            raise SnapshotFailed(f"it came too late: it is term {group.raft.term} now")

    def _end_install(self, group: Group, installing: asyncio.Future[bool]) -> None:
        del self._installing[group.id]
        if not installing.result():
            return  # the node has stopped, perhaps halfway: its next start decides
        try:
            group.machine.discard_staged()  # if the core had no use for it
        except StorageError as error:
            self._host.fail(error)


def _leads_in(group: Group, term: Term) -> bool:
    return isinstance(group.raft.role, Leader) and group.raft.term == term


def _header(sending: _Sending, applied: Index) -> Header:
    group = sending.group
    return Header(
        group=group.id,
        sender=group.raft.node,
        recipient=sending.node,
        term=sending.term,
        last=Position(applied, group.raft.log.term(applied)),
        configuration=group.members.configuration_at(applied),
    )


async def _chunks(reader: SnapshotReader, patience: asyncio.Timeout) -> AsyncGenerator[Chunk, None]:
    """All of the state. Each chunk that is asked for proves that the one before was taken."""
    loop = asyncio.get_running_loop()
    checksum = 0
    while True:
        started = loop.time()
        patience.reschedule(started + STALLED_SECONDS)
        data = reader.chunk()
        checksum = crc32(data, checksum)
        # Reading takes some milliseconds: at least as many belong to everybody else.
        await asyncio.sleep(loop.time() - started)
        yield Chunk(data, checksum, last=not data)
        if not data:
            return
