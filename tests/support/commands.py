"""Short words for transactions and entries, and random ones from a seed."""

import random
from collections.abc import Iterable, Sequence

from kvorum_node.machine import FORMAT, Machine
from kvorum_node.raft.types import Entry, EntryKind, Index, Term
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    Command,
    CommandBatch,
    Compaction,
    DeleteOperation,
    GetOperation,
    IndexEntry,
    Operation,
    PutOperation,
    Sweep,
    TouchOperation,
    Transaction,
    TransactionResult,
)


def put(
    key: bytes,
    value: bytes = b"value",
    *,
    ttl_ms: int = 0,
    metadata: bytes = b"",
    entries: Iterable[IndexEntry] = (),
) -> Operation:
    return Operation(
        put=PutOperation(
            key=key, value=value, ttl_ms=ttl_ms, metadata=metadata, index_entries=entries
        )
    )


def indexed(index: str, value: bytes, *, unique: bool = False) -> IndexEntry:
    return IndexEntry(index=index, value=value, unique=unique)


def touch(key: bytes, ttl_ms: int = 0) -> Operation:
    return Operation(touch=TouchOperation(key=key, ttl_ms=ttl_ms))


def get(key: bytes) -> Operation:
    return Operation(get=GetOperation(key=key))


def delete(key: bytes) -> Operation:
    return Operation(delete=DeleteOperation(key=key))


def add(key: bytes, amount: int = 1) -> Operation:
    return Operation(add=AddOperation(key=key, amount=amount))


def at_revision(key: bytes, revision: int) -> Check:
    return Check(key=key, revision=revision)


def exists(key: bytes, present: bool = True) -> Check:
    return Check(key=key, exists=present)


def transaction(
    *operations: Operation,
    checks: Iterable[Check] = (),
    otherwise: Iterable[Operation] = (),
) -> Transaction:
    return Transaction(checks=checks, operations=operations, otherwise=otherwise)


def entry(index: int, *transactions: Transaction, log_time_ms: int = 0) -> Entry:
    commands = [Command(transaction=each) for each in transactions]
    return entry_of(index, *commands, log_time_ms=log_time_ms)


def entry_of(index: int, *commands: Command, log_time_ms: int = 0) -> Entry:
    batch = CommandBatch(format=FORMAT, log_time_ms=log_time_ms, commands=commands)
    return Entry(Index(index), Term(1), EntryKind.COMMANDS, batch.SerializeToString())


def noop(index: int) -> Entry:
    return Entry(Index(index), Term(1))


def run(
    machine: Machine, *transactions: Transaction, log_time_ms: int = 0
) -> list[TransactionResult]:
    """Apply the transactions as the machine's next entry."""
    next_entry = entry(machine.applied + 1, *transactions, log_time_ms=log_time_ms)
    [results] = machine.apply([next_entry])
    return results


def run_command(machine: Machine, command: Command, *, log_time_ms: int = 0) -> TransactionResult:
    """Apply the command as the machine's next entry."""
    [[result]] = machine.apply([entry_of(machine.applied + 1, command, log_time_ms=log_time_ms)])
    return result


def sweep(machine: Machine, limit: int = 1_000, *, log_time_ms: int = 0) -> TransactionResult:
    return run_command(machine, Command(sweep=Sweep(limit=limit)), log_time_ms=log_time_ms)


def compact(machine: Machine, revision: int, limit: int = 10_000) -> TransactionResult:
    return run_command(machine, Command(compaction=Compaction(revision=revision, limit=limit)))


def run_one(
    machine: Machine,
    *operations: Operation,
    checks: Iterable[Check] = (),
    otherwise: Iterable[Operation] = (),
    log_time_ms: int = 0,
) -> TransactionResult:
    """Apply one transaction as the machine's next entry."""
    one = transaction(*operations, checks=checks, otherwise=otherwise)
    [result] = run(machine, one, log_time_ms=log_time_ms)
    return result


KEYS = tuple(
    prefix + suffix
    for prefix in (b"", b"user:", b"user:\xff", b"\xff\xff")
    for suffix in (b"a", b"b", b"\x00", b"counter", b"\xff")
)
"""Few, so that they meet often; with bytes at which ranges and prefixes may go wrong."""

VALUES = (b"", b"0", b"-7", b"41", b"9223372036854775807", b"-9223372036854775808", b"text", b"+1")


def random_transaction(source: random.Random, revision: int) -> Transaction:
    """One to four operations and up to two checks, likely to hold at about the revision."""
    return transaction(
        *(_random_operation(source) for _ in range(source.randint(1, 4))),
        checks=[_random_check(source, revision) for _ in range(source.choice((0, 0, 0, 1, 2)))],
        otherwise=[_random_operation(source) for _ in range(source.choice((0, 1, 2)))],
    )


def random_entries(source: random.Random, count: int) -> Sequence[Entry]:
    """A log from index 1: mostly commands, now and then a NOOP, with clocks that jump."""
    return [
        noop(index)
        if source.random() < 0.1
        else entry(
            index,
            *(random_transaction(source, index) for _ in range(source.randint(0, 4))),
            log_time_ms=source.randrange(10_000),
        )
        for index in range(1, count + 1)
    ]


def _random_operation(source: random.Random) -> Operation:
    key = source.choice(KEYS)
    match source.choice(("put", "put", "get", "delete", "add")):
        case "put":
            return put(key, source.choice(VALUES))
        case "get":
            return get(key)
        case "delete":
            return delete(key)
        case _:
            return add(key, source.choice((1, -1, 5, 2**62, -(2**63))))


def _random_check(source: random.Random, revision: int) -> Check:
    key = source.choice(KEYS)
    if source.random() < 0.5:
        return exists(key, source.random() < 0.5)
    return at_revision(key, source.choice((0, max(0, revision - source.randrange(10)))))
