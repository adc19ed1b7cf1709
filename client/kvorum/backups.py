"""Taking a snapshot of a cluster, to be kept: from which node, and into a file.

A node gives what it has applied. By default the leader is asked first how far the log is, by
the word of a majority, and the snapshot is taken from a node that has come so far: so all
that was acknowledged before `save` was called is in it. Without a majority there is nobody to
ask, and `stale` takes what a node has.

A node that does not lead is preferred: it has less to do.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import BinaryIO, Final

from kvorum.admin import PAUSE_SECONDS, ClusterAdmin, Status
from kvorum.errors import NoNodeReachable, TooStale
from kvorum.snapshot_file import SnapshotFileDamaged, SnapshotWriter
from kvorumpb.v1.cluster_pb2 import (
    LEADER,
    BackupHeader,
    BackupTrailer,
    SaveSnapshotResponse,
)

TIMEOUT_SECONDS: Final = 30.0
"""To find a node that has everything. How long the snapshot itself takes is not limited."""
SPARE_LEADER_SECONDS: Final = 1.0
"""How long another node is waited for; the leader always has everything."""

Report = Callable[[int, int], None]
"""Told how many bytes have come, and how many it will be, about; 0 if nobody knows."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file holds."""

    header: BackupHeader
    trailer: BackupTrailer
    file_bytes: int


async def save(
    admin: ClusterAdmin,
    sink: BinaryIO,
    report: Report,
    *,
    node: str = "",
    stale: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> Saved:
    """Write a snapshot of the cluster.

    Args:
        node: from which node ("n2"); empty takes one that has everything.
        stale: as it is at the node, or at the one that has come furthest; without
            asking anybody for more.
        timeout: seconds to find out from where.

    Raises:
        NoLeader: nobody can say what was acknowledged; `stale` does not ask.
        NoNodeReachable: no node answers, or not the one that is wanted.
        TooStale: the node lags behind what was acknowledged.
        Overloaded: the node gives as many snapshots as it may.
        SnapshotFileDamaged: it was damaged on its way.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    index = 0 if stale else await admin.confirmed_index(timeout=timeout)
    address = await _choose(admin, node, index, deadline)
    return await write(admin.snapshot(address), sink, report, index=index)


async def write(
    parts: AsyncGenerator[SaveSnapshotResponse, None],
    sink: BinaryIO,
    report: Report,
    *,
    index: int = 0,
) -> Saved:
    """Write what a node gives, which must have applied the index."""
    async with aclosing(parts):
        header = (await anext(parts, SaveSnapshotResponse())).header
        if header.index < index:  # it was started anew since, or is another one
            raise TooStale(f"{header.node} has come to {header.index} alone, not to {index}: retry")
        writer = SnapshotWriter(sink, header)
        async for part in parts:
            if part.HasField("trailer"):
                writer.finish(part.trailer)
                return Saved(header, part.trailer, writer.bytes_written)
            writer.chunk(part.chunk)
            report(writer.bytes_written, header.estimated_bytes)
    raise SnapshotFileDamaged("the node has ended the snapshot before its end: try again")


async def _choose(admin: ClusterAdmin, node: str, index: int, deadline: float) -> str:
    """Where a node is that has applied the index, and is the wanted one, if there is such."""
    loop = asyncio.get_running_loop()
    spare_until = loop.time() + SPARE_LEADER_SECONDS
    while True:
        survey = await admin.survey()
        survey.refuse_several_clusters()
        found = {
            address: status
            for address, status in survey.answers.items()
            if node in ("", status.name)
        }
        spared = index and not node and len(found) > 1 and loop.time() < spare_until
        able = {
            address: status
            for address, status in found.items()
            if status.applied_index >= index and not (spared and status.role == LEADER)
        }
        if able:
            return max(able, key=lambda address: _rank(able[address]))
        if loop.time() >= deadline:
            raise _none_found(node, index, found, tuple(survey.outcomes))
        await asyncio.sleep(PAUSE_SECONDS)


def _rank(status: Status) -> tuple[int, bool]:
    return status.applied_index, status.role != LEADER


def _none_found(
    node: str, index: int, found: dict[str, Status], asked: tuple[str, ...]
) -> NoNodeReachable | TooStale:
    if not found:
        who = f"{node} does not answer" if node else "no node answers"
        return NoNodeReachable(f"{who}: asked {', '.join(asked)}", nodes=asked)
    best = max(found.values(), key=lambda status: status.applied_index)
    return TooStale(
        f"{best.name} has applied {best.applied_index}, and what was acknowledged goes through"
        f" {index}. With --stale it is taken as it is"
    )
