"""What a version does not understand stops it, before anything of the call is written."""

import re
from typing import Any

import pytest

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine import FORMAT, Machine, UnknownCommand
from kvorum_node.raft.types import Entry, EntryKind, Index, Term
from kvorumpb.v1.command_pb2 import (
    Check,
    Command,
    CommandBatch,
    Compaction,
    KeyRange,
    ListOperation,
    Operation,
    RateLimit,
    RateLimitOperation,
    RegisterClient,
    Sweep,
    Transaction,
    Verdict,
    Verification,
)
from tests.support.commands import delete, entry, exists, indexed, put, run_one, transaction

GOOD = transaction(put(b"good"))

# Field 15 of Operation, Check and Command, as a later version might define it.
LATER_FIELD = b"\x7a\x00"

# A value of an enum is no field: it is kept as the number it is.
LATER_LIMIT = RateLimit.FromString(b"\x10\x63" + RateLimit(key=b"r").SerializeToString())


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
    "a later operation in the branch that would not run": _commands(
        GOOD, transaction(put(b"a"), otherwise=[Operation.FromString(LATER_FIELD)])
    ),
    "a later operation behind a check that fails": _commands(
        GOOD, transaction(Operation.FromString(LATER_FIELD), checks=[exists(b"none")])
    ),
    "a check without a condition": _commands(GOOD, transaction(checks=[Check(key=b"a")])),
    "a check of an empty range without a condition": _commands(
        GOOD, transaction(checks=[Check(range=KeyRange(start=b"x"))])
    ),
    "a later check": _commands(GOOD, transaction(checks=[Check.FromString(LATER_FIELD)])),
    "a later check after one that fails": _commands(
        GOOD, transaction(checks=[exists(b"none"), Check.FromString(LATER_FIELD)])
    ),
    "a later algorithm": _commands(
        GOOD, transaction(Operation(rate_limit=RateLimitOperation(limits=[LATER_LIMIT])))
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


@pytest.mark.parametrize(
    "idle",
    [
        transaction(put(b"a"), otherwise=[Operation()]),
        transaction(Operation(), checks=[exists(b"none")]),
        transaction(checks=[exists(b"none"), Check(key=b"a")]),
        transaction(
            put(b"a"), otherwise=[Operation(rate_limit=RateLimitOperation(limits=[LATER_LIMIT]))]
        ),
    ],
    ids=["other branch", "behind a check that fails", "second check", "algorithm"],
)
def test_what_no_version_would_carry_out_stops_nobody(machine: Machine, idle: Transaction) -> None:
    """No field tells of it. Where it would be carried out, it stops the node: see above."""
    machine.apply([_entry(_commands(GOOD, idle), index=1)])
    assert machine.applied == 1
    assert machine.get(b"good") is not None


def test_a_newer_format_is_named(machine: Machine) -> None:
    with pytest.raises(UnknownCommand, match="has format 7, and this version knows 1"):
        machine.apply([_entry(_batch(version=7), index=1)])


# Fields that a later version might add to what this one knows. Field 15 is a varint, or a message.
LATER_NUMBER = b"\x78\1"
LATER_MESSAGE = b"\x7a\2\x08\1"


def _later(path: tuple[str | int, ...], later: bytes, padding: int = 0) -> bytes:
    """A batch in which the message at the path has a later field."""
    batch = CommandBatch(format=FORMAT, log_time_ms=99)
    value = b"v" * padding
    limit = RateLimit(key=b"r", algorithm=RateLimit.GCRA, limit=1, window_ms=1)
    for kind in (
        transaction(
            put(b"a", value, entries=[indexed("i", b"x")]),
            Operation(list=ListOperation(range=KeyRange(start=b"a"))),
            Operation(rate_limit=RateLimitOperation(limits=[limit])),
            checks=[Check(range=KeyRange(start=b"a"), exists=True)],
            otherwise=[delete(b"a")],
        ),
        RegisterClient(),
        Sweep(),
        Compaction(),
        Verification(),
        Verdict(),
    ):
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(kind).__name__).lower()
        batch.commands.add(**{name: kind})
    message: Any = batch
    for step in path:
        message = message[step] if isinstance(step, int) else getattr(message, step)
    message.MergeFromString(later)
    return batch.SerializeToString()


PATHS: dict[str, tuple[str | int, ...]] = {
    "the batch": (),
    "a command": ("commands", 0),
    "a transaction": ("commands", 0, "transaction"),
    "an operation": ("commands", 0, "transaction", "operations", 0),
    "a put": ("commands", 0, "transaction", "operations", 0, "put"),
    "an index entry": ("commands", 0, "transaction", "operations", 0, "put", "index_entries", 0),
    "a range": ("commands", 0, "transaction", "operations", 1, "list", "range"),
    "a rate limit": ("commands", 0, "transaction", "operations", 2, "rate_limit", "limits", 0),
    "the other branch": ("commands", 0, "transaction", "otherwise", 0, "delete"),
    "a check": ("commands", 0, "transaction", "checks", 0),
    "a range of a check": ("commands", 0, "transaction", "checks", 0, "range"),
    "a registration": ("commands", 1, "register_client"),
    "a sweep": ("commands", 2, "sweep"),
    "a compaction": ("commands", 3, "compaction"),
    "a verification": ("commands", 4, "verification"),
    "a verdict": ("commands", 5, "verdict"),
}


@pytest.mark.parametrize("padding", [0, limits.MAX_BATCH_BYTES + 1], ids=["small", "large"])
@pytest.mark.parametrize("later", [LATER_NUMBER, LATER_MESSAGE], ids=["number", "message"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_a_field_of_a_later_version_stops_the_node(
    machine: Machine, path: tuple[str | int, ...], later: bytes, padding: int
) -> None:
    """To carry out a put without what was added to it would part this node from the others."""
    with pytest.raises(UnknownCommand, match="entry 1@1 has a field that this version does not"):
        machine.apply([_entry(_later(path, later, padding), index=1)])
    assert (machine.applied, machine.revision) == (0, 0)
    known = _entry(_later(path, b"", padding), index=1)
    machine.apply([known])
    assert machine.applied == 1


@pytest.mark.parametrize("padding", [0, limits.MAX_BATCH_BYTES + 1], ids=["small", "large"])
def test_an_encoding_that_is_longer_than_it_need_be_is_no_unknown_field(
    machine: Machine, padding: int
) -> None:
    """Another encoder may write what is the default, and say a field twice."""
    data = _commands(transaction(put(b"a", b"v" * padding)))
    longer = b"\x08\0" + b"\x08\x82\0" + data  # the format: first 0, then 2 in two bytes
    machine.apply([_entry(longer, index=1)])
    assert machine.get(b"a") is not None
    with pytest.raises(UnknownCommand, match="a field that this version does not know"):
        machine.apply([_entry(longer + LATER_NUMBER, index=2)])


def test_every_message_that_a_log_may_have_is_looked_into() -> None:
    """Whatever is added to command.proto: what is in a CommandBatch is found by its description."""
    reached, left = set(), [CommandBatch.DESCRIPTOR]
    while left:
        descriptor = left.pop()
        if descriptor.full_name in reached:
            continue
        reached.add(descriptor.full_name)
        for field in descriptor.fields:
            if field.message_type is not None:
                assert not field.message_type.GetOptions().map_entry, "a map is not looked into"
                left.append(field.message_type)
    assert "kvorumpb.v1.IndexEntry" in reached
