"""A hub of watches on a real machine, and short words for what happens to the records."""

from typing import Any

from kvorum_node.machine import FORMAT, Machine
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, Term
from kvorum_node.watches import WatchHub
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    Compaction,
    Operation,
    PutOperation,
    TransactionResult,
)
from tests.support.commands import transaction

GROUP = GroupId(1)


class Vouching:
    """Whether the node hears a leader, and what has failed it."""

    def __init__(self) -> None:
        self.hears_leader = True
        self.failures: list[Exception] = []


def hub_of(machine: Machine, node: Vouching | None = None, **options: Any) -> WatchHub:
    node = node or Vouching()
    return WatchHub(
        machine,
        vouches=lambda: node.hears_leader,
        fail=node.failures.append,
        **options,
    )


def command(machine: Machine, *commands: Command, log_time_ms: int = 0) -> list[TransactionResult]:
    batch = CommandBatch(format=FORMAT, log_time_ms=log_time_ms, commands=commands)
    entry = Entry(
        Index(machine.applied + 1), Term(1), EntryKind.COMMANDS, batch.SerializeToString()
    )
    [results] = machine.apply([entry])
    return results


def write(machine: Machine, *operations: Operation, log_time_ms: int = 0) -> int:
    """One transaction; its revision."""
    one = Command(transaction=transaction(*operations))
    return command(machine, one, log_time_ms=log_time_ms)[0].revision


def put_for(key: bytes, value: bytes, ttl_ms: int) -> Operation:
    return Operation(put=PutOperation(key=key, value=value, ttl_ms=ttl_ms))


def compact(machine: Machine, revision: int, limit: int = 1_000_000) -> None:
    command(machine, Command(compaction=Compaction(revision=revision, limit=limit)))
