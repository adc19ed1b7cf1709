"""What a version does not understand stops it, before anything of the call is written."""

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import FORMAT, Machine, UnknownCommand
from kvorum_node.raft.types import Entry, EntryKind, Index, Term
from kvorumpb.v1.command_pb2 import (
    Check,
    Command,
    CommandBatch,
    Operation,
    PutOperation,
    Transaction,
)
from tests.support.commands import entry, exists, put, run_one, transaction

GOOD = transaction(put(b"good"))

# Field 15 of Operation, Check and Command, as a later version might define it.
LATER_FIELD = b"\x7a\x00"


def _entry(data: bytes, index: int = 3) -> Entry:
    return Entry(Index(index), Term(1), EntryKind.COMMANDS, data)


def _batch(*commands: Command, version: int = FORMAT) -> bytes:
    return CommandBatch(format=version, log_time_ms=99, commands=commands).SerializeToString()


def _commands(*transactions: Transaction) -> bytes:
    return _batch(*(Command(transaction=each) for each in transactions))


UNKNOWN = {
    "format 0": _batch(Command(transaction=GOOD), version=0),
    "format above": _batch(Command(transaction=GOOD), version=FORMAT + 1),
    "empty data": b"",
    "not protobuf": b"\xff\xff\xff",
    "cut short": _commands(GOOD)[:-1],
    "a command of no kind": _batch(Command(transaction=GOOD), Command()),
    "a later command": _batch(Command(transaction=GOOD), Command.FromString(LATER_FIELD)),
    "an operation of no kind": _commands(GOOD, transaction(put(b"a"), Operation())),
    "a later operation": _commands(GOOD, transaction(Operation.FromString(LATER_FIELD))),
    "an operation in the branch that would not run": _commands(
        GOOD, transaction(put(b"a"), otherwise=[Operation()])
    ),
    "an operation behind a check that fails": _commands(
        GOOD, transaction(Operation(), checks=[exists(b"none")])
    ),
    "a check without a condition": _commands(GOOD, transaction(checks=[Check(key=b"a")])),
    "a check after one that fails": _commands(
        GOOD, transaction(checks=[exists(b"none"), Check(key=b"a")])
    ),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_the_unknown_stops_the_node_and_leaves_no_trace(machine: Machine, data: bytes) -> None:
    run_one(machine, put(b"before"))
    before = machine.content_hash().step()
    with pytest.raises(UnknownCommand, match="entry 3@1") as raised:
        machine.apply([entry(2, GOOD, log_time_ms=50), _entry(data)])
    assert isinstance(raised.value, StorageError)
    assert not raised.value.retryable
    assert (machine.applied, machine.revision, machine.log_time_ms) == (1, 1, 0)
    assert machine.content_hash().step() == before


def test_a_newer_format_is_named(machine: Machine) -> None:
    with pytest.raises(UnknownCommand, match="has format 7, and this version knows 1"):
        machine.apply([_entry(_batch(version=7), index=1)])


def test_the_known_is_applied_whatever_stands_beside_it(machine: Machine) -> None:
    """A field that is unknown within a known format is the writer's business, as in protobuf."""
    operation = Operation(
        put=PutOperation.FromString(put(b"a").put.SerializeToString() + b"\x78\1")
    )
    machine.apply([_entry(_commands(transaction(operation)), index=1)])
    assert machine.get(b"a") is not None
