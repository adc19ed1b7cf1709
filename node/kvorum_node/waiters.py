"""Who waits for what in one group: submissions, the entries they are in, and reads.

Group (group.py) moves them along; here is what they are, and how they are answered or
refused. Every future is resolved once: what its caller has cancelled is left alone.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvorum import limits
from kvorum.errors import KvorumError, OutcomeUnknown, Overloaded
from kvorum_node.raft.types import Index, Term
from kvorumpb.v1.command_pb2 import TransactionResult

Write = asyncio.Future[list[TransactionResult]]
Read = asyncio.Future[None]


@dataclass(slots=True)
class Submission:
    """Commands that one caller wants answered together."""

    commands: bytes
    """A serialised CommandBatch without its header: such pieces can be joined as bytes."""

    count: int
    deadline: float
    future: Write

    @property
    def is_large(self) -> bool:
        return len(self.commands) > limits.MAX_BATCH_BYTES


@dataclass(slots=True)
class Proposal:
    """An entry on its way, and the submissions in it."""

    term: Term
    submissions: list[Submission]
    large: bool


@dataclass(slots=True)
class Reads:
    deadline: float
    future: Read
    lease: bool


@dataclass(slots=True)
class Confirmed:
    """Reads that may be answered when the state has reached the index."""

    index: Index
    reads: list[Reads]
    timed: bool = False
    """The entry at the index brings a time at which they were under way."""


@dataclass(slots=True)
class Waiters:
    queued: list[Submission] = field(default_factory=list)
    queued_bytes: int = 0
    proposals: dict[Index, Proposal] = field(default_factory=dict)
    reads_queued: list[Reads] = field(default_factory=list)
    reads_asked: dict[int, list[Reads]] = field(default_factory=dict)
    reads_confirmed: deque[Confirmed] = field(default_factory=deque)
    time_wanted: bool = False
    """The first of the confirmed reads need an entry that brings the time along."""


def cut_into_entries(queued: Sequence[Submission]) -> list[list[Submission]]:
    """Share the submissions out to entries of about limits.MAX_BATCH_BYTES."""
    entries: list[list[Submission]] = []
    size = limits.MAX_BATCH_BYTES
    for submission in queued:
        if size >= limits.MAX_BATCH_BYTES:
            entries.append([])
            size = 0
        entries[-1].append(submission)
        size += len(submission.commands)
    return entries


def settle(proposal: Proposal, results: list[TransactionResult]) -> None:
    start = 0
    for one in proposal.submissions:
        end = start + one.count
        if not one.future.done():
            one.future.set_result(results[start:end])
        start = end


def fail(submissions: Sequence[Submission], error: Callable[[], KvorumError]) -> None:
    for one in submissions:
        if not one.future.done():
            one.future.set_exception(error())


def in_doubt(proposal: Proposal, why: str) -> None:
    fail(proposal.submissions, lambda: OutcomeUnknown(f"outcome unknown: {why}"))


def overloaded() -> Overloaded:
    return Overloaded(
        "the node holds as many uncommitted writes as it may; try again soon",
        limit="MAX_UNCOMMITTED_BYTES",
        maximum=limits.MAX_UNCOMMITTED_BYTES,
    )
